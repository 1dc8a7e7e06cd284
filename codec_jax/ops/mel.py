"""Constant matrices and filters of the spectral losses, computed on the host with librosa and SciPy."""

import functools
import warnings
from typing import Literal

import numpy as np
import scipy.signal


@functools.lru_cache(maxsize=64)
def mel_filterbank(
    sample_rate: int,
    n_fft: int,
    n_mels: int,
    *,
    htk: bool = False,
    norm: Literal["slaney"] | None = "slaney",
    fmin: float = 0.0,
    fmax: float | None = None,
) -> np.ndarray:
    """Triangular mel filters, float32 [n_fft // 2 + 1, n_mels], to multiply from the right: frames @ filters.

    htk: HTK's mel scale instead of Slaney's. norm: "slaney" (unit area) or None (unit peak). fmin, fmax in
    Hz; fmax None is half the sample rate. Filters narrower than a bin are zero, without a warning. Do not
    write to it.
    """
    import librosa.filters  # slow to import, and unknown to those who only encode and decode

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters")
        filters = librosa.filters.mel(
            sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk, norm=norm
        )
    return _frozen(filters.T)


@functools.lru_cache(maxsize=16)
def chroma_filterbank(sample_rate: int, n_fft: int, n_chroma: int) -> np.ndarray:
    """Chroma filters of librosa, float32 [n_fft // 2 + 1, n_chroma]. Do not write to it."""
    import librosa.filters

    return _frozen(librosa.filters.chroma(sr=sample_rate, n_fft=n_fft, n_chroma=n_chroma).T)


@functools.lru_cache(maxsize=8)
def a_weighting_fir(sample_rate: int) -> np.ndarray:
    """Linear-phase FIR of IEC 61672 A-weighting, float32 [101] (spec TAAE section 6).

    The analogue weighting through the bilinear transform, and a least-squares fit of its magnitude.
    """
    poles = 2 * np.pi * np.array([20.598997, 107.65265, 737.86223, 12194.217])
    gain_at_1k_db = 1.9997
    numerator = [poles[3] ** 2 * 10 ** (gain_at_1k_db / 20), 0.0, 0.0, 0.0, 0.0]
    denominator = np.poly(-poles[[0, 0, 1, 2, 3, 3]])
    b, a = scipy.signal.bilinear(numerator, denominator, fs=sample_rate)
    frequencies, response = scipy.signal.freqz(b, a, worN=512, fs=sample_rate)
    return _frozen(scipy.signal.firls(101, frequencies, np.abs(response), fs=sample_rate))


def _frozen(array: np.ndarray) -> np.ndarray:
    """Contiguous float32 that nobody can change: it is shared by the cache."""
    array = np.array(array, dtype=np.float32, order="C")
    array.flags.writeable = False
    return array
