"""What listeners hear: utterances through systems, equally loud, equally long, at one rate and never clipped.

Levels by ITU-R BS.1770, ends and lengths by ITU-R BS.1534-3.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from codec_jax.audio import files
from codec_jax.audio.loudness import integrated_loudness
from codec_jax.audio.resample import resample
from codec_jax.errors import UserError, require
from codec_jax.evaluate import inputs
from codec_jax.evaluate.conditions import CLEAN, Condition
from codec_jax.evaluate.inputs import Utterance
from codec_jax.evaluate.systems import System

Signal = Float[np.ndarray, " time"]

REFERENCE, LOW_ANCHOR, MID_ANCHOR = "original", "lowpass_3500", "lowpass_7000"
SHORTEST, LONGEST = 0.5, 12.0  # seconds: the shortest loop (BS.1534-3, 5.3), and what items should not exceed (5.1)
LOUDNESS = -23.0  # LUFS of every reference
_FADE = 0.005  # seconds of raised cosine at both ends of what is looped (5.3)
_PEAK = 10 ** (-1 / 20)  # of any sample: a browser that resamples overshoots
_MOST_GAIN = 20.0  # dB more or less than the reference's
_BEYOND = 1.0  # seconds that are coded beyond the cut


class Item(NamedTuple):
    """An utterance as it is: audio [time], mono, at the test's rate; of a long one the beginning, and a bit more."""

    name: str
    language: str
    audio: Float32[np.ndarray, " time"]


class Chosen(NamedTuple):
    """items: of the trials. practice: of the training, the first of `items` where there is none to spare."""

    items: tuple[Item, ...]
    practice: Item
    sample_rate: int
    notes: tuple[str, ...]


class Trial(NamedTuple):
    """signals: by system, [time], all equally long. gains: dB that were added to what the system gave."""

    name: str
    language: str
    signals: dict[str, Float32[np.ndarray, " time"]]
    gains: dict[str, float]


class Stimuli(NamedTuple):
    """attenuation: dB taken off all of it alike, so that nothing clips; loudness: LUFS of the references then."""

    trials: tuple[Trial, ...]
    practice: Trial
    sample_rate: int
    attenuation: float
    loudness: float
    notes: tuple[str, ...]


# ---- utterances ---------------------------------------------------------------------------------


def choose(
    directory: files.PathLike, count: int, sample_rate: int | None, seed: int, seconds: float = LONGEST
) -> Chosen:
    """`count` utterances drawn from those below `directory`, and one more to practise on.

    Shorter than half a second, or silent: left out, with a note. sample_rate: of the test; None where all files have
    one. Raises UserError: no audio, several rates and none given, or nothing that is left.
    """
    require(count >= 1, "--trials must be at least 1.")
    require(seconds >= SHORTEST, f"--seconds must be at least {SHORTEST:g}.")
    utterances = inputs.find(pathlib.Path(directory), [Condition(CLEAN)])
    rate = sample_rate or _common_rate(utterances)
    require(8_000 <= rate <= 96_000, f"--sample-rate {rate}: browsers play 8000 to 96000 Hz.")
    found: list[Item] = []
    notes: list[str] = []
    for number in np.random.default_rng(seed).permutation(len(utterances)):
        if len(found) > count:
            break
        item, reason = _item(utterances[number], rate, seconds)
        if reason:
            notes.append(f"{item.name} is left out: {reason}.")
        else:
            found.append(item)
    if not found:
        raise UserError(f"{directory}: no file is as long as {SHORTEST:g} s and holds sound; give other recordings.")
    items, spare = found[:count], found[count:]
    if len(items) < count:
        notes.append(f"{len(items)} trials instead of {count}: there are no more utterances.")
    if not spare:
        notes.append(f"practice uses {items[0].name}, which is also a trial: there is no utterance to spare.")
    return Chosen(tuple(items), (spare or items)[0], rate, tuple(notes))


def _common_rate(utterances: Sequence[Utterance]) -> int:
    rates: dict[int, pathlib.Path] = {}
    for utterance in utterances:
        rates.setdefault(files.info(utterance.paths[0]).sample_rate, utterance.paths[0])
    if len(rates) > 1:
        (one, first), (other, second) = list(rates.items())[:2]
        raise UserError(f"{first} has {one} Hz and {second} {other} Hz: give --sample-rate for the whole test.")
    return next(iter(rates))


def _item(utterance: Utterance, rate: int, seconds: float) -> tuple[Item, str]:
    """The utterance, and why it cannot be used, or ""."""
    audio, own = inputs.read(utterance)
    audio = resample(audio[: round((seconds + _BEYOND) * own)], own, rate).astype(np.float32)
    item = Item(utterance.name, utterance.language, audio)
    if len(audio) < SHORTEST * rate:
        return item, f"it lasts {len(audio) / rate:.2f} s, and a loop at least {SHORTEST:g} s"
    return item, "" if math.isfinite(loudness(audio[: round(seconds * rate)], rate)) else "it is silent"


# ---- levels -------------------------------------------------------------------------------------


def loudness(audio: Signal, sample_rate: int) -> float:
    """LUFS by BS.1770, -inf of silence. Measured with headroom: `integrated_loudness` clamps at full scale."""
    peak = float(np.abs(audio).max(initial=0.0))
    if peak == 0.0:
        return -math.inf
    scale = min(1.0, 0.25 / peak)
    return integrated_loudness((scale * audio)[None], sample_rate) - 20 * math.log10(scale)


def matched(audio: Signal, sample_rate: int, target: float) -> tuple[Signal, float]:
    """The signal at `target` LUFS and the dB that took; unchanged where it has no loudness.

    Measured anew after each gain: the absolute gate of BS.1770, at -70 LUFS, does not move with the signal.
    """
    total = 0.0
    for _ in range(4):
        found = loudness(audio, sample_rate)
        if not math.isfinite(found) or abs(target - found) < 1e-3:
            break
        total += target - found
        audio = audio * 10 ** ((target - found) / 20)
    return audio, total


def _levelled(name: str, signals: Mapping[str, Signal], rate: int) -> tuple[dict, dict[str, float], list[str]]:
    """Every signal at the reference's loudness: signals, gains in dB and notes."""
    reference, common = matched(signals[REFERENCE], rate, LOUDNESS)
    found, gains, notes = {REFERENCE: reference}, {REFERENCE: common}, []
    for system, signal in signals.items():
        if system == REFERENCE:
            continue
        audio, gain = matched(signal, rate, LOUDNESS)
        if not math.isfinite(loudness(signal, rate)):
            audio, gain = signal * 10 ** (common / 20), common
            notes.append(f"{system} is silent on {name}: it gets the reference's gain.")
        elif abs(gain - common) > _MOST_GAIN:
            limited = common + math.copysign(_MOST_GAIN, gain - common)
            audio = signal * 10 ** (limited / 20)
            notes.append(
                f"{system} on {name} stays {limited - gain:+.1f} LU from the reference: {_MOST_GAIN:g} dB is most."
            )
            gain = limited
        found[system], gains[system] = audio, gain
    return found, gains, notes


def faded(audio: Signal, sample_rate: int) -> Float32[np.ndarray, " time"]:
    """With a raised cosine of 5 ms at both ends, so that a loop has no click."""
    length = min(round(_FADE * sample_rate), len(audio) // 2)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))
    audio = np.array(audio, np.float32)
    audio[:length] *= ramp.astype(np.float32)
    audio[len(audio) - length :] *= ramp[::-1].astype(np.float32)
    return audio


# ---- stimuli ------------------------------------------------------------------------------------


def make(
    chosen: Chosen,
    systems: Sequence[System],
    seconds: float = LONGEST,
    watch: Callable[[Sequence], Iterable] = lambda jobs: jobs,
) -> Stimuli:
    """Every item through every system, the original among them or not; `watch` wraps the jobs for a progress bar.

    All of a trial is cut to the same `seconds`, faded at its ends and brought to one loudness; if any sample of the
    test would then pass -1 dBFS, all of the test is attenuated alike.
    """
    items = {item.name: item for item in (*chosen.items, chosen.practice)}
    length = round(seconds * chosen.sample_rate)
    ends: dict[str, dict[str, Signal]] = {name: {} for name in items}
    for name, item in items.items():
        ends[name][REFERENCE] = faded(item.audio[:length], chosen.sample_rate)
    for system, name in watch([(system, name) for system in systems for name in items]):
        heard = system.process(items[name].audio, chosen.sample_rate, name).audio
        if not np.isfinite(heard).all():
            raise UserError(f"{system.name} gives NaN or infinity on {name}: leave it out.")
        ends[name][system.name] = faded(heard[:length], chosen.sample_rate)
    trials, notes = {}, list(chosen.notes)
    for name, signals in ends.items():
        levelled, gains, told = _levelled(name, signals, chosen.sample_rate)
        trials[name], notes = Trial(name, items[name].language, levelled, gains), notes + told
    peak = max(float(np.abs(signal).max()) for trial in trials.values() for signal in trial.signals.values())
    scale = min(1.0, _PEAK / peak)
    wanted = {system.name for system in systems}
    trials = {name: _scaled(trial, scale, wanted) for name, trial in trials.items()}
    attenuation = 20 * math.log10(1 / scale)
    return Stimuli(
        tuple(trials[item.name] for item in chosen.items),
        trials[chosen.practice.name],
        chosen.sample_rate,
        attenuation,
        LOUDNESS - attenuation,
        tuple(notes),
    )


def _scaled(trial: Trial, scale: float, wanted: set[str]) -> Trial:
    signals = {name: (scale * signal).astype(np.float32) for name, signal in trial.signals.items() if name in wanted}
    return trial._replace(signals=signals, gains={name: trial.gains[name] for name in signals})


def dithered(audio: Signal, sample_rate: int, seed: int) -> bytes:
    """A 16-bit .wav with triangular dither of its own: no two stimuli have the same bytes.

    A hidden reference would otherwise be a copy of the open one, byte for byte.
    """
    rng = np.random.default_rng(seed)
    noise = (rng.random(len(audio)) - rng.random(len(audio))) / 32768
    return files.to_bytes((audio + noise).astype(np.float32), sample_rate)
