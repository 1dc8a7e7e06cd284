"""Anchors against the masks and curves that define them."""

import numpy as np
import pytest

from codec_jax.evaluate import anchors


@pytest.mark.parametrize(("rate", "cutoff"), [(16000, 3500), (16000, 7000), (44100, 3500), (48000, 7000)])
def test_lowpass_keeps_to_the_mask(rate, cutoff):
    impulse = np.zeros(rate, np.float32)
    impulse[rate // 2] = 1.0
    heard = anchors.lowpass(impulse, rate, cutoff)
    assert np.abs(heard).argmax() == rate // 2
    gain = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(heard)), 1e-9))
    hertz = np.fft.rfftfreq(rate, 1 / rate)
    assert np.abs(gain[hertz <= cutoff]).max() < 0.1
    assert gain[hertz >= cutoff + 500].max() < -25
    assert gain[hertz >= cutoff + 1000].max(initial=-100) < -50


def test_lowpass_of_a_narrow_band_is_nothing():
    audio = np.random.default_rng(0).normal(0, 0.1, 800).astype(np.float32)
    np.testing.assert_array_equal(anchors.lowpass(audio, 8000, 7000), audio)


def test_mu_law():
    audio = np.linspace(-1.2, 1.2, 10001)
    coded = anchors.mu_law(audio)
    assert np.unique(anchors.mu_law(np.sign(audio) * (256 ** np.abs(audio) - 1) / 255)).size == 256
    assert np.abs(coded).max() == 1.0
    inside = np.abs(audio) < 1
    assert (np.abs(coded - audio)[inside] <= 0.0221 * (np.abs(audio[inside]) + 1 / 255)).all()
    sine = 0.5 * np.sin(np.arange(16000) * 0.05).astype(np.float32)
    assert 36 < 10 * np.log10(np.sum(sine**2) / np.sum((anchors.mu_law(sine) - sine) ** 2)) < 40
