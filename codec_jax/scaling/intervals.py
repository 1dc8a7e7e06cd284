"""Intervals of what a fitted law says: profiles of the Huber objective, their critical values from a bootstrap.

A figure's interval holds the values that the data do not speak against: with the figure kept at such a value and all
else fitted anew, the objective rises by no more than it does in 95 of 100 resampled data sets, each kept at the value
that was true for it. Resamples are the fitted law plus normal noise of the estimated size. Percentiles of the resampled
parameters themselves, which are what is usually given, cover the truth in 91 to 94 of 100 sweeps of a dozen runs
(docs/scaling.md has the measurement); profiles cover it in 95 to 99, and follow the bends of the law.
"""

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

from codec_jax.scaling import descent, laws
from codec_jax.scaling.descent import Figures, Fits, Held
from codec_jax.scaling.laws import Design

LEVEL = 0.95
DRAWS = 1000
# Huber's statistic of normal noise, relative to that of least squares: E[psi^2] / E[psi'] at HUBER.
_HUBER_RATIO = 0.8646
_FARTHEST = 14.0  # natural logarithms: an end beyond is open
_EXACT = 1e-8  # noise below this is float rounding, not noise


class Ends(NamedTuple):
    """value, low, high [figure], in the units of the figures; open_low, open_high: the data do not bound it there."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    open_low: np.ndarray
    open_high: np.ndarray


class Resamples(NamedTuple):
    """losses [draw, run] of the fitted law with new noise, and the law fitted to each."""

    losses: np.ndarray
    fits: Fits


def resample(where: Design, found: Fits, losses: Float[np.ndarray, "run"], draws: int | None = None) -> Resamples:
    """Seeded: the same data give the same draws. draws: how many (None: DRAWS)."""
    draws = draws or DRAWS
    model = laws.model(where)
    noise = np.random.default_rng(0).standard_normal((draws, len(losses)))
    drawn = model(found.params)[0] + found.noise * noise
    start = np.repeat(found.params, draws, axis=0)
    return Resamples(
        drawn, descent.fit_with_noise(model, drawn, start, laws.bounds(where, losses), laws.LEAST_DELTA, descent.CLOSE)
    )


def profile(where: Design, found: Fits, losses: Float[np.ndarray, "run"], draws: Resamples, figures: Figures) -> Ends:
    """The interval of every figure."""
    value, slopes = figures(found.params)
    value, count = value[0], value.shape[1]
    closed = np.zeros(count, bool)
    if found.noise[0] < _EXACT:
        return Ends(value, value, value, closed, closed)
    critical = np.asarray([_critical(where, found, losses, draws, figures, i) for i in range(count)])
    search = _Search(where, found.repeated(2 * count), losses, figures, np.tile(np.arange(count), 2))
    sign = np.repeat([-1.0, 1.0], count)
    reach, is_open = _reach(search, sign, np.tile(critical, 2), _standard_errors(where, found, slopes[0]))
    ends = np.tile(value, 2) + sign * reach
    return Ends(value, ends[:count], ends[count:], is_open[:count], is_open[count:])


def _critical(where: Design, found: Fits, losses: np.ndarray, draws: Resamples, figures: Figures, index: int) -> float:
    """Root of the statistic that 95 % of resamples stay below, and at least what normal theory asks for."""
    count = len(draws.losses)
    held = Held(figures, np.full(count, index), np.repeat(figures(found.params)[0][:, index], count))
    start = np.repeat(found.params, count, axis=0)
    limits = laws.bounds(where, losses)
    _, objective = descent.fit(laws.model(where), draws.losses, start, limits, draws.fits.delta, held, descent.CLOSE)
    least = student(len(losses) - found.params.shape[1]) * np.sqrt(_HUBER_RATIO)
    return max(float(np.quantile(_root(objective, draws.fits), LEVEL)), least)


def student(free: int) -> float:
    """Student's t at LEVEL, both sides."""
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, free))


def _root(objective: np.ndarray, best: Fits) -> np.ndarray:
    """How far an objective lies above the best, in standard errors."""
    return np.sqrt(np.maximum(2 * (objective - best.objective), 0.0)) / best.noise


def _standard_errors(where: Design, found: Fits, slopes: np.ndarray) -> np.ndarray:
    """[figure], by linear theory: only the first step of a search."""
    _, jacobian = laws.log_loss(found.params, where.z)
    covariance = np.linalg.pinv(jacobian[0].T @ jacobian[0], rcond=1e-10) * found.noise[0] ** 2
    return np.sqrt(np.einsum("fp,pq,fq->f", slopes, covariance, slopes))


class _Search(NamedTuple):
    where: Design
    best: Fits
    losses: np.ndarray
    figures: Figures
    which: np.ndarray

    def roots(
        self, reach: np.ndarray, sign: np.ndarray, start: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Statistics, parameters, and how far off the figures stayed, with every figure `reach` from its best value."""
        count = len(sign)
        rows = np.arange(count)
        wanted = self.figures(self.best.params)[0][rows, self.which] + sign * reach
        held = Held(self.figures, self.which, wanted)
        many = np.repeat(self.losses[None], count, axis=0)
        limits = laws.bounds(self.where, self.losses)
        params, objective = descent.fit(
            laws.model(self.where), many, start, limits, self.best.delta, held, descent.CLOSE
        )
        off = np.abs(self.figures(params)[0][rows, self.which] - wanted)
        return _root(objective, self.best), params, off


def _reach(
    search: _Search, sign: np.ndarray, critical: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far every figure goes until its statistic is critical, and whether it never is: outwards, then in between."""
    near, far = np.zeros(len(sign)), np.minimum(np.tile(errors, 2), 0.5)
    below, above = -critical, np.full(len(sign), np.nan)
    params = search.best.params.copy()
    is_open, going = np.zeros(len(sign), bool), np.ones(len(sign), bool)
    while going.any():
        roots, there, off = search.roots(far, sign, params)
        stuck = off > 0.05 * np.maximum(far, 1e-3)  # at a bound of the parameters
        crossed = (roots >= critical) & ~stuck
        is_open |= going & ~crossed & ((far >= _FARTHEST) | stuck)
        above = np.where(going & crossed, roots - critical, above)
        onwards = going & ~crossed & ~is_open
        near, below = np.where(onwards, far, near), np.where(onwards, roots - critical, below)
        params[onwards] = there[onwards]
        far = np.where(onwards, np.minimum(far * 1.5 + 1e-12, _FARTHEST), far)
        going = onwards
    for i in range(16):
        # Regula falsi, every third step halved so that a bent curve cannot stall it.
        middle = near + (far - near) * (below / (below - above)) if i % 3 < 2 else 0.5 * (near + far)
        middle = np.where(is_open, far, middle)
        roots, there, _ = search.roots(middle, sign, params)
        inside = (roots < critical) & ~is_open
        near, below = np.where(inside, middle, near), np.where(inside, roots - critical, below)
        params[inside] = there[inside]
        outside = ~inside & ~is_open
        far, above = np.where(outside, middle, far), np.where(outside, roots - critical, above)
    return np.where(is_open, far, 0.5 * (near + far)), is_open
