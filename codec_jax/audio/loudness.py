"""Integrated loudness (ITU-R BS.1770) and the gain of upstream's VolumeNorm, as torchaudio computes them.

Not pyloudnorm: torchaudio designs its K-weighting from other corner frequencies and clamps after each filter,
which shifts loud material; encoding must hear what the published model heard. Source: spec/TAAE.md section 5.
"""

import functools
import math

import numpy as np
from jaxtyping import Float
from scipy.signal import lfilter

from codec_jax.errors import UserError

CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)
ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU below the mean of what passed the absolute gate
MIN_MEAN_SQUARE = 1e-6
_BIAS = -0.691
_BLOCK_SAMPLES = 1 << 19


def integrated_loudness(audio: Float[np.ndarray, "channel time"], sample_rate: int) -> float:
    """Loudness in LUFS; -inf where every 400 ms block is under the absolute gate (upstream gives NaN there).

    Blocks of 400 ms start every 100 ms, an incomplete last one is left out.
    Raises: UserError for fewer samples than one block, or more than five channels.
    """
    gate, step = _gate(sample_rate)
    if audio.shape[-1] < gate:
        raise UserError(f"loudness needs at least 0.4 s: got {audio.shape[-1]} samples at {sample_rate} Hz")
    if audio.shape[0] > len(CHANNEL_WEIGHTS):
        raise UserError(f"loudness is defined for at most five channels: got {audio.shape[0]}; mix them down first")
    # [block]: gates act on the weighted sum of channels, so only that needs keeping.
    channels = [_block_energy(channel, sample_rate, gate, step) for channel in audio]
    energy = np.array(CHANNEL_WEIGHTS[: len(channels)]) @ np.stack(channels)
    with np.errstate(divide="ignore"):
        loudness = _BIAS + 10 * np.log10(energy)
    audible = loudness > ABSOLUTE_GATE
    if not audible.any():
        return -math.inf
    relative = _lufs(energy[audible].mean()) + RELATIVE_GATE
    return _lufs(energy[audible & (loudness > relative)].mean())


def loudness_gain(audio: Float[np.ndarray, "channel time"], sample_rate: int, target: float = -20.0) -> float:
    """Linear factor that brings `audio` to `target` LUFS, as VolumeNorm applies it.

    Where that would push the peak over 1, the peak goes to 0.95 instead. Inputs under 0.4 s, with a mean
    square below 1e-6, or without a block above the absolute gate are left alone: 1.0. Never NaN for finite
    samples.
    """
    if audio.shape[-1] < _gate(sample_rate)[0] or mean_square(audio) < MIN_MEAN_SQUARE:
        return 1.0
    loudness = integrated_loudness(audio, sample_rate)
    if not math.isfinite(loudness):
        return 1.0
    gain = 10 ** ((target - loudness) / 20)
    peak = max(float(audio.max()), -float(audio.min()))
    return 0.95 / peak if gain * peak > 1 else gain


def _lufs(energy: float) -> float:
    return _BIAS + 10 * math.log10(energy)


def _gate(sample_rate: int) -> tuple[int, int]:
    gate = round(0.4 * sample_rate)
    return gate, max(1, round(gate * 0.25))


def mean_square(audio: Float[np.ndarray, "channel time"]) -> float:
    """Mean of the squared samples, over channels and time, without a copy of the signal."""
    parts = (audio[:, i : i + _BLOCK_SAMPLES].ravel() for i in range(0, audio.shape[-1], _BLOCK_SAMPLES))
    with np.errstate(over="ignore"):  # absurd samples: infinite is loud enough
        return sum(float(np.dot(part, part)) for part in parts) / audio.size


def _block_energy(channel: np.ndarray, sample_rate: int, gate: int, step: int) -> np.ndarray:
    """Mean square of every K-weighted 400 ms block of one channel: [time] -> float64 [block]."""
    shelf, highpass = _k_weighting(sample_rate)
    state = [np.zeros(2), np.zeros(2)]
    held = np.zeros(0)
    means = []
    for start in range(0, len(channel), _BLOCK_SAMPLES):
        part = channel[start : start + _BLOCK_SAMPLES]
        for i, (b, a) in enumerate((shelf, highpass)):
            part, state[i] = lfilter(b, a, part, zi=state[i])
            part = np.clip(part, -1, 1)  # torchaudio's lfilter clamps by default: part of the definition here
        held = np.concatenate([held, part * part])
        if len(held) >= gate:
            windows = np.lib.stride_tricks.sliding_window_view(held, gate)[::step]
            means.append(windows.mean(axis=-1))
            held = held[len(windows) * step :]
    return np.concatenate(means)


@functools.lru_cache(maxsize=32)
def _k_weighting(sample_rate: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(b, a) of treble shelf (1500 Hz, +4 dB, Q 1/sqrt 2) and high-pass (38 Hz, Q 0.5), by the RBJ cookbook.

    Computed in float32 as torchaudio does: the high-pass's poles are near 1, rounding them moves 2e-4 LU.
    """
    single = np.float32
    angle = single(2 * math.pi) * single(1500) / single(sample_rate)
    amplitude, cosine = np.exp(single(4 / 40 * math.log(10))), np.cos(angle)
    alpha = np.sin(angle) / single(2) / single(math.sqrt(0.5))
    root = 2 * np.sqrt(amplitude) * alpha
    up, down = amplitude + 1, amplitude - 1
    shelf_b = amplitude * np.array([up + down * cosine + root, -2 * (down + up * cosine), up + down * cosine - root])
    shelf_a = np.array([up - down * cosine + root, 2 * (down - up * cosine), up - down * cosine - root])
    angle = single(2 * math.pi) * single(38) / single(sample_rate)
    alpha, cosine = np.sin(angle) / single(2) / single(0.5), np.cos(angle)
    high_b = np.array([(1 + cosine) / 2, -1 - cosine, (1 + cosine) / 2])
    high_a = np.array([1 + alpha, -2 * cosine, 1 - alpha])
    return _normalised(shelf_b, shelf_a), _normalised(high_b, high_a)


def _normalised(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (b / a[0]).astype(np.float64), (a / a[0]).astype(np.float64)  # filtered in float64: a wide accumulator
