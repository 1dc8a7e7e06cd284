"""Distances between waveforms (spec TAAE section 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def l1(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean absolute difference over everything, float32."""
    return jnp.abs(_difference(x, y)).mean()


def l2(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Mean squared difference over everything, float32."""
    return jnp.square(_difference(x, y)).mean()


def _difference(x: Array, y: Array) -> Array:
    """In float32 even where the model computes in bfloat16: what matters are small differences."""
    return x.astype(jnp.float32) - y.astype(jnp.float32)
