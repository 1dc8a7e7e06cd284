"""Signals of known badness, to place a codec between: low-pass filters of listening tests, and G.711's companding."""

import numpy as np
from jaxtyping import Float
from scipy import signal

Signal = Float[np.ndarray, "time"]
_MU = 255.0


def lowpass(audio: Signal, sample_rate: int, cutoff: int) -> Signal:
    """Passes `cutoff` Hz and stops cutoff + 1 kHz: the anchors of ITU-R BS.1534-3, at 3.5 and at 7 kHz.

    Within 0.1 dB up to the cutoff, at least 25 dB down half a kHz and 50 dB a kHz above; linear phase, no delay.
    Unchanged where the band ends at the cutoff or below.
    """
    if sample_rate <= 2 * cutoff:
        return audio.astype(np.float32)
    stop = min(cutoff + 500.0, (cutoff + sample_rate / 2) / 2)
    taps, beta = signal.kaiserord(60.0, (stop - cutoff) / (sample_rate / 2))
    kernel = signal.firwin(taps | 1, (cutoff + stop) / 2, window=("kaiser", beta), fs=sample_rate)
    return signal.fftconvolve(audio, kernel, mode="same").astype(np.float32)


def mu_law(audio: Signal) -> Signal:
    """Eight bits a sample by the continuous mu-law curve (mu 255), clipped at 1."""
    clipped = np.clip(audio, -1, 1)
    companded = np.sign(clipped) * np.log1p(_MU * np.abs(clipped)) / np.log1p(_MU)
    levels = np.round((companded + 1) * 127.5) / 127.5 - 1
    return (np.sign(levels) * np.expm1(np.abs(levels) * np.log1p(_MU)) / _MU).astype(np.float32)
