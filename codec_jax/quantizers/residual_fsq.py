"""Residual FSQ chosen after training, on the host in float64 (spec TAAE section 4.2).

Stage i quantises what the stages before it left over, with its own levels and scale. Upstream computes in
float64 with float32 step sizes, and so does this module; NumPy's float64 arithmetic equals torch's bit by
bit. Decoded codes are a float32 sum of stages, not clipped: arbitrary tokens may reach beyond [-1, 1].
"""

import math
import operator
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Int32, Integer

from codec_jax.errors import UserError
from codec_jax.quantizers import fsq
from codec_jax.quantizers.fsq import Levels

Stages = tuple[tuple[Levels, float], ...]
"""(levels per dimension, scale) of each stage: hashable."""

PRESETS: dict[str, Stages] = {
    "1x46656_400bps": (((6,) * 6, 1.0),),
    "2x15625_700bps": (((5,) * 6, 1.0), ((5,) * 6, 0.25)),
    "4x729_1000bps": (((3,) * 6, 1.0), ((3,) * 6, 0.5), ((3,) * 6, 0.25), ((3,) * 6, 0.125)),
}
"""Upstream's presets by their upstream names: stages x codebook size, and bits per second at 25 frames a
second.
"""


def parse(bottleneck: Any) -> Stages:
    """A preset's name, or stages such as `[([5] * 6, 1.0), ([5] * 6, 0.25)]`, as normalised stages.

    UserError for anything else: an unknown name, another structure, levels `fsq.validate` refuses, a scale
    that is not a positive number, stages of unequal dimensions.
    """
    if isinstance(bottleneck, str):
        if bottleneck not in PRESETS:
            raise UserError(f"There is no bottleneck preset {bottleneck!r}: {_choices()}.")
        return PRESETS[bottleneck]
    try:
        stages = tuple((tuple(operator.index(n) for n in levels), float(scale)) for levels, scale in bottleneck)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"A bottleneck cannot be read from {bottleneck!r}: {_choices()}.") from None
    if not stages:
        raise UserError(f"A bottleneck needs at least one stage: {_choices()}.")
    for levels, scale in stages:
        fsq.validate(levels)
        if not 1e-30 < scale < 1e30:  # what float32 steps can hold; false for NaN
            raise UserError(f"The scale of an FSQ stage must be a positive number, not {scale}.")
    if len({len(levels) for levels, _ in stages}) > 1:
        raise UserError(f"All FSQ stages must have the same number of dimensions, not {bottleneck!r}.")
    return stages


def codebook_sizes(stages: Stages) -> tuple[int, ...]:
    """Number of different tokens of every stage."""
    return tuple(math.prod(levels) for levels, _ in stages)


def encode(
    latents: Float[np.ndarray, "batch frame dim"] | Float[Array, "batch frame dim"], stages: Stages
) -> Int32[np.ndarray, "batch stage frame"]:
    """Tokens of latents before tanh, of any float dtype. ±inf saturates; NaN gives digit 0, a token in
    range.
    """
    residual = np.tanh(np.asarray(latents).astype(np.float64))
    tokens = []
    for levels, scale in stages:
        codes, indices = stage_quantise(residual, levels, scale)
        residual = residual - codes
        tokens.append(indices)
    return np.stack(tokens, axis=1)


def stage_quantise(
    residual: Float[np.ndarray, "*batch dim"], levels: Levels, scale: float
) -> tuple[Float[np.ndarray, "*batch dim"], Int32[np.ndarray, "*batch"]]:
    """One stage without tanh: float64 codes, and their indices.

    Digits are clipped into the levels, where upstream lets a residual outside [-scale, scale] borrow from
    the next dimension's digit; behind tanh no preset ever gets there.
    """
    step = fsq.step_size(levels, scale).astype(np.float64)
    digits = np.round((residual + scale) / step)
    digits = np.clip(np.where(np.isnan(digits), 0.0, digits), 0, np.asarray(levels) - 1)
    indices = (digits.astype(np.int32) * fsq.basis(levels)).sum(-1, dtype=np.int32)
    return digits * step - scale, indices


def decode(
    indices: Integer[np.ndarray, "batch stage frame"] | Int[Array, "batch stage frame"], stages: Stages
) -> Float[np.ndarray, "batch frame dim"]:
    """Float32 sum of the stages' codes. UserError: a wrong number of stages, or a token its stage does not
    have.
    """
    tokens = np.asarray(indices).astype(np.int64)
    if tokens.shape[1] != len(stages):
        raise UserError(f"These tokens have {tokens.shape[1]} codebooks, but the bottleneck has {len(stages)} stages.")
    codes = np.zeros((tokens.shape[0], tokens.shape[2], len(stages[0][0])), np.float32)
    for number, (size, (levels, scale)) in enumerate(zip(codebook_sizes(stages), stages)):
        stage = tokens[:, number]
        if stage.size and not (stage.min() >= 0 and stage.max() < size):
            there = f"tokens from {stage.min()} to {stage.max()}"
            raise UserError(f"Codebook {number} holds {there}, but its stage has only 0 to {size - 1}.")
        codes += _stage_codes(stage, levels, scale)
    return codes


def _stage_codes(indices: np.ndarray, levels: Levels, scale: float) -> np.ndarray:
    digits = indices[..., None] // fsq.basis(levels) % np.asarray(levels)
    return digits.astype(np.float32) * fsq.step_size(levels, scale) - np.float32(scale)


def _choices() -> str:
    names = ", ".join(f'"{name}"' for name in PRESETS)
    return f"give {names}, or stages (levels, scale) like [([5] * 6, 1.0), ([5] * 6, 0.25)]"
