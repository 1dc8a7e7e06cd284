"""Spectral losses against upstream's values and gradients, and where a square root or log could fail."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codec_jax.errors import UserError
from codec_jax.losses import spectral, waveform
from codec_jax.losses.spectral import MelLossConfig, STFTLossConfig

SETTINGS = ("paper_like_2048", "default", "aw", "lin", "sc", "log", "phs", "sinv", "mel")
SMALL = STFTLossConfig((128, 64), (32, 20), (128, 50))
ALL_TERMS = STFTLossConfig((128,), (32,), (128,), w_lin_mag=1.0, w_phs=1.0, scale_invariance=True)


def assert_close(got, want, rtol):
    np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


def noise(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("setting", SETTINGS)
def test_multi_resolution_stft_is_upstreams(golden, setting):
    tensors = golden("taae/misc/tensors.safetensors")
    given = json.loads((golden.path("taae/misc") / "meta.json").read_text())["spec_settings"][setting]
    config = STFTLossConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    config.validate()
    x, y = (jnp.asarray(tensors[f"spec/{name}"]) for name in "xy")
    loss = jax.jit(jax.value_and_grad(lambda y, x: spectral.multi_resolution_stft(x, y, config)))
    value, gradient = loss(y, x)
    np.testing.assert_allclose(value, tensors[f"spec/{setting}/loss_ref_order"], rtol=1e-5)
    assert_close(gradient, tensors[f"spec/{setting}/grad_y"], 1e-3)
    np.testing.assert_allclose(loss(x, y)[0], tensors[f"spec/{setting}/loss_natural"], rtol=1e-5)


def test_multi_scale_mel_is_upstreams(golden):
    tensors = golden("taae/misc/tensors.safetensors")
    given = json.loads((golden.path("taae/misc") / "meta.json").read_text())["mel"]
    config = MelLossConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
    config.validate()
    x, y = (jnp.asarray(tensors[f"spec/{name}"]) for name in "xy")
    value, gradient = jax.jit(jax.value_and_grad(lambda y: spectral.multi_scale_mel_l1(x, y, config)))(y)
    np.testing.assert_allclose(value, tensors["mel/loss"], rtol=1e-5)
    assert_close(gradient, tensors["mel/grad_y"], 1e-4)


def test_mel_distance_is_esc_s_mel_loss(golden):
    tensors = golden("esc/losses/golden.safetensors")
    want = json.loads((golden.path("esc/losses") / "meta.json").read_text())["mel_loss"]
    raw, recon = (jnp.asarray(tensors[name]) for name in ("raw", "recon"))

    @jax.jit
    def run(recon):
        distance, pullback = jax.vjp(lambda recon: spectral.mel_distance(raw, recon), recon)
        return distance, pullback(jnp.full(len(raw), 1 / len(raw)))[0]

    distance, gradient = run(recon)
    np.testing.assert_allclose(distance, want, rtol=1e-5)
    # The vector's gradient is of the batch mean, or of the sum: its size tells which.
    want = tensors["grad_mel_wrt_recon"]
    assert_close(gradient * np.round(np.abs(want).max() / np.abs(gradient).max()), want, 1e-3)


def test_mel_distance_properties():
    run = jax.jit(spectral.mel_distance)
    x, y = noise(0, 2, 1500), noise(1, 2, 1500)
    np.testing.assert_allclose(run(x, y), run(y, x), rtol=1e-6)
    np.testing.assert_allclose(run(x, x), 0, atol=1e-5)
    np.testing.assert_allclose(run(x, y)[1], run(x[1:], y[1:])[0], rtol=1e-5)
    assert np.all(run(x, 0.9 * x) < run(x, 0.1 * x))


@pytest.mark.parametrize("samples", [1, 1024])
def test_mel_distance_of_short_audio_is_that_of_audio_padded_to_1025(samples):
    x, y = noise(0, 1, samples), noise(1, 1, samples)
    padded = [jnp.pad(audio, ((0, 0), (0, 1025 - samples))) for audio in (x, y)]
    run = jax.jit(spectral.mel_distance)
    got = run(x, y)
    assert got > 0
    np.testing.assert_allclose(got, run(*padded), rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: spectral.multi_resolution_stft(x, y, ALL_TERMS),
        lambda x, y: spectral.multi_scale_mel_l1(x, y, MelLossConfig((20,), (128,))),
        lambda x, y: spectral.mel_distance(x, y).mean(),
    ],
    ids=["stft", "mel_l1", "mel_distance"],
)
def test_gradients_are_finite_at_silence_and_equality(loss):
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    signal = noise(0, 1, 1100)
    half = signal.at[:, 400:].set(0)
    for x, y in [
        (0 * signal, 0 * signal),
        (0 * signal, signal),
        (signal, signal),
        (signal, half),
        (half, half),
    ]:
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(x, y)))
    assert gradient(0 * signal, 0 * signal)[0] < 1e-4


def test_convergence_is_relative_to_the_second_argument():
    config = STFTLossConfig((128,), (32,), (128,), w_log_mag=0.0)
    x = noise(0, 1, 600)
    np.testing.assert_allclose(spectral.multi_resolution_stft(x, 4 * x, config), 0.75, rtol=1e-4)
    np.testing.assert_allclose(spectral.multi_resolution_stft(4 * x, x, config), 3.0, rtol=1e-4)


def test_scale_invariance_ignores_the_level_of_y_item_by_item():
    config = STFTLossConfig((128,), (32,), (128,), w_lin_mag=1.0, scale_invariance=True)
    x, y = noise(0, 3, 600), noise(1, 3, 600)
    levels = jnp.asarray([[0.5], [1.0], [3.0]])
    want = spectral.multi_resolution_stft(x, y, config)
    np.testing.assert_allclose(spectral.multi_resolution_stft(x, levels * y, config), want, rtol=1e-4)


def test_channels_are_items_and_resolutions_are_averaged():
    x, y = noise(0, 2, 3, 500), noise(1, 2, 3, 500)
    whole = spectral.multi_resolution_stft(x, y, SMALL)
    np.testing.assert_allclose(
        whole, spectral.multi_resolution_stft(x.reshape(6, -1), y.reshape(6, -1), SMALL), rtol=1e-6
    )
    single = [
        spectral.multi_resolution_stft(
            x,
            y,
            STFTLossConfig(*((size[i],) for size in (SMALL.fft_sizes, SMALL.hop_sizes, SMALL.win_lengths))),
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(whole, np.mean(single), rtol=1e-5)


def test_a_chroma_scale_hears_an_octave_less_than_a_fourth():
    time = np.arange(4000) / 16000
    tone = {hz: jnp.asarray(0.5 * np.sin(2 * np.pi * hz * time), jnp.float32)[None] for hz in (440, 880, 587.3)}
    config = STFTLossConfig((2048,), (512,), (2048,), w_log_mag=0.0, scale="chroma", n_bins=(12,))
    octave, fourth = (spectral.multi_resolution_stft(tone[440], tone[hz], config) for hz in (880, 587.3))
    assert octave < 0.5 * fourth


def test_bfloat16_audio_is_compared_in_float32():
    x, y = noise(0, 1, 500).astype(jnp.bfloat16), noise(1, 1, 500).astype(jnp.bfloat16)
    exact = [audio.astype(jnp.float32) for audio in (x, y)]
    for loss in (lambda x, y: spectral.multi_resolution_stft(x, y, SMALL), waveform.l1, waveform.l2):
        assert loss(x, y).dtype == jnp.float32
        np.testing.assert_allclose(loss(x, y), loss(*exact), rtol=1e-6)


def test_waveform_distances():
    x, y = jnp.asarray([[1.0, 2.0], [0.0, 0.0]]), jnp.asarray([[0.0, 4.0], [0.0, -1.0]])
    assert waveform.l1(x, y) == 1.0
    assert waveform.l2(x, y) == 1.5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (STFTLossConfig((512,)), "as many"),
        (STFTLossConfig((512,), (0,), (512,)), "positive sizes"),
        (STFTLossConfig((512,), (128,), (600,)), "lower it to 512"),
        (STFTLossConfig(mag_distance="l1"), 'choose "L1"'),
        (STFTLossConfig(scale="bark"), 'choose "mel"'),
        (STFTLossConfig(scale="mel", n_bins=(64,)), "one number per entry"),
        (STFTLossConfig(w_sc=-1.0), "negative"),
        (MelLossConfig((80,), (512, 256)), "as many of either"),
        (MelLossConfig((80,), (510,)), "multiples of 4"),
    ],
)
def test_impossible_configs_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        config.validate()


def test_defaults_are_valid():
    for config in (STFTLossConfig(), MelLossConfig()):
        assert config.validate() is None
