import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_jax.data import transcripts
from codec_jax.data.corpus import Clip
from codec_jax.data.phones import read_phones
from codec_jax.data.transcripts import Labels
from codec_jax.errors import UserError

PHONES = read_phones()
HELLO = {"word": "hello", "start": 0.1, "end": 0.5, "phones": ["HH", "AH0", "L", "OW1"]}


def never(word, language):
    raise AssertionError(f"asked for {word}")


def write(path, words, **keys):
    path.write_text(json.dumps({"words": words, **keys}), encoding="utf-8")
    return path


def arrays(words):
    """Words of (start, end, classes), built without the reader."""
    rows = [[*classes, 0] for _, _, classes in words]
    return transcripts.Words(
        np.array([start for start, _, _ in words], np.float64),
        np.array([end for _, end, _ in words], np.float64),
        np.cumsum([0, *map(len, rows)], dtype=np.int32),
        np.array([*itertools.chain(*rows)], np.int16),
    )


times = st.integers(0, 24).map(lambda quarter: quarter / 4)  # coarse, so that ends and crops meet
spoken = st.tuples(times, times, st.lists(st.integers(1, 79), min_size=1, max_size=4))
said = st.lists(spoken.map(lambda w: (min(w[:2]), max(w[:2]), w[2])), max_size=6).map(
    lambda w: sorted(w, key=lambda x: x[0])
)


@given(said, times, times)
def test_targets_are_the_words_with_an_end_inside(words, one, other):
    start, end = min(one, other), max(one, other)
    inside = [classes for first, last, classes in words if start <= first < end or start < last <= end]
    want = [phone for classes in inside for phone in [0, *classes]][1:]
    got = transcripts.targets(arrays(words), start, end)
    assert got.dtype == np.int32
    assert got.tolist() == want


@given(said, st.lists(times, min_size=1, max_size=4))
def test_neighbouring_crops_share_only_words_that_straddle(words, cuts):
    edges = [-1.0, *sorted(set(cuts)), 100.0]
    for i, (first, last, classes) in enumerate(words):
        alone = arrays([words[i]])
        holding = [k for k, pair in enumerate(itertools.pairwise(edges)) if transcripts.targets(alone, *pair).size]
        # Each end belongs to one crop (no time at all on an edge: to both); what lies between holds neither.
        starts = np.searchsorted(edges, first, "right") - 1
        ends = np.searchsorted(edges, last, "left") - 1
        assert holding == sorted({starts, ends}), (first, last, classes, edges)


def test_a_word_that_covers_the_crop_is_left_out():
    words = arrays([(0.0, 1.0, [5]), (1.0, 9.0, [6, 7]), (9.0, 10.0, [8])])
    assert transcripts.targets(words, 2.0, 8.0).tolist() == []
    assert transcripts.targets(words, 0.5, 1.5).tolist() == [5, 0, 6, 7]
    assert transcripts.targets(words, 0.0, 10.0).tolist() == [5, 0, 6, 7, 0, 8]
    assert transcripts.targets(words, 10.0, 12.0).tolist() == []


def test_a_transcript_is_read(tmp_path):
    silence = {"word": "", "start": 0.5, "end": 0.6, "phones": []}
    there = {"word": "there", "start": 0.6, "end": 1, "confidence": 0.5, "phones": ["DH", "EH1", "R"]}
    got = transcripts.read(write(tmp_path / "a.json", [HELLO, silence, there], duration=2), PHONES, never)
    assert got.starts.tolist() == [0.1, 0.6]
    assert got.ends.tolist() == [0.5, 1.0]
    want = PHONES.encode([*HELLO["phones"], "|", "DH", "EH1", "R"])
    assert transcripts.targets(got, 0.0, 2.0).tolist() == want.tolist()


def test_words_without_phones_are_asked_for_in_their_language(tmp_path):
    asked = []

    def spell(word, language):
        asked.append((word, language))
        return ("B", "IY1")

    word = {"word": "B", "start": 0.5, "end": 1}
    transcripts.read(write(tmp_path / "a.json", [HELLO, word]), PHONES, spell)
    got = transcripts.read(write(tmp_path / "b.json", [word], language="de"), PHONES, spell)
    assert asked == [("B", "en"), ("B", "de")]
    assert transcripts.targets(got, 0.0, 1.0).tolist() == PHONES.encode(["B", "IY1"]).tolist()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "cannot be read as a JSON transcript"),
        ("\xff", "cannot be read as a JSON transcript"),
        ("[" * 100_000, "cannot be read as a JSON transcript"),
        ("[]", "no JSON object"),
        ("{}", 'no "words"'),
        ('{"words": []}', 'no "words"'),
        ('{"words": {"word": "a"}}', 'no "words"'),
        ('{"words": ["hello"]}', "word 1: is no object"),
        ('{"language": 3, "words": ["hello"]}', '"language" is 3'),
    ],
)
def test_files_that_are_no_transcript(tmp_path, text, match):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=match) as error:
        transcripts.read(path, PHONES, never)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"word": None}, 'word 2: has no "word"'),
        ({"start": None}, '"start" is missing'),
        ({"end": None}, '"end" is missing'),
        ({"start": "0.1"}, '"start" is 0.1'),
        ({"start": True}, '"start" is True'),
        ({"start": -0.1}, '"start" is -0.1'),
        ({"end": float("nan")}, '"end" is nan'),
        ({"end": float("inf")}, '"end" is inf'),
        ({"end": 10**400}, '"end" is 1000'),
        ({"end": 0.59}, "ends at 0.59 s, before its start at 0.6 s"),
        ({"start": 0.05, "end": 0.07}, "starts at 0.05 s, before the one in front of it"),
        ({"phones": ["HH", "XX"]}, '"XX" is none of the 80 phones of the built-in phones'),
        ({"phones": "HH"}, "no list of names"),
        ({"phones": [1]}, "no list of names"),
        ({"phones": None}, "espeak-ng finds none"),
    ],
)
def test_words_that_cannot_be_used_are_named(tmp_path, change, match):
    word = {"word": "there", "start": 0.6, "end": 1.0, "phones": ["DH", "EH1", "R"]} | change
    path = write(tmp_path / "a.json", [HELLO, word])
    with pytest.raises(UserError, match=match) as error:
        transcripts.read(path, PHONES, lambda word, language: ())
    message = str(error.value)
    assert f"{path}: word 2" in message
    assert "word" in change or "(there)" in message
    assert "\n" not in message


def test_nothing_but_silence_is_no_transcript(tmp_path):
    path = write(tmp_path / "a.json", [{"word": "", "start": 0, "end": 1, "phones": []}])
    with pytest.raises(UserError, match="no word of it has phones"):
        transcripts.read(path, PHONES, never)


def clip(path):
    return Clip(str(path), path.name, 16_000, 16_000, 1)


def test_recordings_without_transcript_are_counted(tmp_path):
    clips = [clip(tmp_path / f"{name}.flac") for name in "abcd"]
    for name in "ad":
        write(tmp_path / f"{name}.json", [HELLO])
    transcripts.check_transcripts([clips[0], clips[3]])
    with pytest.raises(
        UserError, match=r"2 of 4 recordings have no transcript, the first being .*b\.flac; write b\.json"
    ):
        transcripts.check_transcripts(clips)


def test_labels_pad_and_refuse_to_cut(tmp_path):
    write(tmp_path / "a.json", [HELLO])
    labels = Labels(PHONES, 6, "ctc.max_phones")
    got = labels.targets(clip(tmp_path / "a.wav"), 0.0, 1.0)
    assert got.dtype == np.int32
    assert got.tolist() == [*PHONES.encode(HELLO["phones"]), 81, 81]
    assert labels.targets(clip(tmp_path / "a.wav"), 2.0, 3.0).tolist() == [81] * 6
    with pytest.raises(
        UserError, match=r"a\.wav: 4 phones are said between 0\.00 and 1\.00 s, and ctc\.max_phones is 3"
    ):
        Labels(PHONES, 3, "ctc.max_phones").targets(clip(tmp_path / "a.wav"), 0.0, 1.0)


def test_transcripts_are_read_once_while_they_fit(tmp_path, monkeypatch):
    path = write(tmp_path / "a.json", [HELLO])
    labels = Labels(PHONES, 9)
    first = labels.words(clip(tmp_path / "a.wav"))
    path.unlink()
    assert labels.words(clip(tmp_path / "a.wav")) is first
    monkeypatch.setattr(transcripts, "CACHE_BYTES", 0)
    fresh = Labels(PHONES, 9)
    write(path, [HELLO])
    fresh.words(clip(tmp_path / "a.wav"))
    path.unlink()
    with pytest.raises(UserError, match=r"a\.json"):
        fresh.words(clip(tmp_path / "a.wav"))


def test_missing_phones_without_the_extra_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    write(tmp_path / "a.json", [{"word": "hello", "start": 0, "end": 1}])
    with pytest.raises(UserError, match=r'word 1 \(hello\): .*codec-jax\[demo\].*give "phones"'):
        Labels(PHONES, 9).words(clip(tmp_path / "a.wav"))
