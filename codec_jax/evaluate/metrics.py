"""Metrics of one utterance, on the host: NumPy arrays in, floats out, nothing compiled, any length.

Each takes reference and estimate [time], of equal length and rate. NaN means undefined (a silent reference,
or too little speech for STOI): leave such values out of means. An estimate that is silent is not undefined,
but bad.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.fft
from jaxtyping import Shaped
from numpy.lib.stride_tricks import sliding_window_view

from codec_jax.losses.spectral import ESC_MEL_SCALES, MEL_FLOOR, MelLossConfig
from codec_jax.ops.mel import mel_filterbank
from codec_jax.ops.stft import hann

Signal = Shaped[np.ndarray, "time"]
_EPS = 1e-8
_BLOCK_VALUES = 1 << 22  # framed samples held at once, so an hour of audio fits in memory too
_MIN_MAGNITUDE = 1e-4


def all_metrics(reference: Signal, estimate: Signal, sample_rate: int) -> dict[str, float]:
    """The three of validation: mel_distance (lower is better), stoi and si_sdr in dB (higher is better)."""
    return {
        "mel_distance": mel_distance(reference, estimate, sample_rate),
        "stoi": stoi(reference, estimate, sample_rate),
        "si_sdr": si_sdr(reference, estimate),
    }


def table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Named rows of figures as text with a last row of means; what is not finite stays out of the mean."""
    columns = list(rows[0][1])
    means = {column: finite_mean([row[column] for _, row in rows]) for column in columns}
    rows = [*rows, ("mean", means)] if len(rows) > 1 else rows
    width = max(len(name) for name, _ in rows)
    lines = [f"{'file':<{width}}  " + "  ".join(f"{column:>12}" for column in columns)]
    lines += [f"{name:<{width}}  " + "  ".join(f"{row[column]:>12.3f}" for column in columns) for name, row in rows]
    return "\n".join(lines)


def finite_mean(values: Sequence[float]) -> float:
    """The mean of what is finite; NaN where nothing is."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def si_sdr(reference: Signal, estimate: Signal) -> float:
    """Scale-invariant signal-to-distortion ratio in dB: |a r|^2 / |e - a r|^2, means removed.

    a = <e, r> / <r, r>. NaN for a constant reference; equal signals give a large number, silence -80.
    """
    reference, estimate, scaled = _projected(reference, estimate)
    return _ratio_db(scaled, estimate - scaled) if reference.any() else float("nan")


def sd_sdr(reference: Signal, estimate: Signal) -> float:
    """Scale-dependent SDR in dB, means removed: |a r|^2 / |e - r|^2 with SI-SDR's a. NaN as SI-SDR."""
    reference, estimate, scaled = _projected(reference, estimate)
    return _ratio_db(scaled, estimate - reference) if reference.any() else float("nan")


def stoi(reference: Signal, estimate: Signal, sample_rate: int, extended: bool = False) -> float:
    """Short-time objective intelligibility, about 0 .. 1 (pystoi); extended: ESTOI.

    NaN for a silent reference and for less than 0.4 s of speech, for which it is not defined. 0 for a silent
    estimate.
    """
    import pystoi  # slow to import

    reference, estimate = checked_pair(reference, estimate)
    if not reference.any():
        return float("nan")
    if not estimate.any():
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # "Not enough STFT frames"
        try:
            return float(pystoi.stoi(reference, estimate, sample_rate, extended=extended))
        except (RuntimeWarning, ValueError, IndexError):  # the latter two below a single frame
            return float("nan")


def mel_distance(reference: Signal, estimate: Signal, sample_rate: int = 16000) -> float:
    """`losses.spectral.mel_distance` of one utterance, without a compilation for its length."""
    return multi_scale_mel(reference, estimate, esc_mel(sample_rate), htk=True)


def esc_mel(sample_rate: int, mag_weight: float = 1.0) -> MelLossConfig:
    """The scales of ESC's mel loss; its filters are HTK's."""
    windows, mels = zip(*ESC_MEL_SCALES)
    return MelLossConfig(mels, windows, mag_weight=mag_weight, sample_rate=sample_rate)


def multi_scale_mel(reference: Signal, estimate: Signal, config: MelLossConfig, htk: bool = False) -> float:
    """`losses.spectral.multi_scale_mel_l1` of one utterance, zero-padded to half the longest window and a sample.

    htk: HTK's mel scale without norm instead of Slaney's with it, as ESC has it.
    """
    short = max(0, max(config.window_lengths) // 2 + 1 - len(reference))
    pair = [np.pad(audio, (0, short)) for audio in checked_pair(reference, estimate)]
    distance = 0.0
    for window_length, n_mels in zip(config.window_lengths, config.n_mels):
        filters = mel_filterbank(
            config.sample_rate,
            window_length,
            n_mels,
            htk=htk,
            norm=None if htk else "slaney",
            fmin=config.fmin,
            fmax=config.fmax,
        )
        total, count = 0.0, 0
        for spectra in magnitudes(pair, window_length, window_length // 4):
            bands = [m @ filters for m in spectra]
            logs = [config.pow * np.log10(np.maximum(b, MEL_FLOOR)) for b in bands]
            total += config.mag_weight * np.abs(bands[0] - bands[1]).sum(dtype=np.float64)
            total += config.log_weight * np.abs(logs[0] - logs[1]).sum(dtype=np.float64)
            count += bands[0].size
        distance += total / count
    return float(distance)


def stft_distance(reference: Signal, estimate: Signal) -> float:
    """The STFT loss of auraloss (n_fft 1024, hop 256): |R - E|_F / |R|_F + mean |log R - log E|.

    R, E: magnitudes, at least 1e-4. Reported in the TAAE paper. ValueError below 513 samples.
    """
    return _stft_distance(reference, estimate, None)


def mel_stft_distance(reference: Signal, estimate: Signal, sample_rate: int = 16000) -> float:
    """`stft_distance` on 128 Slaney mel bands (auraloss' MelSTFTLoss)."""
    return _stft_distance(reference, estimate, mel_filterbank(sample_rate, 1024, 128))


def _stft_distance(reference: Signal, estimate: Signal, filters: np.ndarray | None) -> float:
    pair = checked_pair(reference, estimate)
    if len(pair[0]) <= 512:
        raise ValueError(f"the STFT distance of {len(pair[0])} samples is not defined: give at least 513")
    error, norm, logs, count = 0.0, 0.0, 0.0, 0
    for blocks in magnitudes(pair, 1024, 256):
        ref, est = (np.maximum(m, _MIN_MAGNITUDE) for m in blocks)
        if filters is not None:
            ref, est = (np.maximum(m @ filters, 1e-12) for m in (ref, est))
        error += np.square(ref - est).sum(dtype=np.float64)
        norm += np.square(ref).sum(dtype=np.float64)
        logs += np.abs(np.log(ref) - np.log(est)).sum(dtype=np.float64)
        count += ref.size
    return float(np.sqrt(error / norm) + logs / count)


def magnitudes(pair: list[np.ndarray], n_fft: int, hop_length: int):
    """Blocks of magnitude spectrograms float32 [frame, bin] of both signals, framed as ops.stft does."""
    window = hann(n_fft)
    framed = [
        sliding_window_view(np.pad(audio.astype(np.float32), n_fft // 2, mode="reflect"), n_fft)[::hop_length]
        for audio in pair
    ]
    step = max(1, _BLOCK_VALUES // n_fft)
    for start in range(0, len(framed[0]), step):
        yield [np.abs(scipy.fft.rfft(frames[start : start + step] * window)) for frames in framed]


def checked_pair(reference: np.ndarray, estimate: np.ndarray) -> list[np.ndarray]:
    """Both as float64 [time]. ValueError for empty signals and unequal lengths: the caller aligns."""
    if len(reference) != len(estimate) or not len(reference):
        raise ValueError(
            f"reference and estimate have {len(reference)} and {len(estimate)} samples: "
            "give signals of equal length, at least one sample"
        )
    return [np.asarray(audio, np.float64) for audio in (reference, estimate)]


def _projected(reference: np.ndarray, estimate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both without their means, and the reference scaled to fit the estimate."""
    reference, estimate = (audio - audio.mean() for audio in checked_pair(reference, estimate))
    return (
        reference,
        estimate,
        reference * (estimate @ reference / max(reference @ reference, np.finfo(float).tiny)),
    )


def _ratio_db(signal: np.ndarray, distortion: np.ndarray) -> float:
    """With the epsilons of auraloss: 10 log10(|s|^2 / (|d|^2 + 1e-8) + 1e-8)."""
    return float(10 * np.log10(signal @ signal / (distortion @ distortion + _EPS) + _EPS))
