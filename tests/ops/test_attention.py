"""Banded attention: golden window semantics, blocked against dense, masks, rotary positions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_jax.ops import attention, rope


def qkv(seed, batch=2, time=37, heads=2, dim=8):
    return jax.random.normal(jax.random.key(seed), (3, batch, time, heads, dim))


@pytest.mark.parametrize("case", range(9))
def test_window_semantics_of_upstream(golden, case):
    cases = json.loads((golden.path("taae/attn") / "meta.json").read_text())
    tensors = golden("taae/attn/tensors.safetensors")
    window = (cases[case]["L"], 0 if cases[case]["causal"] else cases[case]["R"])
    q, k, v = (jnp.asarray(tensors[f"{case}/{name}"]).swapaxes(1, 2) for name in "qkv")
    want = tensors[f"{case}/out"].swapaxes(1, 2)
    got = attention.banded_attention(q, k, v, window, impl="dense")
    np.testing.assert_allclose(got, want, atol=2e-6)
    if min(window) >= 0:
        np.testing.assert_allclose(attention.banded_attention(q, k, v, window, impl="blocked"), want, atol=2e-6)


@settings(deadline=None, max_examples=6)
@given(left=st.integers(0, 9), right=st.integers(0, 9), time=st.sampled_from([1, 33]), masked=st.booleans())
def test_blocked_equals_dense(left, right, time, masked):
    q, k, v = qkv(0, time=time)
    valid = jnp.arange(time)[None] < jnp.asarray([[time], [max(1, time // 2)]])
    inv_freq = rope.inverse_frequencies(8)
    outputs = [
        attention.banded_attention(
            q, k, v, (left, right), inv_freq=inv_freq, valid=valid if masked else None, impl=impl
        )
        for impl in ("dense", "blocked")
    ]
    rows = np.asarray(valid) if masked else np.ones((2, time), bool)
    np.testing.assert_allclose(np.asarray(outputs[0])[rows], np.asarray(outputs[1])[rows], atol=3e-6)


def test_blocked_gradients_equal_dense():
    q, k, v = qkv(1)
    weights = jax.random.normal(jax.random.key(2), q.shape)

    def loss(impl):
        def scalar(q, k, v):
            out = attention.banded_attention(q, k, v, (3, 5), inv_freq=rope.inverse_frequencies(8), impl=impl)
            return (out * weights).sum()

        return jax.grad(scalar, argnums=(0, 1, 2))(q, k, v)

    for dense, blocked in zip(loss("dense"), loss("blocked")):
        np.testing.assert_allclose(dense, blocked, atol=2e-5)


def test_nothing_outside_the_window_is_seen():
    q, k, v = qkv(3, batch=1, time=40)
    changed = v.at[:, 20].add(100.0)
    for impl in ("dense", "blocked"):
        before = attention.banded_attention(q, k, v, (4, 6), impl=impl)
        after = attention.banded_attention(q, k, changed, (4, 6), impl=impl)
        moved = np.flatnonzero(np.abs(np.asarray(after - before)).max((0, 2, 3)) > 0)
        np.testing.assert_array_equal(moved, np.arange(20 - 6, 20 + 4 + 1))


def test_padding_is_invisible_and_never_nan():
    q, k, v = qkv(4, time=24)
    valid = jnp.arange(24)[None] < jnp.asarray([[24], [10]])
    for impl in ("dense", "blocked"):
        out = attention.banded_attention(q, k, v, (3, 3), valid=valid, impl=impl)
        alone = attention.banded_attention(q[1:, :10], k[1:, :10], v[1:, :10], (3, 3), impl=impl)
        np.testing.assert_allclose(out[1, :10], alone[0], atol=1e-6)
        assert np.isfinite(np.asarray(out)).all()


def test_choice_by_platform_and_length():
    assert attention.choose_impl(400, (63, 64), "cpu") == "dense"
    assert attention.choose_impl(2000, (63, 64), "cpu") == "blocked"
    assert attention.choose_impl(200, (7, 8), "cpu") == "blocked"
    assert attention.choose_impl(512, (63, 64), "tpu") == "dense"
    assert attention.choose_impl(4096, (63, 64), "tpu") == "blocked"
    assert attention.choose_impl(10**6, (-1, 3), "tpu") == "dense"


def test_unknown_impl_and_unbounded_blocks_are_errors():
    q, k, v = qkv(5, time=4)
    with pytest.raises(ValueError, match="auto"):
        attention.banded_attention(q, k, v, (1, 1), impl="cudnn")
    with pytest.raises(ValueError, match="bounded"):
        attention.banded_attention(q, k, v, (-1, 1), impl="blocked")


def test_rope_depends_on_differences_alone():
    x, y = jax.random.normal(jax.random.key(0), (2, 1, 6, 1, 16))
    inv_freq = rope.inverse_frequencies(16)

    def scores(offset):
        positions = jnp.arange(6) + offset
        return jnp.einsum("bqhk,bshk->qs", rope.rotate(x, positions, inv_freq), rope.rotate(y, positions, inv_freq))

    np.testing.assert_allclose(scores(0), scores(100), atol=2e-4)
    np.testing.assert_array_equal(rope.rotate(x, jnp.arange(6), inv_freq)[..., 8:], x[..., 8:])


def test_inverse_frequencies_are_upstreams_bits(golden):
    for name in ("A", "E"):
        tensors = golden(f"taae/{name}/model.safetensors")
        stored = {key: value for key, value in tensors.items() if key.endswith("inv_freq")}
        assert stored
        for value in stored.values():
            np.testing.assert_array_equal(rope.inverse_frequencies(4 * len(value)), value)
