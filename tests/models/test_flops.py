"""Analytic FLOPs against the compiler's count of the same forward pass, unrolled."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from codec_jax.models import discriminators, taae, wavlm
from codec_jax.ops import platform

SMALL = {"patch_size": 40, "channels": 256, "transformer_depths": (1, 2), "sliding_window": (15, 16), "unroll": True}


def compiled_flops(function, *arguments):
    """The compiler's count. The function is traced under whatever `tracing_for` is active, and compiled for this CPU."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def audio(samples, channels=1):
    return jax.ShapeDtypeStruct((1, samples, channels), jnp.float32)


@pytest.mark.parametrize(
    ("fields", "samples", "target"),
    [
        ({}, 4000, "cpu"),  # dense
        ({}, 20_480, "cpu"),  # blocked
        ({"sliding_window": (63, 64)}, 50_000, "tpu"),  # blocked, in larger blocks
        ({"c_mults": (1, 2), "strides": (2, 3), "channels": 128, "audio_channels": 2}, 9600, "cpu"),
        ({"use_snake": True, "use_dilated_conv": True, "conformer": True}, 4000, "cpu"),
    ],
)
def test_autoencoder(fields, samples, target):
    cfg = taae.Config(taae.TAAEConfig(**{**SMALL, **fields}))
    variables = jax.eval_shape(lambda: nn.unbox(taae.init(cfg, jax.random.key(0))))
    samples = taae.padded_length(cfg, samples)
    with platform.tracing_for(target):
        counts = taae.flops(cfg, samples)
        latents = jax.ShapeDtypeStruct((1, samples // cfg.model.hop_length, cfg.model.latent_dim), jnp.float32)
        clip = audio(samples, cfg.model.audio_channels)
        encoder = compiled_flops(lambda v, x: taae.analyse(cfg, v, x), variables, clip)
        decoder = compiled_flops(lambda v, x: taae.synthesise(cfg, v, x), variables, latents)
    for half, count in (("encoder", encoder), ("decoder", decoder)):
        assert sum(v for name, v in counts.items() if name.startswith(half)) == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize("target", ["cpu", "tpu"])
@pytest.mark.parametrize("fields", [{}, {"stride": (1, 2), "in_channels": 2, "dilations": (1, 3)}, {"kernel": (5, 3)}])
def test_discriminators(fields, target):
    cfg = discriminators.DiscriminatorConfig(n_ffts=(78, 334), filters=32, **fields)
    params = jax.eval_shape(lambda: nn.unbox(discriminators.init(cfg, jax.random.key(0))))
    with platform.tracing_for(target):
        counts = discriminators.flops(cfg, 4000)
        for name in discriminators.judges(cfg):
            count = compiled_flops(
                lambda p, x, name=name: discriminators.judge(cfg, p, name, x), params, audio(4000, cfg.in_channels)
            )
            assert counts[name] == pytest.approx(count, rel=0.02)


@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_dac_discriminators(target):
    cfg = discriminators.DACDiscriminatorConfig(
        periods=(3,), period_widths=(8, 32, 64, 64), fft_sizes=(256,), bands=((0.0, 0.1), (0.1, 1.0)), band_width=16
    )
    params = jax.eval_shape(lambda: nn.unbox(discriminators.init(cfg, jax.random.key(0))))
    with platform.tracing_for(target):
        counts = discriminators.flops(cfg, 4000)
        for name in discriminators.judges(cfg):
            judge = lambda p, x, name=name: discriminators.judge(cfg, p, name, x)
            assert counts[name] == pytest.approx(compiled_flops(judge, params, audio(4000)), rel=0.05)


@pytest.mark.parametrize("highest", [wavlm.CONVOLUTIONS, 1])
def test_wavlm(highest):
    """One layer, since the compiler counts the body of a scan once; wide, since it counts GELU."""
    cfg = wavlm.WavLMConfig(conv_widths=(1024,) * 7, width=1024, num_heads=8, hidden=4096, depth=1)
    variables = jax.eval_shape(lambda: nn.unbox(wavlm.init(cfg, jax.random.key(0), highest)))
    clip = jax.ShapeDtypeStruct((1, 32_000), jnp.float32)
    count = compiled_flops(lambda v, x: wavlm.features(cfg, v, x, [highest])[highest], variables, clip)
    assert sum(wavlm.flops(cfg, 32_000, highest).values()) == pytest.approx(count, rel=0.03)


def test_the_papers_billion():
    """28 blocks a half of 12.6 M kernel entries each: two FLOPs per entry and frame, and little besides."""
    cfg = taae.Config(taae.TAAEConfig(transformer_depths=(8, 20)))
    counts = taae.flops(cfg, 81_920)
    blocks = 2 * 2 * 16 * 1024**2 * (8 * 256 + 20 * 128)
    assert blocks < sum(counts.values()) < 1.06 * blocks
