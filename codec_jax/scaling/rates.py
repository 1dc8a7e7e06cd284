"""The rate-distortion surface: L(N, D, R) = E + A N^-alpha + B D^-beta + d(R).

Two forms of d(R), between which the runs decide. exponential: d = G 2^(-R / R_half), the distortion of a Gaussian
source of finitely many dimensions (Shannon 1959; Cover and Thomas 2006, section 10.3): every R_half bits a second
halve it. power: d = G R^-gamma, what reverse water-filling over a spectrum that itself falls as a power leaves
(Cover and Thomas 2006, section 10.3.3; for wavelets, Cohen, Daubechies, Guleryuz and Orchard 2002): each further bit
goes to a fainter component. Speech at some kilobits a second lies between; a codebook too small for its latents is
nearer to the first. Rate is a term of its own here: how much a larger model gains does not depend on it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from codec_jax.scaling import descent, intervals, laws, trust
from codec_jax.scaling.descent import Fits
from codec_jax.scaling.intervals import Ends, Resamples
from codec_jax.scaling.laws import Design
from codec_jax.scaling.trust import Axis

POWER, EXPONENTIAL = "power", "exponential"
LEAST_RATES = 3
# Log-likelihoods this far apart: the better form is e^2 times as likely.
_TELLING = 2.0


class Surface(NamedTuple):
    """form: the likelier one; other_noise: of the other form; told: whether the difference means anything.

    ends: of laws.names(3, 0, 0). unit: bits per second that R is counted in, 1 for a power.
    """

    form: str
    where: Design
    fit: Fits
    draws: Resamples
    ends: Ends
    unit: float
    other_noise: float
    told: bool


def fit(
    params: Float[np.ndarray, "run"],
    audio_seconds: Float[np.ndarray, "run"],
    bitrate: Float[np.ndarray, "run"],
    loss: Float[np.ndarray, "run"],
) -> Surface | str:
    """The surface, or why there is none."""
    levels = len(np.unique(bitrate))
    if levels < LEAST_RATES:
        return f"the runs have {levels} bit rate{'s' * (levels != 1)}, and a surface needs at least {LEAST_RATES}"
    logs = np.log(params), np.log(audio_seconds)
    axes = [
        Axis("params", "alpha", logs[0]),
        Axis("audio_seconds", "beta", logs[1]),
        Axis("bitrate", "gamma", np.log(bitrate)),
    ]
    reason = trust.before(axes, len(loss))
    if reason:
        return reason
    losses = np.log(loss)
    unit = float(bitrate.mean())
    designs = {
        POWER: laws.design([*logs, np.log(bitrate)]),
        EXPONENTIAL: laws.design([*logs, bitrate / unit]),
    }
    fits = {form: laws.fit(where, losses) for form, where in designs.items()}
    form, other = _by_likelihood(designs, fits, losses)
    where, found = designs[form], fits[form]
    reason = trust.after(where, losses, found, axes)
    if reason:
        return reason
    gap = len(loss) * float(np.log(max(fits[other].noise[0], 1e-12) / max(found.noise[0], 1e-12)))
    figures = laws.figures(where, [], where.z[:0])
    draws = intervals.resample(where, found, losses)
    ends = intervals.profile(where, found, losses, draws, figures)
    scale = unit if form == EXPONENTIAL else 1.0
    return Surface(form, where, found, draws, ends, scale, float(fits[other].noise[0]), gap > _TELLING)


def _by_likelihood(designs: Mapping[str, Design], fits: Mapping[str, Fits], losses: np.ndarray) -> tuple[str, str]:
    """The better form first, both judged with one delta."""
    delta = np.minimum(fits[POWER].delta, fits[EXPONENTIAL].delta)
    objective = {}
    for form, found in fits.items():
        residuals = losses - laws.model(designs[form])(found.params)[0]
        objective[form] = float(descent.huber(residuals, delta)[0])
    better = min(objective, key=lambda form: objective[form])
    return better, EXPONENTIAL if better == POWER else POWER


def halving(surface: Surface) -> tuple[float, float, float]:
    """Bits per second that halve the distortion of rate, and their interval; of the exponential form."""
    value, low, high = (float(np.exp(part[6])) for part in (surface.ends.value, surface.ends.low, surface.ends.high))
    return tuple(np.log(2) * surface.unit / rate for rate in (value, high, low))  # type: ignore[return-value]


def at_centre(
    surface: Surface, bitrate: Float[np.ndarray, "point"], fitted: Float[np.ndarray, "fit param"]
) -> Float[np.ndarray, "fit point"]:
    """Losses along the bit rate at the geometric means of N and D. fitted: the surface's parameters, or draws."""
    rate = np.log(bitrate) if surface.form == POWER else bitrate / surface.unit
    z = np.zeros((len(rate), 3))
    z[:, 2] = rate - surface.where.centre[2]
    return np.exp(laws.log_loss(fitted, z)[0])
