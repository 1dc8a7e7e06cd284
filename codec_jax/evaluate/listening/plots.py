"""Figures of a listening test: means with intervals over what single ratings look like; shares of an AB test."""

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from codec_jax.evaluate.listening import analysis as analysing
from codec_jax.evaluate.listening.site import MUSHRA

if TYPE_CHECKING:
    from codec_jax.evaluate.listening.analysis import Analysis

_INK, _SOFT, _LINE, _ACCENT, _MIDDLE, _PALE = "#1b1c1e", "#5c6067", "#dcdad4", "#17626b", "#6f9ea3", "#b9d2d4"
_BANDS = ("Bad", "Poor", "Fair", "Good", "Excellent")


def draw(analysis: "Analysis") -> dict[str, bytes]:
    """The figure as png and svg."""
    figure = _mushra(analysis) if analysis.key.kind == MUSHRA else _preference(analysis)
    found = {}
    for suffix, canvas in (("png", FigureCanvasAgg), ("svg", FigureCanvasSVG)):
        buffer = io.BytesIO()
        canvas(figure)
        metadata = {"Date": None} if suffix == "svg" else {}
        figure.savefig(buffer, format=suffix, dpi=160, metadata=metadata, facecolor="white")
        found[suffix] = buffer.getvalue()
    return found


def _label(analysis: "Analysis", name: str) -> str:
    return str(analysis.key.systems[name].get("label", name))


def _axes(rows: int, title: str, pad: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.5, 1.6 + 0.5 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, color=_INK, fontweight="bold", pad=pad)
    axes.tick_params(length=0, labelsize=9, colors=_INK)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    return figure, axes


def _mushra(analysis: "Analysis") -> Figure:
    """A row a system: a pale box of the quartiles, a dot a listener, the mean with its two intervals."""
    names, ratings = analysing.ranked(analysis), analysis.found["ratings"]
    figure, axes = _axes(len(names), analysis.key.title, 24.0)
    for i, band in enumerate(_BANDS):
        axes.axvspan(20 * i, 20 * i + 20, color="#f3f2ee" if i % 2 == 0 else "white", zorder=0, linewidth=0)
        axes.text(20 * i + 10, 1.01, band, transform=axes.get_xaxis_transform(), ha="center", fontsize=8.5, color=_SOFT)
    for y, name in enumerate(names):
        row = analysis.found["systems"][name]
        low, high = row["lower_quartile"], row["upper_quartile"]
        axes.barh(y, high - low, left=low, height=0.62, color=_PALE, alpha=0.55, zorder=1)
        means = ratings.scores[name].mean(axis=1)
        places = y + np.linspace(-0.22, 0.22, len(means)) if len(means) > 1 else [y]
        axes.scatter(means, places, s=7, color=_SOFT, alpha=0.45, linewidths=0, zorder=2)
        for ends, width in ((("low_both", "high_both"), 1.2), (("low", "high"), 3.5)):
            if math.isfinite(row[ends[0]]):
                axes.plot(
                    [row[ends[0]], row[ends[1]]],
                    [y, y],
                    color=_ACCENT,
                    linewidth=width,
                    zorder=3,
                    solid_capstyle="butt",
                )
        axes.scatter([row["mean"]], [y], s=46, color=_ACCENT, edgecolors="white", linewidths=1.2, zorder=4)
        axes.annotate(
            f"{row['mean']:.1f}", (1.015, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=_INK
        )
    axes.set_yticks(range(len(names)), [_label(analysis, name) for name in names])
    axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel(
        "point: mean · thick: 95 % over listeners · thin: and over utterances · box: quartiles · dots: listeners",
        fontsize=8,
        color=_SOFT,
    )
    return figure


def _preference(analysis: "Analysis") -> Figure:
    """A bar a pair: answers for the first, for neither, for the second; lines are intervals of the outer shares."""
    pairs = analysis.found["pairs"]
    figure, axes = _axes(len(pairs), analysis.key.title, 10.0)
    for y, row in enumerate(pairs):
        first, second = row["first_preferred"], row["second_preferred"]
        parts = (
            (first["share"], _ACCENT, "white"),
            (row["no_preference"]["share"], _LINE, _INK),
            (second["share"], _PALE, _INK),
        )
        left = 0.0
        for share, color, ink in parts:
            axes.barh(y, share, left=left, height=0.56, color=color)
            if share > 0.06:
                axes.text(left + share / 2, y, f"{share:.0%}", ha="center", va="center", fontsize=9, color=ink)
            left += share
        axes.plot([first["low"], first["high"]], [y + 0.34] * 2, color=_ACCENT, linewidth=2)
        axes.plot([1 - second["high"], 1 - second["low"]], [y - 0.34] * 2, color=_MIDDLE, linewidth=2)
        axes.annotate(
            _label(analysis, row["second"]), (1.015, y), xycoords=("axes fraction", "data"), va="center", fontsize=9
        )
    axes.axvline(0.5, color=_SOFT, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(pairs)), [_label(analysis, row["first"]) for row in pairs])
    axes.set(xlim=(0, 1), ylim=(len(pairs) - 0.4, -0.6))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel(
        "answers for the left, for neither, for the right · lines: exact 95 % intervals (right: above)",
        fontsize=8,
        color=_SOFT,
    )
    return figure
