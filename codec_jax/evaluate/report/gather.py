"""The figures of a report, as its page reads them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from codec_jax.evaluate import rows, scores
from codec_jax.evaluate.intervals import DRAWS, LEVEL, Interval
from codec_jax.evaluate.outputs import Results
from codec_jax.evaluate.report.kinds import kind
from codec_jax.evaluate.rows import Row
from codec_jax.evaluate.run import TIMED, Evaluation
from codec_jax.evaluate.summary import Summary, by_system

MOST_VALUES = 400_000
"""Figures of single utterances in a page: about 3 MB."""
_MOST_NAMED = 12  # utterances named per note
_DIGITS = 5


class Context(NamedTuple):
    """settings: outputs.settings. remarks: sentences about this run."""

    settings: dict[str, Any]
    remarks: Sequence[str]


def figures(evaluation: Evaluation, table: Sequence[Row], results: Results, context: Context) -> dict[str, Any]:
    """All of the page but its audio, with None for what is not defined."""
    utterances = {row.key[1:]: row for row in table}
    conditions = list(dict.fromkeys(row.condition for row in table))
    means = {name: by_system(rows.select(table, condition=name)) for name in conditions[1:]}
    names = [*evaluation.metrics, *(name for name in scores.FIGURES if name not in evaluation.metrics)]
    shown = [name for name in names if any(name in there for there in results.means.values())]
    first = [row for row in utterances.values() if row.condition == results.condition]
    return {
        "settings": context.settings,
        "remarks": list(dict.fromkeys(context.remarks)),
        "condition": results.condition,
        "conditions": conditions,
        "utterances": len(first),
        "seconds": sum(row.seconds for row in first),
        "languages": sorted({row.language for row in first} - {""}),
        "systems": _systems(evaluation, context.settings["models"]),
        "metrics": [{"name": name, **_told(name)} for name in shown],
        "means": {name: _short(there) for name, there in {results.condition: results.means, **means}.items()},
        "differences": {name: _short(there) for name, there in results.differences.items()},
        "groups": {kind: {name: _short(one) for name, one in there.items()} for kind, there in results.groups.items()},
        "codes": _codes(evaluation, results),
        "rows": _rows(evaluation, table, utterances, shown),
        "notes": _notes(table),
        "unread": _unread(evaluation, utterances),
        "intervals": {"level": LEVEL, "draws": DRAWS, "timed": TIMED},
    }  # fmt: skip


def _systems(evaluation: Evaluation, models: Collection[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": system.name,
            "family": system.family,
            "label": system.label,
            "kind": kind(system, models),
            "nominal_bps": system.nominal_bps,
            "sample_rate": system.sample_rate,
        }
        for system in evaluation.systems
    ]


def _told(name: str) -> dict[str, Any]:
    """Unit, better, how, and whether it is of the sound (and not of the cost)."""
    figure = scores.described(name)
    costs = (*rows.COSTS, "bitrate_utilisation")
    return {"unit": figure.unit, "better": figure.better, "how": figure.how, "cost": name in costs}


def _codes(evaluation: Evaluation, results: Results) -> dict[str, Any]:
    sizes = {system.name: system.codebook_sizes for system in evaluation.systems}
    return {
        name: {"sizes": sizes[name], "entropy": found.entropy_bits, "usage": found.usage,
               "utilisation": found.utilisation, "measured_bps": found.measured_bps}
        for name, found in results.codes.items()
    }  # fmt: skip


def _rows(
    evaluation: Evaluation, table: Sequence[Row], utterances: Mapping[tuple[str, str], Row], metrics: Sequence[str]
) -> dict[str, Any]:
    """Columns of figures, cut where a page would grow too long."""
    metrics = [name for name in metrics if name != "bitrate_utilisation"]
    most = max(1, MOST_VALUES // max(1, len(metrics) * len(evaluation.systems)))
    kept = list(utterances)[:most]
    by_key = {row.key: row.figures for row in table}
    return {
        "utterances": [
            {"condition": key[0], "name": key[1], "language": utterances[key].language,
             "seconds": _rounded(utterances[key].seconds)}
            for key in kept
        ],
        "left_out": len(utterances) - len(kept),
        "values": {
            system.name: {
                name: [_rounded(by_key.get((system.name, *key), {}).get(name)) for key in kept] for name in metrics
            }
            for system in evaluation.systems
        },
    }  # fmt: skip


def _notes(table: Sequence[Row]) -> list[dict[str, Any]]:
    """Each note with the systems and utterances it is about, the most frequent first."""
    found: dict[str, list[Row]] = {}
    for row in table:
        if row.note:
            found.setdefault(row.note, []).append(row)
    return [
        {
            "note": note,
            "rows": len(there),
            "systems": list(dict.fromkeys(row.system for row in there)),
            "utterances": list(dict.fromkeys(f"{row.utterance}, {row.condition}" for row in there))[:_MOST_NAMED],
        }
        for note, there in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _unread(evaluation: Evaluation, utterances: Mapping[tuple[str, str], Row]) -> list[str]:
    """Files that gave no row at all: they could not be read."""
    keys = {(str(one.condition), one.name): one for one in evaluation.utterances}
    return list(dict.fromkeys(one.paths[0].name for key, one in keys.items() if key not in utterances))


def _short(summary: Summary) -> dict[str, Any]:
    """{system: {metric: [mean, low, high, n]}}."""
    return {name: {metric: _interval(one) for metric, one in means.items()} for name, means in summary.items()}


def _interval(interval: Interval) -> list[float | int | None]:
    return [*map(_rounded, interval[:3]), interval.n]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")
