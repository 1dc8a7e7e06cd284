"""Transformer blocks with banded attention, and a scanned stack of them (spec TAAE section 2)."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from codec_jax.nn.conv import DepthwiseConv
from codec_jax.nn.linear import Linear
from codec_jax.nn.norm import LayerNorm, LayerScale
from codec_jax.ops.attention import Window, banded_attention
from codec_jax.ops.rope import inverse_frequencies

_QK_NORM_EPSILON = 1e-6
_CONFORMER_KERNEL = 17
Valid = Bool[Array, "batch position"] | None


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a transformer block is built from. remat: "none", "full" or "dots" (keep matrix products)."""

    head_dim: int
    window: Window
    ff_mult: int = 4
    norm_epsilon: float = 1e-2
    layer_scale: bool = True
    conformer: bool = False
    remat: str = "none"
    unroll: bool = False
    attention_impl: str = "auto"
    dtype: str = "float32"


class Attention(nn.Module):
    """Multi-head banded self-attention with QK layer norm and partial rotary embedding."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"], valid: Valid = None) -> Float[Array, "batch time dim"]:
        cfg, width = self.config, x.shape[-1]
        dtype = jnp.dtype(cfg.dtype)
        heads = (width // cfg.head_dim, cfg.head_dim)
        qkv = Linear((3, *heads), ("embed",), (None, "heads", "head_dim"), use_bias=False, dtype=dtype, name="to_qkv")(
            x
        )
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        q = LayerNorm(_QK_NORM_EPSILON, use_bias=True, axis_name=None, name="q_norm")(q)
        k = LayerNorm(_QK_NORM_EPSILON, use_bias=True, axis_name=None, name="k_norm")(k)
        inv_freq = inverse_frequencies(cfg.head_dim)
        y = banded_attention(q, k, v, cfg.window, inv_freq=inv_freq, valid=valid, impl=cfg.attention_impl)
        zero = not cfg.layer_scale
        return Linear((width,), ("heads", "head_dim"), ("embed",), False, zero, dtype, name="to_out")(y)


class FeedForward(nn.Module):
    """Gated linear unit: Linear to value and gate, value · SiLU(gate), Linear back."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"]) -> Float[Array, "batch time dim"]:
        cfg, width = self.config, x.shape[-1]
        dtype = jnp.dtype(cfg.dtype)
        h = Linear((2, cfg.ff_mult * width), ("embed",), (None, "mlp"), dtype=dtype, name="proj")(x)
        h = h[..., 0, :] * nn.silu(h[..., 1, :])
        return Linear((width,), ("mlp",), ("embed",), zero=not cfg.layer_scale, dtype=dtype, name="out")(h)


class Conformer(nn.Module):
    """Convolution branch: norm → pointwise → GLU → depthwise k17 → norm → SiLU → pointwise."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"], valid: Valid = None) -> Float[Array, "batch time dim"]:
        cfg, width = self.config, x.shape[-1]
        dtype = jnp.dtype(cfg.dtype)
        square = (("embed",), ("mlp",), False, False, dtype)
        h = LayerNorm(cfg.norm_epsilon, name="in_norm")(x)
        h = Linear((width,), *square, name="pointwise_conv")(h)
        h = Linear((2, width), ("embed",), (None, "mlp"), dtype=dtype, name="glu")(h)
        h = h[..., 0, :] * nn.silu(h[..., 1, :])
        h = DepthwiseConv(_CONFORMER_KERNEL, dtype, name="depthwise_conv")(mask_padding(h, valid))
        h = nn.silu(LayerNorm(cfg.norm_epsilon, name="mid_norm")(h))
        return Linear((width,), *square, name="pointwise_conv_2")(h)


class Block(nn.Module):
    """Pre-norm residual branches: attention, optionally conformer, feed-forward."""

    config: BlockConfig

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"], valid: Valid = None) -> tuple[Array, None]:
        cfg = self.config
        x = nn.with_logical_constraint(x, ("batch", "time", None))
        h = LayerNorm(cfg.norm_epsilon, name="pre_norm")(x)
        h = Attention(cfg, name="self_attn")(h, valid)
        x = x + (LayerScale(name="self_attn_scale")(h) if cfg.layer_scale else h)
        if cfg.conformer:
            h = Conformer(cfg, name="conformer")(x, valid)
            x = x + (LayerScale(name="conformer_scale")(h) if cfg.layer_scale else h)
        h = LayerNorm(cfg.norm_epsilon, name="ff_norm")(x)
        h = FeedForward(cfg, name="ff")(h)
        x = x + (LayerScale(name="ff_scale")(h) if cfg.layer_scale else h)
        return nn.with_logical_constraint(x, ("batch", "time", None)), None


class Stack(nn.Module):
    """`depth` blocks, their parameters stacked on a leading axis `layers`, scanned and rematerialised."""

    config: BlockConfig
    depth: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch time dim"], valid: Valid = None) -> Float[Array, "batch time dim"]:
        scanned = nn.scan(
            _rematerialised(self.config.remat),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=self.depth if self.config.unroll else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(self.config, name="blocks")(x, valid)[0]


def mask_padding(x: Float[Array, "batch time dim"], valid: Valid) -> Float[Array, "batch time dim"]:
    """Zeros at frames that do not exist, which is what a convolution sees beyond the end of a shorter clip."""
    return x if valid is None else x * valid[:, :, None].astype(x.dtype)


def _rematerialised(remat: str):
    policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    if remat == "none":
        return Block
    return nn.remat(Block, prevent_cse=False, policy=policies[remat])
