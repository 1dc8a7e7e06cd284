"""Sample-rate conversion as upstream does it: torchaudio's windowed sinc (Hann, width 6, rolloff 0.99).

Why not soxr, whose filter is better: a published codec's tokens belong to the audio its own resampler made.
With another filter the band near the cut-off differs, and codes flip. Token parity with upstream comes first.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from codec_jax.errors import UserError

LOWPASS_WIDTH = 6
ROLLOFF = 0.99
# Phases computed by one product. More of them multiply more zeros, fewer make matrices too thin for BLAS.
_GROUP = 32
_BLOCK_SAMPLES = 1 << 20


class _Polyphase(NamedTuple):
    """Each `orig` inputs become `new` outputs; a group (first, kernel) is frame[first:][:taps] @ kernel."""

    orig: int
    new: int
    width: int
    groups: tuple[tuple[int, np.ndarray], ...]


def resample(
    audio: Float[np.ndarray, "*batch time"], orig_rate: int, new_rate: int
) -> Float32[np.ndarray, "*batch new_time"]:
    """Convert the last axis from `orig_rate` to `new_rate` (Hz): float32, `resampled_length` long.

    Source: torchaudio.functional.resample, sinc_interp_hann (spec/TAAE.md section 5). Outside, it is 0.
    (Upstream rounds lengths beyond 2^24 samples to float32; here they are exact.)
    Raises: UserError for a rate that is not positive.
    """
    if orig_rate <= 0 or new_rate <= 0:
        raise UserError(f"cannot resample from {orig_rate} Hz to {new_rate} Hz: both must be positive")
    audio = np.asarray(audio, np.float32)
    if orig_rate == new_rate or audio.shape[-1] == 0:
        return audio
    phases = _polyphase(orig_rate, new_rate)
    length = resampled_length(audio.shape[-1], orig_rate, new_rate)
    out = np.empty((*audio.shape[:-1], length), np.float32)
    for source, target in zip(audio.reshape(-1, audio.shape[-1]), out.reshape(-1, length)):
        _resample_into(source, target, phases)
    return out


def resampled_length(frames: int, orig_rate: int, new_rate: int) -> int:
    """Samples at `new_rate` that `frames` at `orig_rate` become: ceil(new_rate * frames / orig_rate)."""
    return -(-new_rate * frames // orig_rate)


def source_span(start: int, frames: int, orig_rate: int, new_rate: int) -> tuple[int, int, int]:
    """Which input samples make outputs start ... start + frames - 1.

    Returns: first input sample (it lies on the filter's grid), how many to read from there, and how many
    outputs to drop from the resampled excerpt; the rest equals the same stretch of the whole file resampled.
    """
    if orig_rate == new_rate:
        return start, frames, 0
    orig, new, width, _ = _polyphase(orig_rate, new_rate)
    margin = -(-width // orig)
    frame = max(0, start // new - margin)
    stop = -(-(start + frames) * orig // new) + width + 1
    return frame * orig, stop - frame * orig, start - frame * new


@functools.lru_cache(maxsize=32)
def _polyphase(orig_rate: int, new_rate: int) -> _Polyphase:
    divisor = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // divisor, new_rate // divisor
    base = min(orig, new) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * orig / base)
    repeats = -(-_GROUP // new)  # 3:1 as 96:32, the same filter in fuller matrices
    groups = []
    for first in range(0, new * repeats, _GROUP):
        phase = np.arange(first, min(first + _GROUP, new * repeats))
        # Phase j sits at input j * orig / new, and its window reaches `width` to both sides.
        low = first * orig // new - width
        high = -(-int(phase[-1]) * orig // new) + width + 1
        tap = np.arange(low, high)
        groups.append((low + width, _kernel(tap[:, None] * new - phase * orig, orig, new, base)))
    return _Polyphase(orig * repeats, new * repeats, width, tuple(groups))


def _kernel(distance: np.ndarray, orig: int, new: int, base: float) -> np.ndarray:
    """Hann-windowed sinc at integer distances (in units of 1 / (orig * new)); [tap, phase] float32."""
    time = np.clip(distance * (base / (orig * new)), -LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = np.cos(time * math.pi / LOWPASS_WIDTH / 2) ** 2
    return (np.sinc(time) * window * (base / orig)).astype(np.float32)


def _resample_into(source: np.ndarray, target: np.ndarray, phases: _Polyphase) -> None:
    orig, new, width, groups = phases
    frames = -(-len(target) // new)
    step = max(1, _BLOCK_SAMPLES // orig)
    for first in range(0, frames, step):
        count = min(step, frames - first)
        chunk = _slice_padded(source, first * orig - width, (first + count) * orig + width + 1)
        out = np.empty((count, new), np.float32)
        column = 0
        for offset, kernel in groups:
            taps, width_out = kernel.shape
            view = np.lib.stride_tricks.sliding_window_view(chunk[offset:], taps)[: count * orig : orig]
            # Overlapping rows are no matrix BLAS takes: copied, at 1 to 4 times the block's size.
            out[:, column : column + width_out] = np.ascontiguousarray(view[:count]) @ kernel
            column += width_out
        stop = min(len(target), (first + count) * new)
        target[first * new : stop] = out.reshape(-1)[: stop - first * new]


def _slice_padded(source: np.ndarray, start: int, stop: int) -> np.ndarray:
    """source[start:stop] with zeros wherever that lies outside."""
    low, high = max(start, 0), min(stop, len(source))
    if low >= high:
        return np.zeros(stop - start, np.float32)
    return np.pad(source[low:high], (low - start, stop - high))
