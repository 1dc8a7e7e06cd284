"""Conditions against what they promise, and the utterances they are done to."""

import json

import numpy as np
import pytest
from scipy import signal

from codec_jax.audio import files
from codec_jax.errors import UserError
from codec_jax.evaluate import conditions, inputs
from codec_jax.evaluate.conditions import Condition

RATE = 16000


def speechlike(seconds=2.0, seed=0):
    """Coloured noise in syllables."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    audio = signal.lfilter([1.0], [1.0, -0.9], rng.normal(0, 0.02, n)) * (1 + np.sin(np.arange(n) * 0.002)) / 2
    return audio.astype(np.float32)


def power(audio):
    return np.mean(np.square(audio, dtype=np.float64))


@pytest.mark.parametrize("snr", [-5.0, 10.0, 30.0])
def test_noise_is_as_loud_as_said_and_of_the_same_colour(snr):
    audio = speechlike()
    noisy = conditions.add_noise(audio, RATE, snr, np.random.default_rng(1))
    noise = noisy - audio
    assert 10 * np.log10(power(audio) / power(noise)) == pytest.approx(snr, abs=0.01)
    bands = [signal.welch(x, RATE, nperseg=512)[1] for x in (audio, noise)]
    colour = 10 * np.log10(bands[0] / bands[1]) - snr
    assert np.abs(colour[5:-5]).mean() < 1.5
    halves = [power(noise[: RATE // 4]), power(noise[-RATE // 4 :])]
    assert 0.7 < halves[0] / halves[1] < 1.4  # stationary, which the speech is not


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_the_echo_falls_by_sixty_decibels(seconds):
    impulse = np.zeros(2 * RATE, np.float32)
    impulse[0] = 1.0
    heard = conditions.far_field(impulse, RATE, seconds, np.random.default_rng(0))
    energy = np.cumsum((heard[1:] ** 2)[::-1])[::-1]  # Schroeder's integral
    decay = 10 * np.log10(energy / energy[0])
    early, late = np.argmax(decay < -5), np.argmax(decay < -35)
    assert 2 * (late - early) / RATE == pytest.approx(seconds, rel=0.1)
    assert 10 * np.log10(heard[0] ** 2 / energy[0]) == pytest.approx(-3, abs=0.01)


def test_never_clips_and_is_the_same_again():
    audio = speechlike() * 20
    audio /= np.abs(audio).max()
    for text in ("noise@-10", "far@0.4"):
        first, again, other = (conditions.apply(conditions.parse(text), audio, RATE, seed) for seed in (1, 1, 2))
        assert np.abs(first).max() <= 1
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)
    assert not conditions.apply(Condition("silence"), audio, RATE, 0).any()
    silent = np.zeros(800, np.float32)
    np.testing.assert_array_equal(conditions.apply(Condition("noise", 10.0), silent, RATE, 0), silent)


def test_names():
    for text in ("clean", "noise@10", "far@0.5", "silence", "length@30", "noise@-2.5"):
        assert str(conditions.parse(text)) == text
    assert conditions.parse("noise") == Condition("noise", 10.0)
    for text in ("rain", "noise@loud", "silence@3", "far@-1", "length@0", "clean@1"):
        with pytest.raises(UserError, match=text):
            conditions.parse(text)


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(("en_a", "it_b", "plain", "fr/c", "deutsch")):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        files.write(path, speechlike(1.5, i), RATE)
    (tmp_path / "deutsch.json").write_text(json.dumps({"language": "de", "words": []}))
    return tmp_path


def test_languages(folder):
    found = inputs.find(folder, [Condition("clean")])
    assert {one.name: one.language for one in found} == {
        "en_a": "en",
        "it_b": "it",
        "plain": "",
        "c": "fr",
        "deutsch": "de",
    }


def test_lengths(folder):
    found = inputs.find(folder, [Condition("length", 2.5)])
    assert [len(one.paths) for one in found] == [2, 2]
    for one in found:
        audio, rate = inputs.read(one)
        assert (len(audio), rate) == (round(2.5 * RATE), RATE)
    first = files.read(found[0].paths[0])[0][0]
    np.testing.assert_array_equal(inputs.read(found[0])[0][: len(first)], first)
    with pytest.raises(UserError, match=r"7\.5 s, too short for length@10"):
        inputs.find(folder, [Condition("length", 10.0)])


def test_one_name_twice(folder):
    files.write(folder / "fr" / "plain.wav", speechlike(), RATE)
    with pytest.raises(UserError, match="have one name"):
        inputs.find(folder, [Condition("clean")])
