"""Rotary position embedding on the first half of the head dimension (spec TAAE section 2)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def inverse_frequencies(head_dim: int) -> np.ndarray:
    """10000^(-2i/rot_dim) for i < rot_dim/2, rot_dim = head_dim // 2, as float32.

    Bit-equal to the buffers in upstream's checkpoints: torch's float32 power is the correctly rounded one, NumPy's own
    is not (head dim 128), so the power is taken in float64 and rounded; exponent and reciprocal are float32.
    """
    rot_dim = head_dim // 2
    exponent = np.arange(0, rot_dim, 2, dtype=np.float32) / np.float32(rot_dim)
    return np.float32(1.0) / (10000.0 ** exponent.astype(np.float64)).astype(np.float32)


def rotate(
    x: Float[Array, "*batch time head dim"], positions: Int[Array, " time"], inv_freq: np.ndarray
) -> Float[Array, "*batch time head dim"]:
    """Rotates the first 2 * len(inv_freq) channels of every head by position * inv_freq, in float32."""
    rot_dim = 2 * len(inv_freq)
    angles = positions.astype(jnp.float32)[:, None] * inv_freq  # [time, rot_dim / 2]
    cos, sin = jnp.cos(angles)[:, None, :], jnp.sin(angles)[:, None, :]
    x = x.astype(jnp.float32)
    first, second, rest = jnp.split(x, [rot_dim // 2, rot_dim], axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
