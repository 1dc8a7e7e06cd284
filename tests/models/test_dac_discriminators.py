"""DAC's discriminators: lengths at the edge, what is refused, and what the table of kinds promises."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from codec_jax.errors import UserError
from codec_jax.models import discriminators
from codec_jax.models.discriminators import DACDiscriminatorConfig, dac


def noise(samples, batch=2):
    return np.random.default_rng(samples).uniform(-1, 1, (batch, samples)).astype(np.float32)


@pytest.mark.parametrize(("samples", "period", "frames"), [(10, 3, 4), (11, 3, 4), (12, 3, 5), (4, 3, 2), (12, 11, 2)])
def test_phases(samples, period, frames):
    """A whole period is reflected where the samples fill theirs."""
    audio = noise(samples)
    found = dac.phases(jnp.asarray(audio), period)
    mirrored = np.concatenate([audio, audio[:, -2 : -2 - period : -1]], axis=1)[:, : frames * period]
    assert found.shape == (2, period, frames)
    for phase in range(period):
        np.testing.assert_array_equal(found[:, phase], mirrored[:, phase::period])


@pytest.mark.parametrize("samples", [160, 161, 159, 37])
def test_spectrogram(samples):
    """Frame i is the windowed transform around the middle of its hop, 64 samples of which 16 are new."""
    audio, count = noise(samples), math.ceil(samples / 16)
    at = np.abs(np.arange(64 + 16 * (count - 1)) - 24)  # what lies before the start is mirrored, and behind the end too
    at = np.where(at >= samples, 2 * (samples - 1) - at, at)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(64) / 64)
    frames = np.stack([audio[:, at[16 * i : 16 * i + 64]] for i in range(count)], axis=1)
    wanted = np.fft.rfft(frames * window)
    found = dac.spectrogram(jnp.asarray(audio), 64)
    assert found.shape == (2, count, 33, 2)
    np.testing.assert_allclose(found[..., 0], wanted.real, atol=1e-5)
    np.testing.assert_allclose(found[..., 1], wanted.imag, atol=1e-5)


def test_normalised():
    audio = np.array([[0.1, 0.5, 0.3], [2.0, 2.0, 2.0]], np.float32)
    np.testing.assert_allclose(dac.normalised(jnp.asarray(audio)), [[-0.8, 0.8, 0], [0, 0, 0]], atol=1e-7)


def test_of_two_peaks_the_first_alone_is_moved():
    """As in PyTorch, which takes the peak by its place; JAX's own `max` divides its gradient by how many equal it."""
    audio = np.array([[0.5, -0.25, -0.5, 0.25], [0.1, 0.3, -0.2, -0.2]], np.float32)
    weights = np.random.default_rng(0).standard_normal(audio.shape).astype(np.float32)
    ours = jax.grad(lambda x: (weights * dac.normalised(x)).sum())(jnp.asarray(audio))
    x = torch.from_numpy(audio).requires_grad_()
    centred = x - x.mean(-1, keepdim=True)
    theirs = 0.8 * centred / (centred.abs().max(-1, keepdim=True)[0] + 1e-9)
    (torch.from_numpy(weights) * theirs).sum().backward()
    np.testing.assert_allclose(ours, x.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("periods", "fft_sizes"), [((3,), (16,)), ((7,), (8,)), ((2, 11), ()), ((), (64, 32))])
def test_least_samples_are_enough_and_no_more_than_needed(periods, fft_sizes):
    def heard(samples):
        audio = jnp.zeros((1, samples))
        return [dac.phases(audio, p) for p in periods], [dac.spectrogram(audio, size) for size in fft_sizes]

    least = discriminators.least_samples(DACDiscriminatorConfig(periods=periods, fft_sizes=fft_sizes))
    for samples in range(least, least + 9):
        jax.eval_shape(lambda samples=samples: heard(samples))
    with pytest.raises(ValueError, match="samples cannot be reflected"):
        jax.eval_shape(lambda: heard(least - 1))


def test_parameters_and_judgements():
    cfg = DACDiscriminatorConfig(periods=(3,), period_widths=(2, 4), fft_sizes=(32,), band_width=2, dtype="bfloat16")

    def run(key):
        boxed = discriminators.init(cfg, key)
        return boxed, discriminators.judge_all(cfg, nn.unbox(boxed), jnp.zeros((5, 40, 1)))

    boxed, judgements = jax.eval_shape(run, jax.random.key(0))
    assert tuple(boxed) == discriminators.judges(cfg) == ("period_3", "stft_32")
    spec = nn.get_partition_spec(boxed)
    assert tuple(spec["period_3"]["conv_1"]["v"]) == ("tap", "conv_in", "conv_out")
    assert tuple(spec["stft_32"]["band_0_conv_1"]["v"]) == ("tap", "tap", "conv_in", "conv_out")
    assert {leaf.dtype for leaf in jax.tree.leaves(boxed)} == {jnp.dtype("float32")}
    period, stft = judgements
    assert [x.shape for x in period.features] == [(5, 3, 5, 2), (5, 3, 5, 4)]
    assert period.logits.shape == (5, 3, 5, 1)
    assert len(stft.features) == 25
    assert {x.shape[1] for x in stft.features} == {5}
    assert {judgement.logits.dtype for judgement in judgements} == {jnp.dtype("float32")}
    assert {x.dtype for judgement in judgements for x in judgement.features} == {jnp.dtype("bfloat16")}


def test_gradients_are_finite_at_digital_silence():
    """Upstream's 1e-9 under the peak: they are large, and no more."""
    weights = jnp.asarray(noise(64))
    gradient = jax.grad(lambda x: (weights * dac.normalised(x)).sum())(jnp.zeros((2, 64)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"kind": "stft"}, "kind"),
        ({"periods": (), "fft_sizes": ()}, "periods, fft_sizes, or both"),
        ({"periods": (2, 2)}, "each of them once"),
        ({"fft_sizes": (100,)}, "multiples of 8"),
        ({"period_widths": ()}, "there must be a layer"),
        ({"band_width": 0}, "band_width"),
        ({"bands": ((0.5, 0.1),)}, "low < high"),
        ({"bands": ((0.0, 0.01),), "fft_sizes": (64,)}, "holds no bin"),
        ({"in_channels": 2}, "in_channels"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_impossible_configs_are_errors(fields, word):
    with pytest.raises(UserError, match=word):
        DACDiscriminatorConfig(**fields).validate()
