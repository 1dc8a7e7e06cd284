"""Held-out clips through the codec as users run it: metrics, controls, audio and pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from codec_jax.audio import files
from codec_jax.codec import Codec
from codec_jax.evaluate import metrics, pictures

Clip = tuple[str, np.ndarray]
_BATCH = 8


def evaluate(codec: Codec, clips: Sequence[Clip], samples: epath.Path, max_samples: int) -> dict[str, float]:
    """Means over the clips of mel distance, STOI and SI-SDR, and of the first two for a control.

    The control of a clip is the same with the codes of the next clip decoded: what a codec that ignores its input
    would score. Writes reference, reconstruction and a spectrogram of the first `max_samples` clips to `samples`.
    """
    decoded = reconstruct(codec, [audio for _, audio in clips])
    rows, controls = [], []
    for i, (_, reference) in enumerate(clips):
        rows.append(metrics.all_metrics(reference[0], decoded[i][0], codec.sample_rate))
        other = decoded[(i + 1) % len(clips)][0]
        count = min(reference.shape[1], len(other))
        controls.append(metrics.all_metrics(reference[0, :count], other[:count], codec.sample_rate))
    for (name, reference), estimate in list(zip(clips, decoded))[:max_samples]:
        write_sample(samples, name, reference, estimate, codec.sample_rate)
    return {
        **{f"valid/{name}": metrics.finite_mean([row[name] for row in rows]) for name in rows[0]},
        **{
            f"valid/{name}_control": metrics.finite_mean([row[name] for row in controls])
            for name in ("mel_distance", "stoi")
        },
    }


def reconstruct(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every clip [channel, time] through encode and decode, loudness as given; batches of one shape compile once."""
    longest = max(clip.shape[1] for clip in clips)
    out: list[np.ndarray] = []
    for start in range(0, len(clips), _BATCH):
        group = list(clips[start : start + _BATCH])
        filled = group + [group[-1]] * (_BATCH - len(group))
        audio = np.stack([np.pad(clip, ((0, 0), (0, longest - clip.shape[1]))) for clip in filled])
        encoded = codec.encode(audio, normalize=False, lengths=[clip.shape[1] for clip in filled])
        decoded = codec.decode(encoded)
        out += [decoded[i, :, : clip.shape[1]] for i, clip in enumerate(group)]
    return out


def write_sample(directory: epath.Path, name: str, reference: Any, estimate: Any, sample_rate: int) -> None:
    """`<name>_reference.wav`, `<name>_decoded.wav` and `<name>.png`."""
    directory.mkdir(parents=True, exist_ok=True)
    name = epath.Path(name).with_suffix("").as_posix().replace("/", "_")
    for what, audio in (("reference", reference), ("decoded", estimate)):
        (directory / f"{name}_{what}.wav").write_bytes(files.to_bytes(audio, sample_rate))
    pictures.spectrograms(directory / f"{name}.png", {"reference": reference[0], "decoded": estimate[0]}, sample_rate)
