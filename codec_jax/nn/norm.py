"""Normalisation and per-channel scales, always in float32 (spec TAAE section 2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from codec_jax.nn.linear import partitioned


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with biased variance; γ alone, or with a bias β."""

    epsilon: float
    use_bias: bool = False
    axis_name: str | None = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", partitioned(nn.initializers.ones, (self.axis_name,)), shape)
        y = x.astype(jnp.float32)
        mean = y.mean(-1, keepdims=True)
        variance = jnp.square(y - mean).mean(-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale
        if self.use_bias:
            y = y + self.param("bias", partitioned(nn.initializers.zeros, (self.axis_name,)), shape)
        return y.astype(x.dtype)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch, starting near zero so that every block starts as identity."""

    initial: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        init = partitioned(nn.initializers.constant(self.initial), ("embed",))
        return x * self.param("scale", init, (x.shape[-1],)).astype(x.dtype)
