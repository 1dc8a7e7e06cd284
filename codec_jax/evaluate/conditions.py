"""What is done to an utterance before it is coded: noise, a room, silence, another length.

A codec is to transmit what it hears: it is judged against the input that these make, not against the clean speech.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import signal

from codec_jax.errors import UserError

Signal = Float[np.ndarray, "time"]

CLEAN = "clean"
# name -> (what its number means, the default)
KINDS = {
    "noise": ("dB between speech and noise of its own long-term spectrum", 10.0),
    "far": ("seconds in which the room's echo falls by 60 dB", 0.5),
    "silence": ("", None),
    "length": ("seconds, of utterances joined or cut", 10.0),
}
_DIRECT_DB = -3.0  # the direct sound against all of the echo: two or three metres away


class Condition(NamedTuple):
    """kind: "clean" or one of KINDS. value: its number, None where it takes none."""

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        """As it is written: noise@10."""
        return self.kind if self.value is None else f"{self.kind}@{self.value:g}"


def parse(text: str) -> Condition:
    """Of clean, noise@10, far@0.5, silence, length@30; without the number, its default. Raises UserError."""
    kind, _, number = text.strip().partition("@")
    if kind == CLEAN and not number:
        return Condition(CLEAN)
    known = f"{CLEAN}, noise@DB, far@SECONDS, silence, length@SECONDS"
    if kind not in KINDS or not re.fullmatch(r"(-?\d+(\.\d+)?)?", number):
        raise UserError(f'there is no condition "{text}": give one of {known}.')
    default = KINDS[kind][1]
    if default is None:
        if number:
            raise UserError(f'the condition "{kind}" takes no number, and "{text}" has one.')
        return Condition(kind)
    value = float(number) if number else default
    if kind in ("far", "length") and not 0 < value <= 3600:
        raise UserError(f'the condition "{text}" is not in seconds above 0: give one of {known}.')
    return Condition(kind, value)


def apply(condition: Condition, audio: Signal, sample_rate: int, seed: int) -> Signal:
    """The input of the codec. `length` is a matter of choosing utterances (inputs.py) and changes nothing here."""
    if condition.kind == "silence":
        return np.zeros_like(audio)
    if condition.kind not in ("noise", "far") or not audio.any():
        return audio
    rng = np.random.default_rng(seed)
    assert condition.value is not None
    changed = {"noise": add_noise, "far": far_field}[condition.kind](audio, sample_rate, condition.value, rng)
    # Neither may clip: the level of both is a matter of the recording.
    return (changed / max(1.0, np.abs(changed).max())).astype(np.float32)


def add_noise(audio: Signal, sample_rate: int, snr: float, rng: np.random.Generator) -> np.ndarray:
    """Stationary noise with the long-term spectrum of the clip itself, `snr` dB below the speech in it.

    Its Fourier transform has the speech's magnitudes, smoothed, and random phases.
    """
    spectrum = np.abs(np.fft.rfft(audio))
    width = max(1, round(100 * len(audio) / sample_rate))  # bins in 100 Hz: no harmonic stays visible
    smooth = np.sqrt(np.maximum(signal.oaconvolve(spectrum**2, np.full(width, 1 / width), mode="same"), 0))
    noise = np.fft.irfft(smooth * np.exp(2j * np.pi * rng.random(len(spectrum))), len(audio))
    gain = np.sqrt(np.mean(np.square(audio, dtype=np.float64)) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return audio + gain * noise


def far_field(audio: Signal, sample_rate: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A room by its statistics: the direct sound, and noise that decays by 60 dB in `seconds`, 3 dB louder in all.

    The level stays that of the input.
    """
    time = np.arange(1, round(seconds * sample_rate)) / sample_rate
    echo = rng.normal(size=len(time)) * 10 ** (-3 * time / seconds)
    echo *= 10 ** (-_DIRECT_DB / 20) / np.sqrt(np.sum(echo**2))
    heard = signal.oaconvolve(audio, np.concatenate([[1.0], echo]))[: len(audio)]
    return heard * np.sqrt(np.mean(np.square(audio, dtype=np.float64)) / np.mean(heard**2))
