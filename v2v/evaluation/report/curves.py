"""Curves of metrics over time."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from v2v.evaluation.measures import Values
from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.results import Evaluation
from v2v.figures import save_figure

SMOOTH = 0.5  # seconds, smoothing window of a curve
POINTS = 400  # maximum points of a curve
SIZE = (3.44, 1.77)  # of a plot, in inches: 330 x 170 pixels of a page
COLOURS = ("#777777", "#0b6bcb", "#d1495b", "#e3a008", "#2a9d57", "#8e5bd0", "#00838f", "#b05c1f")


@dataclass(frozen=True)
class Curve:
    """The plot of one metric."""

    caption: str
    source: str  # SVG as a data URI


@dataclass(frozen=True)
class Curves:
    """The plots of an evaluation, on the clip with the most rendered frames."""

    clip: str
    repeats: bool  # whether frames are rendered again after the first pass
    colours: dict[str, str]  # by method
    plots: tuple[Curve, ...]


def curves(found: Evaluation) -> Curves:
    """A small plot for each metric that varies over time."""
    number = max(range(len(found.clips)), key=lambda i: len(found.clips[i].order))
    clip, frame_scores = found.clips[number], found.frame_scores[number]
    colours = {
        method.name: COLOURS[min(i, len(COLOURS) - 1)] for i, method in enumerate(found.methods)
    }
    repeats = len(clip.order) > clip.count
    rate = float(clip.store.rate)
    plots = []
    for name, metric in all_metrics().items():
        series = {
            method.name: np.asarray(frame_scores[method.name][name]) * metric.factor
            for method in found.methods
            if name in frame_scores[method.name]
        }
        if not series or len(clip.order) < 5:
            continue
        drawn = plot(series, colours, rate, clip.count if repeats else None)
        if drawn:
            coded = base64.b64encode(drawn).decode("ascii")
            caption = f"{metric.title}, {metric.unit}" if metric.unit else metric.title
            plots.append(Curve(caption, f"data:image/svg+xml;base64,{coded}"))
    return Curves(clip.name, repeats, colours, tuple(plots))


def plot(
    series: Mapping[str, Values], colours: Mapping[str, str], rate: float, mark: int | None
) -> bytes:
    """Smoothed curves over seconds as SVG; empty if no value is finite or all are equal.

    Args:
        series: values [T] by method.
        mark: frame of a dashed line.
    """
    # The object interface instead of pyplot: it needs no display and has no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    window = max(round(SMOOTH * rate), 1)
    smooth = {name: smoothed(values, window) for name, values in series.items()}
    known = np.concatenate([values[np.isfinite(values)] for values in smooth.values()])
    if not known.size or known.max() - known.min() < 1e-9:
        return b""  # constant, such as 0 % missed: the table suffices
    figure = Figure(SIZE)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.15, 0.13, 0.83, 0.83))
    for name, values in smooth.items():
        step = max(-(-len(values) // POINTS), 1)
        seconds = np.arange(0, len(values), step) / rate
        axes.plot(seconds, values[::step], color=colours[name], linewidth=1.1)
    if mark is not None:
        axes.axvline(mark / rate, color="#999", linestyle="--", linewidth=0.8)
    axes.set_xlim(0, max((max(map(len, smooth.values())) - 1) / rate, 1 / rate))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=7.5, labelcolor="#666")
    axes.spines[:].set_visible(False)
    buffer = io.BytesIO()
    save_figure(figure, buffer, "svg")
    return buffer.getvalue()


def smoothed(values: Values, window: int) -> Values:
    """Moving average over `window` frames, ignoring values that are not finite."""
    finite = np.isfinite(values)
    window = min(window, len(values))
    ones = np.ones(window)
    count = np.convolve(finite, ones, "same")[: len(values)]
    total = np.convolve(np.where(finite, values, 0.0), ones, "same")[: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
