"""The figures of one system on one utterance, and their file: a row at a time, so that a killed run loses none."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from etils import epath

from codec_jax.errors import UserError


class Row(NamedTuple):
    """One utterance through one system.

    condition: what was done to the utterance first ("clean": nothing). seconds: of audio. bits_per_second: measured
    from the coded bytes; NaN where nothing is coded. real_time_factor: seconds spent per second of audio, and
    peak_memory_mib: of this process meanwhile; NaN where neither was measured. first_call_seconds: of the call that
    compiled for this length, NaN where another had. note: why figures are missing, or empty. scores: by metric; NaN is
    undefined.
    """

    system: str
    condition: str
    utterance: str
    language: str
    seconds: float
    bits_per_second: float
    real_time_factor: float
    first_call_seconds: float
    peak_memory_mib: float
    note: str
    scores: dict[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells rows apart."""
        return self.system, self.condition, self.utterance

    @property
    def figures(self) -> dict[str, float]:
        """Everything of which a mean makes sense."""
        return {**self.scores, **{name: getattr(self, name) for name in COSTS}}


COSTS = ("bits_per_second", "real_time_factor", "first_call_seconds", "peak_memory_mib")
"""The figures of a row that are no scores."""
_FIXED = Row._fields[:-1]
_NUMBERS = ("seconds", *COSTS)


class Writer:
    """Appends rows to a CSV file; what a killed run left of a last line is cut off first."""

    def __init__(self, path: epath.PathLike, metrics: Sequence[str]) -> None:
        self._path, self._metrics = epath.Path(path), tuple(metrics)
        if not self._path.exists():
            self._path.write_text(_line([*_FIXED, *self._metrics]))
        whole, _, torn = self._path.read_text().rpartition("\n")
        if torn:
            self._path.write_text(whole + "\n")

    def write(self, row: Row) -> None:
        """On disk when this returns."""
        with self._path.open("a") as file:
            file.write(_line([*row[:-1], *(row.scores.get(name, math.nan) for name in self._metrics)]))


def read(path: epath.PathLike) -> list[Row]:
    """All whole rows of a file. Raises UserError for one that this project did not write."""
    text = epath.Path(path).read_text()
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if not lines or tuple(lines[0][: len(_FIXED)]) != _FIXED:
        raise UserError(f"{path} is no table of utterances: give another report directory.")
    return [_parsed(lines[0], line) for line in lines[1:]]


def metrics_of(path: epath.PathLike) -> list[str]:
    """The metrics that a file has columns for."""
    header = next(csv.reader(io.StringIO(epath.Path(path).read_text())), [])
    return header[len(_FIXED) :]


def select(rows: Iterable[Row], **wanted: str) -> list[Row]:
    """Those whose fields have these values."""
    return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]


def _parsed(header: Sequence[str], line: Sequence[str]) -> Row:
    fixed = {name: float(value) if name in _NUMBERS else value for name, value in zip(_FIXED, line)}
    scores = {name: float(value) for name, value in list(zip(header, line))[len(_FIXED) :]}
    return Row(**fixed, scores=scores)  # type: ignore[arg-type]


def _line(values: Sequence[object]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(
        [f"{value:.6g}" if isinstance(value, float) else value for value in values]
    )
    return out.getvalue()
