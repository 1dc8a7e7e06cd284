"""A table of runs to everything that can be said of it: the law, its optimum, profiles, rate, and a hold-out.

Each analysis either has its figures in `summary` or its reason in `summary["refused"]`; one refused stops no other.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from codec_jax.scaling import holdout, intervals, isoflop, laws, rates, trust
from codec_jax.scaling.descent import Fits
from codec_jax.scaling.intervals import Ends, Resamples
from codec_jax.scaling.isoflop import Isoflop
from codec_jax.scaling.laws import Design
from codec_jax.scaling.rates import Surface
from codec_jax.scaling.table import Run, Table
from codec_jax.scaling.trust import Axis

LETTERS = ("E", "A", "alpha", "B", "beta")
PARAMETRIC, FLOOR, OPTIMUM = "parametric", "irreducible_loss", "compute_optimal"
ISOFLOP, RATE, HOLDOUT = "isoflop", "rate_distortion", "holdout"
_VERSION = 1


class Columns(NamedTuple):
    """The runs of the parametric law, float64 [run]. unit: of compute. factor: C / N D: least, median, most."""

    params: np.ndarray
    audio_seconds: np.ndarray
    loss: np.ndarray
    compute: np.ndarray
    unit: str
    factor: tuple[float, float, float]


class Law(NamedTuple):
    """The parametric law as fitted: what plots draw from. computes: that optima were asked for."""

    where: Design
    fit: Fits
    draws: Resamples
    ends: Ends
    computes: tuple[float, ...]


class Result(NamedTuple):
    """summary: fit.json. law, isoflop, surface: None where refused (profiles that failed are kept for their plot)."""

    summary: dict[str, Any]
    table: Table
    runs: tuple[Run, ...]
    columns: Columns
    law: Law | None
    isoflop: Isoflop
    surface: Surface | None


def analyse(table: Table, computes: Sequence[float] = (), bitrate: float | None = None) -> Result:
    """All analyses. computes: to predict the optimum for (none: the largest that was spent, and ten times that).

    bitrate: of the runs that the law of N and D is fitted to (None: that with most runs, the lowest of several).
    """
    refused: dict[str, str] = {}
    notes: list[str] = []
    runs, rate = _at_one_bitrate(table, bitrate, notes)
    columns = _columns(runs, notes)
    law = _law(columns, computes, refused, notes)
    profiles = isoflop.fit(columns.params, columns.audio_seconds, columns.compute, columns.loss)
    if profiles.reason:
        refused[ISOFLOP] = profiles.reason
    surface = _surface(table, refused)
    held = holdout.extrapolate(columns.params, columns.audio_seconds, columns.compute, columns.loss)
    if isinstance(held, str):
        refused[HOLDOUT] = held
    summary = {
        "version": _VERSION,
        **(
            _letters(law.ends, float(columns.loss.min()))
            if law
            else {name: _interval(None, None, None) for name in LETTERS}
        ),
        "refused": refused,
        "level": intervals.LEVEL,
        "loss": table.loss,
        "loss_turned": table.turned,
        "bitrate": rate,
        "n": len(runs),
        "noise": float(law.fit.noise[0]) if law else None,
        "huber_delta": float(law.fit.delta[0]) if law else None,
        "seed_noise": _seed_noise(runs),
        "compute_unit": columns.unit,
        "compute_per_param_second": _interval(columns.factor[1], columns.factor[0], columns.factor[2]),
        OPTIMUM: _optimum(law, columns) if law else None,
        ISOFLOP: _isoflop(profiles, runs),
        RATE: _rate(surface) if surface else None,
        HOLDOUT: None if isinstance(held, str) else _holdout(held, runs),
        "runs": [run.name for run in runs],
        "excluded": [entry._asdict() for entry in table.excluded],
        "notes": notes,
    }
    return Result(_plain(summary), table, runs, columns, law, profiles, surface)


# ---- the runs ----------------------------------------------------------------------------------


def _at_one_bitrate(table: Table, wanted: float | None, notes: list[str]) -> tuple[tuple[Run, ...], float | None]:
    """Floors differ between bit rates, so a law of N and D is of one."""
    counts = Counter(run.bitrate for run in table.runs)
    if not counts:
        return (), wanted
    chosen = min(counts, key=lambda rate: (-counts[rate], rate or 0.0)) if wanted is None else wanted
    kept = tuple(run for run in table.runs if run.bitrate == chosen)
    if len(kept) < len(table.runs):
        others = len(table.runs) - len(kept)
        shown = "no stated bit rate" if chosen is None else f"{chosen:g} bit/s"
        notes.append(
            f"The law of N and D is of the {len(kept)} runs at {shown}; {others} at other rates are set aside."
        )
    return kept, chosen


def _columns(runs: Sequence[Run], notes: list[str]) -> Columns:
    params, audio, loss = (
        np.asarray([getattr(run, name) for run in runs], np.float64) for name in ("params", "audio_seconds", "loss")
    )
    product = params * audio
    flops = [run.flops for run in runs if run.flops is not None]
    if not runs or len(flops) < len(runs):
        if flops:
            notes.append(f"Only {len(flops)} of {len(runs)} runs state their FLOPs: compute is counted as N D.")
        return Columns(params, audio, loss, product, "param_seconds", (1.0, 1.0, 1.0))
    compute = np.asarray(flops, np.float64)
    ratio = compute / product
    factor = (float(ratio.min()), float(np.median(ratio)), float(ratio.max()))
    if factor[2] > 1.25 * factor[0]:
        notes.append(
            f"FLOPs per parameter and second of audio vary from {factor[0]:.3g} to {factor[2]:.3g} between runs; the "
            f"optimum is computed with their median, {factor[1]:.3g}."
        )
    return Columns(params, audio, loss, compute, "flop", factor)


def _seed_noise(runs: Sequence[Run]) -> dict[str, float] | None:
    """Standard deviation of log-loss between runs that differ in nothing but the seed."""
    cells: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        cells.setdefault((run.params, run.audio_seconds), []).append(math.log(run.loss))
    several = [np.asarray(cell) for cell in cells.values() if len(cell) > 1]
    free = sum(len(cell) - 1 for cell in several)
    if not free:
        return None
    return {"value": math.sqrt(sum(((cell - cell.mean()) ** 2).sum() for cell in several) / free), "free": free}


# ---- the law -----------------------------------------------------------------------------------


def _law(columns: Columns, computes: Sequence[float], refused: dict[str, str], notes: list[str]) -> Law | None:
    """The law of N and D with its intervals, unless refused."""
    logs = np.log(columns.params), np.log(columns.audio_seconds)
    axes = [Axis("params", "alpha", logs[0]), Axis("audio_seconds", "beta", logs[1])]
    reason = trust.before(axes, len(columns.loss))
    if reason is None:
        where, losses = laws.design(logs), np.log(columns.loss)
        found = laws.fit(where, losses)
        reason = trust.after(where, losses, found, axes)
    if reason is not None:
        refused[PARAMETRIC] = reason
        refused[OPTIMUM] = "there is no law to take an optimum of"
        return None
    asked = tuple(computes) or (float(columns.compute.max()), 10 * float(columns.compute.max()))
    figures = laws.figures(where, np.log(np.asarray(asked) / columns.factor[1]).tolist(), where.z[:0])
    draws = intervals.resample(where, found, losses)
    ends = intervals.profile(where, found, losses, draws, figures)
    names = laws.names(2, len(asked), 0)
    if ends.open_low[0]:
        refused[FLOOR] = (
            "E is not told from zero: these losses are no nearer to their floor than to a plain power law, so what a "
            "much larger run would reach is unknown"
        )
    for name in ("alpha", "beta"):
        i = names.index(name)
        sides = [side for side, is_open in (("below", ends.open_low[i]), ("above", ends.open_high[i])) if is_open]
        if len(sides) == 2:
            refused[PARAMETRIC] = f"{name} can be anything from {laws.EXPONENTS[0]} to {laws.EXPONENTS[1]}"
            refused[OPTIMUM] = "there is no law to take an optimum of"
            return None
        if sides:
            notes.append(f"The data do not bound {name} {sides[0]}: its interval ends where the search did.")
    return Law(where, found, draws, ends, asked)


def _letters(ends: Ends, least_loss: float) -> dict[str, Any]:
    """E, A, alpha, B, beta in their own units; an E that ran away is 0."""
    found = {}
    for i, name in enumerate(LETTERS):
        value, low = math.exp(ends.value[i]), math.exp(ends.low[i])
        if name == "E":
            value = value if value >= 1e-4 * least_loss else 0.0
            low = 0.0 if ends.open_low[i] else low
        found[name] = _interval(value, low, math.exp(ends.high[i]))
    return found


def _optimum(law: Law, columns: Columns) -> dict[str, Any]:
    """The exponents of N* ~ C^a and D* ~ C^b, and the optimum of every compute."""
    value, low, high = (1 / (1 + math.exp(-part[5])) for part in law.ends[:3])
    at = []
    for i, compute in enumerate(law.computes):
        row: dict[str, Any] = {"compute": compute, "times_largest_run": compute / float(columns.compute.max())}
        for j, name in enumerate(("params", "audio_seconds", "loss")):
            row[name] = _interval(*(_exponential(part[6 + 3 * i + j]) for part in law.ends[:3]))
        at.append(row)
    return {"a": _interval(value, low, high), "b": _interval(1 - value, 1 - high, 1 - low), "at": at}


# ---- the others --------------------------------------------------------------------------------


def _surface(table: Table, refused: dict[str, str]) -> Surface | None:
    runs = [run for run in table.runs if run.bitrate is not None]
    columns = (
        np.asarray([getattr(run, name) for run in runs], np.float64)
        for name in ("params", "audio_seconds", "bitrate", "loss")
    )
    found = rates.fit(*columns)
    if isinstance(found, str):
        refused[RATE] = found
        return None
    return found


def _rate(surface: Surface) -> dict[str, Any]:
    found: dict[str, Any] = {"form": surface.form, "told_from_the_other": surface.told, "n": len(surface.where.z)}
    for i, name in enumerate(laws.names(3, 0, 0)):
        low = 0.0 if name == "E" and surface.ends.open_low[i] else _exponential(surface.ends.low[i])
        found[name] = _interval(_exponential(surface.ends.value[i]), low, _exponential(surface.ends.high[i]))
    if surface.form == rates.EXPONENTIAL:
        del found["gamma"]
        found["halving_bitrate"] = _interval(*rates.halving(surface))
    return {**found, "noise": float(surface.fit.noise[0]), "noise_of_the_other": surface.other_noise}


def _isoflop(found: Isoflop, runs: Sequence[Run]) -> dict[str, Any] | None:
    if not found.profiles:
        return None
    profiles = []
    for profile in found.profiles:
        row: dict[str, Any] = {"compute": profile.compute, "runs": [runs[i].name for i in profile.runs]}
        row["curvature"] = profile.curvature
        for name in ("params", "audio_seconds"):
            ends = getattr(profile, name)
            row[name] = _interval(*ends) if ends else None
        profiles.append({**row, "refused": profile.reason})
    return {
        "a": _interval(*found.a) if found.a else None,
        "b": _interval(*found.b) if found.b else None,
        "noise": found.noise,
        "profiles": profiles,
    }


def _holdout(held: holdout.Holdout, runs: Sequence[Run]) -> dict[str, Any]:
    rows = [
        {
            "run": runs[i].name,
            "predicted": float(predicted),
            "loss": runs[i].loss,
            "error": _interval(*map(float, error)),
        }
        for i, predicted, error in zip(held.runs, held.predicted, held.errors)
    ]
    worst = max(held.errors, key=lambda error: abs(error[0]))
    return {
        "fitted": held.fitted,
        "times_largest_fitted": held.beyond,
        "noise": held.noise,
        "mean_error": _interval(*map(float, held.mean_error)),
        "worst_error": _interval(*map(float, worst)),
        "within_interval": held.within,
        "runs": rows,
    }


# ---- JSON --------------------------------------------------------------------------------------


def _interval(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def _exponential(value: float) -> float:
    return math.exp(min(float(value), 700.0))


def _plain(value: Any) -> Any:
    """For JSON: no NaN, no infinity, and nine digits, so that a last bit on another machine changes nothing."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
