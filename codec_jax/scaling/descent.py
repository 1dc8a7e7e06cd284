"""Many small robust fits at once: Huber regression of log-losses by Levenberg-Marquardt, all fits of a batch in step.

A bootstrap is a thousand fits of five parameters to a dozen numbers; one by one they would take minutes. Everything is
float64 on the host, and the same numbers give the same bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

HUBER = 1.345  # times the noise: 95 % as efficient as least squares under normal noise (Huber 1981, section 4.2)
# E[min(z^2, HUBER^2)] of a standard normal z: so proposal 2's scale is the standard deviation of normal noise.
_CONSISTENCY = 0.7101645
_PENALTY = 1e3
_MOST_STEPS = 200
EXACT, CLOSE = 1e-13, 1e-8  # tolerances: of a fit that is stated, and of one of a thousand draws
_LEAST_SQUARES = 1e6  # a delta beyond any residual

Params = Float[np.ndarray, "fit param"]
Losses = Float[np.ndarray, "fit run"]
# Parameters to predicted log-losses [fit, run] and their derivatives [fit, run, param].
Model = Callable[[Params], tuple[np.ndarray, np.ndarray]]
# Parameters to figures of them [fit, figure] and their derivatives [fit, figure, param].
Figures = Callable[[Params], tuple[np.ndarray, np.ndarray]]
Bounds = tuple[Float[np.ndarray, "param"], Float[np.ndarray, "param"]]


class Held(NamedTuple):
    """One figure for every fit of a batch, and the value that it must take there."""

    figures: Figures
    which: Int[np.ndarray, "fit"]
    value: Float[np.ndarray, "fit"]

    def of(self, rows: np.ndarray) -> "Held":
        """Of some fits of the batch."""
        return Held(self.figures, self.which[rows], self.value[rows])


class Fits(NamedTuple):
    """params [fit, param]; objective [fit], the Huber sum; noise and delta [fit], in units of log-loss."""

    params: np.ndarray
    objective: np.ndarray
    noise: np.ndarray
    delta: np.ndarray

    def row(self, index: int) -> "Fits":
        """One fit of the batch, still as a batch."""
        return Fits(*(part[index : index + 1] for part in self))

    def repeated(self, count: int) -> "Fits":
        """Every fit `count` times in a row."""
        return Fits(*(np.repeat(part, count, axis=0) for part in self))


def huber(residuals: Float[np.ndarray, "fit run"], delta: Float[np.ndarray, "fit"]) -> Float[np.ndarray, "fit"]:
    """Sum over runs: r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size, delta = np.abs(residuals), delta[:, None]
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum(-1)


def fit(
    model: Model,
    losses: Losses,
    start: Params,
    bounds: Bounds,
    delta: np.ndarray,
    held: Held | None = None,
    tolerance: float = EXACT,
) -> tuple[np.ndarray, np.ndarray]:
    """The params and objective that minimise the Huber sum of losses - model(params), for every row at once.

    losses: logarithms. start: [fit, param]. delta: [fit]. held: keeps figures at values, by a penalty that leaves
    them within some 1e-5 of their standard errors. tolerance: a fit is done once a step gains no more than this share
    of its objective.
    """
    params = np.clip(start, *bounds)
    damping = np.full(len(params), 1e-3)
    found = _terms(model, losses, params, delta, held)
    live = np.arange(len(params))
    for _ in range(_MOST_STEPS):
        objective, gradient, curvature = (part[live] for part in found)
        trial = np.clip(params[live] + _step(gradient, curvature, damping[live]), *bounds)
        there = _terms(model, losses[live], trial, delta[live], None if held is None else held.of(live))
        better = there[0] <= objective
        moved = np.abs(trial - params[live]).max(-1)
        params[live[better]] = trial[better]
        for mine, theirs in zip(found, there):
            mine[live[better]] = theirs[better]
        damping[live] = np.where(better, damping[live] * 0.2, damping[live] * 5.0).clip(1e-12, 1e12)
        small = (moved < 1e-10) | (objective - there[0] <= tolerance * objective)
        live = live[~np.where(better, small, damping[live] > 1e10)]
        if not len(live):
            break
    return params, found[0]


def _terms(model: Model, losses: np.ndarray, params: np.ndarray, delta: np.ndarray, held: Held | None):
    """Objective [fit], gradient [fit, param] and the reweighted J^T J [fit, param, param]."""
    predicted, slopes = model(params)
    residuals = losses - predicted
    # Huber's gradient is that of least squares with these weights, and the step that they give never overshoots.
    weights = 1.0 / np.maximum(1.0, np.abs(residuals) / delta[:, None])
    weighted = slopes * weights[..., None]
    objective = huber(residuals, delta)
    gradient = -np.einsum("frp,fr->fp", weighted, residuals)
    curvature = np.swapaxes(weighted, 1, 2) @ slopes
    if held is not None:
        rows = np.arange(len(params))
        values, derivatives = held.figures(params)
        off, slope = values[rows, held.which] - held.value, derivatives[rows, held.which]
        objective = objective + 0.5 * _PENALTY * off**2
        gradient = gradient + _PENALTY * off[:, None] * slope
        curvature = curvature + _PENALTY * slope[:, :, None] * slope[:, None, :]
    return objective, gradient, curvature


def _step(gradient: np.ndarray, curvature: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Marquardt's: damped in proportion to the diagonal."""
    size = np.einsum("fpp->fp", curvature)
    floor = 1e-12 * size.max(-1, keepdims=True) + 1e-300
    added = damping[:, None] * (size + floor) + floor
    damped = curvature + added[:, :, None] * np.eye(size.shape[1])
    return -np.linalg.solve(damped, gradient[..., None])[..., 0]


def fit_with_noise(
    model: Model, losses: Losses, start: Params, bounds: Bounds, least_delta: float, tolerance: float = EXACT
) -> Fits:
    """As `fit`, with delta HUBER times the noise of the fit itself and at least `least_delta`.

    Huber's proposal 2 (1981, section 7.7), begun at least squares; noise has runs - params degrees of freedom.
    """
    free = losses.shape[1] - start.shape[1]
    params, delta = start, np.full(len(losses), _LEAST_SQUARES)
    noise = np.zeros(len(losses))
    for i in range(6):
        params, objective = fit(model, losses, params, bounds, delta, None, tolerance)
        residuals = losses - model(params)[0]
        noise = proposal_2(residuals, free, np.sqrt((residuals**2).sum(-1) / free) if i == 0 else noise)
        following = np.maximum(HUBER * noise, least_delta)
        if np.allclose(following, delta, rtol=1e-4) or i == 5:
            break
        delta = following
    return Fits(params, objective, noise, delta)


def proposal_2(
    residuals: Float[np.ndarray, "fit run"], free: int, start: Float[np.ndarray, "fit"]
) -> Float[np.ndarray, "fit"]:
    """Standard deviation of normal noise with `free` degrees of freedom, residuals beyond HUBER of it cut to that."""
    noise = start
    for _ in range(30):
        cut = np.minimum(np.abs(residuals), HUBER * noise[:, None])
        noise = np.sqrt((cut**2).sum(-1) / (_CONSISTENCY * free))
    return noise
