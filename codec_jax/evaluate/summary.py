"""Rows to means with intervals: per system, per language, per length, and between systems utterance by utterance."""

import math
from collections.abc import Callable, Sequence

from codec_jax.evaluate import intervals
from codec_jax.evaluate.intervals import Interval
from codec_jax.evaluate.rows import Row

Summary = dict[str, dict[str, Interval]]


def by_system(rows: Sequence[Row]) -> Summary:
    """{system: {metric: interval}}, in the order of the rows."""
    return grouped(rows, lambda row: row.system)


def grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> Summary:
    """{group: {metric: interval}} of whatever `key` says of a row, in the order of the rows."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: _means(members) for name, members in groups.items()}


def differences(rows: Sequence[Row], first: str, second: str) -> dict[str, Interval]:
    """Of the mean of first - second, metric by metric, over the utterances that both systems have."""
    figures = {row.key[1:]: row.figures for row in rows if row.system == second}
    pairs = [(row.figures, figures[row.key[1:]]) for row in rows if row.system == first and row.key[1:] in figures]
    names = [name for name in pairs[0][0] if name in pairs[0][1]] if pairs else []
    return dict(zip(names, intervals.of_means([[a[name] - b[name] for a, b in pairs] for name in names])))


def all_differences(rows: Sequence[Row]) -> dict[str, Summary]:
    """{first: {second: {metric: interval of the mean of first - second}}} of all pairs of systems."""
    names = list(dict.fromkeys(row.system for row in rows))
    found: dict[str, Summary] = {name: {} for name in names}
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            there = differences(rows, first, second)
            found[first][second] = there
            found[second][first] = {name: Interval(-i.mean, -i.high, -i.low, i.n) for name, i in there.items()}
    return {first: {name: found[first][name] for name in names if name != first} for first in names}


def _means(rows: Sequence[Row]) -> dict[str, Interval]:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    columns = [[row.figures.get(name, math.nan) for row in rows] for name in names]
    return dict(zip(names, intervals.of_means(columns)))
