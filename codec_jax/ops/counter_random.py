"""A counter-based generator of a dozen integer operations a number, for initial weights.

JAX's own (threefry) takes loops that XLA compiles one by one: a network of a few hundred parameters spends minutes of
compilation on its initial values. These fuse into one kernel per parameter, and each device computes its own part of
a sharded one. Mixing is that of murmur-like hashes with constants of low bias (github.com/skeeto/hash-prospector):
plenty for weights, not meant for anything else.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend_random
from jaxtyping import Array, PRNGKeyArray, UInt32

_GOLDEN = np.uint32(0x9E3779B9)


def quick(key: PRNGKeyArray) -> PRNGKeyArray:
    """The key of this generator that belongs to a key of any other; jax.random takes it as usual."""
    words = jax.random.key_data(key).reshape(-1).astype(jnp.uint32)
    folded = functools.reduce(_fold_in, words, jnp.zeros(2, jnp.uint32))
    return jax.random.wrap_key_data(folded, impl=_IMPL)


def _mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits in which every bit of x moves about half of the result's."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _bits(key: UInt32[Array, " 2"], bit_width: int, shape: tuple[int, ...]) -> Array:
    if math.prod(shape) > 2**32:
        raise ValueError(f"an array of shape {shape} has more entries than there are counters")
    counter = jnp.zeros(shape, jnp.uint32)
    for axis, stride in enumerate(np.cumprod((1, *shape[:0:-1]))[::-1] if shape else ()):
        counter += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    word = functools.partial(_word, key, counter)
    if bit_width == 64:
        return word(0).astype(jnp.uint64) << 32 | word(1).astype(jnp.uint64)
    return word(0).astype(f"uint{bit_width}")


def _word(key: Array, counter: Array, number: int) -> Array:
    return _mix(_mix(counter * _GOLDEN + key[0]) + key[1] + np.uint32(number) * _GOLDEN)


def _fold_in(key: UInt32[Array, " 2"], data: Any) -> UInt32[Array, " 2"]:
    data = jnp.asarray(data).astype(jnp.uint32)
    low = _mix(_mix(key[0] + data) ^ key[1])
    return jnp.stack([low, _mix(_mix(key[1] ^ (data + _GOLDEN)) + low)])


def _split(key: UInt32[Array, " 2"], shape: tuple[int, ...]) -> Array:
    numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return jax.vmap(functools.partial(_fold_in, key))(numbers).reshape(*shape, 2)


def _seed(seed: Array) -> UInt32[Array, " 2"]:
    return _fold_in(jnp.zeros(2, jnp.uint32), seed)


_IMPL = extend_random.define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="counter", tag="ctr"
)
