"""`v2v plot`: draw the training curves of one or several runs.

One run: its losses in groups, with the beginning of each stage. Several runs: a small panel for
each loss of any run, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from v2v.errors import UsageError
from v2v.figures import save_figure
from v2v.files import replacing_file
from v2v.training.run import read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
MOTION = ("flow", "warp_real", "warp_generated", "occlusion", "matte", "auxiliary")
TOTAL = "generator: total weighted loss"
GROUPS: tuple[tuple[str, Callable[[str], bool]], ...] = (  # title, and which losses it shows
    (TOTAL, lambda name: name == "total"),
    ("image losses", lambda name: name.split("/")[-1] in ("l1", "perceptual")),
    ("feature matching", lambda name: name.startswith("matching/")),
    ("discriminators", lambda name: name.startswith(("discriminator/", "critic/"))),
    ("generator: adversarial", lambda name: name.startswith("adversarial/")),
    ("flow, occlusion, matte", lambda name: name in MOTION),
)
RATE = "learning rate"
SMOOTHING = 0.02  # time constant of the thick line, as a fraction of the curve's length
SIZE = (4.6, 3.0)  # of a panel, in inches


@dataclass(frozen=True)
class StageSpan:
    """One stage of a run: where it begins, and its size and window length."""

    begin: float
    label: str


@dataclass(frozen=True)
class Curves:
    """The log of a run as series over updates or minutes."""

    name: str
    series: dict[str, tuple[list[float], list[float]]]  # loss -> places, values
    stages: tuple[StageSpan, ...]
    end: float


def read_curves(folder: Path, *, minutes: bool = False) -> Curves:
    """Read the curves of a run.

    Raises `UsageError` if the folder is not a run or its log is empty, `RunConflict` if its log is
    damaged.
    """
    path = folder / "log.jsonl"
    if not path.is_file():
        kind = "has no log.jsonl" if folder.is_dir() else "does not exist"
        raise UsageError(f"{folder} is not a run: it {kind}", hint="give a folder such as runs/b")
    series: dict[str, tuple[list[float], list[float]]] = {}
    stages: list[StageSpan] = []
    last_stage: int | None = None
    at = 0.0
    for _, entry in read_log(path):
        before, at = at, float(entry.minutes if minutes else entry.step)
        if entry.stage != last_stage:
            width, height = entry.size
            # It began at some point after the last entry of the previous stage.
            stages.append(StageSpan(before, f"{width}x{height} x{entry.length}"))
            last_stage = entry.stage
        for name, value in {**entry.losses, RATE: entry.rate}.items():
            places, values = series.setdefault(name, ([], []))
            places.append(at)
            values.append(value)
    if not series:
        raise UsageError(
            f"{path} is empty: nothing is logged yet",
            hint="wait for the run's first updates; output.log_every sets how often it logs",
        )
    return Curves(folder.name, series, tuple(stages), at)


def smoothed(places: Sequence[float], values: Sequence[float], constant: float) -> list[float]:
    """An exponential running mean with time constant `constant`, in the unit of `places`.

    Debiased as in Adam (arXiv 1412.6980), so it starts at the first value and not at 0. NaN and
    infinite values are skipped.
    """
    mean = weight = 0.0
    out: list[float] = []
    steps = [0.0, *(b - a for a, b in pairwise(places))]
    for step, value in zip(steps, values, strict=True):
        # An entry covers the training since the previous one.
        keep = math.exp(-step / constant) if step > 0 and constant > 0 else 0.5
        if math.isfinite(value):
            mean = keep * mean + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(mean / weight if weight else value)
    return out


def plot(folders: Sequence[Path], path: Path, *, minutes: bool = False) -> Path:
    """Draw the curves of runs into an image file: .png, .svg or .pdf.

    Args:
        minutes: draw over minutes of training instead of updates.

    Raises `UsageError` (not a run, an empty log, an unknown image format), `NotWritable`,
    `DiskFull`.
    """
    if not folders:
        raise UsageError("no run to plot", hint="name one or more run folders, such as runs/b")
    if path.suffix.lower() not in FORMATS:
        raise UsageError(
            f"{path} has no supported image format",
            hint=f"use a name that ends in {' or '.join(FORMATS)}",
        )
    runs = _with_unique_names([read_curves(folder, minutes=minutes) for folder in folders], folders)
    panels = _by_group(runs[0]) if len(runs) == 1 else _by_loss(runs)

    # The object interface instead of pyplot: it needs no display and has no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(panels), 4)
    rows = math.ceil(len(panels) / columns)
    figure = Figure((SIZE[0] * columns, SIZE[1] * rows + 0.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    colours = _colours(panels)
    for number, (title, lines) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        _draw(axes, title, lines, colours, runs, first=number == 0)
        if number >= len(panels) - columns:
            axes.set_xlabel("minutes of training" if minutes else "updates")
    figure.suptitle(" · ".join(run.name for run in runs))
    with replacing_file(path) as partial, open(partial, "wb") as file:
        save_figure(figure, file, path.suffix.lower()[1:])
    return path


Line = tuple[str, tuple[list[float], list[float]]]  # label; places, values
Panel = tuple[str, list[Line]]


def _with_unique_names(runs: list[Curves], folders: Sequence[Path]) -> list[Curves]:
    """The runs, named by their paths if two of them have the same name."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    return [
        Curves(str(folder), run.series, run.stages, run.end)
        for run, folder in zip(runs, folders, strict=True)
    ]


def _by_group(run: Curves) -> list[Panel]:
    """Panels for the losses of one run, by group."""
    left = {name: series for name, series in run.series.items() if name != RATE}
    panels: list[Panel] = []
    for title, belongs in GROUPS:
        chosen = [name for name in left if belongs(name)]
        prefix = "" if title == "image losses" else "/"
        lines = [(n.split(prefix)[-1] if prefix else n, left.pop(n)) for n in chosen]
        if lines:
            panels.append((title, lines))
    if left:  # losses that GROUPS does not list
        panels.append(("other", list(left.items())))
    panels.append((RATE, [(RATE, run.series[RATE])]))
    return panels


def _by_loss(runs: Sequence[Curves]) -> list[Panel]:
    """One panel for each loss of any run, with a line for each run that has it."""
    names = list(dict.fromkeys(name for run in runs for name in run.series if name != RATE))
    # In the order of the groups; losses without a group come last.
    names.sort(key=lambda name: next((i for i, (_, of) in enumerate(GROUPS) if of(name)), 9))
    return [
        (name, [(run.name, run.series[name]) for run in runs if name in run.series])
        for name in [*names, RATE]
    ]


def _colours(panels: list[Panel]) -> dict[str, str]:
    """One colour for each label, the same in all panels."""
    labels = list(dict.fromkeys(label for _, lines in panels for label, _ in lines))
    return {label: f"C{i % 10}" for i, label in enumerate(labels)}


def _draw(
    axes: Axes,
    title: str,
    lines: list[Line],
    colours: dict[str, str],
    runs: Sequence[Curves],
    *,
    first: bool,
) -> None:
    end = max(run.end for run in runs) or 1.0
    for label, (places, values) in lines:
        if title == RATE:
            axes.plot(places, values, color=colours[label], label=label)
            continue
        axes.plot(places, values, color=colours[label], alpha=0.25, linewidth=0.8)
        marker: dict[str, Any] = {"marker": "."} if len(places) < 3 else {}
        mean = smoothed(places, values, SMOOTHING * end)
        axes.plot(places, mean, color=colours[label], linewidth=1.6, label=label, **marker)
    shown = [v for _, (_, values) in lines for v in values if math.isfinite(v)]
    if shown and min(shown) > 0 and max(shown) > 20 * min(shown) and title != RATE:
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, end)
    axes.grid(alpha=0.2)
    for run in runs:
        _mark_stages(
            axes, run, colour="0.4" if len(runs) == 1 else colours[run.name],
            named=len(runs) == 1 and title in (TOTAL, RATE),
        )  # fmt: skip
    if len(lines) > 1 and (first or len(runs) == 1):
        axes.legend(fontsize=7, loc="best", framealpha=0.6)


def _mark_stages(axes: Axes, run: Curves, *, colour: str, named: bool) -> None:
    """Draw a dotted line where a stage begins, beside it its size and window length."""
    for stage in run.stages:
        if stage.begin > 0:
            axes.axvline(stage.begin, color=colour, linestyle=":", linewidth=0.8)
        if named:
            axes.text(
                stage.begin, 0.03, f" {stage.label}", rotation=90, fontsize=7, color="0.3",
                transform=axes.get_xaxis_transform(), va="bottom", ha="left",
            )  # fmt: skip
