"""Memory of this process, as Linux accounts for it."""

import contextlib
import pathlib
import threading
from collections.abc import Iterator

_STATUS = pathlib.Path("/proc/self/status")


def peak_gib() -> float:
    """The largest resident size since this program started.

    Not getrusage: its ru_maxrss survives fork and exec, so that a child begins with the peak of its parent.
    """
    return _field("VmHWM")


@contextlib.contextmanager
def anonymous_peak(interval: float = 0.005) -> Iterator[list[float]]:
    """[GiB of anonymous memory at its largest], sampled while the block runs and filled in when it ends."""
    found, done = [_field("RssAnon")], threading.Event()

    def watch():
        while not done.wait(interval):
            found[0] = max(found[0], _field("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        found[0] = max(found[0], _field("RssAnon"))


def _field(name: str) -> float:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 2**20
