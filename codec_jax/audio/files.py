"""Audio files <-> float32 arrays [channel, time], through libsndfile, with errors a user can act on."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, Float32

from codec_jax.errors import UserError

PathLike = str | os.PathLike[str]

_FORMATS = soundfile.available_formats()
_OPUS = "OPUS" in soundfile.available_subtypes("OGG")
# What this libsndfile reads; MP3 and Opus came late to it.
SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    *((".mp3",) if "MP3" in _FORMATS else ()),
    *((".opus",) if _OPUS else ()),
)
_WRITTEN = {".wav": "WAV", ".flac": "FLAC"}


class AudioInfo(NamedTuple):
    """What a file's header says: frames (samples per channel), Hz, channels."""

    frames: int
    sample_rate: int
    channels: int


@contextlib.contextmanager
def _opened(path: PathLike) -> Iterator[soundfile.SoundFile]:
    """The open file; whatever goes wrong, then or while reading, leaves as a UserError naming it."""
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name an audio file")
    try:
        with soundfile.SoundFile(str(path)) as file:
            yield file
    except (soundfile.SoundFileError, OSError, TypeError) as error:  # TypeError: a headerless .raw
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise UserError(
            f"{path}: cannot be read as audio ({reason}); replace it, or remove it from the input"
        ) from error


def info(path: PathLike) -> AudioInfo:
    """Header of an audio file, without decoding it.

    Raises: UserError where the file is missing, is no audio, or holds no samples.
    """
    with _opened(path) as file:
        return _info(file, path)


def _info(file: soundfile.SoundFile, path: PathLike) -> AudioInfo:
    if file.frames <= 0:
        raise UserError(f"{path}: holds no samples; remove it from the input")
    return AudioInfo(file.frames, file.samplerate, file.channels)


def read(path: PathLike, start: int = 0, frames: int = -1) -> tuple[Float32[np.ndarray, "channel time"], int]:
    """Decode `frames` samples per channel from sample `start` on (-1: all that are left; fewer at the end).

    Returns: float32 [channel, time], integer formats scaled to [-1, 1), and the sample rate in Hz.
    Raises: UserError where the file is missing, no audio, empty, truncated, shorter than `start`, or holds
    NaN or inf.
    """
    with _opened(path) as file:
        header = _info(file, path)
        if not 0 <= start < header.frames:
            raise UserError(f"{path}: has {header.frames} samples, so none can be read from sample {start}")
        left = header.frames - start
        wanted = left if frames < 0 else min(frames, left)
        if start:
            file.seek(start)
        audio = file.read(wanted, dtype="float32", always_2d=True)
        _complete(file, path, len(audio), wanted)
    return _finite(np.ascontiguousarray(audio.T), path), header.sample_rate


def blocks(path: PathLike, block_frames: int) -> Iterator[Float32[np.ndarray, "channel time"]]:
    """The file as consecutive blocks of `block_frames` samples, the last shorter: hours in constant memory.

    Raises: UserError as `read` does, when the block concerned is reached.
    """
    with _opened(path) as file:
        left = _info(file, path).frames
        while left > 0:
            wanted = min(block_frames, left)
            audio = file.read(wanted, dtype="float32", always_2d=True)
            _complete(file, path, len(audio), wanted)
            left -= wanted
            yield _finite(np.ascontiguousarray(audio.T), path)


def _complete(file: soundfile.SoundFile, path: PathLike, got: int, wanted: int) -> None:
    # An MP3's length is an estimate where its header is absent, so a few frames less are no damage there.
    if got < wanted and (file.format not in ("MP3", "MPEG") or not got):
        raise UserError(f"{path}: is truncated or damaged; copy it again, or remove it from the input")


def _finite(audio: np.ndarray, path: PathLike) -> np.ndarray:
    if not np.isfinite(audio).all():
        raise UserError(f"{path}: holds samples that are NaN or infinite; export it again, or remove it")
    return audio


def write(path: PathLike, audio: Float[np.ndarray, "*channel time"], sample_rate: int) -> None:
    """Write [time] or [channel, time] as 16-bit PCM, .wav or .flac by the suffix.

    Samples are scaled by 32768, rounded and clipped (never wrapped), so what was read from 16 bits is written
    back bit for bit. The file appears complete or not at all: it is written under a temporary name beside.
    Raises: UserError for another suffix, a missing directory, no samples, NaN or inf, or a rate the format
    cannot hold.
    """
    path = pathlib.Path(path)
    container = _WRITTEN.get(path.suffix.lower())
    if container is None:
        raise UserError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; end the name in .wav or .flac")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the directory {path.parent} does not exist; create it first")
    samples = pcm16(audio, path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        soundfile.write(str(temporary), samples.T, sample_rate, format=container, subtype="PCM_16")
        os.replace(temporary, path)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def to_bytes(audio: Float[np.ndarray, "*channel time"], sample_rate: int) -> bytes:
    """A .wav file of [time] or [channel, time] as `write` would write it, for places that are no file system."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm16(audio).T, sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def pcm16(audio: np.ndarray, name: PathLike = "audio") -> np.ndarray:
    """Float [..., time] in [-1, 1] -> int16, clipped; UserError naming `name` for none or non-finite ones."""
    if not audio.size:
        raise UserError(f"{name}: there are no samples to write")
    if not np.isfinite(audio).all():
        raise UserError(f"{name}: the samples to write hold NaN or infinity")
    return np.clip(np.rint(audio * np.float32(32768)), -32768, 32767).astype(np.int16)


def find(directory: PathLike) -> list[pathlib.Path]:
    """Every audio file (by suffix) below `directory`, sorted; none hidden, linked directories entered once.

    Raises: UserError where it is no directory, a bucket's address, or holds no audio file.
    """
    if "://" in str(directory):
        raise UserError(f"{directory}: audio is read from local paths; mount the bucket (gcsfuse) and name the mount")
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        kind = "is a file" if directory.exists() else "no such directory"
        raise UserError(f"{directory}: {kind}; name a directory of audio files")
    found, seen = [], set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        names = [] if real in seen else names
        seen.add(real)
        found += [
            pathlib.Path(folder, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise UserError(f"{directory}: holds no audio file ({', '.join(SUFFIXES)}); name another directory")
    return sorted(found)


def to_channels(audio: Float[np.ndarray, "channel time"], channels: int) -> Float[np.ndarray, "channels time"]:
    """Any channel count -> `channels`: the mean for one, else copies of a mono signal, else the first ones.

    Source: spec/TAAE.md section 5 (upstream's mono mixdown and stereo dup/crop).
    """
    have = audio.shape[0]
    if have == channels:
        return audio
    if channels == 1:
        return audio.mean(axis=0, keepdims=True, dtype=audio.dtype)
    return audio[np.arange(channels) % have] if have < channels else audio[:channels]
