"""The utterances of an evaluation: which files, in which language, under which condition."""

import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from codec_jax.audio import files
from codec_jax.audio.files import to_channels
from codec_jax.audio.resample import resample, resampled_length
from codec_jax.errors import UserError
from codec_jax.evaluate import conditions
from codec_jax.evaluate.conditions import Condition

_LANGUAGE = re.compile(r"[a-z]{2}(-[a-z]{2,4})?")


class Utterance(NamedTuple):
    """One input: a file, or under the condition `length` several, joined and cut. language: "" where unknown."""

    name: str
    language: str
    condition: Condition
    paths: tuple[pathlib.Path, ...]


def find(directory: pathlib.Path, wanted: Sequence[Condition]) -> list[Utterance]:
    """Every audio file below `directory` under every condition, in the order of names.

    Raises: UserError where there is no audio, where two files have one name, and where all of it is too short for a
    `length`.
    """
    paths = files.find(directory)
    names: dict[str, pathlib.Path] = {}
    for path in paths:
        if names.setdefault(path.stem, path) != path:
            raise UserError(f"{names[path.stem]} and {path} have one name: rename one of them.")
    found: list[Utterance] = []
    for condition in wanted:
        if condition.kind == "length":
            found += _joined(paths, condition)
        else:
            found += [Utterance(path.stem, language(path), condition, (path,)) for path in paths]
    return found


def read(utterance: Utterance) -> tuple[Float32[np.ndarray, "time"], int]:
    """What a codec is given, mono, and its rate: that of the (first) file. Raises UserError for a broken file."""
    first, rate = files.read(utterance.paths[0])
    parts = [to_channels(first, 1)[0]]
    for path in utterance.paths[1:]:
        audio, other = files.read(path)
        parts.append(resample(to_channels(audio, 1), other, rate)[0])
    audio, condition = np.concatenate(parts), utterance.condition
    if condition.kind == "length":
        assert condition.value is not None
        audio = audio[: round(condition.value * rate)]
    seed = zlib.crc32(f"{condition} {utterance.name}".encode())
    return conditions.apply(condition, audio.astype(np.float32), rate, seed), rate


def size(utterance: Utterance) -> tuple[int, int]:
    """Samples and rate of what `read` gives, by the headers alone; a file that cannot be read counts nothing."""
    try:
        found = [files.info(path) for path in utterance.paths]
    except UserError:
        return 0, 16_000
    rate = found[0].sample_rate
    samples = sum(resampled_length(info.frames, info.sample_rate, rate) for info in found)
    if utterance.condition.kind == "length":
        assert utterance.condition.value is not None
        samples = min(samples, round(utterance.condition.value * rate))
    return samples, rate


def text(utterance: Utterance) -> str:
    """What is said in it, of NAME.txt or the "words" or "text" of NAME.json beside the file; "" where unknown.

    Of joined files, cut at a length, and of silence it is not known.
    """
    if utterance.condition.kind in ("length", "silence"):
        return ""
    path = utterance.paths[0]
    if path.with_suffix(".txt").is_file():
        return path.with_suffix(".txt").read_text()
    said = _transcript(path)
    if isinstance(said.get("text"), str):
        return said["text"]
    words = said.get("words")
    pieces = [one.get("word") for one in words if isinstance(one, dict)] if isinstance(words, list) else []
    return " ".join(piece for piece in pieces if isinstance(piece, str))


def language(path: pathlib.Path) -> str:
    """As the transcript beside (NAME.json), the name (en_42.wav, pt-br_7.wav) or the directory (it/42.wav) say."""
    said = _transcript(path)
    if isinstance(said.get("language"), str):
        return said["language"]
    for text in (path.stem.partition("_")[0] if "_" in path.stem else "", path.parent.name):
        if _LANGUAGE.fullmatch(text):
            return text
    return ""


def _transcript(path: pathlib.Path) -> dict:
    """NAME.json beside the file; empty where there is none, or none that can be read."""
    beside = path.with_suffix(".json")
    try:
        said = json.loads(beside.read_text()) if beside.is_file() else {}
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _joined(paths: Sequence[pathlib.Path], condition: Condition) -> Iterator[Utterance]:
    """Files in order, as many as fill the length, then the next ones; what is left at the end is left out."""
    assert condition.value is not None
    group: list[pathlib.Path] = []
    seconds, count = 0.0, 0
    for path in paths:
        info = files.info(path)
        group.append(path)
        seconds += info.frames / info.sample_rate
        if seconds >= condition.value:
            yield Utterance(group[0].stem, language(group[0]), condition, tuple(group))
            group, seconds, count = [], 0.0, count + 1
    if not count:
        raise UserError(f"all audio together lasts {seconds:.1f} s, too short for {condition}.")
