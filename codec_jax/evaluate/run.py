"""An evaluation as it runs: every utterance through every system, scored on all cores, a row at a time.

Models run in this process, one utterance after the other; metrics, which cost more than most codecs, in others. At
most a few utterances are in memory. What is in the table is not done again, so a killed run goes on.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from codec_jax.audio import files
from codec_jax.errors import UserError
from codec_jax.evaluate import inputs, memory, rates, rows, scoring
from codec_jax.evaluate.asr import Spoken
from codec_jax.evaluate.inputs import Utterance
from codec_jax.evaluate.rates import Tally
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.systems import Coded, System

TABLE, DECODED = "utterances.csv", "decoded"
TIMED = 10
"""Utterances of each system that are timed, with nothing beside."""


class Evaluation(NamedTuple):
    """What is compared on what, by which metrics, and where it is written.

    directory: gets TABLE, and under DECODED/CONDITION/SYSTEM what every system made of every utterance. asr: the
    command of a recogniser, for wer and cer.
    """

    utterances: Sequence[Utterance]
    systems: Sequence[System]
    metrics: Sequence[str]
    directory: epath.Path
    asr: str = ""


class Watch(NamedTuple):
    """Who looks on. advance: called once per utterance and system. tell: what went wrong, a sentence."""

    advance: Callable[[], object]
    tell: Callable[[str], object]


def run(evaluation: Evaluation, workers: int, watch: Watch) -> list[Row]:
    """Fills the table; all its rows. workers: processes that score."""
    table = evaluation.directory / TABLE
    writer = rows.Writer(table, evaluation.metrics)
    done = rows.read(table)
    with scoring.Scorers(evaluation.metrics, workers) as scorers:
        for heard in _coded(evaluation, done, watch, scorers.idle):
            scorers.submit(_task(evaluation, heard))
            _write(scorers.finished(), writer, watch)
        _write(scorers.finished(everything=True), writer, watch)
    return in_order(evaluation, rows.read(table))


def in_order(evaluation: Evaluation, table: Sequence[Row]) -> list[Row]:
    """Rows by system, then by utterance: a run that went on has what it did last at the end of its table."""
    systems = {system.name: place for place, system in enumerate(evaluation.systems)}
    utterances = {(str(one.condition), one.name): place for place, one in enumerate(evaluation.utterances)}
    return sorted(table, key=lambda row: (systems[row.system], utterances[row.condition, row.utterance]))


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
    utterance: Utterance
    reference: np.ndarray
    sample_rate: int
    coded: Coded | None


def _coded(evaluation: Evaluation, table: Sequence[Row], watch: Watch, idle: Callable[[], None]) -> Iterator[_Heard]:
    """All that is not done, system by system. A file that cannot be read is told of and left out."""
    done, broken = {row.key for row in table}, set()
    for system in evaluation.systems:
        compiled: set = set()
        timed = sum(math.isfinite(row.real_time_factor) for row in rows.select(table, system=system.name))
        for utterance in evaluation.utterances:
            key = (str(utterance.condition), utterance.name)
            if (system.name, *key) in done or key in broken:
                watch.advance()
                continue
            try:
                audio, sample_rate = inputs.read(utterance)
            except UserError as error:
                broken.add(key)
                watch.tell(str(error))
                watch.advance()
                continue
            if timed < TIMED:
                idle()
            heard = _through(system, utterance, audio, sample_rate, compiled, timed < TIMED)
            timed += math.isfinite(heard.row.real_time_factor)
            if heard.coded is None:
                watch.tell(f"{system.name}, {utterance.name}: {heard.row.note}")
            else:
                _keep(evaluation.directory, heard)
            yield heard


def _through(
    system: System, utterance: Utterance, audio: np.ndarray, sample_rate: int, compiled: set, timed: bool
) -> _Heard:
    """One utterance through one system; twice where it is timed and nothing of its shape went before."""
    seconds = len(audio) / sample_rate
    names = (system.name, str(utterance.condition), utterance.name, utterance.language)
    row = Row(*names, seconds, math.nan, math.nan, math.nan, math.nan, "", {})
    try:
        shape = system.shape(len(audio), sample_rate)
        fresh = shape not in compiled
        call = _called(system, audio, sample_rate, utterance.name)
        if fresh and shape is not None:
            row = row._replace(first_call_seconds=call.seconds)
        if fresh and timed:  # what compiles or is loaded only once is told apart
            call = _called(system, audio, sample_rate, utterance.name)
        compiled.add(shape)
    except Exception as error:  # what one codec makes of one utterance is no end of a run
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return _Heard(row._replace(note=" ".join(reason.split())), utterance, audio, sample_rate, None)
    coded = call.coded
    row = row._replace(note=coded.note)
    if coded.num_bytes is not None:
        row = row._replace(bits_per_second=8 * coded.num_bytes / seconds)
    if timed:
        row = row._replace(real_time_factor=call.seconds / seconds, peak_memory_mib=call.peak_mib)
    return _Heard(row, utterance, audio, sample_rate, coded)


class _Call(NamedTuple):
    coded: Coded
    seconds: float
    peak_mib: float


def _called(system: System, audio: np.ndarray, sample_rate: int, stem: str) -> _Call:
    marked = memory.restart()
    began = time.perf_counter()
    coded = system.process(audio, sample_rate, stem)
    return _Call(coded, time.perf_counter() - began, memory.peak_mib() if marked else math.nan)


def _task(evaluation: Evaluation, heard: _Heard) -> scoring.Task:
    if heard.coded is None:
        return scoring.Task(heard.row, heard.reference, None, heard.sample_rate)
    spoken = None
    if evaluation.asr:
        audio = str(audio_path(evaluation.directory, heard.row))
        spoken = Spoken(evaluation.asr, audio, inputs.text(heard.utterance), heard.utterance.language)
    return scoring.Task(heard.row, heard.reference, heard.coded.audio, heard.sample_rate, spoken)


def _write(found: Iterator[Row], writer: rows.Writer, watch: Watch) -> None:
    for row in found:
        writer.write(row)
        watch.advance()


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
