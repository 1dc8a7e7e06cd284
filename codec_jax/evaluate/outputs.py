"""What an evaluation leaves behind: settings to go on by, the table, means, and differences."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from codec_jax.errors import UserError
from codec_jax.evaluate import machine, rates, rows, run, scores, summary
from codec_jax.evaluate.intervals import Interval
from codec_jax.evaluate.rates import Figures
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.run import Evaluation
from codec_jax.evaluate.summary import Summary
from codec_jax.storage import read_json, write_json

SETTINGS, SUMMARY, DIFFERENCES, CODES = "settings.json", "summary.json", "differences.json", "codes.json"
GROUPS, MACHINES, REPORT = "groups.json", "machines.json", "report.html"
_LENGTHS = (2, 5, 10, 20, 60)  # seconds at which utterances are told apart by length
_FEW = 3  # utterances, below which a mean has no interval
_SHOWN = ("bits_per_second", "pesq_wb", "stoi", "si_sdr", "mel_distance_esc", "mel_distance_taae", "real_time_factor")


# ---- before ------------------------------------------------------------------------------------


def settings(audio: str, models: Mapping[str, str], evaluation: Evaluation) -> dict[str, Any]:
    """What must be the same for a run to go on. models: name to where it came from and which step."""
    return {
        "audio": audio,
        "models": dict(models),
        "systems": [system.name for system in evaluation.systems],
        "conditions": sorted({str(utterance.condition) for utterance in evaluation.utterances}),
        "utterances": len(evaluation.utterances),
        "metrics": list(evaluation.metrics),
    }


def begin(evaluation: Evaluation, wanted: Mapping[str, Any], force: bool) -> None:
    """Makes the directory, or checks that the same evaluation was begun there; force: what was there goes."""
    directory = evaluation.directory
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file: give a directory as -o.")
    if (directory / SETTINGS).exists():
        there = read_json(directory / SETTINGS)
        other = [name for name in wanted if there.get(name) != wanted[name]]
        if other and not force:
            raise UserError(
                f"{directory} holds an evaluation with other {' and '.join(other)}: give another -o, or --force."
            )
        if other or force:
            clear(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no evaluation: give another -o.")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / SETTINGS, dict(wanted))
    machines = read_json(directory / MACHINES)["machines"] if (directory / MACHINES).exists() else []
    here = machine.describe()
    write_json(directory / MACHINES, {"machines": machines if here in machines else [*machines, here]})


def clear(directory: epath.Path) -> None:
    """Only what an evaluation writes."""
    for name in (SETTINGS, run.TABLE, SUMMARY, DIFFERENCES, CODES, GROUPS, MACHINES, REPORT):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / run.DECODED, ignore_errors=True)


# ---- after -------------------------------------------------------------------------------------


class Results(NamedTuple):
    """What the rows come to.

    means, differences, codes: of the first condition (means over several would be of nothing). groups: means per
    "condition", and of the first one per "language" and "length", where there are several of a kind.
    """

    condition: str
    means: Summary
    differences: dict[str, Summary]
    codes: dict[str, Figures]
    groups: dict[str, dict[str, Summary]]


def results(evaluation: Evaluation, found: Sequence[Row]) -> Results:
    """Of all rows of a finished run."""
    first = found[0].condition if found else ""
    main = rows.select(found, condition=first)
    means, tallies = summary.by_system(main), run.tallies(evaluation, main)
    codes = {name: rates.figures(tally) for name, tally in tallies.items()}
    for name, figures in codes.items():
        means[name]["bitrate_utilisation"] = Interval(figures.utilisation, math.nan, math.nan, tallies[name].utterances)
    groups = {
        "condition": _grouped(found, lambda row: row.condition),
        "language": _grouped(main, lambda row: row.language),
        "length": _grouped(sorted(main, key=lambda row: row.seconds), lambda row: length(row.seconds)),
    }
    return Results(first, means, summary.all_differences(main), codes, {k: v for k, v in groups.items() if len(v) > 1})


def write(evaluation: Evaluation, found: Sequence[Row]) -> Results:
    """SUMMARY, per system; DIFFERENCES, pair by pair; CODES, how books are used; GROUPS, per condition and so on."""
    directory, there = evaluation.directory, results(evaluation, found)
    write_json(directory / SUMMARY, plain(there.means))
    write_json(directory / DIFFERENCES, plain(there.differences))
    write_json(directory / CODES, {name: plain(figures._asdict()) for name, figures in there.codes.items()})
    write_json(directory / GROUPS, plain(there.groups))
    return there


def length(seconds: float) -> str:
    """The class of a length, as in "2 to 5 s"."""
    ends = [0, *_LENGTHS]
    above = max(end for end in ends if end <= seconds)
    if above == ends[-1]:
        return f"{above} s and more"
    return f"{above} to {ends[ends.index(above) + 1]} s"


def _grouped(found: Sequence[Row], key: Callable[[Row], str]) -> dict[str, Summary]:
    """{group: {system: {metric: interval}}} of groups of enough utterances, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in found:
        groups.setdefault(key(row), []).append(row)
    enough = {name: group for name, group in groups.items() if len({row.key[1:] for row in group}) >= _FEW and name}
    return {name: summary.by_system(group) for name, group in enough.items()}


def table(found: Sequence[Row], metrics: Sequence[str]) -> str:
    """Means and half widths of the most asked-for figures, a line per system and condition."""
    columns = [name for name in _SHOWN if name in metrics or name not in scores.METRICS]
    conditions = list(dict.fromkeys(row.condition for row in found))
    lines = [["system", *columns]]
    for condition in conditions:
        for name, means in summary.by_system(rows.select(found, condition=condition)).items():
            title = name if len(conditions) == 1 else f"{name}, {condition}"
            lines.append([title, *(_shown(means[column]) for column in columns)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def _shown(interval: Interval) -> str:
    if not math.isfinite(interval.mean):
        return "-"
    half = (interval.high - interval.low) / 2
    digits = 0 if abs(interval.mean) >= 100 else 3
    return f"{interval.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) and half else "")


def plain(value: Any) -> Any:
    """For JSON, which knows no NaN and no infinity."""
    if isinstance(value, Interval):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
