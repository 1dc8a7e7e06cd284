"""Metrics of a run: rows of JSON, TensorBoard, wandb, and a progress line."""

import hashlib
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tensorboardX
from etils import epath
from tqdm import tqdm

from codec_jax.storage import is_remote

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


class MetricsWriter:
    """One JSON object a row, and the same numbers to TensorBoard, and to Weights & Biases where wandb is installed.

    first_step: 0 for a fresh run; after a restore the restored step: rows beyond it are cut, as if never written.
    config: of the run, for Weights & Biases.
    """

    def __init__(self, workdir: epath.Path, first_step: int, config: Mapping[str, Any] | None = None):
        self._first = jax.process_index() == 0
        if not self._first:
            return
        rows = PartedRows if is_remote(workdir) else AppendedRows
        self._rows = rows(workdir, first_step)
        self._board = tensorboardX.SummaryWriter(
            str(workdir / TENSORBOARD), purge_step=first_step + 1 if first_step else None
        )
        self._wandb = _wandb_run(workdir, dict(config or {}))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row, by the first process. Numbers that are not finite become null: JSON has no NaN."""
        if not self._first:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._rows.append(json.dumps({"step": step, **finite}))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        """Leaves everything written."""
        if self._first:
            self._rows.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish()


class AppendedRows:
    """metrics.jsonl on a file system: every row is there as soon as it is written."""

    def __init__(self, workdir: epath.Path, first_step: int):
        self._path = workdir / METRICS
        if self._path.exists():
            kept = _rows_up_to(self._path.read_text(), first_step)
            partial = self._path.with_name(METRICS + ".partial")
            partial.write_text("".join(row + "\n" for row in kept))
            partial.replace(self._path)

    def append(self, row: str) -> None:
        """Adds a line."""
        with self._path.open("a") as file:
            file.write(row + "\n")

    def close(self) -> None:
        """Nothing is held back."""


class PartedRows:
    """metrics/00000.jsonl, 00001.jsonl, ... on an object store, whose objects are written whole or not at all.

    Rows are held back for up to `seconds`, and at most `rows` of them are in an object.
    """

    def __init__(self, workdir: epath.Path, first_step: int, rows: int = 1000, seconds: float = 60.0):
        self._directory, self._limit, self._seconds = workdir / METRICS.removesuffix(".jsonl"), rows, seconds
        self._directory.mkdir(parents=True, exist_ok=True)
        parts = sorted(self._directory.glob("*.jsonl"))
        kept = [row for part in parts for row in _rows_up_to(part.read_text(), first_step)]
        self._number = 0
        for start in range(0, len(kept), rows):
            self._put(kept[start : start + rows])
            self._number += 1
        for part in parts[self._number :]:
            part.unlink()
        self._held: list[str] = []
        self._written = time.monotonic()

    def append(self, row: str) -> None:
        """Holds a line, and writes the newest object anew where it is time."""
        self._held.append(row)
        if len(self._held) >= self._limit or time.monotonic() - self._written >= self._seconds:
            self._flush()

    def close(self) -> None:
        """Writes what was held back."""
        self._flush()

    def _flush(self) -> None:
        if self._held:
            self._put(self._held)
            self._written = time.monotonic()
        if len(self._held) >= self._limit:
            self._number, self._held = self._number + 1, []

    def _put(self, rows: Sequence[str]) -> None:
        (self._directory / f"{self._number:05d}.jsonl").write_text("".join(row + "\n" for row in rows))


def read_rows(workdir: epath.Path) -> list[dict[str, Any]]:
    """All rows of a run, wherever it lies."""
    whole, parts = workdir / METRICS, workdir / METRICS.removesuffix(".jsonl")
    paths = [whole] if whole.exists() else sorted(parts.glob("*.jsonl")) if parts.exists() else []
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def _rows_up_to(text: str, step: int) -> list[str]:
    """The rows up to and including `step`; a last line broken by a crash goes too."""
    kept = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line)
    return kept


def _wandb_run(workdir: epath.Path, config: dict[str, Any]) -> Any:
    """A run of the same name at every start, offline where nobody is logged in; None without wandb.

    WANDB_MODE=disabled turns it off.
    """
    try:
        import wandb
    except ImportError:
        return None
    local = pathlib.Path(tempfile.gettempdir() if is_remote(workdir) else workdir)
    known = wandb.api.api_key or "WANDB_MODE" in os.environ
    return wandb.init(
        project="codec_jax",
        id=hashlib.blake2b(str(workdir).encode(), digest_size=8).hexdigest(),
        name=workdir.name,
        dir=str(local),
        config=config,
        resume="allow",
        mode=None if known else "offline",
    )


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
