"""Finite scalar quantisation: every latent dimension is rounded to one of L equidistant levels in [-scale,
scale].

Spec TAAE section 4.1; paper arXiv 2411.19842 section 2.2. With step h = 2 scale / (L - 1), upstream computes

    u = (z + scale) / h,    digit = round_half_to_even(u),    code = digit * h - scale        (all float32)

XLA is free to divide by multiplying with a reciprocal and to fuse the multiply-add (on CPU it does both,
even without jit), which moves ties and last bits. Here nothing is left to the compiler: as those three
operations are monotone in z, a digit is the number of boundaries that z has reached, where boundary j is
the smallest float32 whose digit is j, and a code is looked up. Boundaries and codes come from NumPy, whose
arithmetic is torch's, so tokens and codes equal upstream's bit by bit on every device. A NaN reaches no
boundary: its digit is 0, so no index is ever out of range.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, PRNGKeyArray

from codec_jax.errors import UserError

Levels = tuple[int, ...]
"""Number of levels of each dimension."""


class Grid(NamedTuple):
    """The constants of one set of levels; dimensions with fewer than `most` levels are padded with inf.

    levels, basis: int32 [dim]. step: float32 [dim]. boundaries: float32 [dim, most - 1]. codes: float32
    [dim, most].
    """

    levels: np.ndarray | Array
    basis: np.ndarray | Array
    step: np.ndarray | Array
    boundaries: np.ndarray | Array
    codes: np.ndarray | Array


class Draws(NamedTuple):
    """The random numbers of one training step, see `dither`. `uniform` is in [0, 1)."""

    keep_raw: Bool[Array, "batch 1 1"]
    keep_hard: Bool[Array, "batch 1 1"]
    uniform: Float[Array, "batch frame dim"]


def validate(levels: Sequence[int]) -> None:
    """Raises UserError unless every dimension has two levels or more and an index fits int32."""
    if not levels or any(level < 2 for level in levels):
        raise UserError(f"FSQ levels must be one integer of at least 2 per latent dimension, not {list(levels)}.")
    if math.prod(levels) >= 2**31:
        entries = f"make a codebook of {math.prod(levels):,} entries, but an index must stay below 2^31"
        raise UserError(f"FSQ levels {list(levels)} {entries}: use fewer levels or dimensions.")


def step_size(levels: Levels, scale: float = 1.0) -> np.ndarray:
    """Distance h between levels, float32 [dim]: a float32 reciprocal times 2 scale, as torch divides a
    number by a tensor of integers.
    """
    return np.float32(1) / (np.asarray(levels, np.float32) - np.float32(1)) * np.float32(scale * 2)


def basis(levels: Levels) -> np.ndarray:
    """Weight of each dimension's digit in an index, int32 [dim]; the first dimension runs fastest."""
    return np.cumprod((1, *levels[:-1]), dtype=np.int64).astype(np.int32)


def grid(levels: Levels, scale: float = 1.0, most: int | None = None) -> Grid:
    """Constants of `levels`, padded to `most` levels per dimension (None: to the largest). UserError: see
    `validate`.
    """
    validate(levels)
    most = most or max(levels)
    boundaries = np.full((len(levels), most - 1), np.inf, np.float32)
    codes = np.full((len(levels), most), np.inf, np.float32)
    for dim, level in enumerate(levels):
        boundaries[dim, : level - 1], codes[dim, :level] = _axis(level, scale)
    return Grid(np.asarray(levels, np.int32), basis(levels), step_size(levels, scale), boundaries, codes)


def round_to_level(z: Float[Array, "*batch dim"], constants: Grid) -> Float[Array, "*batch dim"]:
    """The nearest level, half to even, with a straight-through gradient of one. z is after tanh, in [-1,
    1].
    """
    z = z.astype(jnp.float32)
    hard = _look_up(_digits(jax.lax.stop_gradient(z), constants), constants)
    return hard + (z - jax.lax.stop_gradient(z))  # exactly 0 forward, so `hard` keeps its bits


def codes_to_indices(codes: Float[Array, "*batch dim"], levels: Levels, scale: float = 1.0) -> Int32[Array, "*batch"]:
    """Index of the level nearest to each code; digits outside the levels are clipped to them."""
    return _indices(codes.astype(jnp.float32), grid(levels, scale))


def indices_to_codes(indices: Int32[Array, "*batch"], levels: Levels, scale: float = 1.0) -> Float[Array, "*batch dim"]:
    """Float32 codes of indices in [0, prod(levels)); the exact inverse of `codes_to_indices`."""
    constants = grid(levels, scale)
    return _look_up(indices[..., None] // constants.basis % constants.levels, constants)


def encode(latents: Float[Array, "*batch dim"], levels: Levels) -> Int32[Array, "*batch"]:
    """Tokens of latents before tanh, at scale 1."""
    return codes_to_indices(jnp.tanh(latents.astype(jnp.float32)), levels)


def decode(indices: Int32[Array, "*batch"], levels: Levels) -> Float[Array, "*batch dim"]:
    """Float32 codes in [-1, 1] for the decoder, at scale 1."""
    return indices_to_codes(indices, levels)


def dither(
    z: Float[Array, "batch frame dim"],
    constants: Grid,
    keep_raw: Bool[Array, "batch 1 1"],
    keep_hard: Bool[Array, "batch 1 1"],
    uniform: Float[Array, "batch frame dim"],
) -> Float[Array, "batch frame dim"]:
    """The training mixture, one choice per clip, from recorded draws (spec 4.1). z is after tanh, at scale 1.

    Where `keep_hard`: z itself if `keep_raw` too, otherwise z rounded (straight-through). Elsewhere: z plus
    uniform noise one step wide. With both masks true at probability p: raw p², rounded p (1 - p), noisy 1 -
    p.
    """
    z = z.astype(jnp.float32)
    kept = jnp.where(keep_raw, z, round_to_level(z, constants))
    return jnp.where(keep_hard, kept, z + (uniform - 0.5) * constants.step)


def sample_draws(keys: Key[Array, " batch"], shape: tuple[int, ...], noise_dropout: float) -> Draws:
    """Draws for latents [batch, frame, dim], from one key per clip; `noise_dropout` is the probability p of a mask."""

    def of_one_clip(key):
        raw, hard, noise = jax.random.split(key, 3)
        keep_raw, keep_hard = (jax.random.bernoulli(k, noise_dropout, (1, 1)) for k in (raw, hard))
        return keep_raw, keep_hard, jax.random.uniform(noise, shape[1:], jnp.float32)

    return Draws(*jax.vmap(of_one_clip)(keys))


def train(
    latents: Float[Array, "batch frame dim"],
    key: PRNGKeyArray,
    clip_keys: Key[Array, " batch"],
    level_sets: tuple[Levels, ...],
    noise_dropout: float,
) -> tuple[Float[Array, "batch frame dim"], Int32[Array, "batch frame"]]:
    """Codes with gradients, and their tokens, for one training step. Latents are before tanh; one of clip_keys each.

    One of `level_sets` is drawn per step, uniformly and inside the trace (the paper trains with {5, 9, 17}
    levels), so a step compiles once. Tokens are those of the noisy codes under the drawn levels, as
    upstream returns them. UserError: sets of unequal dimensions, or see `validate`.
    """
    constants = _stack(level_sets)
    if len(level_sets) == 1:
        constants = Grid(*(table[0] for table in constants))
    else:
        drawn = jax.random.randint(key, (), 0, len(level_sets))
        constants = Grid(*(jnp.asarray(table)[drawn] for table in constants))
    z = jnp.tanh(latents.astype(jnp.float32))
    codes = dither(z, constants, *sample_draws(clip_keys, latents.shape, noise_dropout))
    return codes, _indices(jax.lax.stop_gradient(codes), constants)


def level_counts(latents: Float[Array, "batch frame dim"], levels: Levels) -> Int32[Array, "dim level"]:
    """How many latents, before tanh, round to each level of each dimension; negative beyond a dimension's levels."""
    constants = grid(levels)
    digits = _digits(jnp.tanh(latents.astype(jnp.float32)), constants)
    counts = jax.nn.one_hot(digits, constants.codes.shape[-1], dtype=jnp.int32).sum((0, 1))
    return jnp.where(np.arange(counts.shape[1]) < np.asarray(levels)[:, None], counts, -1)


def _stack(level_sets: tuple[Levels, ...]) -> Grid:
    """Constants of every set along a leading axis, padded to the most levels of any."""
    if len({len(levels) for levels in level_sets}) != 1:
        raise UserError(f"FSQ level sets must be at least one, all of the same number of dimensions, not {level_sets}.")
    most = max(max(levels) for levels in level_sets)
    return Grid(*map(np.stack, zip(*(grid(levels, most=most) for levels in level_sets))))


def _digits(z: Float[Array, "*batch dim"], constants: Grid) -> Int32[Array, "*batch dim"]:
    reached = (z[..., None] >= constants.boundaries).sum(-1, dtype=jnp.int32)
    return jnp.minimum(reached, constants.levels - 1)  # +inf reaches the padding too


def _indices(codes: Float[Array, "*batch dim"], constants: Grid) -> Int32[Array, "*batch"]:
    # Integers throughout: a float32 sum is wrong from 2^24 on, and 17^6 is beyond that (stable-codec issue
    # 8).
    return (_digits(codes, constants) * constants.basis).sum(-1, dtype=jnp.int32)


def _look_up(digits: Int32[Array, "*batch dim"], constants: Grid) -> Float[Array, "*batch dim"]:
    return jnp.asarray(constants.codes)[np.arange(len(constants.codes)), digits]


@functools.lru_cache(maxsize=256)
def _axis(level: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries [level - 1] and codes [level] of one dimension, by bisecting upstream's float32
    arithmetic.
    """
    scale32, (step,) = np.float32(scale), step_size((level,), scale)
    wanted = np.arange(1, level)
    below = np.full(level - 1, _ordinal(np.float32(-2 * scale)))  # digit too small
    reached = np.full(level - 1, _ordinal(np.float32(2 * scale)))  # digit large enough
    while np.any(reached - below > 1):
        middle = (below + reached) // 2
        enough = np.round((_from_ordinal(middle) + scale32) / step) >= wanted
        below, reached = np.where(enough, below, middle), np.where(enough, middle, reached)
    return _from_ordinal(reached), np.arange(level, dtype=np.float32) * step - scale32


def _ordinal(value: np.float32) -> int:
    """Rank of a float32 among all float32 values: neighbours differ by one."""
    bits = int(np.asarray(value).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _from_ordinal(rank: np.ndarray) -> np.ndarray:
    bits = np.where(rank >= 0, rank, -rank + 2**31).astype(np.uint32)
    return bits.view(np.float32)
