import importlib.util
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_jax.data import espeak, synth, timings
from codec_jax.data.espeak import Event
from codec_jax.data.timings import Sound

needs_espeak = pytest.mark.skipif(
    importlib.util.find_spec("espeakng_loader") is None, reason='needs pip install "codec-jax[demo]"'
)


def never(word, language):
    raise AssertionError(f"asked for {word}")


def test_events_become_words_without_pauses():
    text = "«Oh», it is — so!"
    events = [
        Event(espeak.WORD, 1, 0, ""),
        Event(espeak.PHONEME, 1, 10, "ˈoʊ"),
        Event(espeak.PHONEME, 1, 50, ""),
        Event(espeak.WORD, 6, 90, ""),
        Event(espeak.PHONEME, 6, 100, "ɪ"),
        Event(espeak.PHONEME, 6, 120, "t"),
        Event(espeak.PHONEME, 6, 130, "ɪ"),
        Event(espeak.PHONEME, 6, 140, "z"),
        Event(espeak.WORD, 14, 150, ""),
        Event(espeak.PHONEME, 14, 160, "s"),
        Event(espeak.PHONEME, 14, 170, "ˈoʊ"),
        Event(espeak.END, 16, 200, ""),
    ]
    asked = []
    got = timings.words(text, events, "en-us", lambda *word: asked.append(word) or ("IH0", "Z"))
    assert asked == [("is", "en-us")]  # espeak-ng spoke "it is" as one word
    assert [(word, start, [tuple(s) for s in sounds]) for word, start, sounds in got] == [
        ("Oh", 0, [("ˈoʊ", 10, 50)]),
        ("it", 90, [("ɪ", 100, 120), ("t", 120, 130)]),
        ("is", 130, [("ɪ", 130, 140), ("z", 140, 150)]),
        ("so", 150, [("s", 160, 170), ("ˈoʊ", 170, 200)]),
    ]
    said = timings.transcript(got, "en-us", 100, 20, 170)
    assert said["language"] == "en-us"
    assert said["words"][0] == {"word": "Oh", "start": 0.0, "end": 0.3, "phones": ["OW1"]}
    assert said["words"][3] == {"word": "so", "start": 1.3, "end": 1.7, "phones": ["S", "OW1"]}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 12))
def test_sounds_are_dealt_out_completely_and_in_order(counts, more):
    sounds = [Sound("a", i, i + 1) for i in range(len(counts) + 1 + more)]
    dealt = timings._deal(sounds, counts)
    assert len(dealt) == len(counts) + 1
    assert all(dealt)
    assert list(itertools.chain(*dealt)) == sounds
    if sum(max(1, count) for count in counts) < len(sounds):
        assert [len(part) for part in dealt[1:]] == [max(1, count) for count in counts]


@pytest.fixture(scope="module")
def spoken():
    """Every sentence once: utterance, audio, words with their sounds; and the sample rate."""
    seen, found = set(), []
    plan = synth._plan("train", synth.CLIPS["train"], 0) + synth._plan("valid", synth.CLIPS["valid"], 0)
    spell = espeak.Speller()
    with synth._espeak(espeak.library("")) as (speak, rate):
        for utterance in plan:
            if utterance.text not in seen:
                seen.add(utterance.text)
                audio, events = speak(utterance)
                found.append((utterance, audio, timings.words(utterance.text, events, utterance.language, spell)))
    return found, rate


def level(audio, start, end):
    """dB over the clip's mean power."""
    return 10 * np.log10(np.mean(audio[start:end] ** 2) / np.mean(audio**2) + 1e-9)


@needs_espeak
def test_the_texts_words_are_all_there_in_order(spoken):
    found, _ = spoken
    assert len(found) == 240
    for utterance, _, words in found:
        tokens = [token.strip(".,!?:;«»\"'¿¡-–—") for token in utterance.text.split()]
        assert [word.word for word in words] == [token for token in tokens if token], utterance.text
    spoken_as_one = next(words for utterance, _, words in found if utterance.text.startswith("The bakery on the"))
    assert [[sound.name for sound in word.sounds] for word in spoken_as_one[2:4]] == [["ɔ", "n"], ["ð", "ə"]]


@needs_espeak
def test_sounds_lie_within_the_clip_one_after_the_other(spoken):
    found, rate = spoken
    for utterance, audio, words in found:
        sounds = [sound for word in words for sound in word.sounds]
        assert all(a.start <= a.end <= b.start for a, b in itertools.pairwise(sounds)), utterance.text
        assert 0 <= sounds[0].start < sounds[-1].end <= len(audio)
        assert all(word.start <= word.sounds[0].start < word.sounds[-1].end for word in words), utterance.text
        kept = synth._trim(audio, rate)
        assert all(a.sounds[-1].end <= b.start for a, b in itertools.pairwise(words)), utterance.text
        assert sounds[0].start >= kept.start - 0.01 * rate  # trimming takes away silence alone
        assert sounds[-1].end <= kept.stop + 0.01 * rate


@needs_espeak
def test_pauses_are_silent_and_only_where_they_are_said_to_be(spoken):
    found, rate = spoken
    levels = {shift: [] for shift in (-0.03, 0.0, 0.03)}
    for _, audio, words in found:
        for before, after in itertools.pairwise(words):
            start, end = before.sounds[-1].end + rate // 50, after.start  # 20 ms of decay
            if end - start > 0.08 * rate:
                for shift, into in levels.items():
                    into.append(level(audio, start + round(shift * rate), end + round(shift * rate)))
    assert len(levels[0.0]) > 50
    assert np.median(levels[0.0]) < -60
    assert np.median(levels[-0.03]) > -30
    assert np.median(levels[0.03]) > -30


@needs_espeak
def test_vowels_are_louder_than_stops(spoken):
    found, _ = spoken
    levels = {"vowel": [], "stop": []}
    for _, audio, words in found:
        for sound in (sound for word in words for sound in word.sounds):
            kind = {**dict.fromkeys("aeiouɔɛæɪʊ", "vowel"), **dict.fromkeys("ptkbdɡ", "stop")}.get(
                sound.name.lstrip("ˈˌ")
            )
            if kind and sound.end > sound.start:
                levels[kind].append(level(audio, sound.start, sound.end))
    assert min(map(len, levels.values())) > 500
    assert np.median(levels["vowel"]) > np.median(levels["stop"]) + 10
