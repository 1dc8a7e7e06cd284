"""Runs a sweep on this machine: every run a process of its own, resumable, none twice, none taking others with it."""

import contextlib
import dataclasses
import fcntl
import glob
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

from codec_jax.errors import UserError
from codec_jax.experiment import Experiment, load_config
from codec_jax.scaling.sweep import Entry, Sweep
from codec_jax.sources import CHECKPOINTS
from codec_jax.storage import CONFIG
from codec_jax.train import logging

DONE, FAILED, BUSY, STOPPED = "done", "failed", "busy", "stopped"
HELD = 75  # a worker's exit code where another process has the run (EX_TEMPFAIL)
CACHE = "compiled"
_LOSS = "valid/mel_distance"
_POLL = 0.2


class Outcome(NamedTuple):
    """What became of a run: DONE, FAILED, BUSY (another process has it) or STOPPED; why; whether it was run now."""

    name: str
    state: str
    why: str = ""
    ran: bool = False


# ---- what is done ------------------------------------------------------------------------------


def is_done(entry: Entry) -> bool:
    """True where the last step is evaluated and checkpointed, and with the very config that is planned.

    Raises UserError where the run directory holds a run of another config.
    """
    there = entry.workdir / CONFIG
    if not there.exists():
        return False
    planned = entry.experiment()
    if load_config(str(there)) != planned:
        raise UserError(
            f"{entry.workdir} holds a run of another config than {entry.config}: move it away, or plan into another "
            "directory."
        )
    return evaluated(entry.workdir, planned) and (entry.workdir / CHECKPOINTS / str(planned.training.steps)).is_dir()


def evaluated(workdir: pathlib.Path, experiment: Experiment) -> bool:
    """True where the metrics have the last step's evaluation."""
    steps = experiment.training.steps
    return any(row.get("step") == steps and _LOSS in row for row in _rows(workdir))


def _rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return logging.read_rows(logging.epath.Path(workdir))
    except json.JSONDecodeError:  # the last line of a run that was killed
        return []


# ---- locks -------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: pathlib.Path, patience: float = 1.0) -> Iterator[bool]:
    """Whether this process has the lock while inside. patience: seconds to try for, since others look at it too.

    The kernel's lock of the file, not its existence: a lock whose holder has died, however, is free at once, and two
    that find it free at the same time cannot both take it. On network file systems that support no locks, a UserError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    with path.open("a+") as file:
        while not (ours := _try(file, path)) and time.monotonic() < until:
            time.sleep(0.05)
        if ours:
            file.truncate(0)
            file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}) + "\n")
            file.flush()
        yield ours


def _try(file: IO[str], path: pathlib.Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be locked on this file system ({error.strerror}).") from error
    return True


def holder(path: pathlib.Path) -> str:
    """Who has a lock, as far as the file tells."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']}"
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return "another process"


def is_locked(path: pathlib.Path) -> bool:
    """True while some process has the lock."""
    if not path.exists():
        return False
    with path.open("a+") as file:
        return not _try(file, path)


# ---- the sweep ---------------------------------------------------------------------------------


@dataclasses.dataclass
class _Worker:
    """A run that is under way. told: signals passed on to it."""

    entry: Entry
    process: subprocess.Popen
    began: float
    told: int = 0


def run(sweep: Sweep, workers: int = 1, say: Callable[[str], None] = print) -> list[Outcome]:
    """Runs what is not done, `workers` at a time, smallest first; every run once, whatever becomes of the others.

    SIGTERM and SIGINT are passed on: what runs saves its state and ends, nothing new begins, and the same call goes on
    from there. A second one kills. Where this process dies, its workers save and end too. Outcomes are in the order of
    the sweep.
    """
    waiting, outcomes = list(sweep.entries), []
    active: dict[int, _Worker] = {}

    def tell(outcome: Outcome, seconds: float | None = None) -> None:
        outcomes.append(outcome)
        say(_line(outcome, seconds))

    with _listening() as told:
        while waiting or active:
            for slot in range(workers):
                while slot not in active and waiting and not told:
                    entry = waiting.pop(0)
                    known = _known(sweep, entry)
                    if known:
                        tell(known)
                        continue
                    say(f"{entry.name}: started")
                    active[slot] = _Worker(entry, _start(sweep, entry, slot, workers), time.monotonic())
            if told:
                outcomes += [Outcome(entry.name, STOPPED, "not started") for entry in waiting]
                waiting = []
            _pass_on(len(told), list(active.values()))
            if active:
                time.sleep(_POLL)
            for slot, worker in list(active.items()):
                if worker.process.poll() is not None:
                    outcome = _outcome(sweep, worker.entry, worker.process.returncode, bool(told))
                    tell(outcome, time.monotonic() - worker.began)
                    del active[slot]
    order = [entry.name for entry in sweep.entries]
    return sorted(outcomes, key=lambda outcome: order.index(outcome.name))


def _known(sweep: Sweep, entry: Entry) -> Outcome | None:
    """What becomes of a run without being started: it is done, another has it, or it cannot be."""
    try:
        if is_done(entry):
            return Outcome(entry.name, DONE)
        if is_locked(sweep.lock(entry.name)):
            return Outcome(entry.name, BUSY, holder(sweep.lock(entry.name)))
    except UserError as error:
        return Outcome(entry.name, FAILED, str(error))
    return None


def _start(sweep: Sweep, entry: Entry, slot: int, workers: int) -> subprocess.Popen:
    """A worker in a session of its own, so that Ctrl-C reaches it through us alone. It appends to the run's log."""
    log = sweep.log(entry.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "codec_jax.scaling.worker", str(sweep.directory), entry.name]
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**cached(sweep.directory), **os.environ, **devices_of(slot, workers, os.environ)},
        )


def cached(directory: pathlib.Path) -> dict[str, str]:
    """A compilation cache for all runs of a sweep, which share what encodes and decodes in their evaluations."""
    cache = str((directory / CACHE).absolute())
    return {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1"}


def devices_of(slot: int, workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """With several GPUs and several workers, the GPUs of a worker: every `workers`-th from `slot` on."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    every = visible.split(",") if visible else [p.removeprefix("/dev/nvidia") for p in glob.glob("/dev/nvidia[0-9]*")]
    if workers == 1 or len(every) < workers:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(sorted(every, key=lambda x: (len(x), x))[slot::workers])}


@contextlib.contextmanager
def _listening() -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGINT are only noted, in the list."""
    told: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: told.append(n)) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _pass_on(told: int, workers: Sequence[_Worker]) -> None:
    """Once told, SIGTERM; told again, SIGKILL."""
    for worker in workers:
        if min(told, 2) > worker.told:
            worker.told = min(told, 2)
            worker.process.send_signal(signal.SIGTERM if worker.told == 1 else signal.SIGKILL)


def _outcome(sweep: Sweep, entry: Entry, code: int, told: bool) -> Outcome:
    """What a worker's end means. Its word is not taken: a run is done where its files say so."""
    try:
        if is_done(entry):
            return Outcome(entry.name, DONE, ran=True)
    except UserError as error:
        return Outcome(entry.name, FAILED, str(error), True)
    if code == HELD:
        return Outcome(entry.name, BUSY, holder(sweep.lock(entry.name)))
    if told or code == 143:
        return Outcome(entry.name, STOPPED, "saved" if code == 143 else "ended", True)
    return Outcome(
        entry.name, FAILED, f"{_last_words(sweep.log(entry.name), code)} (see {sweep.log(entry.name)})", True
    )


def _last_words(log: pathlib.Path, code: int) -> str:
    """How a worker ended, and the last line that it printed."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return f"{how}: {lines[-1].strip()[:300]}" if lines else how


def _line(outcome: Outcome, seconds: float | None = None) -> str:
    spent = f" in {seconds:.0f} s" if seconds is not None else ""
    already = "" if outcome.ran or outcome.state != DONE else " already"
    return f"{outcome.name}: {outcome.state}{already}{spent}" + (f", {outcome.why}" if outcome.why else "")
