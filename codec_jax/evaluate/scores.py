"""Every metric of a report by its exact name: its unit, its good direction, and how the number comes about.

Published numbers of one name differ by package, band and weights: PESQ by more than half a point, mel distances by
factors. So a name here says the variant, and `how` the rest.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

from codec_jax.audio.resample import resample
from codec_jax.errors import require
from codec_jax.evaluate import metrics, opinion, pitch, spectra, speech
from codec_jax.evaluate.metrics import Signal

Function = Callable[[Signal, Signal, int], float]
MIN_RATE = 8_000
_RATE = 16_000


class Metric(NamedTuple):
    """A metric of one utterance.

    unit: of the number, "" if it has none. better: "higher", "lower" or "". how: one sentence, for a report. function:
    of reference, estimate [time] and their sample rate. rate: Hz to which both are brought before (None: as they come).
    package: what has to be installed beyond codec_jax's own dependencies, "" for nothing; extra: that brings it.
    """

    unit: str
    better: str
    how: str
    function: Function
    rate: int | None = _RATE
    package: str = ""
    extra: str = "eval"


def _rateless(function: Callable[[Signal, Signal], float]) -> Function:
    return lambda reference, estimate, _: function(reference, estimate)


_PARTS = f"clips beyond {speech.PART_SECONDS} s in equal parts whose scores are averaged"
_OPINION = "predicted from the estimate alone at 16 kHz, package speechmos: the mean over windows of 9.01 s"
_SCALES = "summed over seven scales (windows 32 to 2048, 5 to 320 mels, hop a quarter of the window) at 16 kHz"

METRICS: dict[str, Metric] = {
    "pesq_wb": Metric(
        "MOS-LQO",
        "higher",
        f"Wide-band PESQ (ITU-T P.862.2) at 16 kHz, package pesq, mode wb; {_PARTS}.",
        _rateless(speech.pesq_wb),
        package="pesq",
    ),
    "pesq_nb": Metric(
        "MOS-LQO",
        "higher",
        f"Narrow-band PESQ (P.862, mapped by P.862.1) at 8 kHz after soxr HQ, package pesq, mode nb; {_PARTS}.",
        speech.pesq_nb,
        None,
        "pesq",
    ),
    "pesq_nb_raw": Metric(
        "MOS",
        "higher",
        "pesq_nb on the raw scale of P.862, -0.5 to 4.5, by the inverse of P.862.1's mapping: what pypesq prints.",
        speech.pesq_nb_raw,
        None,
        "pesq",
    ),
    "stoi": Metric(
        "",
        "higher",
        "Short-time objective intelligibility, package pystoi, extended=False, which resamples to 10 kHz itself.",
        metrics.stoi,
        None,
    ),
    "estoi": Metric(
        "",
        "higher",
        "Extended STOI, package pystoi, extended=True, which resamples to 10 kHz itself.",
        speech.estoi,
        None,
    ),
    "si_sdr": Metric(
        "dB",
        "higher",
        "Scale-invariant signal-to-distortion ratio at the clip's rate, means removed, epsilons of 1e-8.",
        _rateless(metrics.si_sdr),
        None,
    ),
    "mel_distance_esc": Metric(
        "",
        "lower",
        "ESC's MelDistance: mean |log10 max(M, 1e-5)^2 - log10 max(M', 1e-5)^2| of HTK mels M of magnitudes, without "
        f"norm, {_SCALES}; not the magnitude terms, which valid/mel_distance of training has too.",
        spectra.mel_distance_esc,
    ),
    "mel_distance_dac": Metric(
        "",
        "lower",
        "DAC's mel loss as its training config has it (pow 1, mag_weight 0): mean |log10 max(M, 1e-5) - "
        f"log10 max(M', 1e-5)| of Slaney mels M of magnitudes, {_SCALES}.",
        spectra.mel_distance_dac,
    ),
    "mel_distance_taae": Metric(
        "",
        "lower",
        "auraloss' MelSTFTLoss (FFT 1024, hop 256, 128 Slaney mels): spectral convergence + mean |log M - log M'|, "
        "at 16 kHz.",
        spectra.mel_distance_taae,
    ),
    "stft_distance_taae": Metric(
        "",
        "lower",
        "auraloss' STFTLoss (FFT 1024, hop 256): spectral convergence + mean |log S - log S'|, at 16 kHz.",
        _rateless(spectra.stft_distance_taae),
    ),
    "log_spectral_distance": Metric(
        "dB",
        "lower",
        "Mean over frames of the root mean square over bins of 20 log10(S / S'), S at least 1e-4, "
        "Hann frames of 512 with hop 128, at 16 kHz.",
        _rateless(spectra.log_spectral_distance),
    ),
    "loudness_error": Metric(
        "LU",
        "lower",
        "Difference, without sign, of the integrated loudness (ITU-R BS.1770) at the clip's rate.",
        spectra.loudness_error,
        None,
    ),
    "f0_error_cents": Metric(
        "cents",
        "lower",
        "Root mean square of the pitch error over frames voiced in both; librosa's pyin, 60 to 500 Hz in steps of "
        "20 cents, frames of 64 ms every 10 ms, at 16 kHz.",
        pitch.f0_error_cents,
    ),
    "voicing_error": Metric(
        "",
        "lower",
        "Share of frames whose voicing decision differs, from the same pitch contours as f0_error_cents.",
        pitch.voicing_error,
    ),
    "dnsmos_ovrl": Metric(
        "MOS",
        "higher",
        f"DNSMOS P.835, overall quality, {_OPINION}.",
        opinion.dnsmos_ovrl,
        package="speechmos",
        extra="mos",
    ),
    "dnsmos_p808": Metric(
        "MOS",
        "higher",
        f"DNSMOS P.808, overall quality, {_OPINION}.",
        opinion.dnsmos_p808,
        package="speechmos",
        extra="mos",
    ),
}


class Figure(NamedTuple):
    """What a report holds beside METRICS: unit, better and how as of a Metric."""

    unit: str
    better: str
    how: str


FIGURES: dict[str, Figure] = {
    "wer": Figure(
        "",
        "lower",
        "Word error rate of the recogniser given as --asr against the transcript beside the file, both in lower case "
        "and without punctuation; the mean over utterances, not over words.",
    ),
    "cer": Figure("", "lower", "Character error rate, otherwise as wer; spaces count."),
    "bits_per_second": Figure(
        "bit/s",
        "lower",
        "Eight times the bytes of the coded utterance over its seconds. A model's are those of its .cjx file, "
        "container of up to 64 bytes included; a peer's are its packets without container; mu-law's a byte a sample.",
    ),
    "bitrate_utilisation": Figure(
        "",
        "higher",
        "Entropies of the tokens of all codebooks together over their maximum, the codes of all utterances counted "
        "together: the plain estimate, too small for a large codebook and few utterances. One number, so no interval.",
    ),
    "real_time_factor": Figure(
        "s/s",
        "lower",
        "Seconds spent on coding and decoding per second of audio, one utterance at a time, resampling and the files "
        "of programs included; of the first ten utterances of a system, with no scoring beside, compilation apart.",
    ),
    "first_call_seconds": Figure(
        "s",
        "lower",
        "Of the calls that compiled: coding and decoding of the first utterance of each length that a model was "
        "compiled for, at most eight per rate. n counts them.",
    ),
    "peak_memory_mib": Figure(
        "MiB",
        "lower",
        "The highest resident memory of the evaluating process during a timed call (Linux), the libraries and the "
        "weights of all models in it included; what programs take beside is not in it, nor is an accelerator's memory.",
    ),
}
"""By name, as METRICS."""


def described(name: str) -> "Metric | Figure":
    """Unit, better and how of any figure of a report."""
    return METRICS[name] if name in METRICS else FIGURES[name]


def available() -> tuple[list[str], dict[str, str]]:
    """Names of the metrics that can be computed here, and of the others the reason why not."""
    missing = {
        name: f"the package {metric.package} is not installed: pip install 'codec-jax[{metric.extra}]'"
        for name, metric in METRICS.items()
        if metric.package and importlib.util.find_spec(metric.package) is None
    }
    return [name for name in METRICS if name not in missing], missing


def score(
    reference: Signal, estimate: Signal, sample_rate: int, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Figures of one utterance, by name; NaN where one is not defined, as for a reference without speech.

    reference, estimate: float [time], equally long, at `sample_rate` of 8000 Hz or more. names: None for all that are
    available. UserError: unknown names, metrics whose package is missing, another rate. ValueError: lengths.
    """
    here, missing = available()
    names = here if names is None else list(names)
    for name in names:
        require(name in METRICS, f"there is no metric {name}: choose from {', '.join(METRICS)}.")
        require(name not in missing, f"{name} cannot be computed: {missing.get(name)}.")
    require(sample_rate >= MIN_RATE, f"metrics need audio of {MIN_RATE} Hz or more, and this has {sample_rate} Hz.")
    metrics.checked_pair(reference, estimate)

    @functools.cache
    def at(rate: int) -> tuple[Signal, Signal]:
        return resample(reference, sample_rate, rate), resample(estimate, sample_rate, rate)

    figures = {}
    for name in names:
        rate = METRICS[name].rate or sample_rate
        figures[name] = METRICS[name].function(*at(rate), rate)
    return figures
