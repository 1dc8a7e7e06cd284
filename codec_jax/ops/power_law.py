"""Distance of power-law compressed spectra, ESC's STFT loss (spec ESC section 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

_EXPONENT, _OFFSET = 0.3, 1e-10


def power_law_distance(
    reference: Float[Array, "batch *spectrum"], estimate: Float[Array, "batch *spectrum"]
) -> Float[Array, "batch"]:
    """The mean squared difference of s(x) = sign(x) (|x| + 1e-10)^0.3 of each item, float32.

    Of real and imaginary parts alike. The slope near zero reaches 3e6: clip the gradient.
    """
    difference = _compressed(reference) - _compressed(estimate)
    return jnp.square(difference).mean(tuple(range(1, difference.ndim)))


def _compressed(x: Array) -> Array:
    x = x.astype(jnp.float32)
    return jnp.sign(x) * (jnp.abs(x) + _OFFSET) ** _EXPONENT
