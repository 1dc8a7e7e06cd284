"""Errors of pitch and of voicing, by probabilistic YIN (Mauch and Dixon 2014) as librosa has it.

Slow: 0.03 s of one core per second of each signal at 16 kHz, and 15 s once for librosa to compile. The last contours
are kept, so two metrics and many systems in a row analyse a reference once.
"""

import functools
import math

import numpy as np

from codec_jax.evaluate.metrics import Signal, checked_pair

LOWEST, HIGHEST = 60.0, 500.0
"""Hz: the pitches looked for."""
_HOP_SECONDS = 0.01
_FRAME_SECONDS = 0.064
_SEMITONES = 0.2  # between the pitches tried; librosa's 0.1 takes four times as long
_BLOCK_SECONDS = 30  # longer audio is analysed in pieces, so memory is bounded
_KEPT = 4


def f0_error_cents(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Root mean square of 1200 log2(f_E / f_R) over the frames that are voiced in both; octave errors count.

    Pitches are on a grid of 20 cents. NaN where no frame is voiced in both.
    """
    (ref, ref_voiced), (est, est_voiced) = _contours(reference, estimate, sample_rate)
    both = ref_voiced & est_voiced
    return float(np.sqrt(np.square(1200 * np.log2(est[both] / ref[both])).mean())) if both.any() else math.nan


def voicing_error(reference: Signal, estimate: Signal, sample_rate: int) -> float:
    """Share of frames, 0 .. 1, voiced in one and not in the other. NaN without a voiced frame in the reference."""
    (_, ref_voiced), (_, est_voiced) = _contours(reference, estimate, sample_rate)
    return float((ref_voiced != est_voiced).mean()) if ref_voiced.any() else math.nan


def contour(audio: Signal, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """(Hz, voiced) of frames every 10 ms, the first around sample 0: float [frame] and bool [frame].

    Blocks of 30 s are analysed alone. Do not write to them.
    """
    return _analysed(np.asarray(audio, np.float32).tobytes(), sample_rate)


def _contours(reference: Signal, estimate: Signal, sample_rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [contour(audio, sample_rate) for audio in checked_pair(reference, estimate)]


@functools.lru_cache(maxsize=_KEPT)
def _analysed(samples: bytes, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    import librosa  # slow to import, and slower to compile

    audio = np.frombuffer(samples, np.float32)
    hop, frame = round(_HOP_SECONDS * sample_rate), round(_FRAME_SECONDS * sample_rate)
    step = _BLOCK_SECONDS * sample_rate // hop * hop
    hertz, voiced = [], []
    for start in range(0, len(audio), step):
        block = audio[start : start + step]
        found = librosa.pyin(
            block,
            fmin=LOWEST,
            fmax=HIGHEST,
            sr=sample_rate,
            frame_length=frame,
            hop_length=hop,
            resolution=_SEMITONES,
        )
        count = -(-len(block) // hop)  # it adds a frame beyond the end of whole hops
        hertz.append(found[0][:count])
        voiced.append(found[1][:count])
    return _joined(hertz), _joined(voiced)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    whole = np.concatenate(parts)
    whole.flags.writeable = False
    return whole
