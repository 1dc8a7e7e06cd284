"""What is compared: a system takes an utterance and gives what a listener would hear of it, and what it cost."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Shaped

from codec_jax import model_card, models
from codec_jax.audio import files
from codec_jax.audio.loudness import loudness_gain
from codec_jax.audio.resample import resample, resampled_length
from codec_jax.codec import Codec
from codec_jax.errors import UserError, require
from codec_jax.evaluate import anchors
from codec_jax.models.protocol import Rate, in_streams

Signal = Shaped[np.ndarray, " time"]
MOST_BUCKETS = 8
_NOTED_SECONDS = 0.05  # by which a decoded file may miss its original without a word


class Coded(NamedTuple):
    """An utterance that went through a system.

    audio: [time], at the input's rate and of its length. num_bytes: what was sent, None of uncoded audio. codes:
    [codebook, frame], None where a system has none. note: what a reader of its figures should know, or empty.
    """

    audio: Float32[np.ndarray, " time"]
    num_bytes: int | None = None
    codes: Int[np.ndarray, "codebook frame"] | None = None
    note: str = ""


Code = Callable[[Signal, int, str], Coded]


@dataclasses.dataclass(frozen=True)
class System:
    """One row of a comparison.

    name: unique, as in tables (`opus@6`). family: what it shares with its other rates (`opus`), a curve in plots.
    label: for people. code: of audio [time], its sample rate and the stem of its file. nominal_bps: bits per second as
    advertised, None of uncoded audio and where it depends on the input. sample_rate: Hz of what it gives before that is
    brought to the input's rate, None for the input's. codebook_sizes: of its codes, empty without. shape: of (samples,
    sample rate), what is compiled for them: the first call with each is slow; None where nothing is compiled.
    """

    name: str
    family: str
    label: str
    code: Code
    nominal_bps: float | None = None
    sample_rate: int | None = None
    codebook_sizes: tuple[int, ...] = ()
    shape: Callable[[int, int], int | None] = lambda samples, sample_rate: None

    def process(self, audio: Signal, sample_rate: int, stem: str = "") -> Coded:
        """What becomes of one utterance; `stem` is the name of its file without suffix, for decoded directories."""
        coded = self.code(np.asarray(audio, np.float32), sample_rate, stem)
        return coded._replace(audio=fitted(coded.audio, len(audio)))


# ---- references and anchors ---------------------------------------------------------------------


def original() -> System:
    """The utterance itself: what every metric gives at best."""
    return System("original", "original", "original", lambda audio, rate, stem: Coded(audio))


def lowpass(cutoff: int) -> System:
    """The low-pass anchor of listening tests (`anchors.lowpass`), cutoff in Hz: `lowpass_3500`, `lowpass_7000`."""
    return System(
        f"lowpass_{cutoff}",
        "lowpass",
        f"low-pass at {cutoff / 1000:g} kHz",
        lambda audio, rate, stem: Coded(anchors.lowpass(audio, rate, cutoff)),
    )


def mu_law() -> System:
    """Eight bits a sample at the input's rate (`anchors.mu_law`)."""

    def code(audio: Signal, sample_rate: int, stem: str) -> Coded:
        return Coded(anchors.mu_law(audio), len(audio))

    return System("mu_law", "mu_law", "mu-law, 8 bits", code)


def decoded_directory(directory: files.PathLike) -> System:
    """Files decoded elsewhere, found below `directory` by the stem of the original: any rate, channels mixed down.

    They are taken to begin where the original begins; the end is cut, or filled with zeros. UserError: no directory, no
    audio in it, one stem twice, and, when it is reached, an utterance that is not there.
    """
    directory = pathlib.Path(directory)
    found: dict[str, pathlib.Path] = {}
    for path in files.find(directory):
        twice = f"{path}: {found.get(path.stem)} has the same name; rename one of them, with its original."
        require(path.stem not in found, twice)
        found[path.stem] = path

    def code(audio: Signal, sample_rate: int, stem: str) -> Coded:
        if stem not in found:
            raise UserError(f"{directory}: holds no audio file named {stem}; put the decoded {stem} there.")
        decoded, rate = files.read(found[stem])
        heard = resample(decoded.mean(0), rate, sample_rate)
        more = (len(heard) - len(audio)) / sample_rate
        what = "longer than the original: cut" if more > 0 else "shorter than the original: filled with silence"
        return Coded(heard, note=f"{abs(more):.2f} s {what}" if abs(more) >= _NOTED_SECONDS else "")

    name = directory.resolve().name
    return System(name, name, f"files of {name}", code)


# ---- codecs of this library ---------------------------------------------------------------------


def codec_systems(codec: Codec, name: str, clips: Sequence[tuple[int, int]] = ()) -> list[System]:
    """One system per rate of a codec: its streams, or the bottleneck of its training and the presets that fit.

    clips: (samples, sample rate) of the utterances to come, so that each rate compiles for at most eight lengths. Bytes
    are those of the utterance's .cjx file, its container of up to 64 bytes included. A codec without bottleneck is
    also heard unquantised.
    """
    family = models.FAMILIES[codec.family]
    sizes = buckets([_frames(codec, *clip) for clip in clips])
    codec = codec.in_buckets(sizes)
    rates = family.rates(codec.config)
    found = [] if codec.has_tokens else [_unquantised(codec, name, sizes)]
    return found + [_at_rate(codec, name, sizes, asked, rate) for asked, rate in rates.items()]


def buckets(lengths: Sequence[int], most: int = MOST_BUCKETS) -> tuple[int, ...]:
    """At most `most` of `lengths`, ascending, such that padding each to the next stretches none by much.

    That is by (longest / shortest)^(1 / most) at most: the range is cut into so many equal ratios, and each piece ends
    at the longest length in it. Empty for no lengths.
    """
    if not len(lengths):
        return ()
    sorted_lengths = np.unique(np.asarray(lengths, np.int64))
    span = math.log(sorted_lengths[-1] / sorted_lengths[0])
    piece = np.ceil(np.log(sorted_lengths / sorted_lengths[0]) / (span or 1.0) * most).clip(1)
    return tuple(int(sorted_lengths[piece == number].max()) for number in np.unique(piece))


def _at_rate(codec: Codec, name: str, sizes: Sequence[int], asked: str, rate: Rate) -> System:
    flags = {"num_streams": rate.stages[0]} if in_streams(rate) else {"bottleneck": asked}
    words = f"{rate.stages[0]} streams" if in_streams(rate) else asked

    def code(audio: Signal, sample_rate: int, stem: str) -> Coded:
        encoded = codec.encode(audio, sample_rate, **flags)
        decoded = resample(codec.decode(encoded), codec.sample_rate, sample_rate)
        return Coded(decoded, len(encoded.to_bytes()), encoded.codes[0])

    return System(
        f"{name}@{rate.name}",
        name,
        f"{name}, {words}",
        code,
        model_card.bitrate(codec.family, codec.config, rate),
        codec.sample_rate,
        models.FAMILIES[codec.family].codebook_sizes(codec.config, rate),
        functools.partial(_padded, codec, sizes),
    )


def _unquantised(codec: Codec, name: str, sizes: Sequence[int]) -> System:
    """The codec with its bottleneck left open, at the loudness at which `encode` would have heard the clip."""
    normalizes = models.FAMILIES[codec.family].geometry(codec.config).normalizes

    def code(audio: Signal, sample_rate: int, stem: str) -> Coded:
        heard = resample(audio, sample_rate, codec.sample_rate)
        gain = np.float32(loudness_gain(heard[None], codec.sample_rate) if normalizes else 1.0)
        padded = fitted(gain * heard, codec.hop_length * _padded(codec, sizes, len(audio), sample_rate))
        decoded = codec.unquantised(padded[None], lengths=[len(heard)]).reshape(-1, len(padded)).mean(0)
        return Coded(resample(decoded[: len(heard)] / gain, codec.sample_rate, sample_rate))

    shape = functools.partial(_padded, codec, sizes)
    label = f"{name}, not quantised"
    return System(f"{name}@unquantised", name, label, code, None, codec.sample_rate, shape=shape)


def _frames(codec: Codec, samples: int, sample_rate: int) -> int:
    """Code frames of a clip."""
    padded = models.FAMILIES[codec.family].padded_length(
        codec.config, resampled_length(samples, sample_rate, codec.sample_rate)
    )
    return -(-padded // codec.hop_length)


def _padded(codec: Codec, sizes: Sequence[int], samples: int, sample_rate: int) -> int:
    """Code frames that a clip is padded to."""
    frames = _frames(codec, samples, sample_rate)
    return next((size for size in sizes if size >= frames), frames)


def fitted(audio: Signal, length: int) -> Float32[np.ndarray, " length"]:
    """Float32, cut or filled with zeros to `length`."""
    audio = np.asarray(audio[:length], np.float32)
    return np.pad(audio, (0, length - len(audio)))
