"""SnakeBeta: a periodic activation with a frequency and a magnitude per channel (spec TAAE section 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def snake_beta(
    x: Float[Array, "*batch channel"], log_alpha: Float[Array, " channel"], log_beta: Float[Array, " channel"]
) -> Float[Array, "*batch channel"]:
    """X + sin^2(e^log_alpha x) / (e^log_beta + 1e-9)."""
    return x + jnp.sin(jnp.exp(log_alpha) * x) ** 2 / (jnp.exp(log_beta) + 1e-9)
