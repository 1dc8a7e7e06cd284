"""An evaluation as it runs: every utterance through every system, scored on all cores, a row at a time.

Models run in this process, one utterance after the other; metrics, which cost more than most codecs, in others. At
most a few utterances are in memory. What is in the table is not done again, so a killed run goes on.
"""

import collections
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath

from codec_jax.audio import files
from codec_jax.errors import UserError
from codec_jax.evaluate import inputs, rates, rows, scores
from codec_jax.evaluate.inputs import Utterance
from codec_jax.evaluate.rates import Tally
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.systems import Coded, System

TABLE, DECODED = "utterances.csv", "decoded"


class Evaluation(NamedTuple):
    """What is compared on what, by which metrics, and where it is written.

    directory: gets TABLE, and under DECODED/CONDITION/SYSTEM what every system made of every utterance.
    """

    utterances: Sequence[Utterance]
    systems: Sequence[System]
    metrics: Sequence[str]
    directory: epath.Path


class Watch(NamedTuple):
    """Who looks on. advance: called once per utterance and system. tell: what went wrong, a sentence."""

    advance: Callable[[], object]
    tell: Callable[[str], object]


def run(evaluation: Evaluation, workers: int, watch: Watch) -> list[Row]:
    """Fills the table; all its rows. workers: processes that score."""
    table = evaluation.directory / TABLE
    writer = rows.Writer(table, evaluation.metrics)
    done = {row.key for row in rows.read(table)}
    for row in _scored(_coded(evaluation, done, watch), evaluation.metrics, workers):
        writer.write(row)
        watch.advance()
    return rows.read(table)


def audio_path(directory: epath.Path, row: Row) -> epath.Path:
    """Where a row's audio lies."""
    return directory / DECODED / _safe(row.condition) / _safe(row.system) / f"{row.utterance}.flac"


def tallies(evaluation: Evaluation, table: Sequence[Row]) -> dict[str, Tally]:
    """Of the codes of every system that has codes, all utterances of these rows together."""
    found = {}
    for system in evaluation.systems:
        if not system.codebook_sizes:
            continue
        tally = rates.empty(system.codebook_sizes)
        for row in rows.select(table, system=system.name):
            path = audio_path(evaluation.directory, row).with_suffix(".npy")
            if path.exists():
                with path.open("rb") as file:
                    tally = rates.add(tally, row.seconds, round(row.bits_per_second * row.seconds / 8), np.load(file))
        found[system.name] = tally
    return found


# ---- one utterance -----------------------------------------------------------------------------


class _Heard(NamedTuple):
    """An utterance and what became of it, before it is scored. coded: None where the system could not."""

    row: Row
    reference: np.ndarray
    sample_rate: int
    coded: Coded | None


def _coded(evaluation: Evaluation, done: set, watch: Watch) -> Iterator[_Heard]:
    """All that is not done, system by system. A file that cannot be read is told of once per system and left out."""
    for system in evaluation.systems:
        compiled: set = set()
        for utterance in evaluation.utterances:
            if (system.name, str(utterance.condition), utterance.name) in done:
                watch.advance()
                continue
            try:
                audio, sample_rate = inputs.read(utterance)
            except UserError as error:
                watch.tell(str(error))
                watch.advance()
                continue
            heard = _through(system, utterance, audio, sample_rate, compiled)
            if heard.coded is None:
                watch.tell(heard.row.note)
            else:
                _keep(evaluation.directory, heard)
            yield heard


def _through(system: System, utterance: Utterance, audio: np.ndarray, sample_rate: int, compiled: set) -> _Heard:
    """One utterance through one system, timed; twice where the first call compiles."""
    seconds = len(audio) / sample_rate
    names = (system.name, str(utterance.condition), utterance.name, utterance.language)
    row = Row(*names, seconds, math.nan, math.nan, "", {})
    try:
        shape = system.shape(len(audio), sample_rate)
        if shape is not None and shape not in compiled:
            system.process(audio, sample_rate, utterance.name)
            compiled.add(shape)
        began = time.perf_counter()
        coded = system.process(audio, sample_rate, utterance.name)
        spent = time.perf_counter() - began
    except UserError as error:
        return _Heard(row._replace(note=str(error)), audio, sample_rate, None)
    bits = math.nan if coded.num_bytes is None else 8 * coded.num_bytes / seconds
    return _Heard(row._replace(bits_per_second=bits, real_time_factor=spent / seconds), audio, sample_rate, coded)


def _keep(directory: epath.Path, heard: _Heard) -> None:
    """The audio as a listener gets it, and the codes, for what is counted over all utterances."""
    assert heard.coded is not None
    path = audio_path(directory, heard.row)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, heard.coded.audio, heard.sample_rate)
    if heard.coded.codes is not None:
        with path.with_suffix(".npy").open("wb") as file:
            np.save(file, np.asarray(heard.coded.codes, np.int32))


def _safe(name: str) -> str:
    """A name as a directory's."""
    return "".join(letter if letter.isalnum() or letter in "-_.@+" else "_" for letter in name)


# ---- scores, in other processes ----------------------------------------------------------------


def _scored(heard: Iterable[_Heard], metrics: Sequence[str], workers: int) -> Iterator[Row]:
    """Rows in the order of `heard`, with scores; a few ahead of the slowest."""
    waiting: collections.deque[tuple[Row, Future]] = collections.deque()
    # Not forked: JAX has threads.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for one in heard:
            if one.coded is None:
                waiting.append((one.row, pool.submit(dict)))
            else:
                arguments = (one.reference, one.coded.audio, one.sample_rate, tuple(metrics))
                waiting.append((one.row, pool.submit(scores.score, *arguments)))
            while len(waiting) > 2 * workers or (waiting and waiting[0][1].done()):
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(row: Row, future: Future) -> Row:
    figures = future.result()
    undefined = [name for name, value in figures.items() if not math.isfinite(value)]
    note = f"not defined: {', '.join(undefined)}" if undefined else row.note
    return row._replace(scores=figures, note=note)
