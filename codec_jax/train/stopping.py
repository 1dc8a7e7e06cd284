"""Leaving in good order: SIGTERM, agreed upon between hosts, and a look at what hangs."""

import faulthandler
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


class Preempted(Exception):
    """The machine is being taken away; the state has been saved."""


class StopRequest:
    """True once this process was told to stop (SIGTERM); between several, once all agree on the step to stop at."""

    def __init__(self) -> None:
        self._told = False

    def tell(self, *_: object) -> None:
        """The signal's handler."""
        self._told = True

    def reached(self, step: int) -> bool:
        """To be asked after every step, by every process, with the same number."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._told


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Inside, SIGTERM does not end the process but sets the request. Of several processes, JAX itself listens."""
    request = StopRequest()
    if jax.process_count() > 1:
        yield request
        return
    before = signal.signal(signal.SIGTERM, request.tell)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)


def watch(seconds: float) -> None:
    """Prints the stacks of all threads to stderr unless called again, or `unwatch`, within the seconds (0: never)."""
    if seconds and sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds, file=sys.__stderr__)


def unwatch() -> None:
    """Nobody waits any more."""
    faulthandler.cancel_dump_traceback_later()
