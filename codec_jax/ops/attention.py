"""Banded (sliding-window) attention: a dense reference, a blocked O(T·W) path, and one function that chooses.

The window (left, right) is inclusive on both sides: query i sees keys i-left .. i+right; -1 leaves a side unbounded.
Softmax is float32. B batch, T time, H heads, K head dim, N blocks, C block length, S context length of a block.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from codec_jax.ops import platform
from codec_jax.ops.rope import rotate

Window = tuple[int, int]
_MASKED = -1e30  # finite: a row without any visible key stays free of NaN


def banded_attention(
    q: Float[Array, "batch time head dim"],
    k: Float[Array, "batch time head dim"],
    v: Float[Array, "batch time head dim"],
    window: Window,
    *,
    inv_freq: np.ndarray | None = None,
    valid: Bool[Array, "batch time"] | None = None,
    impl: str = "auto",
) -> Float[Array, "batch time head dim"]:
    """Softmax(q kᵀ / sqrt(dim)) v inside the window.

    inv_freq: rotary frequencies to apply to q and k first (None: none, or already applied). valid: keys that exist;
    others are invisible. impl: "dense", "blocked", or "auto", which looks at the platform and at T against the window.
    """
    if impl == "auto":
        impl = choose_impl(q.shape[1], window, platform.current())
    if impl == "dense":
        return dense_banded_attention(q, k, v, window, inv_freq=inv_freq, valid=valid)
    if impl == "blocked":
        return blocked_banded_attention(q, k, v, window, inv_freq=inv_freq, valid=valid)
    raise ValueError(f'attention impl is "auto", "dense" or "blocked", not {impl!r}')


def choose_impl(time: int, window: Window, platform: str) -> str:
    """Dense where it moves fewer bytes: on TPU and GPU up to T of about 1,000, on CPU up to 8 windows."""
    if min(window) < 0:
        return "dense"
    width = sum(window) + 1
    threshold = 8 * width if platform == "cpu" else max(1024, 4 * width)
    return "blocked" if time > threshold else "dense"


def block_length(window: Window, platform: str) -> int:
    """A quarter of the window on CPU, where work counts; a full lane tile elsewhere."""
    if platform != "cpu":
        return 128
    return max(8, 2 ** round(math.log2((sum(window) + 1) / 4)))


def num_pairs(time: int, window: Window, impl: str = "auto") -> int:
    """Query-key pairs of one head that `banded_attention` computes on the current platform, masked ones included."""
    if impl == "auto":
        impl = choose_impl(time, window, platform.current())
    if impl == "dense":
        return time * time
    block, num_blocks, pieces = _blocking(time, window)
    return num_blocks * block * pieces * block


def dense_banded_attention(q, k, v, window, *, inv_freq=None, valid=None):
    """The reference: all T² logits, a band mask on them. Arguments as in `banded_attention`."""
    time = q.shape[1]
    if inv_freq is not None:
        positions = jnp.arange(time)
        q, k = rotate(q, positions, inv_freq).astype(v.dtype), rotate(k, positions, inv_freq).astype(v.dtype)
    visible = band_mask(jnp.arange(time)[:, None], jnp.arange(time)[None, :], window)[None, None]
    if valid is not None:
        visible = visible & valid[:, None, None, :]
    logits = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32)
    weights = _softmax(logits, visible, q.shape[-1]).astype(v.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v)


def blocked_banded_attention(q, k, v, window, *, inv_freq=None, valid=None):
    """Queries in blocks of C, each against its S = C + left + right keys, rounded up to whole blocks.

    Contexts are shifted slices of the padded keys, so nothing is gathered. Rotary positions count from the start of
    each context: only differences matter, and small angles stay exact in float32 however long the sequence is.
    """
    left = window[0]
    if min(window) < 0:
        raise ValueError(f"blocked attention needs a bounded window, not {window}")
    time, head_dim = q.shape[1], q.shape[-1]
    block, num_blocks, pieces = _blocking(time, window)
    if valid is None:
        valid = jnp.ones((1, time), bool)

    def contexts(x):  # [B, T, ...] -> [B, N, S, ...], context n starting at key n * C - left
        padding = [(0, 0)] * x.ndim
        padding[1] = (left, (num_blocks + pieces - 1) * block - left - time)
        x = jnp.pad(x, padding)
        shifted = [x[:, i * block : (i + num_blocks) * block] for i in range(pieces)]
        return jnp.concatenate([s.reshape(x.shape[0], num_blocks, block, *x.shape[2:]) for s in shifted], axis=2)

    q_BxNxCxHxK = jnp.pad(q, [(0, 0), (0, num_blocks * block - time), (0, 0), (0, 0)]).reshape(
        q.shape[0], num_blocks, block, *q.shape[2:]
    )
    k_BxNxSxHxK, v_BxNxSxHxK, valid_BxNxS = contexts(k), contexts(v), contexts(valid)
    query_positions, key_positions = left + jnp.arange(block), jnp.arange(pieces * block)
    if inv_freq is not None:
        q_BxNxCxHxK = rotate(q_BxNxCxHxK, query_positions, inv_freq).astype(v.dtype)
        k_BxNxSxHxK = rotate(k_BxNxSxHxK, key_positions, inv_freq).astype(v.dtype)
    visible = band_mask(query_positions[:, None], key_positions[None, :], window) & valid_BxNxS[:, :, None, None]
    logits = jnp.einsum("bnqhk,bnshk->bnhqs", q_BxNxCxHxK, k_BxNxSxHxK, preferred_element_type=jnp.float32)
    weights = _softmax(logits, visible, head_dim).astype(v.dtype)
    out = jnp.einsum("bnhqs,bnshk->bnqhk", weights, v_BxNxSxHxK)
    return out.reshape(q.shape[0], num_blocks * block, *q.shape[2:])[:, :time]


def band_mask(query_positions: Array, key_positions: Array, window: Window) -> Array:
    """True where a key lies inside the window of a query; positions broadcast against each other."""
    left, right = window
    distance = key_positions - query_positions
    visible = jnp.ones(distance.shape, bool)
    if left >= 0:
        visible &= distance >= -left
    if right >= 0:
        visible &= distance <= right
    return visible


def _blocking(time: int, window: Window) -> tuple[int, int, int]:
    """Length and number of the blocks of queries, and how many blocks of keys each of them sees."""
    block = block_length(window, platform.current())
    return block, -(-time // block), -(-(block + sum(window)) // block)


def _softmax(logits, visible, head_dim):
    return jax.nn.softmax(jnp.where(visible, logits / math.sqrt(head_dim), _MASKED), axis=-1)
