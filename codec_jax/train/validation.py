"""Held-out clips through the codec as users run it: metrics, controls, audio and pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from codec_jax.audio import files
from codec_jax.codec import Codec
from codec_jax.evaluate import metrics, pictures, spectra
from codec_jax.losses import ctc
from codec_jax.models import phone_head

Clip = tuple[str, np.ndarray]
_BATCH = 8


def evaluate(codec: Codec, clips: Sequence[Clip], samples: epath.Path, max_samples: int) -> dict[str, float]:
    """Means over the clips of mel distance, STOI, SI-SDR and TAAE's two distances, and of the first two for a control.

    `mel_distance` is ESC's, `stft_distance_taae` and `mel_distance_taae` are those of evaluate/spectra.py. The control
    of a clip is the same with the codes of the next clip decoded: what a codec that ignores its input would score.
    Writes reference, reconstruction and a spectrogram of the first `max_samples` clips to `samples`.
    """
    decoded = reconstruct(codec, [audio for _, audio in clips])
    rows, controls = [], []
    for i, (_, reference) in enumerate(clips):
        rows.append(figures(reference[0], decoded[i][0], codec.sample_rate))
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


def figures(reference: np.ndarray, estimate: np.ndarray, sample_rate: int) -> dict[str, float]:
    """What validation says of one clip [time]: NaN for what is not defined of it."""
    return {
        **metrics.all_metrics(reference, estimate, sample_rate),
        "stft_distance_taae": spectra.stft_distance_taae(reference, estimate),
        "mel_distance_taae": spectra.mel_distance_taae(reference, estimate, sample_rate),
    }


def reconstruct(codec: Codec, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Every clip [channel, time] through encode and decode, loudness as given; batches of one shape compile once.

    A codec without bottleneck has no codes: its latents go straight to its decoder.
    """
    out: list[np.ndarray] = []
    for audio, lengths in _batches(clips):
        if codec.has_tokens:
            decoded = codec.decode(codec.encode(audio, normalize=False, lengths=lengths))
        else:
            decoded = codec.unquantised(audio, lengths).reshape(len(audio), audio.shape[1], -1)
        out += [item[:, :length] for item, length in zip(decoded, lengths)]
    return out[: len(clips)]


def _batches(clips: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Clips padded to the longest of all, in batches of one size with their lengths; the last clip fills the last."""
    longest = max(clip.shape[1] for clip in clips)
    for start in range(0, len(clips), _BATCH):
        group = list(clips[start : start + _BATCH])
        group += [group[-1]] * (_BATCH - len(group))
        yield np.stack([_padded(clip, longest) for clip in group]), [clip.shape[1] for clip in group]


def _padded(clip: np.ndarray, length: int) -> np.ndarray:
    return np.pad(clip, ((0, 0), (0, length - clip.shape[1])))


def phone_errors(codec: Codec, head: Any, clips: Sequence[Clip], spoken: Sequence[np.ndarray]) -> float:
    """Mean phone error rate of greedy decoding. head: parameters of models/phone_head.py. spoken: phones by clip."""
    read = []
    for audio, lengths in _batches([audio for _, audio in clips]):
        logits = np.asarray(phone_head.jitted_logits(head, codec.latents(audio, lengths=lengths)))
        read += [of[: -(-length // codec.hop_length)] for of, length in zip(logits, lengths)]
    return ctc.phone_error_rate(read[: len(clips)], spoken)


def write_sample(directory: epath.Path, name: str, reference: Any, estimate: Any, sample_rate: int) -> None:
    """`<name>_reference.wav`, `<name>_decoded.wav` and `<name>.png`."""
    directory.mkdir(parents=True, exist_ok=True)
    name = epath.Path(name).with_suffix("").as_posix().replace("/", "_")
    for what, audio in (("reference", reference), ("decoded", estimate)):
        (directory / f"{name}_{what}.wav").write_bytes(files.to_bytes(audio, sample_rate))
    pictures.spectrograms(directory / f"{name}.png", {"reference": reference[0], "decoded": estimate[0]}, sample_rate)
