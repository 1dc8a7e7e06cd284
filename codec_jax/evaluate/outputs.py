"""What an evaluation leaves behind: settings to go on by, the table, means, and differences."""

import math
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from codec_jax.errors import UserError
from codec_jax.evaluate import rates, rows, run, scores, summary
from codec_jax.evaluate.intervals import Interval
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.run import Evaluation
from codec_jax.storage import read_json, write_json

SETTINGS, SUMMARY, DIFFERENCES, CODES = "settings.json", "summary.json", "differences.json", "codes.json"
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
            _clear(directory)
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no evaluation: give another -o.")
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / SETTINGS, dict(wanted))


def _clear(directory: epath.Path) -> None:
    """Only what an evaluation writes."""
    for name in (SETTINGS, run.TABLE, SUMMARY, DIFFERENCES, CODES):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / run.DECODED, ignore_errors=True)


# ---- after -------------------------------------------------------------------------------------


def write(evaluation: Evaluation, found: Sequence[Row]) -> None:
    """SUMMARY, per system; DIFFERENCES, pair by pair; CODES, how books are used."""
    directory = evaluation.directory
    first = _main(found)
    means, tallies = summary.by_system(first), run.tallies(evaluation, first)
    codes = {name: rates.figures(tally) for name, tally in tallies.items()}
    for name, figures in codes.items():
        means[name]["bitrate_utilisation"] = Interval(figures.utilisation, math.nan, math.nan, tallies[name].utterances)
    write_json(directory / SUMMARY, _plain(means))
    names = list(means)
    pairs = {a: {b: _plain(summary.differences(first, a, b)) for b in names if b != a} for a in names}
    write_json(directory / DIFFERENCES, pairs)
    write_json(directory / CODES, {name: _plain(figures._asdict()) for name, figures in codes.items()})


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


def _main(found: Sequence[Row]) -> list[Row]:
    """The rows of the first condition: means over several would be of nothing."""
    return rows.select(found, condition=found[0].condition) if found else []


def _shown(interval: Interval) -> str:
    if not math.isfinite(interval.mean):
        return "-"
    half = (interval.high - interval.low) / 2
    digits = 0 if abs(interval.mean) >= 100 else 3
    return f"{interval.mean:.{digits}f}" + (f" ± {half:.{digits}f}" if math.isfinite(half) and half else "")


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
