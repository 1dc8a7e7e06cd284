"""Spectrogram pictures."""

from collections.abc import Mapping

import numpy as np
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_WINDOW, _HOP = 512, 128
_RANGE_DB = 80


def spectrograms(path: epath.PathLike, panels: Mapping[str, np.ndarray], sample_rate: int) -> None:
    """One PNG, the log-magnitude spectrograms [time] of `panels` above each other on one colour scale."""
    figure = Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    levels = {name: _decibels(audio) for name, audio in panels.items()}
    top = max(level.max() for level in levels.values())
    for axis, (name, level) in zip(axes, levels.items()):
        seconds = len(panels[name]) / sample_rate
        image = axis.imshow(
            level.T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, sample_rate / 2000),
            vmin=top - _RANGE_DB,
            vmax=top,
            cmap="magma",
        )
        axis.set_ylabel(f"{name}\nkHz")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes, label="dB")
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=90)


def _decibels(audio: np.ndarray) -> np.ndarray:
    """[frame, bin] in dB."""
    padded = np.pad(audio, (0, max(0, _WINDOW - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP] * np.hanning(_WINDOW)
    return 20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-5)
