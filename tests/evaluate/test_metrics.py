"""Metrics of an utterance: upstream's values, agreement with the losses, real speech, undefined cases."""

import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from codec_jax.evaluate import metrics
from codec_jax.losses import spectral


@pytest.fixture(scope="module")
def upstream(golden):
    return golden("taae/misc/tensors.safetensors")


@pytest.fixture(scope="module")
def clips(speech):
    return [soundfile.read(path, dtype="float32")[0] for path in speech[:4]]


def noise(seed, samples):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize(("name", "metric"), [("sisdr", metrics.si_sdr), ("sdsdr", metrics.sd_sdr)])
def test_distortion_ratios_are_upstreams(upstream, name, metric):
    values = [metric(x, y) for x, y in zip(upstream["spec/x"][:, 0], upstream["spec/y"][:, 0])]
    np.testing.assert_allclose(np.mean(values), upstream[f"metric/{name}"], atol=1e-4)


@pytest.mark.parametrize(("name", "metric"), [("stft", metrics.stft_distance), ("melstft", metrics.mel_stft_distance)])
def test_stft_distances_are_upstreams(upstream, name, metric):
    values = [metric(x, y) for x, y in zip(upstream["spec/x"][:, 0], upstream["spec/y"][:, 0])]
    np.testing.assert_allclose(np.mean(values), upstream[f"metric/{name}"], rtol=1e-4)


def test_esc_s_values(golden):
    tensors = golden("esc/losses/golden.safetensors")
    meta = json.loads((golden.path("esc/losses") / "meta.json").read_text())
    pairs = list(zip(tensors["raw"], tensors["recon"]))
    np.testing.assert_allclose([metrics.mel_distance(*pair) for pair in pairs], meta["mel_loss"], rtol=1e-5)
    np.testing.assert_allclose([metrics.si_sdr(*pair) for pair in pairs], meta["metrics"]["SISDR"], atol=1e-4)


@pytest.mark.parametrize(("samples", "sample_rate"), [(600, 16000), (3001, 16000), (4000, 24000)])
def test_mel_distance_is_that_of_the_loss(samples, sample_rate):
    x, y = 0.1 * noise(0, samples), 0.1 * noise(1, samples)
    distance = jax.jit(spectral.mel_distance, static_argnums=2)
    want = distance(jnp.asarray(x)[None], jnp.asarray(y)[None], sample_rate)[0]
    np.testing.assert_allclose(metrics.mel_distance(x, y, sample_rate), want, rtol=1e-5)


def test_long_audio_in_blocks_is_the_same(monkeypatch):
    x, y = noise(0, 5000), noise(1, 5000)
    whole = metrics.mel_distance(x, y), metrics.stft_distance(x, y)
    monkeypatch.setattr(metrics, "_BLOCK_VALUES", 3000)
    np.testing.assert_allclose((metrics.mel_distance(x, y), metrics.stft_distance(x, y)), whole, rtol=1e-6)


def test_real_speech_is_ranked_as_one_hears_it(clips):
    """The anchors a validation curve is read against: noise at 20 dB SNR, another clip, silence."""
    count = min(map(len, clips))
    rows = []
    for i, clip in enumerate(clip[:count] for clip in clips):
        noisy = clip + noise(i, count) * 0.1 * np.sqrt(np.mean(clip**2))
        others = noisy, clips[(i + 1) % len(clips)][:count], np.zeros_like(clip)
        rows.append([metrics.mel_distance(clip, other) for other in others])
        scores = [metrics.stoi(clip, other, 16000) for other in (clip, *others)]
        assert scores[0] > 0.999 > scores[1] > 0.9 > 0.5 > scores[2] > scores[3] == 0
    np.testing.assert_allclose(np.mean(rows, 0), [10.0, 23.0, 70.0], rtol=0.15)


def test_si_sdr_is_the_noise_level_and_ignores_scale_and_mean():
    x = noise(0, 20000)
    error = noise(1, 20000)
    error -= x * (error @ x) / (x @ x)
    noisy = x + 0.1 * error
    assert metrics.si_sdr(x, noisy) == pytest.approx(20, abs=0.1)
    assert metrics.si_sdr(x, 0.3 * noisy + 0.5) == pytest.approx(metrics.si_sdr(x, noisy), abs=1e-3)
    assert metrics.sd_sdr(x, 0.5 * x) == pytest.approx(0, abs=0.1)
    assert metrics.si_sdr(x, x) > 90


def test_undefined_is_nan_and_quiet(clips):
    speech = clips[0][8000:20000]
    silence = np.zeros_like(speech)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (1, 100, 2000, 6000):
            assert math.isnan(metrics.stoi(speech[:samples], speech[:samples], 16000))
        assert math.isnan(metrics.stoi(silence, speech, 16000))
        assert math.isnan(metrics.si_sdr(silence, speech))
        assert math.isnan(metrics.sd_sdr(silence, speech))
        assert metrics.all_metrics(speech, silence, 16000) == {
            "mel_distance": pytest.approx(70, rel=0.3),
            "stoi": 0.0,
            "si_sdr": pytest.approx(-80),
        }
        assert metrics.mel_distance(silence, silence) == 0


def test_lengths_must_match():
    with pytest.raises(ValueError, match="3 and 2 samples"):
        metrics.checked_pair(np.ones(3), np.ones(2))  # the public ones are stopped by the shape checks of the tests
    with pytest.raises(ValueError, match="0 and 0"):
        metrics.mel_distance(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="at least 513"):
        metrics.stft_distance(np.ones(512), np.ones(512))
