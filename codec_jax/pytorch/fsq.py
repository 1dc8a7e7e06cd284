"""Finite scalar quantisation in PyTorch, token for token upstream's (spec TAAE section 4).

Every latent dimension is rounded to one of L equidistant levels in [-scale, scale], half to even:

    digit = round((z + scale) / h),    code = digit * h - scale,    token = sum of digit * basis

The step h = 2 scale / (L - 1) is a float32 constant even where the arithmetic around it is float64, and tokens are
int64 throughout: float32 sums go wrong from 2^24 on. PyTorch runs these operations one by one, so no compiler can
fuse or reorder them; under torch.compile that is not so.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Levels = tuple[int, ...]
"""Number of levels of each latent dimension."""
Stages = tuple[tuple[Levels, float], ...]
"""(levels, scale) of each stage of a residual FSQ."""

PRESETS: dict[str, Stages] = {
    "1x46656_400bps": (((6,) * 6, 1.0),),
    "2x15625_700bps": (((5,) * 6, 1.0), ((5,) * 6, 0.25)),
    "4x729_1000bps": (((3,) * 6, 1.0), ((3,) * 6, 0.5), ((3,) * 6, 0.25), ((3,) * 6, 0.125)),
}
"""Upstream's post-hoc bottlenecks: stages x codebook size, and bits per second at 25 frames a second."""


# ---- the FSQ of training, float32 --------------------------------------------------------------


def encode(latents: Tensor, levels: Sequence[int]) -> Tensor:
    """Latents [..., dim] before tanh, of any float dtype, to int64 tokens [...]. A NaN gets digit 0."""
    levels = check_levels(levels)
    return _tokens(_digits(torch.tanh(latents.float()), levels, 1.0), levels)


def decode(tokens: Tensor, levels: Sequence[int]) -> Tensor:
    """Tokens [...] to float32 codes [..., dim] in [-1, 1]. ValueError: a token outside the codebook."""
    levels = check_levels(levels)
    _check_tokens(tokens, levels, "These tokens hold")
    return _look_up(tokens, levels, 1.0)


def quantise(latents: Tensor, levels: Sequence[int]) -> Tensor:
    """Latents [..., dim] before tanh to float32 codes; rounding passes gradients straight through."""
    levels = check_levels(levels)
    z = torch.tanh(latents.float())
    hard = _codes(_digits(z.detach(), levels, 1.0), levels, 1.0, torch.float32)
    return hard + (z - z.detach())  # exactly 0 forward, so codes keep their bits


# ---- residual FSQ, float64, chosen after training ----------------------------------------------


def parse(bottleneck: Any) -> Stages:
    """A preset's name, or stages such as `[([5] * 6, 1.0), ([5] * 6, 0.25)]`, as stages. ValueError: anything else."""
    if isinstance(bottleneck, str) and bottleneck in PRESETS:
        return PRESETS[bottleneck]
    try:
        stages = tuple((tuple(operator.index(n) for n in levels), float(scale)) for levels, scale in bottleneck)
    except (TypeError, ValueError, OverflowError):
        choices = f"give one of {', '.join(PRESETS)}, or stages (levels, scale) like [([5] * 6, 1.0), ([5] * 6, 0.25)]"
        raise ValueError(f"A bottleneck cannot be read from {bottleneck!r}: {choices}.") from None
    for levels, scale in stages:
        check_levels(levels)
        if not 1e-30 < scale < 1e30:  # what a float32 step can hold; false for NaN
            raise ValueError(f"The scale of an FSQ stage must be a positive number, not {scale}.")
    if len({len(levels) for levels, _ in stages}) != 1:
        raise ValueError(f"A bottleneck needs stages, all of the same number of dimensions, not {bottleneck!r}.")
    return stages


def encode_residual(latents: Tensor, stages: Iterable[tuple[Sequence[int], float]]) -> Tensor:
    """Latents [..., frame, dim] before tanh to int64 tokens [..., stage, frame]; each stage codes what is left over.

    Computed on the CPU, as MPS has no float64, and returned on the latents' device. Digits are clipped into the levels,
    where upstream would borrow from the next dimension's digit; behind tanh no preset gets there.
    """
    residual = torch.tanh(latents.detach().cpu().double())
    tokens = []
    for levels, scale in parse(stages):
        digits = _digits(residual, levels, scale)
        residual = residual - _codes(digits, levels, scale, torch.float64)
        tokens.append(_tokens(digits, levels))
    return torch.stack(tokens, dim=-2).to(latents.device)


def decode_residual(tokens: Tensor, stages: Iterable[tuple[Sequence[int], float]]) -> Tensor:
    """Tokens [..., stage, frame] to the float32 sum of their codes [..., frame, dim], not clipped to [-1, 1].

    ValueError: a wrong number of stages, or a token outside its codebook.
    """
    stages = parse(stages)
    if tokens.ndim < 2 or tokens.shape[-2] != len(stages):
        found = f"of shape {tuple(tokens.shape)}"
        raise ValueError(f"These tokens are {found}, but the bottleneck asks for [..., {len(stages)}, frame].")
    total = torch.zeros((), dtype=torch.float32, device=tokens.device)
    for number, (levels, scale) in enumerate(stages):
        stage = tokens[..., number, :]
        _check_tokens(stage, levels, f"Codebook {number} holds")
        total = total + _look_up(stage, levels, scale)
    return total


# ---- constants and digits ----------------------------------------------------------------------


def check_levels(levels: Sequence[int]) -> Levels:
    """Levels as a tuple. ValueError: none at all, fewer than two in a dimension, or a token that int64 cannot hold."""
    found = tuple(operator.index(level) for level in levels)
    if not found or min(found) < 2:
        raise ValueError(f"FSQ levels must be one integer of at least 2 per latent dimension, not {list(found)}.")
    if math.prod(found) >= 2**63:
        raise ValueError(f"FSQ levels {list(found)} make a codebook of more entries than int64 can count.")
    return found


def step_size(levels: Levels, scale: float = 1.0) -> Tensor:
    """Distance h between levels, float32 [dim]: a number divided by a tensor, which is its float32 reciprocal times."""
    return (2 * scale) / (torch.tensor(levels) - 1)


def basis(levels: Levels) -> Tensor:
    """Weight of each dimension's digit in a token, int64 [dim]; the first dimension runs fastest."""
    return torch.tensor([math.prod(levels[:dim]) for dim in range(len(levels))])


def _digits(z: Tensor, levels: Levels, scale: float) -> Tensor:
    """Nearest level of each dimension, int64, in the dtype of z; z is after tanh, or a residual."""
    if z.shape[-1] != len(levels):
        raise ValueError(f"The latents have {z.shape[-1]} dimensions, but the FSQ has levels for {len(levels)}.")
    digits = torch.round((z + scale) / step_size(levels, scale).to(z)).nan_to_num(0.0)
    top = (torch.tensor(levels) - 1).to(z)
    return torch.minimum(digits.clamp(min=0), top).long()


def _codes(digits: Tensor, levels: Levels, scale: float, dtype: torch.dtype) -> Tensor:
    return digits.to(dtype) * step_size(levels, scale).to(digits.device, dtype) - scale


def _tokens(digits: Tensor, levels: Levels) -> Tensor:
    return (digits * basis(levels).to(digits.device)).sum(-1)


def _look_up(tokens: Tensor, levels: Levels, scale: float) -> Tensor:
    quotient = torch.div(tokens.long()[..., None], basis(levels).to(tokens.device), rounding_mode="floor")
    return _codes(quotient % torch.tensor(levels, device=tokens.device), levels, scale, torch.float32)


def _check_tokens(tokens: Tensor, levels: Levels, who: str) -> None:
    if tokens.is_floating_point() or tokens.is_complex():
        raise ValueError(f"Tokens are integers, not {tokens.dtype}.")
    size = math.prod(levels)
    if tokens.numel():
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= size:
            raise ValueError(f"{who} values from {least} to {most}, but the codebook has only 0 to {size - 1}.")
