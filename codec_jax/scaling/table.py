"""The runs that a law is fitted to, from a table or a sweep directory, and those left out, each with its reason."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from codec_jax.errors import UserError, require
from codec_jax.storage import CONFIG, read_json

SWEEP = "sweep.json"
_COLUMNS = ("params", "audio_seconds", "loss")
_OPTIONAL = ("bitrate", "flops", "seed", "name")
# A loss is positive and falls to its floor. What rises with quality is turned into what is missing.
_TURNED: dict[str, tuple[Callable[[float], float], str]] = {
    "valid/si_sdr": (
        lambda value: 10 ** (-value / 10),
        "10^(-SI-SDR / 10), the power of the distortion over the signal's",
    ),
    "valid/stoi": (lambda value: 1.0 - value, "1 - STOI"),
    "valid/stoi_control": (lambda value: 1.0 - value, "1 - STOI"),
}
# What makes losses comparable: the held-out clips and what is heard of them, what is trained for, and on what.
_AGREE = (
    "family",
    "data.train",
    "data.valid",
    "data.valid_fraction",
    "data.max_valid_clips",
    "data.loudness",
    "losses",
    "stages",
    "init_from",
)


class Run(NamedTuple):
    """params: of the codec; audio_seconds: trained on, counted as often as heard; bitrate: bits per second; flops: of
    the whole training; seed: None where the source does not say.
    """

    name: str
    params: float
    audio_seconds: float
    loss: float
    bitrate: float | None = None
    flops: float | None = None
    seed: str | None = None


class Excluded(NamedTuple):
    """A run left out, and why: the end of a sentence that begins with its name."""

    run: str
    reason: str


class Table(NamedTuple):
    """runs: in an order that does not depend on the source's. loss: its name. turned: how, if it rose with quality."""

    runs: tuple[Run, ...]
    excluded: tuple[Excluded, ...]
    loss: str
    turned: str | None = None


# ---- a table -----------------------------------------------------------------------------------


def read_table(path: epath.PathLike) -> Table:
    """A CSV file with columns params, audio_seconds, loss and, optional, bitrate, flops, seed, name.

    Raises UserError for a file that is no such table; rows with unusable numbers are left out, other columns ignored.
    """
    path = epath.Path(path)
    require(path.exists() and not path.is_dir(), f"there is no file {path}.")
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV file: {error}.") from error
    require(rows and any(rows[0]), f"{path} is empty: its first line names the columns {', '.join(_COLUMNS)}.")
    header = [cell.strip() for cell in rows[0]]
    missing = [name for name in _COLUMNS if name not in header]
    require(not missing, f"{path} has no column {' or '.join(missing)}: its first line names {', '.join(_COLUMNS)}.")
    twice = [name for name in (*_COLUMNS, *_OPTIONAL) if header.count(name) > 1]
    require(not twice, f"{path} has two columns {' and '.join(twice)}: keep one of each.")
    runs: list[Run] = []
    excluded: list[Excluded] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        cells = dict(zip(header, (cell.strip() for cell in row)))
        name = f"line {number}" + (f" ({cells['name']})" if cells.get("name") else "")
        if len(row) != len(header):
            excluded.append(Excluded(name, f"has {len(row)} cells, and the first line {len(header)}"))
            continue
        _sort_in(name, cells, runs, excluded)
    return _without_duplicates(runs, excluded, "loss", None)


def _sort_in(name: str, cells: Mapping[str, Any], runs: list[Run], excluded: list[Excluded]) -> None:
    """One run to where it belongs."""
    values: dict[str, float | None] = {}
    for column in (*_COLUMNS, "bitrate", "flops"):
        given = cells.get(column)
        if column in _OPTIONAL and given in (None, ""):
            values[column] = None
            continue
        value = _number(given)
        if value is None or not math.isfinite(value) or value <= 0:
            shown = "is missing" if given in (None, "") else f"is {given}, no number above zero"
            excluded.append(Excluded(name, f"{column} {shown}"))
            return
        values[column] = value
    seed = cells.get("seed")
    known = {column: value for column, value in values.items() if value is not None}
    runs.append(Run(name, **known, seed=None if seed in (None, "") else str(seed)))


def _number(given: Any) -> float | None:
    if isinstance(given, bool):
        return None
    try:
        return float(given)
    except (TypeError, ValueError):
        return None


def _without_duplicates(runs: Sequence[Run], excluded: Sequence[Excluded], loss: str, turned: str | None) -> Table:
    """Seeds of one cell are runs of their own; the same seed again, or the very same numbers without one, are not."""
    first: dict[tuple, Run] = {}
    again = []
    for run in runs:
        cell = (run.params, run.audio_seconds, run.bitrate, run.seed, run.loss if run.seed is None else None)
        if cell in first:
            what = "params, audio, bit rate and " + ("loss" if run.seed is None else "seed")
            again.append(Excluded(run.name, f"is a duplicate: {first[cell].name} has the same {what}"))
        else:
            first[cell] = run
    kept = sorted(first.values(), key=lambda run: [part or 0.0 for part in run[1:6]])
    return Table(tuple(kept), (*excluded, *again), loss, turned)


# ---- a sweep -----------------------------------------------------------------------------------


def read_sweep(directory: epath.PathLike, loss: str) -> Table:
    """The runs that sweep.json lists, with `loss` of each one's last evaluation.

    Raises UserError for a directory that is no sweep, and where no run has such a metric. Left out are runs that are
    unfinished, damaged, without a finite value, or not comparable with most others.
    """
    directory = epath.Path(directory)
    path = directory / SWEEP
    require(path.exists(), f"{directory} is no sweep: there is no {SWEEP} in it; give a table as --table FILE.csv.")
    listed: Any = read_json(path).get("runs")
    require(isinstance(listed, list) and listed, f"{path} lists no runs.")
    loss = loss if "/" in loss else f"valid/{loss}"
    turn, turned = _TURNED.get(loss, (float, None))
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    excluded: list[Excluded] = []
    metrics: set[str] = set()
    for number, entry in enumerate(listed, start=1):
        name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
        if not name:
            excluded.append(Excluded(f"run {number}", f"has no name in {SWEEP}"))
            continue
        try:
            config, rows = _read_run(directory, name)
            metrics |= {key for row in rows for key in row if key.startswith("valid/")}
            value = _last_value(config, rows, loss)
        except _Unusable as error:
            excluded.append(Excluded(name, str(error)))
            continue
        found.append((name, config, {**entry, "loss": turn(value), "seed": _field(config, "training.seed")}))
    require(
        found or not metrics or loss in metrics,
        f"no run in {directory} has {loss}: give one of {', '.join(sorted(metrics))} as --loss.",
    )
    comparable, odd = _comparable(found)
    runs: list[Run] = []
    for name, _, entry in comparable:
        _sort_in(name, entry, runs, excluded)
    return _without_duplicates(runs, [*excluded, *odd], loss, turned)


class _Unusable(Exception):
    """Why a run is left out."""


def _read_run(directory: epath.Path, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from codec_jax.train.logging import read_rows

    workdir = directory / "runs" / name
    if not (workdir / CONFIG).exists():
        raise _Unusable(f"has no runs/{name}/{CONFIG}")
    try:
        config, rows = read_json(workdir / CONFIG), read_rows(workdir)
    except UserError as error:
        raise _Unusable(f"cannot be read: {str(error).rstrip('.')}") from error
    except json.JSONDecodeError as error:
        raise _Unusable("has a damaged metrics.jsonl") from error
    if not rows:
        raise _Unusable("has not been run: there are no metrics")
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise _Unusable("has a damaged metrics.jsonl")
    return config, rows


def _last_value(config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], loss: str) -> float:
    """Of the evaluation after the last step."""
    evaluated = [row for row in rows if any(key.startswith("valid/") for key in row)]
    steps = _field(config, "training.steps")
    last = evaluated[-1] if evaluated else None
    if last is None or (isinstance(steps, int) and last["step"] < steps):
        raise _Unusable(f"is unfinished: its last evaluation is of step {last['step'] if last else 0} of {steps}")
    if loss not in last:
        raise _Unusable(f"has no {loss} at step {last['step']}")
    value = _number(last[loss])
    if value is None or not math.isfinite(value):
        raise _Unusable(f"has {loss} that is not a finite number at step {last['step']}")
    return value


def _comparable(found: Sequence[tuple[str, dict[str, Any], dict[str, Any]]]) -> tuple[list, list[Excluded]]:
    """Runs that agree with most in _AGREE, in whether weights are averaged, and, at one bit rate, in the bottleneck."""
    signatures = []
    for _, config, entry in found:
        signature = {field: _field(config, field) for field in _AGREE}
        signature["optim.ema_decay above 0"] = bool(_field(config, "optim.ema_decay"))
        signature["bottleneck"] = _field(config, "bottleneck")
        signatures.append(
            (entry.get("bitrate"), {key: json.dumps(of, sort_keys=True) for key, of in signature.items()})
        )
    kept, odd = [], []
    for run, (rate, signature) in zip(found, signatures):
        others = {key: Counter(of[key] for _, of in signatures) for key in signature}
        others["bottleneck"] = Counter(of["bottleneck"] for other, of in signatures if other == rate)
        most = {key: counts.most_common(1)[0][0] for key, counts in others.items()}
        differing = [key for key in signature if signature[key] != most[key]]
        if not differing:
            kept.append(run)
            continue
        key = differing[0]
        shown = f"{key}: {signature[key]}, and most have {most[key]}" if len(signature[key]) < 60 else key
        odd.append(Excluded(run[0], f"is not comparable: it differs from most runs in {shown}"))
    return kept, odd


def _field(config: Mapping[str, Any], path: str) -> Any:
    """a.b of nested dicts; None where there is none."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
