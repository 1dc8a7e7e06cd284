"""The modules of WavLM: front end, positions, blocks with gated relative position bias (arXiv 2110.13900)."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from codec_jax.errors import UserError
from codec_jax.nn.conv import gathered
from codec_jax.nn.linear import Linear, partitioned, torch_uniform
from codec_jax.nn.norm import LayerNorm
from codec_jax.ops.gelu import gelu

CONVOLUTIONS = -1
"""Stands for the front end's features, as upstream's losses number them; 0 is what enters the first layer."""


@dataclasses.dataclass(frozen=True)
class WavLMConfig:
    """Sizes. conv_norm: "group" after the first convolution alone, or "layer" after each. pre_norm: `LARGE`'s layers.

    num_buckets, max_distance: of relative positions, in frames. position_kernel, position_groups: of the convolution
    that tells layers where they are. remat: True computes layers again for the gradient.
    """

    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: str = "group"
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden: int = 3072
    pre_norm: bool = False
    num_buckets: int = 320
    max_distance: int = 800
    position_kernel: int = 128
    position_groups: int = 16
    norm_epsilon: float = 1e-5
    remat: bool = False
    dtype: str = "float32"

    def validate(self) -> None:
        """Raises UserError where sizes do not fit together."""
        if len({len(self.conv_widths), len(self.conv_kernels), len(self.conv_strides)}) > 1:
            raise UserError("WavLM's conv_widths, conv_kernels and conv_strides must be equally many.")
        if self.conv_norm not in ("group", "layer"):
            raise UserError(f'WavLM\'s conv_norm is "group" or "layer", not "{self.conv_norm}".')
        for name, divisor in (("num_heads", self.num_heads), ("position_groups", self.position_groups)):
            if self.width % divisor:
                raise UserError(f"WavLM's width of {self.width} does not divide by {name}={divisor}.")


class Network(nn.Module):
    """All of it up to layer `layers`: {layer: features}."""

    config: WavLMConfig
    layers: int

    @nn.compact
    def __call__(self, audio: Float[Array, "batch time"], present: Bool[Array, "batch frame"] | None):
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        convolved = FrontEnd(cfg, name="front_end")(audio)
        x = LayerNorm(cfg.norm_epsilon, use_bias=True, axis_name=None, name="projection_norm")(convolved)
        x = Linear((cfg.width,), ("conv_in",), ("embed",), dtype=dtype, name="projection")(x)
        if present is not None:
            x = jnp.where(present[..., None], x, 0)
        x = x + _Positions(cfg, name="positions")(x)
        if not cfg.pre_norm:
            x = LayerNorm(cfg.norm_epsilon, use_bias=True, name="norm")(x)
        heard = {CONVOLUTIONS: convolved, 0: x}
        if self.layers:
            _, stacked = self._blocks()(x, _PositionBias(cfg, name="position_bias")(x.shape[1]), present)
            heard |= {i + 1: stacked[i] for i in range(self.layers)}
        return heard

    def _blocks(self) -> Any:
        return nn.scan(
            nn.remat(_Block, prevent_cse=False) if self.config.remat else _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, name="blocks")


class FrontEnd(nn.Module):
    """[batch, time] -> [batch, frame, conv_widths[-1]]: convolutions, each followed by GELU."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, audio: Float[Array, "batch time"]) -> Float[Array, "batch frame feature"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        x = audio[..., None].astype(dtype)
        for i, (width, kernel, stride) in enumerate(zip(cfg.conv_widths, cfg.conv_kernels, cfg.conv_strides)):
            x = _Conv(width, kernel, stride, use_bias=cfg.conv_bias, dtype=dtype, name=f"conv_{i}")(x)
            if cfg.conv_norm == "layer":
                x = LayerNorm(1e-5, use_bias=True, axis_name=None, name=f"norm_{i}")(x)
            elif i == 0:
                x = _ChannelNorm(name="norm_0")(x)
            x = gelu(x)
        return x


class _Conv(nn.Module):
    """[batch, time, in] -> [batch, frame, features], no padding, no weight norm."""

    features: int
    kernel_size: int
    stride: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch frame feature"]:
        shape = (self.kernel_size, x.shape[-1], self.features)
        init = torch_uniform(shape[0] * shape[1])
        kernel = self.param("kernel", partitioned(init, ("tap", "conv_in", "conv_out")), shape)
        y = jax.lax.conv_general_dilated(
            x, gathered(kernel).astype(self.dtype), (self.stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        if self.use_bias:
            y = y + self.param("bias", partitioned(init, ("conv_out",)), (self.features,)).astype(self.dtype)
        return y


class _ChannelNorm(nn.Module):
    """Group norm of one channel per group: every channel of every clip over time, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch time channel"]) -> Float[Array, "batch time channel"]:
        scale = self.param("scale", partitioned(nn.initializers.ones, ("conv_out",)), (x.shape[-1],))
        bias = self.param("bias", partitioned(nn.initializers.zeros, ("conv_out",)), (x.shape[-1],))
        y = x.astype(jnp.float32)
        mean = y.mean(1, keepdims=True)
        variance = jnp.square(y - mean).mean(1, keepdims=True)
        return ((y - mean) * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(x.dtype)


class _Positions(nn.Module):
    """A wide grouped convolution and GELU. Weight norm is per tap: w = g · v / ‖v[tap]‖."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame dim"]) -> Float[Array, "batch frame dim"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        taps, group = cfg.position_kernel, cfg.width // cfg.position_groups
        init = torch_uniform(taps * group)
        v = self.param("v", partitioned(init, ("tap", None, "conv_out")), (taps, group, cfg.width))
        g = self.param("g", partitioned(nn.initializers.ones, ("tap",)), (taps,))
        bias = self.param("bias", partitioned(init, ("conv_out",)), (cfg.width,))
        kernel = v * (g / jnp.sqrt(jnp.square(v).sum((1, 2))))[:, None, None]
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            (1,),
            [(taps // 2, (taps - 1) // 2)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=cfg.position_groups,
        )
        return gelu(y + bias.astype(dtype))


class _PositionBias(nn.Module):
    """[head, query, key]: a learned number per head and bucket of distance, shared by all layers."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, frames: int) -> Float[Array, "head query key"]:
        cfg = self.config
        init = partitioned(nn.initializers.normal(1.0), (None, "heads"))
        table = self.param("table", init, (cfg.num_buckets, cfg.num_heads))
        return jnp.moveaxis(table[distance_buckets(frames, cfg.num_buckets, cfg.max_distance)], -1, 0)


class _Attention(nn.Module):
    """Softmax attention in float32; every query opens and closes the position bias by gates of its own."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, x, bias, present) -> Float[Array, "batch frame dim"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        heads = (cfg.num_heads, cfg.width // cfg.num_heads)
        project = functools.partial(Linear, heads, ("embed",), ("heads", "head_dim"), dtype=dtype)
        q, k, v = (project(name=name)(x) for name in ("q", "k", "v"))
        # Two sums of four: upstream's eight outputs, added up after the product.
        parts = Linear((2, 4), ("head_dim",), (None, None), name="gate")(x.reshape(*x.shape[:2], *heads)).sum(-1)
        opened, closed = jnp.moveaxis(jax.nn.sigmoid(parts.astype(jnp.float32)), -1, 0)  # [batch, query, head]
        constant = self.param("gate_constant", partitioned(nn.initializers.ones, ("heads",)), heads[:1])
        gate = opened * (closed * constant - 1) + 2
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * heads[1] ** -0.5, k, preferred_element_type=jnp.float32)
        scores = scores + jnp.moveaxis(gate, -1, 1)[..., None] * bias
        if present is not None:
            scores = jnp.where(present[:, None, None, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return Linear((cfg.width,), ("heads", "head_dim"), ("embed",), dtype=dtype, name="out")(y)


class _Block(nn.Module):
    """Attention and feed-forward branches, the norm before or after them: (features, the same to be stacked)."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, x, bias, present) -> tuple[Array, Array]:
        cfg = self.config
        x = nn.with_logical_constraint(x, ("batch", "time", None))
        first = LayerNorm(cfg.norm_epsilon, use_bias=True, name="attention_norm")
        second = LayerNorm(cfg.norm_epsilon, use_bias=True, name="mlp_norm")
        attention, mlp = _Attention(cfg, name="attention"), _MLP(cfg, name="mlp")
        if cfg.pre_norm:
            x = x + attention(first(x), bias, present)
            x = x + mlp(second(x))
        else:
            x = first(x + attention(x, bias, present))
            x = second(x + mlp(x))
        return x, x


class _MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    config: WavLMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch frame dim"]) -> Float[Array, "batch frame dim"]:
        cfg, dtype = self.config, jnp.dtype(self.config.dtype)
        h = Linear((cfg.hidden,), ("embed",), ("mlp",), dtype=dtype, name="in")(x)
        return Linear((cfg.width,), ("mlp",), ("embed",), dtype=dtype, name="out")(gelu(h))


def distance_buckets(frames: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """int32 [query, key]: half the buckets for keys at or before the query and half behind it.

    Of either half, the first half are single distances, the others logarithmic up to `max_distance`.
    """
    distance = np.arange(frames)[None] - np.arange(frames)[:, None]
    half, exact = num_buckets // 2, num_buckets // 4
    far = np.abs(distance)
    ratio = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / math.log(max_distance / exact)
    logarithmic = np.minimum((exact + ratio * np.float32(half - exact)).astype(np.int64), half - 1)
    return (half * (distance > 0) + np.where(far < exact, far, logarithmic)).astype(np.int32)
