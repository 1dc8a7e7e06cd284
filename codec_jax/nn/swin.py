"""Swin transformer blocks over a grid of tokens, rows (frequency) × columns (time) (spec ESC section 3.2).

Tokens are [batch, row, column, channel]. Attention is inside windows of w × w tokens. As upstream, the grid is padded
with zeros to whole windows after the first norm, and tokens attend to these zeros, whose q, k and v are the biases.

valid: which columns of a clip exist, a prefix. A clip of n columns gives the same tokens alone and inside a wider
batch: the columns that it would be padded with alone are zeros here too, and those beyond are kept apart by the same
-100 that separates regions.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from codec_jax.nn.linear import Linear, partitioned
from codec_jax.nn.norm import LayerNorm
from codec_jax.nn.transformer import Valid
from codec_jax.ops import platform
from codec_jax.ops.gelu import gelu

NORM_EPSILON = 1e-5
_APART = -100.0  # upstream's; finite, so that a row of it alone is still a distribution


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """What every block shares. window: tokens on each side. remat: "none", "full" or "dots" (keep matrix products)."""

    window: int = 4
    mlp_ratio: float = 4.0
    remat: str = "none"
    dtype: str = "float32"


# ---- windows -----------------------------------------------------------------------------------


def partition(x: Float[Array, "batch row column dim"], window: int) -> Float[Array, "batch rows columns token dim"]:
    """The grid, whole windows high and wide, cut into windows; a window's tokens row by row."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, dim)
    return x.swapaxes(2, 3).reshape(batch, height // window, width // window, window**2, dim)


def unpartition(x: Float[Array, "batch rows columns token dim"], window: int) -> Float[Array, "batch row column dim"]:
    """The inverse of `partition`."""
    batch, rows, columns, _, dim = x.shape
    x = x.reshape(batch, rows, columns, window, window, dim)
    return x.swapaxes(2, 3).reshape(batch, rows * window, columns * window, dim)


def padding(size: int, window: int) -> int:
    """What is missing to whole windows."""
    return -size % window


def region_labels(height: int, width: int, window: int, valid: Valid) -> Int[Array, "clip rows columns token"]:
    """Of every token of a shifted grid, cut into windows: tokens of different labels must not see each other.

    height, width: of the padded grid. clip: 1 where `valid` is None. Labels are the nine regions that rolling brings
    together, and beyond what a clip is padded to alone nine others.
    """
    shift = window // 2
    rows, columns = (np.repeat(range(3), [size - window, window - shift, shift]) for size in (height, width))
    labels = jnp.asarray(3 * rows[:, None] + columns)[None]
    if valid is not None:
        alone = -(-valid.sum(1, dtype=jnp.int32) // window) * window
        beyond = (np.arange(width) + shift) % width >= alone[:, None]
        labels = labels + 9 * beyond[:, None, :]
    return partition(labels[..., None].astype(jnp.float32), window)[..., 0].astype(jnp.int32)


def relative_position_index(window: int) -> np.ndarray:
    """Row of the bias table for every (query, key) of a window, int [w², w²]: by row, then column difference."""
    places = np.stack(np.divmod(np.arange(window**2), window), -1)
    difference = places[:, None] - places[None] + window - 1
    return difference[..., 0] * (2 * window - 1) + difference[..., 1]


def mask_columns(x: Float[Array, "batch row column dim"], valid: Valid) -> Float[Array, "batch row column dim"]:
    """Zeros at columns that do not exist; whatever stood there, infinities too, is gone."""
    return x if valid is None else jnp.where(valid[:, None, :, None], x, 0)


# ---- attention ---------------------------------------------------------------------------------

Heads = Float[Array, "batch rows columns token head dim"]


def attend_by_products(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Float[Array, "head token token"],
    labels: Int[Array, "clip rows columns token"] | None,
) -> Heads:
    """Softmax(q kᵀ + bias) v inside every window, a matrix product per window and head; softmax in float32."""
    scores = jnp.einsum("...qhd,...khd->...hqk", q, k, preferred_element_type=jnp.float32) + bias
    if labels is not None:
        apart = labels[..., :, None] != labels[..., None, :]
        scores = scores + jnp.where(apart, _APART, 0)[..., None, :, :]
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("...hqk,...khd->...qhd", weights, v)


def attend_along_lanes(
    q: Heads,
    k: Heads,
    v: Heads,
    bias: Float[Array, "head token token"],
    labels: Int[Array, "clip rows columns token"] | None,
) -> Heads:
    """The same with all windows side by side in the last axis, [head, dim, token, window], and sums for products.

    A window has 16 tokens and a head some 15 dims: as matrices they fill an eighth of a TPU's lanes.
    """

    def lanes(x: Array) -> Array:
        return x.transpose(4, 5, 3, 0, 1, 2).reshape(*x.shape[4:], x.shape[3], -1).astype(jnp.float32)

    scores = (lanes(q)[:, :, :, None] * lanes(k)[:, :, None]).sum(1) + bias[..., None]  # [head, query, key, window]
    if labels is not None:
        flat = jnp.broadcast_to(labels, q.shape[:4]).transpose(3, 0, 1, 2).reshape(q.shape[3], -1)
        scores = scores + jnp.where(flat[:, None] != flat[None], _APART, 0)
    weights = jax.nn.softmax(scores, axis=2)
    y = (weights[:, None] * lanes(v)[:, :, None]).sum(3)  # [head, dim, query, window]
    return y.reshape(*y.shape[:3], *q.shape[:3]).transpose(3, 4, 5, 2, 0, 1).astype(v.dtype)


# ---- blocks ------------------------------------------------------------------------------------


def by_clip(x: Heads) -> Heads:
    """Cut over devices by clip, heads as they come: with clips and windows in one axis the partitioner loses track."""
    return nn.with_logical_constraint(x, ("batch", *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)))


class WindowAttention(nn.Module):
    """Multi-head attention inside every window, with a learned bias per head and relative position."""

    window: int
    heads: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch rows columns token dim"],
        labels: Int[Array, "clip rows columns token"] | None = None,
    ) -> Float[Array, "batch rows columns token dim"]:
        """Softmax in float32. labels: see `region_labels`."""
        heads = (self.heads, x.shape[-1] // self.heads)
        qkv = Linear((3, *heads), ("embed",), (None, "heads", "head_dim"), dtype=self.dtype, name="qkv")(x)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        table_shape = ((2 * self.window - 1) ** 2, self.heads)
        init = partitioned(nn.initializers.normal(0.02), (None, "heads"))
        bias = self.param("position_bias", init, table_shape)[relative_position_index(self.window)]
        attend = attend_along_lanes if platform.current() == "tpu" else attend_by_products
        y = by_clip(attend(by_clip(q * heads[1] ** -0.5), by_clip(k), by_clip(v), jnp.moveaxis(bias, -1, 0), labels))
        return Linear((x.shape[-1],), ("heads", "head_dim"), ("embed",), dtype=self.dtype, name="proj")(y)


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    hidden: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        h = Linear((self.hidden,), ("embed",), ("mlp",), dtype=self.dtype, name="linear_1")(x)
        return Linear((x.shape[-1],), ("mlp",), ("embed",), dtype=self.dtype, name="linear_2")(gelu(h))


class SwinBlock(nn.Module):
    """Pre-norm residual branches: window attention, of windows shifted by half or not, and MLP."""

    config: SwinConfig
    heads: int
    shifted: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch row column dim"], valid: Valid = None
    ) -> Float[Array, "batch row column dim"]:
        cfg, (_, height, width, dim) = self.config, x.shape
        dtype, window = jnp.dtype(cfg.dtype), cfg.window
        shift = window // 2 if self.shifted else 0
        x = nn.with_logical_constraint(x, ("batch", None, "time", None))
        h = mask_columns(LayerNorm(NORM_EPSILON, use_bias=True, name="norm_1")(x), valid)
        h = jnp.pad(h, ((0, 0), (0, padding(height, window)), (0, padding(width, window)), (0, 0)))
        labels = region_labels(h.shape[1], h.shape[2], window, valid) if shift else None
        windows = partition(jnp.roll(h, (-shift, -shift), (1, 2)), window)
        windows = WindowAttention(window, self.heads, dtype, name="attn")(windows, labels)
        h = jnp.roll(unpartition(windows, window), (shift, shift), (1, 2))
        x = x + h[:, :height, :width]
        h = LayerNorm(NORM_EPSILON, use_bias=True, name="norm_2")(x)
        x = x + MLP(int(dim * cfg.mlp_ratio), dtype, name="mlp")(h)
        return nn.with_logical_constraint(x, ("batch", None, "time", None))


class PatchMerge(nn.Module):
    """Pairs of rows become one, of `features` channels; an odd last row is paired with zeros."""

    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch row column dim"]) -> Float[Array, "batch pair column feature"]:
        batch, height, width, dim = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, 0), (0, 0)))
        x = x.reshape(batch, -1, 2, width, dim).swapaxes(2, 3).reshape(batch, -1, width, 2 * dim)
        x = LayerNorm(NORM_EPSILON, use_bias=True, name="norm")(x)
        return Linear((self.features,), ("embed",), ("embed",), use_bias=False, dtype=self.dtype, name="linear")(x)


class PatchSplit(nn.Module):
    """Every row becomes two, of `features` channels."""

    features: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "batch row column dim"]) -> Float[Array, "batch half column feature"]:
        batch, height, width, _ = x.shape
        x = LayerNorm(NORM_EPSILON, use_bias=True, name="norm")(x)
        features = (2, self.features)
        x = Linear(features, ("embed",), (None, "embed"), use_bias=False, dtype=self.dtype, name="linear")(x)
        return x.transpose(0, 1, 3, 2, 4).reshape(batch, 2 * height, width, self.features)


class SwinStage(nn.Module):
    """`depth` blocks, every second one shifted, then (scale) "down" or "up" to `features` channels, or nothing."""

    config: SwinConfig
    heads: int
    depth: int
    features: int
    scale: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch row column dim"], valid: Valid = None, train: bool = False
    ) -> Float[Array, "batch row_ column feature"]:
        """train: unused, as nothing here differs in training; stages of convolutions have it too."""
        for i in range(self.depth):
            block = _rematerialised(self.config.remat)
            x = block(self.config, self.heads, bool(i % 2), name=f"block_{i}")(x, valid)
        if self.scale is None:
            return x
        resample = PatchMerge if self.scale == "down" else PatchSplit
        return resample(self.features, jnp.dtype(self.config.dtype), name="resample")(x)


def _rematerialised(remat: str):
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    return SwinBlock if remat == "none" else nn.remat(SwinBlock, policy=policies[remat])
