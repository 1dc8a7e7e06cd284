"""Residual FSQ in training: its stages are the presets, its rounding is theirs, its noise is that of the kept stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.quantizers import fsq, residual_fsq, scalable_fsq, vq


def latents_of(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def clip_keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_two_of_five_and_four_of_three_are_the_presets():
    assert scalable_fsq.stages((5,) * 6, 2) == residual_fsq.PRESETS["2x15625_700bps"]
    assert scalable_fsq.stages((3,) * 6, 4) == residual_fsq.PRESETS["4x729_1000bps"]


@pytest.mark.parametrize(("levels", "count", "preset"), [(5, 2, "2x15625_700bps"), (3, 4, "4x729_1000bps")])
def test_tokens_and_codes_are_those_of_the_preset(levels, count, preset):
    latents = latents_of(0, 4, 250, 6)
    codes, tokens = scalable_fsq.quantise(jnp.tanh(latents), scalable_fsq.stages((levels,) * 6, count))
    want = residual_fsq.encode(latents, residual_fsq.PRESETS[preset])
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_allclose(codes.sum(0), residual_fsq.decode(want, residual_fsq.PRESETS[preset]), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6), levels=st.integers(3, 9), count=st.integers(1, 4), scale=st.sampled_from([0.1, 1, 9])
)
def test_what_a_stage_leaves_is_within_the_next_ones_scale(seed, levels, count, scale):
    z = jnp.tanh(latents_of(seed, 2, 5, 3, scale=scale))
    codes, tokens = scalable_fsq.quantise(z, scalable_fsq.stages((levels,) * 3, count))
    for kept in range(1, count + 1):
        error = np.abs(np.asarray(z, np.float64) - np.asarray(codes[:kept], np.float64).sum(0)).max()
        assert error <= (levels - 1.0) ** -kept + 1e-6
    assert tokens.min() >= 0
    assert tokens.max() < levels**3


def test_a_single_stage_is_plain_fsq():
    z, draws = jnp.tanh(latents_of(1, 5, 7, 3)), fsq.sample_draws(clip_keys(5), (5, 7, 3), 0.5)
    ours, tokens = scalable_fsq.dither(z, scalable_fsq.stages((5,) * 3, 1), jnp.ones(5, jnp.int32), draws)
    np.testing.assert_array_equal(ours, fsq.dither(z, fsq.grid((5,) * 3), *draws))
    np.testing.assert_array_equal(tokens[:, 0], fsq.codes_to_indices(z, (5,) * 3))


def test_the_mixture_by_its_formula():
    """A clip each: raw, rounded to one stage, rounded to two, noise of one stage, noise of two; gradients are all one."""
    z, uniform = jnp.tanh(latents_of(2, 5, 7, 3)), jnp.asarray(np.random.default_rng(3).random((5, 7, 3), np.float32))
    mask = lambda *bits: jnp.array(bits, bool)[:, None, None]
    draws = fsq.Draws(mask(1, 0, 0, 1, 0), mask(1, 1, 1, 0, 0), uniform)
    stages, kept = scalable_fsq.stages((5,) * 3, 2), jnp.array([2, 1, 2, 1, 2])
    out, _ = scalable_fsq.dither(z, stages, kept, draws)
    exact, u = np.asarray(z, np.float64), np.asarray(uniform, np.float64)
    np.testing.assert_array_equal(out[0], z[0])
    np.testing.assert_allclose(out[1], np.round(exact[1] * 2) / 2, atol=1e-6)
    np.testing.assert_allclose(out[2], np.round(exact[2] * 8) / 8, atol=1e-6)
    np.testing.assert_allclose(out[3], exact[3] + (u[3] - 0.5) / 2, atol=1e-6)
    np.testing.assert_allclose(out[4], exact[4] + (u[4] - 0.5) / 8, atol=1e-6)
    gradient = jax.grad(lambda z: scalable_fsq.dither(z, stages, kept, draws)[0].sum())(z)
    np.testing.assert_array_equal(gradient, np.ones(z.shape))


def test_a_clip_is_what_it_is_in_any_batch():
    latents, keys, stages = latents_of(4, 8, 6, 3), clip_keys(8), scalable_fsq.stages((5,) * 3, 3)
    whole, tokens = scalable_fsq.train(latents, keys, stages, 0.5, 0.5)
    parts = [scalable_fsq.train(latents[i::2], keys[i::2], stages, 0.5, 0.5) for i in (0, 1)]
    for i, (codes, part_tokens) in enumerate(parts):
        np.testing.assert_array_equal(whole[i::2], codes)
        np.testing.assert_array_equal(tokens[i::2], part_tokens)


def test_how_many_stages_are_kept():
    """All rounded: the sum of one stage is coarser than that of two, so a clip tells how many it kept."""
    latents, stages = latents_of(5, 400, 6, 3), scalable_fsq.stages((5,) * 3, 2)
    exact = np.tanh(np.asarray(latents, np.float64))

    def share_of_one(dropout):
        codes, _ = scalable_fsq.train(latents, clip_keys(400), stages, 1.0, dropout)
        np.testing.assert_allclose(codes, exact, atol=1e-6)  # p = 1: raw alone
        draws = fsq.Draws(*(jnp.full((400, 1, 1), bit) for bit in (False, True)), jnp.zeros(latents.shape))
        kept = jax.vmap(lambda key: vq.draw_streams(key, 2, dropout))(clip_keys(400))
        rounded, _ = scalable_fsq.dither(jnp.tanh(latents), stages, kept, draws)
        coarse = np.abs(np.asarray(rounded) * 2 - np.round(np.asarray(rounded) * 2)).max((1, 2)) < 1e-5
        np.testing.assert_array_equal(coarse, np.asarray(kept) == 1)
        return coarse.mean()

    assert share_of_one(0.0) == 0
    assert 0.4 < share_of_one(1.0) < 0.6
    assert 0.18 < share_of_one(0.5) < 0.32


def test_level_counts():
    tokens = jnp.array([[[0, 26]], [[5, 5]]])  # digits, first dimension fastest: 000, 222, 210, 210
    np.testing.assert_array_equal(scalable_fsq.level_counts(tokens, (3,) * 3), [[1, 0, 3], [1, 2, 1], [3, 0, 1]])
