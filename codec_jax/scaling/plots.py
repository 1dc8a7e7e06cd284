"""Pictures of a fit: the law, its frontier, residuals, isoFLOP profiles, loss over bit rate. PNG and SVG, as bytes."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from codec_jax.scaling import laws, rates
from codec_jax.scaling.fit import Columns, Law, Result
from codec_jax.scaling.isoflop import Isoflop
from codec_jax.scaling.rates import Surface
from codec_jax.scaling.trust import levels

NAMES = ("law", "frontier", "residuals", "isoflop", "rate")
SUFFIXES = (".png", ".svg")
_INK, _PALE = "#222222", "#8a8a8a"
_MOST_LINES = 7
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _PALE,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "codec_jax",  # the same figure, the same bytes
    "svg.fonttype": "none",
}


def draw(result: Result) -> dict[str, bytes]:
    """File names to contents, of the analyses that were not refused (of profiles, also those whose bottoms were)."""
    pictures: dict[str, Callable[[], Figure]] = {}
    law, surface = result.law, result.surface
    if law is not None:
        pictures["law"] = lambda: _law(result, law)
        pictures["frontier"] = lambda: _frontier(result, law)
        pictures["residuals"] = lambda: _residuals(result, law)
    if result.isoflop.profiles:
        pictures["isoflop"] = lambda: _isoflop(result, result.isoflop)
    if surface is not None:
        pictures["rate"] = lambda: _rate(result, surface)
    found = {}
    with matplotlib.rc_context(_STYLE):
        for name, make in pictures.items():
            figure = make()
            for suffix in SUFFIXES:
                found[name + suffix] = _bytes(figure, suffix.removeprefix("."))
    return found


def _bytes(figure: Figure, kind: str) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    return data.getvalue()


def _figure(columns: int = 1, width: float = 7.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


# ---- the law -----------------------------------------------------------------------------------


def _law(result: Result, law: Law) -> Figure:
    """Loss over parameters, a line for every budget of audio (or for some, where every run has its own)."""
    figure, (axes,) = _figure()
    columns = result.columns
    budget, nearest = _representatives(columns.audio_seconds)
    sizes = _logspace(columns.params, 0.12)
    colours = _colours(len(budget))
    labels = []
    for i, seconds in enumerate(budget):
        line, low, high = _predicted(law, sizes, np.full(len(sizes), seconds))
        axes.fill_between(sizes, low, high, color=colours[i], alpha=0.15, lw=0)
        axes.plot(sizes, line, color=colours[i], lw=1.5)
        labels.append((sizes[-1], line[-1], _duration(seconds), colours[i]))
        mine = nearest == i
        axes.plot(columns.params[mine], columns.loss[mine], "o", color=colours[i], ms=5, mec="white", mew=0.6)
    _log_axis(axes, "x", _count)
    axes.set_xlim(sizes[0], sizes[-1])
    _right_labels(axes, labels)
    axes.set(xlabel="parameters", ylabel=_loss_label(result), title="Loss over size, by audio trained on")
    if len(budget) < len(levels(columns.audio_seconds)):
        _note(axes, "lines at some budgets; a run has the colour of the nearest")
    return figure


def _frontier(result: Result, law: Law) -> Figure:
    """Loss over compute: runs, linked by size, and the best that the law promises for a compute."""
    figure, (axes,) = _figure()
    columns = result.columns
    size, nearest = _representatives(columns.params)
    colours = _colours(len(size))
    own = len(size) == len(levels(columns.params))  # else the sizes of a colour differ, and a line would link them
    for i, label in enumerate(size):
        mine = np.flatnonzero(nearest == i)
        mine = mine[np.argsort(columns.compute[mine], kind="stable")]
        line = "o-" if own else "o"
        axes.plot(columns.compute[mine], columns.loss[mine], line, color=colours[i], ms=5, lw=0.8, mec="white", mew=0.6)
        axes.plot([], [], "o", color=colours[i], label=_count(label) if own else f"near {_count(label)}")
    costs = _logspace(np.append(columns.compute, law.computes), 0.05)
    logs = np.log(costs / columns.factor[1])
    best = np.exp([laws.log_optimum(law.where, law.fit.params, x)[0][0, 2] for x in logs])
    drawn = np.exp([laws.log_optimum(law.where, law.draws.fits.params, x)[0][:, 2] for x in logs])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    axes.fill_between(costs, low, high, color=_INK, alpha=0.12, lw=0)
    axes.plot(costs, best, color=_INK, lw=1.6, ls=(0, (5, 2)), label="N*, D* of the law")
    _log_axis(axes, "x")
    axes.axvline(columns.compute.max(), color=_PALE, lw=0.8, ls=":")
    axes.annotate(
        "largest run",
        (columns.compute.max(), 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color=_PALE,
    )
    axes.set(xlabel=_compute_label(columns), ylabel=_loss_label(result), title="Loss over compute, by size")
    axes.legend(frameon=False, loc="upper right", labelcolor=_INK)
    return figure


def _residuals(result: Result, law: Law) -> Figure:
    """What the law leaves, over what it might have missed."""
    figure, panels = _figure(3, 10.5)
    columns = result.columns
    predicted = laws.log_loss(law.fit.params, law.where.z)[0][0]
    rest = 100 * np.expm1(np.log(columns.loss) - predicted)
    noise = 100 * float(law.fit.noise[0])
    across = ((columns.params, "parameters", _count), (columns.audio_seconds, "audio trained on", _duration))
    for axes, (values, label, shown) in zip(panels, (*across, (np.exp(predicted), "loss of the law", None))):
        axes.axhspan(-noise, noise, color=_PALE, alpha=0.18, lw=0)
        axes.axhline(0, color=_PALE, lw=0.8)
        axes.plot(values, rest, "o", color=_colours(1)[0], ms=5, mec="white", mew=0.6)
        if shown is not None:
            _log_axis(axes, "x", shown)
            if shown is _duration:
                _duration_ticks(axes)
        else:
            axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.set_xlabel(label)
    reach = max(float(np.abs(rest).max()), noise) * 1.15 + 1e-12
    for axes in panels:
        axes.set_ylim(-reach, reach)
    panels[0].set(ylabel="run over law, %", title="Residuals; shaded: one standard deviation")
    for axes in panels[1:]:
        axes.tick_params(labelleft=False)
    return figure


# ---- profiles and rate -------------------------------------------------------------------------


def _isoflop(result: Result, found: Isoflop) -> Figure:
    """Parabolas and their bottoms; and, where there is one, the power law through these."""
    figure, panels = _figure(2, 10.5)
    columns, axes = result.columns, panels[0]
    colours = _colours(len(found.profiles))
    labels = []
    for colour, profile in zip(colours, found.profiles):
        mine = np.asarray(profile.runs)
        sizes, size = _logspace(columns.params[mine], 0.02), np.log(columns.params[mine])
        curve = np.polyfit(size - size.mean(), np.log(columns.loss[mine]), 2)
        line = np.exp(np.polyval(curve, np.log(sizes) - size.mean()))
        refused = profile.reason is not None
        axes.plot(sizes, line, color=colour, lw=1.4, ls=":" if refused else "-")
        axes.plot(columns.params[mine], columns.loss[mine], "o", color=colour, ms=5, mec="white", mew=0.6)
        if not refused:
            axes.plot(profile.best, np.exp(profile.bottom), "D", color=colour, ms=7, mec=_INK, mew=1)
        labels.append((sizes[-1], line[-1], f"{profile.compute:.2g}" + (" (refused)" if refused else ""), colour))
    _log_axis(axes, "x", _count)
    _right_labels(axes, labels)
    axes.set(xlabel="parameters", ylabel=_loss_label(result), title=f"Profiles, by {_compute_label(columns)}")
    _bottoms(panels[1], columns, found, colours)
    return figure


def _bottoms(axes: Axes, columns: Columns, found: Isoflop, colours: Sequence) -> None:
    good = [(colour, profile) for colour, profile in zip(colours, found.profiles) if profile.params is not None]
    if not good:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no profile has a bottom\nthat could be read", ha="center", va="center", color=_PALE)
        return
    for colour, profile in good:
        assert profile.params is not None
        best, low, high = profile.params
        ends = np.nan_to_num([[best - low], [high - best]], posinf=1e300)
        axes.errorbar(profile.compute, best, ends, fmt="D", color=colour, ms=5, mec=_INK, mew=0.8, capsize=5)
    bottoms = [profile.best for _, profile in good]
    axes.set_yscale("log")
    heights = _logspace(np.asarray(bottoms), 0.15)
    axes.set_ylim(heights[0], heights[-1])
    costs = _logspace(np.asarray([profile.compute for _, profile in good]), 0.1)
    title = "Best size; no law through fewer than three"
    if found.a is not None:
        axes.plot(costs, np.exp(found.scale + found.a.value * np.log(costs)), color=_INK, lw=1.2, zorder=0)
        title = f"N* ~ C^a, a = {found.a.value:.3f} ({found.a.low:.3f} to {found.a.high:.3f})"
    axes.set_xlim(costs[0], costs[-1])
    _log_axis(axes, "x")
    _log_axis(axes, "y", _count)
    axes.set(xlabel=_compute_label(columns), ylabel="parameters", title=title)


def _rate(result: Result, surface: Surface) -> Figure:
    """Loss over bit rate, every run moved along the surface to the middle of N and D."""
    figure, (axes,) = _figure()
    runs = [run for run in result.table.runs if run.bitrate is not None]
    rate, loss = (np.asarray([getattr(run, name) for run in runs], np.float64) for name in ("bitrate", "loss"))
    fitted, centre = surface.fit.params, np.exp(surface.where.centre[:2])
    own = np.exp(laws.log_loss(fitted, surface.where.z)[0][0])
    along = _logspace(rate, 0.1)
    line = rates.at_centre(surface, along, fitted)[0]
    low, high = np.quantile(rates.at_centre(surface, along, surface.draws.fits.params), [0.025, 0.975], axis=0)
    colour = _colours(1)[0]
    axes.fill_between(along, low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(along, line, color=colour, lw=1.6)
    axes.plot(
        rate, loss / own * rates.at_centre(surface, rate, fitted)[0], "o", color=colour, ms=5, mec="white", mew=0.6
    )
    _log_axis(axes, "x", lambda value: f"{value / 1000:g}")
    axes.set(xlabel="kbit/s", ylabel=_loss_label(result), title=_rate_title(surface))
    _note(axes, f"runs moved along the surface to {_count(centre[0])} parameters and {_duration(centre[1])}")
    return figure


def _rate_title(surface: Surface) -> str:
    if surface.form == rates.EXPONENTIAL:
        value, low, high = rates.halving(surface)
        return f"Distortion of rate halves every {value:.0f} bit/s ({low:.0f} to {high:.0f})"
    value, low, high = (float(np.exp(part[6])) for part in surface.ends[:3])
    return f"Distortion of rate ~ R^-γ, γ = {value:.2f} ({low:.2f} to {high:.2f})"


# ---- parts -------------------------------------------------------------------------------------


def _predicted(law: Law, params: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The law's losses, and where 95 % of the resampled laws lie."""
    z = np.stack([np.log(params), np.log(audio)], axis=1) - law.where.centre
    line = np.exp(laws.log_loss(law.fit.params, z)[0][0])
    low, high = np.quantile(np.exp(laws.log_loss(law.draws.fits.params, z)[0]), [0.025, 0.975], axis=0)
    return line, low, high


def _representatives(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Levels to draw lines at, a few where there are many, and the index of the nearest for every run."""
    found = levels(values)
    if len(found) > _MOST_LINES:
        found = np.geomspace(found[0], found[-1], 5)
    return found, np.abs(np.log(values)[:, None] - np.log(found)).argmin(1)


def _logspace(values: np.ndarray, margin: float) -> np.ndarray:
    """From the least to the greatest and a share of that further."""
    low, high = np.log(values.min()), np.log(values.max())
    wide = max(high - low, 0.1) * margin
    return np.exp(np.linspace(low - wide, high + wide, 120))


def _colours(count: int) -> list:
    """Of an ordered quantity; of viridis, which readers of any colour vision can order, without its palest end."""
    return list(matplotlib.colormaps["viridis"](np.linspace(0.12, 0.82, max(count, 2))))[:count]


def _log_axis(axes: Axes, which: str, shown: Callable[[float], str] | None = None) -> None:
    """Ticks at 1, and at 2 and 5 where there are few decades, each with its number."""
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 2.6 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
    axis.set_major_locator(ticker.LogLocator(subs=subs, numticks=9))
    axis.set_minor_formatter(ticker.NullFormatter())
    if shown is not None:
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: shown(value)))
    elif len(subs) > 1:
        axis.set_major_formatter(ticker.LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf)))


def _right_labels(axes: Axes, labels: Sequence[tuple[float, float, str, object]]) -> None:
    """Names of lines (x, y, text, colour) at their right ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    least, last = 0.055 * (high - low), -np.inf
    for x, y, text, colour in sorted(labels, key=lambda label: label[1]):
        last = max(y, last + least)
        axes.annotate(text, (x, last), xytext=(5, 0), textcoords="offset points", va="center", color=colour)


def _note(axes: Axes, text: str) -> None:
    axes.text(0.02, 0.02, text, transform=axes.transAxes, color=_PALE, fontsize=8)


def _loss_label(result: Result) -> str:
    turned = {"valid/si_sdr": "distortion over signal (SI-SDR)", "valid/stoi": "1 - STOI"}
    return turned.get(result.table.loss, result.table.loss.removeprefix("valid/").replace("_", " "))


def _compute_label(columns: Columns) -> str:
    return "FLOPs" if columns.unit == "flop" else "compute, parameters × seconds"


def _count(value: float) -> str:
    """1.5 M."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _duration(seconds: float) -> str:
    """2.5 h."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 0.9995 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 999.5 * size else f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _duration_ticks(axes: Axes) -> None:
    """At round minutes or hours, four or so."""
    low, high = axes.get_xlim()
    round_ones = [3600.0 * 10.0**k for k in range(8)] + [60.0, 600.0, 1.0, 10.0]
    if high / low < 1e3:
        round_ones += [3 * place for place in round_ones]
    inside = sorted({place for place in round_ones if low <= place <= high})
    axes.xaxis.set_major_locator(ticker.FixedLocator(inside or [np.sqrt(low * high)]))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
