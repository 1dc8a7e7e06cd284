"""Where the time of a run goes: a ledger of wall-clock seconds, and throughput between rows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

ACCOUNTS = ("init", "compile", "data", "step", "evaluate", "save")


class Ledger:
    """Seconds by account. What is not charged elsewhere while steps run is `step`."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(ACCOUNTS, 0.0)
        self._began = time.perf_counter()
        self._row = (time.perf_counter(), 0, dict(self.seconds))

    @contextmanager
    def charge(self, account: str) -> Iterator[None]:
        """Everything inside goes to `account`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[account] += time.perf_counter() - began

    def start_row(self, step: int) -> None:
        """The next row's throughput counts from here."""
        self._row = (time.perf_counter(), step, dict(self.seconds))

    def row(self, step: int) -> dict[str, float]:
        """Figures since the last row. Evaluations, saves and compilation do not count."""
        began, first, then = self._row
        spent = {name: self.seconds[name] - then[name] for name in ACCOUNTS}
        busy = time.perf_counter() - began - spent["evaluate"] - spent["save"] - spent["compile"]
        busy = max(busy, 1e-9)
        steps = step - first
        self.start_row(step)
        return {
            "steps_per_second": steps / busy,
            "data_wait": spent["data"] / busy,
            "goodput": self.goodput(),
        }

    def goodput(self) -> float:
        """The share of the time so far that went into steps."""
        total = time.perf_counter() - self._began
        other = sum(seconds for name, seconds in self.seconds.items() if name != "step")
        return max(0.0, 1 - other / total)

    def totals(self) -> dict[str, float]:
        """Seconds by account, of this process since it began; `step` is what remains."""
        total = time.perf_counter() - self._began
        other = {name: seconds for name, seconds in self.seconds.items() if name != "step"}
        return {**other, "step": max(0.0, total - sum(other.values())), "total": total}
