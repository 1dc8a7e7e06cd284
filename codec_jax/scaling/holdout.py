"""How far to trust a law beyond its runs: fit it without the costliest ones, and predict them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from codec_jax.scaling import intervals, isoflop, laws, trust
from codec_jax.scaling.trust import Axis

_SHARE = 0.2


class Holdout(NamedTuple):
    """runs: indices held out. predicted [run]. errors [run, 3]: predicted / measured - 1, low, high. mean_error: [3].

    An interval is the law's alone; noise, of a single run about the law, stands beside it. beyond: the largest compute
    held out over the largest fitted. within: how many runs lie as near as law and noise together allow.
    """

    runs: tuple[int, ...]
    fitted: int
    beyond: float
    noise: float
    predicted: np.ndarray
    errors: np.ndarray
    mean_error: np.ndarray
    within: int


def extrapolate(
    params: Float[np.ndarray, "run"],
    audio_seconds: Float[np.ndarray, "run"],
    compute: Float[np.ndarray, "run"],
    loss: Float[np.ndarray, "run"],
) -> Holdout | str:
    """Without the costliest runs, a fifth or more (all of one compute, or none), or why that cannot be done."""
    held = _largest(compute)
    kept = np.setdiff1d(np.arange(len(loss)), held)
    logs, losses = (np.log(params), np.log(audio_seconds)), np.log(loss)
    axes = [Axis("params", "alpha", logs[0][kept]), Axis("audio_seconds", "beta", logs[1][kept])]
    reason = trust.before(axes, len(kept))
    if reason is None:
        where = laws.design([axis.logs for axis in axes])
        found = laws.fit(where, losses[kept])
        reason = trust.after(where, losses[kept], found, axes)
    if reason is not None:
        return f"without the costliest runs, {reason}"
    points = np.stack(logs, axis=1)[held] - where.centre
    draws = intervals.resample(where, found, losses[kept])
    ends = intervals.profile(where, found, losses[kept], draws, laws.figures(where, [], points))
    first = laws.names(2, 0, len(held)).index("point 0")
    logs_off = np.stack([part[first:] for part in ends[:3]], axis=1) - losses[held][:, None]
    noise = float(found.noise[0])
    reach = intervals.student(len(kept) - 5) * noise
    below, above = logs_off[:, 0] - logs_off[:, 1], logs_off[:, 2] - logs_off[:, 0]
    allowed = np.hypot(np.where(logs_off[:, 0] > 0, below, above), reach)
    return Holdout(
        tuple(int(i) for i in held),
        len(kept),
        float(compute[held].max() / compute[kept].max()),
        noise,
        np.exp(ends.value[first:]),
        np.expm1(logs_off),
        np.expm1(logs_off.mean(0)),
        int((np.abs(logs_off[:, 0]) <= allowed + 1e-9).sum()),
    )


def _largest(compute: np.ndarray) -> np.ndarray:
    """Whole groups of equal compute from the top, until they are a fifth of the runs; one more only if enough stay."""
    least = trust.least_runs(2)
    held: list[int] = []
    for group in reversed(isoflop.groups(compute)):
        if len(held) >= _SHARE * len(compute) or (held and len(compute) - len(held) - len(group) < least):
            break
        held += group.tolist()
    return np.sort(np.asarray(held, int))
