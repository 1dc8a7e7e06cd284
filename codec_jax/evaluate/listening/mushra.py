"""Ratings to figures: who is heard (ITU-R BS.1534-3, 4.1.2), means with two intervals, differences, outliers."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from codec_jax.evaluate import intervals
from codec_jax.evaluate.intervals import LEVEL, Interval
from codec_jax.evaluate.listening.results import Key, Session
from codec_jax.evaluate.listening.stimuli import MID_ANCHOR, REFERENCE

Scores = Float[np.ndarray, "listener trial"]

_GRADE, _SHARE, _ITEM_SHARE = 90, 0.15, 0.25
ENOUGH = 20  # listeners: "no more than 20 are often sufficient" (4.2)


class Ratings(NamedTuple):
    """scores: [listener, trial] per system, in the key's order. trials: utterances."""

    listeners: tuple[str, ...]
    trials: tuple[str, ...]
    scores: dict[str, Scores]


class Exclusion(NamedTuple):
    """A listener whose ratings do not count, by which rule; share: of the items, 0 .. 1."""

    listener: str
    rule: str
    share: float

    def __str__(self) -> str:
        return f"{self.listener} is excluded: {self.rule} ({self.share:.0%} of the items; ITU-R BS.1534-3, 4.1.2)."


class Screening(NamedTuple):
    """excluded: listeners. exempt: utterances whose mid-range anchor more than a quarter of all rated above 90."""

    excluded: tuple[Exclusion, ...]
    exempt: tuple[str, ...]


def gather(sessions: Sequence[Session], key: Key) -> Ratings:
    """Unblinded."""
    trials = sorted(key.trials, key=lambda name: key.trials[name]["utterance"])
    scores = {system: np.full((len(sessions), len(trials)), np.nan) for system in key.systems}
    for i, session in enumerate(sessions):
        for j, trial in enumerate(trials):
            for stimulus, score in session.answers[trial].ratings.items():
                scores[key.system(trial, stimulus)][i, j] = score
    utterances = tuple(key.trials[name]["utterance"] for name in trials)
    return Ratings(tuple(session.listener for session in sessions), utterances, scores)


# ---- post-screening ------------------------------------------------------------------------------


def screen(ratings: Ratings) -> Screening:
    """Listeners to exclude by ITU-R BS.1534-3, 4.1.2.

    Who rates the hidden reference below 90 for more than 15 % of the items, or the mid-range anchor above 90 for more
    than 15 %. An item whose mid-range anchor more than 25 % of the listeners rate above 90 says nothing about
    listeners: the second rule leaves it out, and counts its 15 % over the items that stay.
    """
    low = ratings.scores[REFERENCE] < _GRADE
    high = ratings.scores[MID_ANCHOR] > _GRADE
    telling = high.mean(axis=0) <= _ITEM_SHARE
    excluded = []
    for i, listener in enumerate(ratings.listeners):
        missed = float(low[i].mean())
        fooled = float(high[i, telling].mean()) if telling.any() else 0.0
        if missed > _SHARE:
            excluded.append(Exclusion(listener, "rates the hidden reference below 90", missed))
        elif fooled > _SHARE:
            excluded.append(Exclusion(listener, "rates the mid-range anchor above 90", fooled))
    exempt = tuple(name for name, tells in zip(ratings.trials, telling) if not tells)
    return Screening(tuple(excluded), exempt)


def kept(ratings: Ratings, screening: Screening) -> Ratings:
    """The ratings of those who are not excluded."""
    out = {exclusion.listener for exclusion in screening.excluded}
    rows = [i for i, listener in enumerate(ratings.listeners) if listener not in out]
    listeners = tuple(ratings.listeners[i] for i in rows)
    return Ratings(listeners, ratings.trials, {name: scores[rows] for name, scores in ratings.scores.items()})


# ---- figures -------------------------------------------------------------------------------------


def over_listeners(scores: Scores) -> Interval:
    """Of the mean for these utterances: a listener's mean over them is one value, listeners are drawn.

    Ratings of one listener resemble each other, so resampling single ratings would claim far too much.
    """
    return intervals.of_mean(scores.mean(axis=1))


def over_both(scores: Scores) -> Interval:
    """Of the mean for other listeners and other utterances alike; n: the smaller of their numbers.

    Both are random effects, crossed, with one rating a cell: the variance of the grand mean is that of two-way analysis
    of variance, its degrees of freedom Satterthwaite's (Cornfield and Tukey 1956; Satterthwaite 1946). It is never
    taken to be below that of either alone. NaN ends for fewer than three of either.
    """
    rows, columns = scores.shape
    mean, count = float(scores.mean()), min(rows, columns)
    if count < 3:
        return Interval(mean, math.nan, math.nan, count)
    by_row, by_column = scores.mean(axis=1), scores.mean(axis=0)
    rest = scores - by_row[:, None] - by_column + mean
    ms_row, ms_column = columns * by_row.var(ddof=1), rows * by_column.var(ddof=1)
    ms_rest = (rest**2).sum() / ((rows - 1) * (columns - 1))
    variance = ms_row + ms_column - ms_rest
    if variance <= max(ms_row, ms_column):
        variance, freedom = max((ms_row, rows - 1), (ms_column, columns - 1))
    else:
        parts = ms_row**2 / (rows - 1) + ms_column**2 / (columns - 1) + ms_rest**2 / ((rows - 1) * (columns - 1))
        freedom = variance**2 / parts
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * math.sqrt(variance / (rows * columns)))
    return Interval(mean, mean - half, mean + half, count)


def quartiles(values: Float[np.ndarray, " value"]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile as BS.1534-3, 4.1.2 has them: medians of halves, the middle in both."""
    ordered = np.sort(values)
    half = (len(ordered) + 1) // 2
    return float(np.median(ordered[:half])), float(np.median(ordered)), float(np.median(ordered[-half:]))


def outliers(ratings: Ratings) -> list[dict[str, Any]]:
    """Ratings 1.5 interquartile ranges beyond the quartiles of their sound (4.1.2): to be looked at, not removed."""
    found = []
    for system, scores in ratings.scores.items():
        for j, utterance in enumerate(ratings.trials):
            low, _, high = quartiles(scores[:, j])
            reach = 1.5 * (high - low)
            for i in np.flatnonzero((scores[:, j] < low - reach) | (scores[:, j] > high + reach)):
                names = {"listener": ratings.listeners[i], "utterance": utterance, "system": system}
                found.append({**names, "rating": int(scores[i, j])})
    return found


def figures(scores: Scores) -> dict[str, Any]:
    """mean; low and high over listeners (n); low and high over listeners and utterances; median and quartiles."""
    first, both = over_listeners(scores), over_both(scores)
    lower, median, upper = quartiles(scores.ravel())
    wide = {"low_both": both.low, "high_both": both.high}
    return {**first._asdict(), **wide, "median": median, "lower_quartile": lower, "upper_quartile": upper}


def difference(first: Scores, second: Scores) -> dict[str, Any]:
    """Of first - second, listener by listener and utterance by utterance."""
    over, both = over_listeners(first - second), over_both(first - second)
    return {**over._asdict(), "low_both": both.low, "high_both": both.high}


def analyse(sessions: Sequence[Session], key: Key) -> dict[str, Any]:
    """Everything that is told of a test; see docs/listening.md. If nobody would be left, all stay, and it is said."""
    everyone = gather(sessions, key)
    screening = screen(everyone)
    ratings, notes = kept(everyone, screening), []
    if not ratings.listeners:
        ratings = everyone
        notes.append("post-screening would leave nobody: the figures are of all listeners, and prove nothing.")
    names = list(key.systems)
    notes += [str(exclusion) for exclusion in screening.excluded]
    if screening.exempt:
        notes.append(
            "more than a quarter of the listeners rate the mid-range anchor above 90, and nobody is excluded for that "
            f"(4.1.2), on {', '.join(screening.exempt)}."
        )
    if len(everyone.listeners) <= 3:
        notes.append("with three listeners or fewer the rule about the mid-range anchor excludes nobody (4.1.2).")
    return {
        "excluded": screening.excluded,
        "exempt": screening.exempt,
        "ratings": ratings,
        "notes": notes,
        "systems": {name: figures(ratings.scores[name]) for name in names},
        "differences": {
            a: {b: difference(ratings.scores[a], ratings.scores[b]) for b in names if b != a} for a in names
        },
        "utterances": _by_utterance(ratings),
        "outliers": outliers(ratings),
    }


def _by_utterance(ratings: Ratings) -> dict[str, Any]:
    return {
        utterance: {name: intervals.of_mean(scores[:, j])._asdict() for name, scores in ratings.scores.items()}
        for j, utterance in enumerate(ratings.trials)
    }
