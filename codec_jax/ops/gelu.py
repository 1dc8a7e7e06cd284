"""Exact GELU by erf, as PyTorch has it.

`jax.nn.gelu` takes erfc, which is nearer to the truth far below zero, where both give almost nothing, and which XLA
computes on CPUs at several times the cost.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """X Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, arXiv 1606.08415), in float32."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)
