"""Residual VQ against its formulas in NumPy: codes, words, losses, gradients, kept codebooks, seeding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.quantizers import residual_vq, vq
from codec_jax.quantizers.residual_vq import ResidualVQ

MODULE = ResidualVQ(latent_dim=5, num_codebooks=3, codebook_size=16, codebook_dim=4)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture(scope="module")
def params():
    return nn.unbox(MODULE.init(jax.random.key(0), noise(1, 2, 5)))["params"]


def by_formula(params, latents, kept):
    """Float64, clip by clip: latents, codes, losses; and the distance of the second nearest word beyond the nearest."""
    down, books, up = (np.asarray(params[name], np.float64) for name in ("down", "codebook", "up"))
    out, codes, losses, margin = np.zeros(latents.shape), [], np.zeros((2, len(latents))), np.inf
    residual = np.asarray(latents, np.float64)
    for i, book in enumerate(books):
        z = residual @ down[i]
        cosine = (z @ book.T) / np.linalg.norm(z, axis=-1, keepdims=True) / np.linalg.norm(book, axis=-1)
        best = np.sort(cosine, -1)
        margin = min(margin, (best[..., -1] - best[..., -2]).min())
        codes.append(cosine.argmax(-1))
        q = book[codes[-1]]
        for clip, count in enumerate(kept):
            if i < count:
                out[clip] += q[clip] @ up[i]
                losses[:, clip] += ((z - q)[clip] ** 2).mean()
        residual = residual - q @ up[i]
    return out, np.stack(codes, 1), losses, margin


@pytest.mark.parametrize("train", [False, True])
def test_codes_words_and_losses_are_the_formulas(params, train):
    latents, kept = noise(4, 6, 5), np.array([1, 3, 2, 3])
    want, codes, losses, margin = by_formula(params, latents, kept)
    assert margin > 1e-5  # so float32 has no excuse
    out = MODULE.apply({"params": params}, latents, jnp.asarray(kept), train=train)
    np.testing.assert_array_equal(out.codes, codes)
    assert out.codes.dtype == jnp.int32
    np.testing.assert_allclose(out.latents, want, atol=1e-5)
    np.testing.assert_allclose(out.losses, losses, rtol=1e-5)


def test_words_are_chosen_by_direction_alone(params):
    longer = {**params, "codebook": params["codebook"] * jnp.linspace(0.1, 9, 16)[:, None]}
    one = ResidualVQ(5, 1, 16, 4)
    codes = [one.apply({"params": jax.tree.map(lambda x: x[:1], p)}, noise(2, 9, 5)).codes for p in (params, longer)]
    np.testing.assert_array_equal(*codes)


def test_gradients_are_the_formulas():
    """Of two codebooks: straight through the words, also on the way to the second; the words learn from their loss."""
    module = ResidualVQ(latent_dim=5, num_codebooks=2, codebook_size=8, codebook_dim=3)
    latents, weights = noise(2, 6, 5), noise(2, 6, 5, seed=1)
    params = nn.unbox(module.init(jax.random.key(1), latents))["params"]

    def total(params, latents, of_audio, of_commitment, of_codebook):
        out = module.apply({"params": params}, latents, train=True)
        commitment, codebook = out.losses.sum(1)
        return of_audio * (weights * out.latents).sum() + of_commitment * commitment + of_codebook * codebook

    grad = jax.grad(total, argnums=(0, 1))
    (d1, d2), books, (u1, u2) = (np.asarray(params[name], np.float64) for name in ("down", "codebook", "up"))
    x, w = np.asarray(latents, np.float64), np.asarray(weights, np.float64)
    codes = np.asarray(module.apply({"params": params}, latents).codes)
    q1, q2 = (books[i][codes[:, i]] for i in (0, 1))
    z1, z2 = x @ d1, (x - q1 @ u1) @ d2
    passed = np.eye(5) - d1 @ u1  # what of the latents reaches the second codebook, as gradients see it

    to_params, to_latents = grad(params, latents, 1.0, 0.0, 0.0)
    np.testing.assert_allclose(to_latents, w @ (d1 @ u1 + passed @ d2 @ u2).T, atol=1e-4)
    np.testing.assert_allclose(to_params["up"][1], np.einsum("btk,btl->kl", q2, w), atol=1e-4)
    np.testing.assert_allclose(to_params["up"][0], np.einsum("btk,btl->kl", q1, w - w @ u2.T @ d2.T), atol=1e-4)
    assert not np.asarray(to_params["codebook"]).any()

    g1, g2 = (2 * (z - q) / z[0].size for z, q in ((z1, q1), (z2, q2)))
    to_params, to_latents = grad(params, latents, 0.0, 1.0, 0.0)
    np.testing.assert_allclose(to_latents, g1 @ d1.T + g2 @ (passed @ d2).T, atol=1e-5)
    assert not np.asarray(to_params["codebook"]).any()

    to_params, to_latents = grad(params, latents, 0.0, 0.0, 1.0)
    assert not np.asarray(to_latents).any()
    want = np.zeros(books.shape)
    for i, g in enumerate((-g1, -g2)):
        np.add.at(want[i], codes[:, i], g)
    np.testing.assert_allclose(to_params["codebook"], want, atol=1e-5)
    assert np.abs(want).max() > 0.01


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_the_first_codebooks_are_a_codec(params, seed, count, scale):
    latents = scale * noise(2, 3, 5, seed=seed)
    whole = MODULE.apply({"params": params}, latents)
    codes = MODULE.apply({"params": params}, latents, count, method=ResidualVQ.encode)
    np.testing.assert_array_equal(codes, whole.codes[:, :count])
    kept = MODULE.apply({"params": params}, latents, jnp.full(2, count)).latents
    np.testing.assert_allclose(MODULE.apply({"params": params}, codes, method=ResidualVQ.decode), kept, atol=1e-5)


def test_seeded_codebooks_quantise_better_one_by_one(params):
    latents = noise(8, 40, 5)
    seeded = residual_vq.seeded(MODULE, params, latents, 10, jax.random.key(3))
    np.testing.assert_array_equal(seeded["down"], params["down"])
    before, after = (MODULE.apply({"params": p}, latents) for p in (params, seeded))
    assert float(after.losses.mean()) < 0.5 * float(before.losses.mean())


def test_dead_words_become_points_of_their_codebook(params):
    latents = noise(2, 6, 5)
    _, told = MODULE.apply({"params": params}, latents, mutable=[vq.POINTS])
    points = told[vq.POINTS]["codebook"]
    np.testing.assert_allclose(points[0], latents @ params["down"][0], atol=1e-5)
    dead = np.zeros((3, 16), bool)
    dead[1, 4] = dead[2, 0] = True
    revived = residual_vq.revived(params, points, jnp.asarray(dead), jax.random.key(0))
    changed = np.any(np.asarray(revived["codebook"]) != np.asarray(params["codebook"]), -1)
    np.testing.assert_array_equal(changed, dead)
    assert (np.asarray(points[1]).reshape(-1, 4) == np.asarray(revived["codebook"][1, 4])).all(1).any()


def test_every_parameter_names_its_axes():
    boxed = jax.eval_shape(lambda: MODULE.init(jax.random.key(0), noise(1, 2, 5)))["params"]
    assert {name: leaf.names for name, leaf in boxed.items()} == {
        "down": (None, "embed", None),
        "codebook": (None, None, None),
        "up": (None, None, "embed"),
    }
