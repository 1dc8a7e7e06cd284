import hashlib
import importlib.util
import json
import re
import sys

import numpy as np
import pytest

from codec_jax.audio import files
from codec_jax.data import synth, transcripts
from codec_jax.data.phones import read_phones
from codec_jax.errors import UserError

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason='needs pip install "codec-jax[demo]"'
)


def digests(directory):
    return {
        p.relative_to(directory).as_posix(): hashlib.md5(p.read_bytes()).hexdigest()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return synth.synthesise(tmp_path_factory.mktemp("synth") / "tiny", clips=20)


def test_sentences_are_many_and_distinct():
    sentences = synth._sentences()
    assert len(sentences) == 10
    for language, texts in sentences.items():
        assert len(texts) == len(set(texts)) == 24, language
    assert not set(synth.VOICES["train"]) & set(synth.VOICES["valid"])


def test_plan_covers_languages_sentences_and_voices():
    train, valid = (synth._plan(part, synth.CLIPS[part], 0) for part in ("train", "valid"))
    assert {u.text for u in train}.isdisjoint({u.text for u in valid})
    assert {u.voice for u in train}.isdisjoint({u.voice for u in valid})
    for plan, sentences in ((train, 21), (valid, 3)):
        for language in synth._sentences():
            assert len({u.text for u in plan if u.language == language}) == sentences
    assert {u.voice for u in train} == set(synth.VOICES["train"])
    assert len({u.name for u in train}) == len(train)
    assert synth._plan("train", 30, 1) != synth._plan("train", 30, 0)


@needs_espeak
def test_clips_are_speech_at_16_khz(tiny):
    train, valid = (files.find(tiny / part) for part in ("train", "valid"))
    assert (len(train), len(valid)) == (20, 2)
    for path in train + valid:
        audio, rate = files.read(path)
        assert (rate, audio.shape[0]) == (16000, 1)
        assert 1.0 < audio.shape[1] / rate < 8.0
        assert 0.1 < np.abs(audio).max() <= 0.96
        assert 0.01 < audio.std() < 0.3
        edge = int(0.06 * rate)  # trimmed: speech begins within the margin, and the margin is there
        assert np.abs(audio[0, :edge]).max() > 0.004 * np.abs(audio).max()
        spectrum = np.abs(np.fft.rfft(audio[0])) ** 2
        share = spectrum[: len(spectrum) // 2].sum() / spectrum.sum()
        assert 0.5 < share < 0.99999  # most below 4 kHz, but not a telephone line
    rows = (tiny / "transcripts.tsv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 23
    assert all((tiny / row.split("\t")[0]).is_file() for row in rows[1:])


@needs_espeak
def test_a_transcript_lies_beside_every_clip(tiny):
    inventory = read_phones()
    rows = [row.split("\t") for row in (tiny / "transcripts.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    for name, language, _, text in rows:
        audio, rate = files.read(tiny / name)
        said = json.loads((tiny / name).with_suffix(".json").read_text(encoding="utf-8"))
        assert said["language"] == language
        assert [word["word"] for word in said["words"]] == re.findall(r"\w(?:\S*\w)?", text)
        words = transcripts.read(transcripts.beside(tiny / name), inventory, lambda *_: pytest.fail("phones missing"))
        assert (words.starts < words.ends).all()
        assert (words.starts[1:] >= words.ends[:-1]).all()
        assert 0 <= words.starts[0] < 0.1  # speech begins and ends within the margins
        assert -0.15 < words.ends[-1] - audio.shape[1] / rate < 1e-3
        # What is left of the clip when all words are taken out is quiet: the trimmed part and the rate are accounted for.
        time = np.arange(audio.shape[1]) / rate
        inside = ((words.starts[:, None] <= time) & (time < words.ends[:, None])).any(0)
        assert np.square(audio[0, inside]).mean() > 10 * np.square(audio[0, ~inside]).mean(), name


@needs_espeak
def test_listening_to_events_changes_no_sample(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(synth.espeak, "PHONEME_EVENTS", 0)
    monkeypatch.setattr(synth.espeak, "PHONEME_IPA", 0)
    monkeypatch.setattr(synth.timings, "words", lambda *_: [])
    silent = digests(synth.synthesise(tmp_path / "silent", clips=20))
    assert {name: digest for name, digest in silent.items() if not name.endswith(".json")} == {
        name: digest for name, digest in digests(tiny).items() if not name.endswith(".json")
    }


@needs_espeak
def test_same_bytes_every_time_and_others_by_seed(tiny, tmp_path):
    again = synth.synthesise(tmp_path / "again", clips=20)
    assert digests(again) == digests(tiny)
    other = synth.synthesise(tmp_path / "other", seed=1, clips=3)
    assert digests(other) != digests(synth.synthesise(tmp_path / "third", clips=3))


@needs_espeak
def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def write(path, audio, rate, original=files.write):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        original(path, audio, rate)

    monkeypatch.setattr(synth.files, "write", write)
    with pytest.raises(KeyboardInterrupt):
        synth.synthesise(tmp_path / "corpus", clips=10)
    assert len(written) == 3
    assert not list(tmp_path.iterdir())


@needs_espeak
def test_default_corpus_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(synth, "CLIPS", {"train": 2, "valid": 1})
    directory = synth.default_corpus()
    assert directory.parent == tmp_path / "codec_jax"
    monkeypatch.setattr(synth, "synthesise", lambda *_: pytest.fail("made again"))
    assert synth.default_corpus() == directory
    monkeypatch.setattr(synth, "_sentences", lambda: {"en-us": ["Another recipe."]})
    assert synth._recipe_hash() not in directory.name


def test_a_directory_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        synth.synthesise(tmp_path)
    with pytest.raises(UserError, match="at least 1"):
        synth.synthesise(tmp_path / "new", clips=0)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"codec-jax\[demo\].*--config.data.train"):
        synth.synthesise(tmp_path / "corpus", clips=2)
    assert not list(tmp_path.iterdir())


def test_resource_is_json_of_this_package():
    assert json.dumps(synth._sentences(), ensure_ascii=False).count("ё") > 3  # read as UTF-8


@needs_espeak
def test_times_count_from_where_the_silence_is_cut(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "_trim", lambda audio, rate: slice(rate // 5, len(audio)))
    later = synth.synthesise(tmp_path / "later", clips=3)
    for path in files.find(later / "train"):
        got, want = (
            json.loads((directory / "train" / path.name).with_suffix(".json").read_text(encoding="utf-8"))["words"]
            for directory in (later, tiny)
        )
        assert [word["end"] for word in got[1:]] == pytest.approx([word["end"] - 0.2 for word in want[1:]], abs=0.05)
        audio, rate = files.read(path)
        assert abs(got[-1]["end"] - audio.shape[1] / rate) < 0.15
