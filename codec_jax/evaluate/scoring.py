"""Scores, computed in other processes: in the order they were asked for, a few ahead of the slowest.

Metrics cost more than most codecs, and packages in C may end the process they run in: such an utterance is noted, and
the others go on.
"""

import collections
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import numpy as np

from codec_jax.errors import UserError
from codec_jax.evaluate import asr, scores
from codec_jax.evaluate.asr import Spoken
from codec_jax.evaluate.rows import Row

_DIED = "the process that scored it ended itself"


class Task(NamedTuple):
    """A row to score. estimate: None where there is nothing to score. spoken: what a recogniser is asked, or None."""

    row: Row
    reference: np.ndarray
    estimate: np.ndarray | None
    sample_rate: int
    spoken: Spoken | None = None


class Scorers:
    """`workers` processes that compute `metrics`; a context manager."""

    def __init__(self, metrics: Sequence[str], workers: int) -> None:
        self._metrics, self._workers = tuple(metrics), workers
        self._waiting: collections.deque[tuple[Task, Future]] = collections.deque()
        self._pool = self._started()

    def __enter__(self) -> "Scorers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)

    def submit(self, task: Task) -> None:
        """Begins with a task."""
        self._waiting.append((task, self._sent(task)))

    def idle(self) -> None:
        """Returns when all that was begun is done: what is timed next has the machine to itself."""
        wait([future for _, future in self._waiting])

    def finished(self, everything: bool = False) -> Iterator[Row]:
        """Rows that are done, in order; waits where two a process are under way, or for everything."""
        while self._waiting and (everything or len(self._waiting) > 2 * self._workers or self._waiting[0][1].done()):
            task, future = self._waiting.popleft()
            try:
                yield _row(task.row, *future.result())
            except BrokenProcessPool:
                yield _row(task.row, *self._alone(task))

    def _alone(self, task: Task) -> tuple[dict[str, float], str]:
        """Again, after some process died, with nothing beside; then all that waits is begun anew."""
        self._pool.shutdown()
        self._pool = self._started()
        try:
            answer = self._sent(task).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = self._started()
            answer = dict.fromkeys(self._metrics, math.nan), _DIED
        self._waiting = collections.deque((one, self._sent(one)) for one, _ in self._waiting)
        return answer

    def _started(self) -> ProcessPoolExecutor:
        spawned = multiprocessing.get_context("spawn")  # not forked: JAX has threads
        return ProcessPoolExecutor(self._workers, spawned, _end_with_parent)

    def _sent(self, task: Task) -> Future:
        try:
            return self._pool.submit(_score, task, self._metrics)
        except BrokenProcessPool as error:  # noticed when it is this task's turn
            future: Future = Future()
            future.set_exception(error)
            return future


def _end_with_parent() -> None:
    """In a worker: where its parent is killed, it goes too. The pool alone would leave it waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _score(task: Task, metrics: Sequence[str]) -> tuple[dict[str, float], str]:
    """Figures by name, and why there are none; whatever one utterance makes a package raise is no end of a run."""
    if task.estimate is None:
        return {}, ""
    heard = [name for name in metrics if name not in asr.METRICS]
    try:
        figures = scores.score(task.reference, task.estimate, task.sample_rate, heard)
        if task.spoken is not None and any(name in asr.METRICS for name in metrics):
            figures |= asr.score(task.spoken)
        return figures, ""
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return dict.fromkeys(metrics, math.nan), " ".join(reason.split())


def _row(row: Row, figures: dict[str, float], note: str) -> Row:
    undefined = [name for name, value in figures.items() if not math.isfinite(value)]
    notes = [row.note, note or (f"not defined: {', '.join(undefined)}" if undefined else "")]
    return row._replace(scores=figures, note="; ".join(filter(None, notes)))
