"""Distances of spectra under their exact names, and of levels; conventions as in `metrics`."""

import math

import numpy as np

from codec_jax.audio.loudness import integrated_loudness
from codec_jax.evaluate.metrics import (
    Signal,
    checked_pair,
    esc_mel,
    magnitudes,
    mel_stft_distance,
    multi_scale_mel,
    stft_distance,
)
from codec_jax.losses.spectral import ESC_MEL_SCALES, MelLossConfig

_FFT, _HOP = 512, 128
_FLOOR = 1e-4  # about the magnitude of 16-bit rounding noise in a frame of 512
_AURALOSS_SAMPLES = 513
_LOUDNESS_SECONDS = 0.4


def mel_distance_esc(reference: Signal, estimate: Signal, sample_rate: int = 16000) -> float:
    """ESC's published mel distance: the logarithmic terms of its mel loss alone (spec ESC section 10).

    `metrics.mel_distance`, of training curves, has the magnitude terms too.
    """
    return multi_scale_mel(reference, estimate, esc_mel(sample_rate, mag_weight=0.0), htk=True)


def mel_distance_dac(reference: Signal, estimate: Signal, sample_rate: int = 16000) -> float:
    """DAC's mel loss as its training config sets it: Slaney filters, log10 of magnitudes, no magnitude term."""
    windows, mels = zip(*ESC_MEL_SCALES)
    config = MelLossConfig(mels, windows, pow=1.0, mag_weight=0.0, sample_rate=sample_rate)
    return multi_scale_mel(reference, estimate, config)


def mel_distance_taae(reference: Signal, estimate: Signal, sample_rate: int = 16000) -> float:
    """`metrics.mel_stft_distance`, of the TAAE paper; NaN for a silent reference and below 513 samples."""
    return mel_stft_distance(reference, estimate, sample_rate) if _relative(reference, estimate) else math.nan


def stft_distance_taae(reference: Signal, estimate: Signal) -> float:
    """`metrics.stft_distance`, of the TAAE paper; NaN for a silent reference and below 513 samples."""
    return stft_distance(reference, estimate) if _relative(reference, estimate) else math.nan


def log_spectral_distance(reference: Signal, estimate: Signal) -> float:
    """Mean over frames of sqrt(mean over bins of (20 log10 R - 20 log10 E)^2), in dB.

    R, E: magnitudes of frames of 512 samples (Hann, hop 128), at least 1e-4. Short signals are zero-padded to 257.
    """
    pair = [np.pad(audio, (0, max(0, _FFT // 2 + 1 - len(audio)))) for audio in checked_pair(reference, estimate)]
    total, count = 0.0, 0
    for blocks in magnitudes(pair, _FFT, _HOP):
        ref, est = (20 * np.log10(np.maximum(block, _FLOOR)) for block in blocks)
        total += np.sqrt(np.square(ref - est).mean(axis=1, dtype=np.float64)).sum()
        count += len(ref)
    return float(total / count)


def loudness_error(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """|L(estimate) - L(reference)| in LU, L the integrated loudness of ITU-R BS.1770 (audio/loudness.py).

    NaN below 0.4 s, and where either is silent or under the absolute gate of -70 LUFS throughout.
    """
    pair = checked_pair(reference, estimate)
    if len(pair[0]) < round(_LOUDNESS_SECONDS * sample_rate):
        return math.nan
    levels = [integrated_loudness(audio[None], sample_rate) for audio in pair]
    return abs(levels[1] - levels[0]) if all(map(math.isfinite, levels)) else math.nan


def _relative(reference: Signal, estimate: Signal) -> bool:
    """True where auraloss' distances can be taken: one of their terms is relative to the reference."""
    return len(checked_pair(reference, estimate)[0]) >= _AURALOSS_SAMPLES and bool(reference.any())
