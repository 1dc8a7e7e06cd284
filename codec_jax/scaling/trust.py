"""When a law is not fitted, or not believed: each check answers with the reason, or with None."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from codec_jax.scaling import descent, intervals, laws
from codec_jax.scaling.descent import Fits
from codec_jax.scaling.laws import Design

# Degrees of freedom that noise is told from law by: with two, an interval is 4.3 standard errors wide, with three 3.2.
LEAST_FREE = 3
LEAST_LEVELS = 3  # of a power of N beside a floor: two numbers of its own, and the floor
_SAME_LEVEL = 0.05
_MOST_SHARED = 0.98


class Axis(NamedTuple):
    """One thing that the loss depends on: how a sentence calls it and its exponent, and its logarithm [run]."""

    name: str
    exponent: str
    logs: np.ndarray


def least_runs(terms: int) -> int:
    """Parameters of a law and LEAST_FREE."""
    return 1 + 2 * terms + LEAST_FREE


def before(axes: Sequence[Axis], count: int) -> str | None:
    """Whether these runs can hold a law at all."""
    least = least_runs(len(axes))
    if count < least:
        return (
            f"there are {count} runs, and {1 + 2 * len(axes)} parameters need at least {least}: {LEAST_FREE} more, to "
            "tell noise from law"
        )
    for axis in axes:
        count_of = len(levels(np.exp(axis.logs)))
        if count_of < LEAST_LEVELS:
            return (
                f"{axis.name} takes {count_of} value{'s' * (count_of > 1)}, and {axis.exponent} beside a floor needs "
                f"at least {LEAST_LEVELS}"
            )
    for axis in axes:
        others = np.column_stack([np.ones(count), *(other.logs for other in axes if other is not axis)])
        rest = axis.logs - others @ np.linalg.lstsq(others, axis.logs, rcond=None)[0]
        if 1 - rest.var() / axis.logs.var() > _MOST_SHARED:
            return f"{axis.name} rises and falls with the others: vary it on its own, or nobody can tell them apart"
    return None


def levels(values: Float[np.ndarray, "run"]) -> Float[np.ndarray, "level"]:
    """Values that differ by more than a twentieth, each the geometric mean of those that do not; in order."""
    logs = np.sort(np.log(values))
    return np.exp([part.mean() for part in np.split(logs, 1 + np.flatnonzero(np.diff(logs) > _SAME_LEVEL))])


def after(where: Design, losses: Float[np.ndarray, "run"], found: Fits, axes: Sequence[Axis]) -> str | None:
    """Whether the law that was found says anything."""
    about = losses - np.median(losses)
    spread = descent.proposal_2(about[None], len(losses) - 1, np.asarray([about.std(ddof=1)]))[0]
    if found.noise[0] >= spread:
        return (
            f"the law leaves {_percent(found.noise[0])} unexplained, and a constant {_percent(spread)}: it fits nothing"
        )
    for index, axis in enumerate(axes):
        exponent = float(np.exp(found.params[0, 2 + 2 * index]))
        if exponent > 0.99 * laws.EXPONENTS[1] or exponent < 1.01 * laws.EXPONENTS[0]:
            low, high = laws.EXPONENTS
            return f"{axis.exponent} ran to {exponent:.3g}, the end of its range {low} to {high}"
    for index, axis in enumerate(axes):
        if not _matters(where, losses, found, index):
            return f"the losses do not fall with {axis.name} beyond the noise of {_percent(found.noise[0])}"
    return None


def _matters(where: Design, losses: np.ndarray, found: Fits, index: int) -> bool:
    """F test of the law without one of its terms, with Huber's objective of the whole law."""
    if found.noise[0] < 1e-8:
        return True
    kept = [i for i in range(where.z.shape[1]) if i != index]
    rest = Design(where.z[:, kept], where.centre[kept])
    start = laws.fit(rest, losses).params
    _, objective = descent.fit(laws.model(rest), losses[None], start, laws.bounds(rest, losses), found.delta)
    free = len(losses) - found.params.shape[1]
    least = 2 * scipy.stats.f.ppf(intervals.LEVEL, 2, free)
    return bool(2 * (objective[0] - found.objective[0]) > least * found.noise[0] ** 2)


def _percent(noise: float) -> str:
    return f"{100 * noise:.2g} %"
