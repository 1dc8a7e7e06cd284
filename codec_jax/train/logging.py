"""Metrics of a run: metrics.jsonl, TensorBoard, and a progress line."""

import json
import math
import sys
from collections.abc import Mapping

import jax
import tensorboardX
from etils import epath
from tqdm import tqdm

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class MetricsWriter:
    """Appends one JSON object a row and the same numbers to TensorBoard.

    first_step: 0 for a fresh run; after a restore the restored step: rows beyond it are cut, as if never written.
    """

    def __init__(self, workdir: epath.Path, first_step: int):
        self._path, self._first = workdir / METRICS, jax.process_index() == 0
        if not self._first:
            return
        cut_back(self._path, first_step)
        self._board = tensorboardX.SummaryWriter(
            str(workdir / TENSORBOARD), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, by the first process. Numbers that are not finite become null: JSON has no NaN."""
        if not self._first:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self._first:
            self._board.close()


def cut_back(path: epath.Path, step: int) -> None:
    """Keeps the rows up to and including `step`; a last line broken by a crash goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(line + "\n" for line in kept))
    partial.replace(path)


class Progress:
    """A bar on a terminal; elsewhere a printed line at every evaluation only."""

    def __init__(self, total: int, first_step: int):
        silent = None if jax.process_index() == 0 else True  # None: where nobody looks
        self._bar = tqdm(total=total, initial=first_step, unit="step", dynamic_ncols=True, disable=silent)

    def advance(self) -> None:
        """One more step done."""
        self._bar.update()

    def show(self, values: Mapping[str, float]) -> None:
        """The latest loss terms, beside the bar."""
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if jax.process_index() == 0:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()
