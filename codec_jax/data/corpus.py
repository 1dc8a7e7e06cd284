"""Which recordings there are: a directory's index, its split, and the two corpora a run's config asks for."""

import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from tqdm import tqdm

from codec_jax.audio import files
from codec_jax.data import synth
from codec_jax.errors import UserError
from codec_jax.experiment import DataConfig

_log = logging.getLogger(__name__)
_NAMED = 5  # unusable files named in a warning


class Clip(NamedTuple):
    """One recording. name: its path below the indexed directory, with slashes; frames: per channel."""

    path: str
    name: str
    frames: int
    sample_rate: int
    channels: int


def index(directory: str | os.PathLike[str]) -> tuple[Clip, ...]:
    """Every usable recording below `directory`, sorted by path; only headers are read.

    Unreadable and zero-length files are left out, counted and named in a warning.
    Raises: UserError where there is no such directory, no audio file in it, or none that can be used.
    """
    paths = files.find(directory)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            tqdm(
                pool.map(lambda path: _clip(path, directory), paths),
                desc="index",
                total=len(paths),
                unit="file",
                disable=None,
                leave=False,
            )
        )
    clips = tuple(clip for clip in found if isinstance(clip, Clip))
    errors = [str(error) for error in found if isinstance(error, UserError)]
    if not clips:
        raise UserError(f"{directory}: none of its {len(paths)} audio files can be used; the first: {errors[0]}")
    if errors:
        more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
        listed = "; ".join(errors[:_NAMED])
        _log.warning("%s: left out %d of %d files: %s%s", directory, len(errors), len(paths), listed, more)
    return clips


def _clip(path: pathlib.Path, directory: str | os.PathLike[str]) -> Clip | UserError:
    try:
        header = files.info(path)
    except UserError as error:
        return error
    name = path.relative_to(directory).as_posix()
    return Clip(str(path), name, header.frames, header.sample_rate, header.channels)


def split(clips: Sequence[Clip], fraction: float) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """(train, valid): held out are files whose name's hash falls below `fraction`; at least one on each side.

    Wherever the corpus lies and however it grows, a file stays on its side (the sole forced one apart).
    Raises: UserError for fewer than two files, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"data.valid_fraction is {fraction}; give a number between 0 and 1")
    if len(clips) < 2:
        raise UserError("one recording cannot be split; add recordings, or give --config.data.valid")
    ranked = sorted(clips, key=lambda clip: _hash(clip.name))
    held = sum(_hash(clip.name) < fraction for clip in ranked)
    held = min(max(held, 1), len(ranked) - 1)
    return tuple(sorted(ranked[held:])), tuple(sorted(ranked[:held]))


def _hash(name: str) -> float:
    """A name's place in [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=6).digest()) / 2**48


def corpora(config: DataConfig) -> tuple[tuple[Clip, ...], tuple[Clip, ...]]:
    """(train, valid) as the config says: directories, a held-out part, or the synthetic corpus for None.

    Raises: UserError as `index`, `split` and `synth.default_corpus` do.
    """
    if config.train is None:
        synthetic = synth.default_corpus()
        return index(synthetic / "train"), index(config.valid or synthetic / "valid")
    if config.valid is None:
        return split(index(config.train), config.valid_fraction)
    return index(config.train), index(config.valid)
