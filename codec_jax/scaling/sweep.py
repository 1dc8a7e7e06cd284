"""A sweep on disk: planned as a whole before anything runs, and read again by whoever runs or fits it.

SWEEP/
  sweep.json          {"version": 1, "planned": how, "runs": [one object a run]}
  costs.csv           the cost table
  configs/NAME.json   the resolved experiment of a run
  runs/NAME/          its run directory, as train.py makes it
  logs/NAME.log       what it printed
  locks/NAME.lock     held by the process that runs it
"""

import csv
import io
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from codec_jax.errors import UserError, require
from codec_jax.experiment import Experiment, load_config, to_json
from codec_jax.scaling.costs import Estimate
from codec_jax.scaling.grid import Run
from codec_jax.storage import read_json, write_json

VERSION = 1
SWEEP, COSTS, CONFIGS, RUNS, LOGS, LOCKS = "sweep.json", "costs.csv", "configs", "runs", "logs", "locks"
_COLUMNS = (
    "name", "params", "audio_seconds", "bitrate", "seed", "flops", "steps", "batch_size", "learning_rate", "width",
    "layers", "hours", "chip_hours", "mfu", "estimate",
)  # fmt: skip


class Entry(NamedTuple):
    """A run of a sweep. config, workdir: where they are. row: its object in sweep.json."""

    name: str
    config: pathlib.Path
    workdir: pathlib.Path
    row: dict[str, Any]

    def experiment(self) -> Experiment:
        """The resolved experiment. Raises UserError where the file cannot be used."""
        return load_config(str(self.config))


class Sweep(NamedTuple):
    """A directory that `write` made, and its runs in the order of their FLOPs."""

    directory: pathlib.Path
    entries: tuple[Entry, ...]
    planned: dict[str, Any]

    def named(self, names: Sequence[str]) -> "Sweep":
        """The sweep of these runs alone. Raises UserError for one that it does not have."""
        known = {entry.name: entry for entry in self.entries}
        for name in names:
            require(name in known, f"{self.directory} has no run {name}: it has {', '.join(known)}.")
        return self._replace(entries=tuple(entry for entry in self.entries if entry.name in names))

    def log(self, name: str) -> pathlib.Path:
        """Where a run prints to."""
        return self.directory / LOGS / f"{name}.log"

    def lock(self, name: str) -> pathlib.Path:
        """The file whose lock the process has that runs it."""
        return self.directory / LOCKS / f"{name}.lock"


def write(
    directory: str | os.PathLike[str],
    runs: Sequence[Run],
    estimates: Sequence[Estimate],
    planned: Mapping[str, Any],
    force: bool = False,
) -> Sweep:
    """Makes the directory, whole or not at all. force: plans anew in one that is there, and leaves its runs alone.

    Raises UserError for a directory that holds something, without `force`, or that is no sweep.
    """
    target = pathlib.Path(directory)
    check_target(target, force)
    rows = [_row(run, estimate) for run, estimate in zip(runs, estimates, strict=True)]
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / CONFIGS).mkdir(parents=True)
        for run in runs:
            (partial / CONFIGS / f"{run.name}.json").write_text(to_json(run.experiment))
        (partial / COSTS).write_text(costs_csv(rows))
        write_json(partial / SWEEP, {"version": VERSION, "planned": dict(planned), "runs": rows})
        if target.exists() and any(target.iterdir()):
            shutil.rmtree(target / CONFIGS, ignore_errors=True)
            for name in (CONFIGS, COSTS, SWEEP):
                (partial / name).replace(target / name)
        else:
            partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read(target)


def check_target(target: pathlib.Path, force: bool) -> None:
    """Raises UserError unless a sweep may be written there."""
    require(not target.is_file(), f"{target} is a file: give a directory as -o.")
    if target.is_dir() and any(target.iterdir()):
        require((target / SWEEP).exists(), f"{target} is not empty and holds no sweep: give another -o.")
        require(force, f"{target} holds a sweep already: give another -o, or --force to plan it anew.")


def read(directory: str | os.PathLike[str]) -> Sweep:
    """Raises UserError, one sentence, for anything that is no sweep."""
    path = pathlib.Path(directory)
    require(path.is_dir(), f"there is no sweep directory {path}: `codec-jax scaling plan ... -o {path}` makes one.")
    file = path / SWEEP
    require(file.exists(), f"{path} holds no {SWEEP}, so it is no sweep that `codec-jax scaling plan` made.")
    data = read_json(file)
    version = data.get("version")
    require(version == VERSION, f"{file} is of version {version}, and this is made for {VERSION}: plan it anew.")
    rows = data.get("runs")
    try:
        assert isinstance(rows, list)
        entries = tuple(_entry(path, row) for row in rows)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not list its runs as `codec-jax scaling plan` writes them.") from error
    names = [entry.name for entry in entries]
    require(len(set(names)) == len(names), f"{file} names a run twice.")
    for entry in entries:
        require(entry.config.exists(), f"{file} has the run {entry.name}, but there is no {entry.config}.")
    return Sweep(path, entries, dict(data.get("planned", {})))


def _entry(path: pathlib.Path, row: Mapping[str, Any]) -> Entry:
    name = str(row["name"])
    require(pathlib.PurePath(name).name == name and name not in ("", ".."), f'"{name}" is no name of a run.')
    return Entry(name, path / row["config"], path / RUNS / name, dict(row))


def _row(run: Run, estimate: Estimate) -> dict[str, Any]:
    plain = {name: value for name, value in run._asdict().items() if name not in ("asked", "experiment")}
    asked = {name: value for name, value in run.asked._asdict().items() if value is not None}
    return {
        **plain,
        "config": f"{CONFIGS}/{run.name}.json",
        "workdir": f"{RUNS}/{run.name}",
        "asked": asked,
        "hours": estimate.hours,
        "chip_hours": estimate.chip_hours,
        "mfu": estimate.mfu,
        "estimate": estimate.how,
    }


# ---- the cost table ----------------------------------------------------------------------------


def costs_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a run."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if row.get(name) is None else row[name] for name in _COLUMNS} for row in rows)
    return out.getvalue()


def table(sweep: Sweep) -> str:
    """The same for a reader, with totals."""
    rows = [entry.row for entry in sweep.entries]
    width = max(len("run"), *(len(row["name"]) for row in rows))
    header = f"{'run':<{width}} {'parameters':>13} {'audio':>9} {'bit/s':>7} {'FLOPs':>9} {'steps':>8} {'batch':>6}"
    header += f" {'rate':>9} {'hours':>9} {'chip-hours':>10}  MFU"
    lines = [header]
    for row in rows:
        mfu = f"{row['mfu']:.0%} {row['estimate']}" if row["mfu"] else row["estimate"]
        lines.append(
            f"{row['name']:<{width}} {row['params']:>13,} {_duration(row['audio_seconds']):>9} {row['bitrate']:>7.0f} "
            f"{row['flops']:>9.2e} {row['steps']:>8,} {row['batch_size']:>6} {row['learning_rate']:>9.2e} "
            f"{_hours(row['hours']):>9} {_hours(row['chip_hours']):>10}  {mfu}"
        )
    known = [row for row in rows if row["hours"] is not None]
    total = f"{len(rows)} runs, {sum(row['flops'] for row in rows):.3g} FLOPs"
    if known:
        hours, chips = (sum(row[name] for row in known) for name in ("hours", "chip_hours"))
        total += f", {_hours(hours)} hours one after the other, {_hours(chips)} chip-hours"
    return "\n".join([*lines, total])


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def _hours(hours: float | None) -> str:
    return "" if hours is None else f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
