"""Product VQ and product residual VQ: layout, lookup, losses, gradients, streams."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.quantizers import vq

CONFIG = vq.ProductConfig(overlap=2, groups=3, codebook_size=7)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@settings(deadline=None, max_examples=15)
@given(rows=st.integers(1, 3), dim=st.integers(1, 4), overlap=st.integers(1, 3), frames=st.integers(1, 3))
def test_vectors_by_their_index(rows, dim, overlap, frames):
    grid = noise(2, rows, overlap * frames, dim)
    vectors = vq.to_vectors(grid, overlap)
    assert vectors.shape == (2, frames, overlap * dim * rows)
    column, channel, row = overlap - 1, dim - 1, rows // 2
    entry = (column * dim + channel) * rows + row
    np.testing.assert_array_equal(vectors[:, -1, entry], grid[:, row, overlap * (frames - 1) + column, channel])
    np.testing.assert_array_equal(vq.to_grid(vectors, overlap, rows), grid)


def test_groups_are_contiguous_and_the_last_takes_the_rest():
    assert vq.group_sizes(128, 3) == (42, 42, 44)
    assert vq.group_sizes(1536, 3) == (512, 512, 512)
    assert vq.group_sizes(3, 1) == (3,)
    parts = vq.split(noise(2, 3, 128), 3)
    assert [part.shape[-1] for part in parts] == [42, 42, 44]
    np.testing.assert_array_equal(jnp.concatenate(parts, -1), noise(2, 3, 128))


@pytest.mark.parametrize("l2norm", [True, False])
def test_nearest_is_nearest(l2norm):
    z, codebook = noise(2, 50, 5), noise(40, 5, seed=1)
    ours = vq.nearest(z, codebook, l2norm)
    a, b = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    if l2norm:
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    np.testing.assert_array_equal(ours, np.square(a[:, :, None] - b).sum(-1).argmin(-1))
    assert ours.dtype == jnp.int32


def test_the_first_of_equal_words_and_zeros():
    codebook = jnp.array([[1.0, 0], [0, 1], [2, 0], [0, 1]])
    z = jnp.array([[[3.0, 0], [0, 5], [0, 0]]])
    np.testing.assert_array_equal(vq.nearest(z, codebook, True), [[0, 1, 0]])
    assert np.isfinite(jax.grad(lambda z: vq.losses(z, codebook[vq.nearest(z, codebook, True)]).sum())(z)).all()


@pytest.fixture(scope="module")
def product():
    module = vq.ProductVQ(CONFIG, rows=2, dim=5, codebook_dim=4)  # vectors of 20: groups of 6, 6, 8
    return module, nn.unbox(module.init(jax.random.key(0), noise(1, 2, 4, 5)))


def test_codes_decode_to_the_quantised_grid(product):
    module, variables = product
    grid = noise(3, 2, 8, 5)
    out = module.apply(variables, grid)
    assert out.codes.shape == (3, 1, 3, 4)
    assert out.codes.dtype == jnp.int32
    back = module.apply(variables, out.codes[:, 0], method=vq.ProductVQ.dequantise)
    np.testing.assert_array_equal(back, out.grid)
    trained = module.apply(variables, grid, train=True)
    np.testing.assert_allclose(trained.grid, out.grid, atol=1e-6)
    np.testing.assert_array_equal(out.losses[0], out.losses[1])


def test_losses_are_means_over_groups(product):
    module, variables = product
    grid, params = noise(3, 2, 8, 5), variables["params"]
    out, want = module.apply(variables, grid), np.zeros(3)
    for group, chunk in enumerate(vq.split(vq.to_vectors(grid, 2), 3)):
        z, q = chunk @ params[f"down_{group}"], params[f"codebook_{group}"][out.codes[:, 0, group]]
        want += np.asarray(jnp.square(z - q).mean((1, 2))) / 3
    np.testing.assert_allclose(out.losses[0], want, rtol=1e-5)


def gradients(module, variables, grid, weights, **flags):
    """Of the grid's sum of squares, the commitment and the codebook loss, weighted."""

    def total(params, grid):
        out = module.apply({"params": params}, grid, *flags.get("streams", ()), train=True, quantise=flags["quantise"])
        terms = jnp.stack([jnp.square(out.grid).sum(), out.losses[0].sum(), out.losses[1].sum()])
        return (terms * jnp.array(weights)).sum()

    return jax.grad(total, argnums=(0, 1))(variables["params"], grid)


def test_what_learns_from_what(product):
    module, variables = product
    grid = noise(3, 2, 8, 5)
    params, to_grid = gradients(module, variables, grid, (1.0, 0, 0), quantise=True)
    assert np.abs(to_grid).max() > 0  # straight through the words
    assert not np.asarray(params["codebook_0"]).any()
    params, to_grid = gradients(module, variables, grid, (0, 1.0, 0), quantise=True)
    assert np.abs(to_grid).max() > 0
    assert not np.asarray(params["codebook_0"]).any()
    params, to_grid = gradients(module, variables, grid, (0, 0, 1.0), quantise=True)
    assert not np.asarray(to_grid).any()
    assert np.abs(params["codebook_0"]).max() > 0


def test_continuous_is_down_and_up(product):
    module, variables = product
    grid, params = noise(3, 2, 8, 5), variables["params"]
    out = module.apply(variables, grid, train=True, quantise=False)
    chunks = [c @ params[f"down_{g}"] @ params[f"up_{g}"] for g, c in enumerate(vq.split(vq.to_vectors(grid, 2), 3))]
    np.testing.assert_allclose(out.grid, vq.to_grid(jnp.concatenate(chunks, -1), 2, 2), atol=1e-5)
    assert not np.asarray(out.losses).any()
    params, _ = gradients(module, variables, grid, (1.0, 1.0, 1.0), quantise=False)
    assert not np.asarray(params["codebook_0"]).any()


@pytest.fixture(scope="module")
def residual():
    module = vq.ProductResidualVQ(CONFIG, rows=2, dim=5, codebook_dim=6, streams=3)  # groups of 6, 6, 8
    return module, nn.unbox(module.init(jax.random.key(0), noise(1, 2, 4, 5), 3))


def test_a_group_as_long_as_its_words_has_no_projection(residual):
    assert set(residual[1]["params"]) == {"codebook_0", "codebook_1", "codebook_2", "down_2", "up_2"}


@pytest.mark.parametrize("train", [False, True])
def test_streams_are_a_prefix_and_add_up(residual, train):
    module, variables = residual
    grid = noise(3, 2, 8, 5)
    run = jax.jit(lambda n: module.apply(variables, grid, n, train=train))
    outs = [run(jnp.int32(n)) for n in (1, 2, 3)]
    for n, out in enumerate(outs, 1):
        np.testing.assert_array_equal(out.codes, outs[-1].codes)
        back = module.apply(variables, out.codes[:, :n], method=vq.ProductResidualVQ.dequantise)
        np.testing.assert_allclose(out.grid, back, atol=1e-5)
    losses = np.array([out.losses[0] for out in outs])
    assert (np.diff(losses, axis=0) > 0).all()


def test_only_the_first_stream_commits_the_grid(residual):
    module, variables = residual
    grid = noise(3, 2, 8, 5)
    one, three = (gradients(module, variables, grid, (0, 1.0, 0), streams=(n,), quantise=True)[1] for n in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-7)
    assert np.abs(one).max() > 0


def test_counts():
    codes = jnp.array([[[0, 2, 2], [1, 1, 1]], [[2, 0, 0], [0, 1, 2]]])
    np.testing.assert_array_equal(vq.counts(codes, 4), [[3, 0, 3, 0], [1, 4, 1, 0]])
