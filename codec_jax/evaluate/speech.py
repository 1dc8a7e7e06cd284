"""PESQ in its three readings, and ESTOI; conventions as in `metrics`."""

import math
import warnings

import numpy as np

from codec_jax.evaluate.metrics import Signal, checked_pair, finite_mean, stoi

PART_SECONDS = 20
"""The longest signal that PESQ is given in one piece."""
_WIDE, _NARROW = 16_000, 8_000
_LOWEST = {"wb": 1.0427, "nb": 1.0168}  # the mappings of P.862.2 and P.862.1 at P.862's lowest score, -0.5


def pesq_wb(reference: Signal, estimate: Signal) -> float:
    """Wide-band PESQ (P.862.2) of audio at 16 kHz as MOS-LQO, up to 4.64.

    NaN and long audio: see `_pesq`. 1.04 for a silent estimate.
    """
    return _pesq(checked_pair(reference, estimate), _WIDE, "wb")


def pesq_nb(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Narrow-band PESQ (P.862) of audio brought to 8 kHz by soxr, as MOS-LQO by P.862.1, up to 4.55.

    NaN and long audio: see `_pesq`. 1.02 for a silent estimate.
    """
    return _pesq([_at_8_khz(audio, sample_rate) for audio in checked_pair(reference, estimate)], _NARROW, "nb")


def pesq_nb_raw(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Narrow-band PESQ on the raw scale of P.862, -0.5 .. 4.5, which pypesq gives: `raw_score(pesq_nb)`."""
    return raw_score(pesq_nb(reference, estimate, sample_rate))


def raw_score(listening_quality: float) -> float:
    """The P.862 score behind a MOS-LQO, by the inverse of P.862.1's y = 0.999 + 4 / (1 + exp(4.6607 - 1.4945 x)).

    Held to P.862's -0.5 .. 4.5, also for values that the mapping never takes; NaN stays NaN.
    """
    if math.isnan(listening_quality):
        return math.nan
    share = (listening_quality - 0.999) / 4.0
    if not 0 < share < 1:
        return -0.5 if share <= 0 else 4.5
    return min(4.5, max(-0.5, (4.6607 - math.log(1 / share - 1)) / 1.4945))


def estoi(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Extended STOI (pystoi), about 0 .. 1; NaN and 0 as `metrics.stoi`."""
    return stoi(reference, estimate, sample_rate, extended=True)


def _pesq(pair: list[np.ndarray], sample_rate: int, mode: str) -> float:
    """The mean over equal parts of at most 20 s: P.862's own recordings are of 8 to 20 s.

    Above 50 utterances in one piece the package writes beyond its tables and may end the process; 28 s of bursts and
    gaps of a quarter of a second each are enough. NaN where no part of the reference holds an utterance that it finds,
    or all are under 0.25 s.
    """
    count = -(-len(pair[0]) // (PART_SECONDS * sample_rate))
    references, estimates = (np.array_split(audio, count) for audio in pair)
    return finite_mean([_pesq_of_part(*part, sample_rate, mode) for part in zip(references, estimates)])


def _pesq_of_part(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, mode: str) -> float:
    score = _package(reference, estimate, sample_rate, mode)
    if math.isnan(score) and not math.isnan(_package(reference, reference, sample_rate, mode)):
        return _LOWEST[mode]  # so the estimate is to blame: it is silent, or all but
    return score


def _package(reference: np.ndarray, estimate: np.ndarray, sample_rate: int, mode: str) -> float:
    import pesq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it divides by the larger peak, and by an estimate's power
        try:
            return float(pesq.pesq(sample_rate, reference, estimate, mode))
        except (pesq.NoUtterancesError, pesq.BufferTooShortError, ValueError):  # the last for a power of zero
            return math.nan


def _at_8_khz(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    import librosa

    if sample_rate == _NARROW:
        return audio
    return librosa.resample(audio, orig_sr=sample_rate, target_sr=_NARROW, res_type="soxr_hq")
