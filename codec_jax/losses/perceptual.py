"""The perceptual distance of TAAE's second stage: between what a frozen WavLM hears in both signals (spec TAAE 6)."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_NORM_EPSILON, _EPSILON = 1e-5, 1e-5


def levelled(audio: Float[Array, "batch time"]) -> Float[Array, "batch time"]:
    """Mean 0 and variance 1 over the whole batch at once, as upstream feeds its listener."""
    x = audio.astype(jnp.float32)
    return (x - x.mean()) * jax.lax.rsqrt(x.var() + _NORM_EPSILON)


def feature_distance(
    real: Mapping[int, Float[Array, "batch frame _"]], fake: Mapping[int, Float[Array, "batch frame _"]]
) -> Float[Array, ""]:
    """The mean over layers of mean |fake - real| / (std(real) + 1e-5), in float32.

    The deviation is PyTorch's, over all of a layer's n features with n - 1. Nothing flows back into `real`.
    """
    distances = []
    for layer in real:
        r, f = (x[layer].astype(jnp.float32) for x in (jax.lax.stop_gradient(real), fake))
        distances.append(jnp.abs(f - r).mean() / (r.std(ddof=1) + _EPSILON))
    return jnp.stack(distances).mean()
