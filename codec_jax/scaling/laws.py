"""L = E + A N^-alpha + B D^-beta, its fit, and what follows from it for a given compute.

The form and its logarithm as a logsumexp are those of Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and
appendix D.3, with D in seconds of audio. A third term, of the bit rate, makes it a rate-distortion surface
(`rates.py`), so a law here is a floor and any number of terms c exp(-k z): z a logarithm gives a power, z itself a
decay.

Parameters of a fit, all free of sign: [log E, log c_1, log k_1, log c_2, log k_2, ...], where z is counted from its
mean over the runs, so that another unit of N or D changes no step of the search.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float

from codec_jax.scaling import descent
from codec_jax.scaling.descent import Bounds, Figures, Fits

# Of exponents. Losses of codecs fall with powers of 0.1 to 1; a fit that wants another decade has found something else.
EXPONENTS = (0.01, 5.0)
# A floor or a term that is so much smaller than the smallest loss is none.
_NOTHING = 12.0
_STARTS = 32
LEAST_DELTA = 1e-3  # of Hoffmann et al.: noise below this is rounding

FLOOR, PARAMS, AUDIO, RATE = 0, 1, 2, 3  # terms, in order


class Design(NamedTuple):
    """Where the runs lie: z [run, term], counted from `centre` [term]."""

    z: np.ndarray
    centre: np.ndarray


def design(columns: Sequence[Float[np.ndarray, "run"]]) -> Design:
    """One column a term: logarithms for powers, plain numbers for decays."""
    z = np.stack(columns, axis=1).astype(np.float64)
    centre = z.mean(0)
    return Design(z - centre, centre)


def log_loss(
    params: Float[np.ndarray, "fit param"], z: Float[np.ndarray, "... run term"]
) -> tuple[Float[np.ndarray, "fit run"], Float[np.ndarray, "fit run param"]]:
    """Predicted log-losses and their derivatives by every parameter.

    z: from the centre of the design, the same for all fits or of each.
    """
    exponents = np.exp(params[:, 2::2])
    runs, terms = z.shape[-2:]
    parts = np.empty((len(params), runs, 1 + terms))
    parts[..., 0] = params[:, :1]
    parts[..., 1:] = params[:, None, 1::2] - exponents[:, None, :] * z
    top = parts.max(-1, keepdims=True)
    shares = np.exp(parts - top)
    total = shares.sum(-1, keepdims=True)
    shares /= total
    slopes = np.empty((len(params), runs, 1 + 2 * terms))
    slopes[..., 0] = shares[..., 0]
    slopes[..., 1::2] = shares[..., 1:]
    slopes[..., 2::2] = -shares[..., 1:] * z * exponents[:, None, :]
    return (top + np.log(total))[..., 0], slopes


def model(where: Design) -> descent.Model:
    """`log_loss` at the runs."""
    return lambda params: log_loss(params, where.z)


def bounds(where: Design, losses: Float[np.ndarray, "run"]) -> Bounds:
    """Of every parameter, from log-losses."""
    terms = where.z.shape[1]
    low = [losses.min() - _NOTHING, *[losses.min() - _NOTHING, np.log(EXPONENTS[0])] * terms]
    high = [losses.max() + 1.0, *[losses.max() + 3.0, np.log(EXPONENTS[1])] * terms]
    return np.asarray(low), np.asarray(high)


def fit(where: Design, losses: Float[np.ndarray, "run"]) -> Fits:
    """The law of these log-losses: the best of many starts, robustly (`descent.fit_with_noise`); a batch of one.

    Starts are a grid of exponents, at each of which floor and coefficients are linear and solved for.
    """
    starts = _starts(where, losses)
    many = np.repeat(losses[None], len(starts), axis=0)
    limits = bounds(where, losses)
    found = descent.fit_with_noise(model(where), many, starts, limits, LEAST_DELTA)
    # Objectives of several deltas cannot be compared; one of all, the least noisy fit's, can.
    delta = np.full(len(starts), found.delta[np.argmin(found.noise)])
    residuals = many - model(where)(found.params)[0]
    return found.row(int(np.argmin(descent.huber(residuals, delta))))


def _starts(where: Design, losses: np.ndarray) -> np.ndarray:
    """The best points of the grid [start, param], by relative residuals."""
    terms = where.z.shape[1]
    grid = np.exp(np.linspace(np.log(0.05), np.log(2.0), 10 if terms < 3 else 6))
    loss, found = np.exp(losses), []
    for exponents in itertools.product(grid, repeat=terms):
        columns = np.column_stack([np.ones(len(loss)), np.exp(-where.z * exponents)]) / loss[:, None]
        solved, rest = scipy.optimize.nnls(columns, np.ones(len(loss)))
        logs = np.log(np.maximum(solved, 1e-3 * loss.min()))
        found.append((rest, [logs[0], *itertools.chain(*zip(logs[1:], np.log(exponents)))]))
    found.sort(key=lambda start: start[0])
    return np.asarray([params for _, params in found[:_STARTS]])


# ---- what follows from a fit -------------------------------------------------------------------


def coefficients(where: Design, params: Float[np.ndarray, "fit param"]) -> Float[np.ndarray, "fit term"]:
    """The logarithms of A, B, ...: of the terms at N = 1, D = 1."""
    return params[:, 1::2] + np.exp(params[:, 2::2]) * where.centre


def log_optimum(
    where: Design, params: Float[np.ndarray, "fit param"], log_product: float
) -> tuple[Float[np.ndarray, "fit 3"], Float[np.ndarray, "fit 3 param"]]:
    """The logarithms of N*, D*, L* where N D is given, and their derivatives (Hoffmann et al., equation 4).

    There alpha A N^-alpha = beta B D^-beta.
    """
    logs, centre = coefficients(where, params), where.centre
    alpha, beta = np.exp(params[:, 2]), np.exp(params[:, 4])
    total = alpha + beta
    size = (logs[:, 0] + params[:, 2] - logs[:, 1] - params[:, 4] + beta * log_product) / total
    slope = np.zeros_like(params)
    slope[:, 1], slope[:, 3] = 1 / total, -1 / total
    slope[:, 2] = (1 + alpha * (centre[0] - size)) / total
    slope[:, 4] = (-1 + beta * (log_product - centre[1] - size)) / total
    here = np.stack([size, log_product - size], axis=-1)[:, None] - centre
    loss, loss_slope = log_loss(params, here)  # at an optimum, moving it changes nothing
    values = np.stack([size, log_product - size, loss[:, 0]], axis=1)
    return values, np.stack([slope, -slope, loss_slope[:, 0]], axis=1)


def figures(where: Design, log_products: Sequence[float], points: Float[np.ndarray, "point term"]) -> Figures:
    """All that intervals are made for, each free of sign, in the order of `names`.

    log_products: of N D, to find the optimum for. points: z from the centre, to predict log-losses at.
    """

    def found(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count, terms = params.shape[1], where.z.shape[1]
        values, slopes = [params], [np.broadcast_to(np.eye(count), (len(params), count, count)).copy()]
        # The coefficients in the units of the runs, in the place of those at the centre.
        values[0] = params.copy()
        values[0][:, 1::2] = coefficients(where, params)
        for i in range(terms):
            slopes[0][:, 1 + 2 * i, 2 + 2 * i] = np.exp(params[:, 2 + 2 * i]) * where.centre[i]
        if terms == 2:
            values.append(params[:, 4:5] - params[:, 2:3])  # the logit of a = beta / (alpha + beta)
            slopes.append(np.broadcast_to([[0.0, 0.0, -1.0, 0.0, 1.0]], (len(params), 1, count)))
            optima = [log_optimum(where, params, log_product) for log_product in log_products]
            values += [value for value, _ in optima]
            slopes += [slope for _, slope in optima]
        at_points = log_loss(params, points)
        return np.concatenate([*values, at_points[0]], axis=1), np.concatenate([*slopes, at_points[1]], axis=1)

    return found


def names(terms: int, computes: int, points: int) -> list[str]:
    """Of `figures`, in order."""
    letters = [("A", "alpha"), ("B", "beta"), ("G", "gamma")][:terms]
    found = ["E", *itertools.chain(*letters)]
    if terms == 2:
        found.append("a")
        for i in range(computes):
            found += [f"params {i}", f"audio_seconds {i}", f"loss {i}"]
    return found + [f"point {i}" for i in range(points)]
