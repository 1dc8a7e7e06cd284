"""Swin blocks: windows, regions, and the same tokens for a clip alone and in a wider batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.nn import swin
from codec_jax.ops import platform

CONFIG = swin.SwinConfig(window=4, mlp_ratio=2.0)


def noise(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def variables_of(module, x):
    """Fresh, with biases and norms that are not what they start as: zero pads then attend like tokens."""
    variables = nn.unbox(module.init(jax.random.key(0), x))
    leaves, structure = jax.tree.flatten(variables)
    return jax.tree.unflatten(structure, [leaf + 0.3 * noise(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)])


@settings(deadline=None, max_examples=20)
@given(window=st.sampled_from([2, 4]), rows=st.integers(1, 3), columns=st.integers(1, 4))
def test_partition_is_a_permutation(window, rows, columns):
    x = noise(2, rows * window, columns * window, 3)
    windows = swin.partition(x, window)
    np.testing.assert_array_equal(swin.unpartition(windows, window), x)
    np.testing.assert_array_equal(windows[1, rows - 1, 0, window], x[1, (rows - 1) * window + 1, 0])


def test_relative_positions_by_their_definition():
    index = swin.relative_position_index(4)
    for query, key in ((0, 0), (5, 2), (15, 0), (3, 12)):
        (qr, qc), (kr, kc) = divmod(query, 4), divmod(key, 4)
        assert index[query, key] == (qr - kr + 3) * 7 + qc - kc + 3


def plain_block(params, x, heads, shifted, window=4):
    """The block as the spec words it, in NumPy float64, one clip at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, shift = np.asarray(x, np.float64), window // 2 if shifted else 0

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p, inner=1):
        return np.tensordot(x, p["kernel"], inner) + p["bias"]

    height, width, dim = x.shape
    h = np.pad(norm(x, p["norm_1"]), ((0, -height % window), (0, -width % window), (0, 0)))
    out = np.zeros_like(h)
    h = np.roll(h, (-shift, -shift), (0, 1))
    regions = np.zeros(h.shape[:2])
    if shift:
        cuts = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                regions[rows, columns] = 3 * i + j
    for r in range(0, h.shape[0], window):
        for c in range(0, h.shape[1], window):
            tokens = h[r : r + window, c : c + window].reshape(window**2, dim)
            region = regions[r : r + window, c : c + window].reshape(-1)
            q, k, v = linear(tokens, p["attn"]["qkv"]).transpose(1, 2, 0, 3)
            scores = np.einsum("hqd,hkd->hqk", q * (dim / heads) ** -0.5, k)
            scores += p["attn"]["position_bias"][swin.relative_position_index(window)].transpose(2, 0, 1)
            scores += np.where(region[:, None] != region[None], -100, 0)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            y = linear(np.einsum("hqk,hkd->qhd", weights, v), p["attn"]["proj"], 2)
            out[r : r + window, c : c + window] = y.reshape(window, window, dim)
    x = x + np.roll(out, (shift, shift), (0, 1))[:height, :width]
    h = linear(norm(x, p["norm_2"]), p["mlp"]["linear_1"])
    h = h * 0.5 * (1 + np.vectorize(__import__("math").erf)(h / np.sqrt(2)))
    return x + linear(h, p["mlp"]["linear_2"])


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width"), [(2, 6), (5, 4), (8, 9)])
def test_the_block_is_the_specs(shifted, height, width):
    module, x = swin.SwinBlock(CONFIG, 2, shifted), noise(1, height, width, 8)
    variables = variables_of(module, x)
    want = plain_block(variables["params"], x[0], 2, shifted)
    np.testing.assert_allclose(module.apply(variables, x)[0], want, atol=2e-5)


@pytest.fixture(scope="module")
def stage():
    module = swin.SwinStage(CONFIG, 2, 3, 6, "down")
    variables = variables_of(module, noise(1, 6, 16, 8))
    return variables, jax.jit(module.apply)


@pytest.mark.parametrize("counts", [(16, 1, 4), (5, 6, 7), (8, 9, 15), (12, 3, 2)])
def test_a_clip_alone_is_the_clip_in_a_batch(stage, counts):
    """Three blocks, so that what the first makes of the padding reaches the last, and a merge."""
    variables, apply = stage
    clips = [noise(1, 6, count, 8, seed=count) for count in counts]
    junk = 1e3 * noise(3, 6, 16, 8, seed=99)
    batch = jnp.concatenate([jnp.concatenate([c, j[None, :, c.shape[2] :]], 2) for c, j in zip(clips, junk)])
    valid = np.arange(16) < np.array(counts)[:, None]
    together = apply(variables, batch, jnp.asarray(valid))
    for clip, out in zip(clips, together):
        alone = apply(variables, clip)
        np.testing.assert_allclose(out[:, : clip.shape[2]], alone[0], atol=2e-5)


def test_without_validity_the_padding_would_matter(stage):
    variables, apply = stage
    clip = noise(1, 6, 6, 8)
    padded = jnp.pad(clip, ((0, 0), (0, 0), (0, 10), (0, 0)))
    assert np.abs(apply(variables, padded)[:, :, :6] - apply(variables, clip)).max() > 1e-2


def test_merging_and_splitting_order_rows_before_channels():
    x = noise(1, 3, 2, 4)
    merge = swin.PatchMerge(8)
    variables = {"params": {"norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}, "linear": {"kernel": jnp.eye(8)}}}
    merged = merge.apply(variables, x)
    assert merged.shape == (1, 2, 2, 8)
    pair = np.concatenate([x[0, 0, 1], x[0, 1, 1]])
    np.testing.assert_allclose(merged[0, 0, 1], (pair - pair.mean()) / pair.std(), atol=1e-4)
    assert np.ptp(merged[0, 1, 0, 4:]) == 0  # the row that an odd height lacks
    split = swin.PatchSplit(2)
    variables = {
        "params": {
            "norm": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
            "linear": {"kernel": jnp.eye(4).reshape(4, 2, 2)},
        }
    }
    halves = split.apply(variables, x)
    assert halves.shape == (1, 6, 2, 2)
    token = np.asarray(x[0, 2, 1])
    normed = (token - token.mean()) / token.std()
    np.testing.assert_allclose(np.concatenate([halves[0, 4, 1], halves[0, 5, 1]]), normed, atol=1e-4)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialised_is_the_same(remat):
    x = noise(1, 4, 6, 8)
    variables = variables_of(swin.SwinStage(CONFIG, 2, 2, 8), x)

    def gradient(config):
        def total(variables):
            return (swin.SwinStage(config, 2, 2, 8).apply(variables, x) ** 2).sum()

        return jax.tree.leaves(jax.jit(jax.grad(total))(variables))

    changed = swin.SwinConfig(window=4, mlp_ratio=2.0, remat=remat)
    for one, other in zip(gradient(CONFIG), gradient(changed)):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("clips", [None, 1, 2])
def test_attention_along_lanes_is_attention(clips):
    """What TPUs take, in value and gradients: without labels, with labels of all clips and of each."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 3, 4, 16, 3, 5)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.standard_normal((3, 16, 16)), jnp.float32)
    labels = None if clips is None else jnp.asarray(rng.integers(0, 3, (clips, 3, 4, 16)))
    direction = jnp.asarray(rng.standard_normal(v.shape), jnp.float32)

    def found(attend):
        y, pull_back = jax.vjp(lambda *x: attend(*x, labels), q, k, v, bias)
        return y, *pull_back(direction)

    for ours, wanted in zip(found(swin.attend_along_lanes), found(swin.attend_by_products), strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-5)


def test_which_attention(monkeypatch):
    taken = []
    monkeypatch.setattr(swin, "attend_along_lanes", lambda q, *_: taken.append("lanes") or q)
    monkeypatch.setattr(swin, "attend_by_products", lambda q, *_: taken.append("products") or q)
    attention = swin.WindowAttention(4, 3)
    for name in ("cpu", "gpu", "tpu"):
        with platform.tracing_for(name):
            jax.eval_shape(lambda: attention.init(jax.random.key(0), jnp.zeros((1, 1, 1, 16, 6))))
    assert taken == ["products", "products", "lanes"]
