"""The evaluation report as one self-contained HTML file with pictures, video and curves.

It needs no network and no scripts, so it also opens from an e-mail or an archive years later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.evaluation.methods import REAL
from v2v.evaluation.metrics import Metric, all_metrics
from v2v.evaluation.report.curves import SMOOTH, curves
from v2v.evaluation.report.pictures import contact_sheet, extremes, video
from v2v.evaluation.results import Evaluation
from v2v.evaluation.statistics import Summary
from v2v.pages import render

DIRECTIONS = {
    "higher": "higher is better", "lower": "lower is better",
    "one": "1 equals the real video", "real": "closer to the real video is better",
}  # fmt: skip


def page(found: Evaluation, rendered: Sequence[Mapping[str, Path]]) -> str:
    """Build the report. `rendered` holds the lossless videos of all methods for each clip."""
    height, width = found.clips[0].placement.size
    return render(
        "v2v.evaluation.report", "report.html",
        found=found, real=REAL, width=width, height=height,
        against=_against(found),
        media=[video(found, rendered[0]), contact_sheet(found, rendered[0]),
               extremes(found, rendered[0])],
        rows=_rows(found),
        clip_rows=_clip_rows(found) if len(found.clips) > 1 else [],
        unavailable=_unavailable(found),
        curves=curves(found), smooth=SMOOTH,
        metrics=[m for m in all_metrics().values() if m.name not in found.unavailable],
        directions=DIRECTIONS,
    )  # fmt: skip


@dataclass(frozen=True)
class Against:
    """The comparison of the model with one baseline."""

    method: str
    uses_ground_truth: bool
    total: int
    text: str


def _against(found: Evaluation) -> list[Against]:
    lines = []
    for method in found.methods:
        if method.name in (found.name, REAL):
            continue
        better, worse, same = found.against(method.name)
        what = [
            f"{word} in {len(names)} ({', '.join(all_metrics()[n].title for n in names)})"
            for word, names in (
                ("better", better),
                ("worse", worse),
                ("not significantly different", same),
            )
            if names
        ]
        total = len(better) + len(worse) + len(same)
        lines.append(Against(method.name, method.uses_ground_truth, total, "; ".join(what)))
    return lines


@dataclass(frozen=True)
class Cell:
    """One value of the table; `text` is None if it is undefined."""

    text: str | None
    interval: str = ""
    drift: str = ""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One metric of the table, with a cell for each method or clip."""

    metric: Metric
    cells: tuple[Cell, ...]


def _rows(found: Evaluation) -> list[Row]:
    rows = []
    for name, metric in all_metrics().items():
        if not any(name in summaries for summaries in found.summaries.values()):
            continue
        best = _best(found, metric)
        cells = tuple(
            _cell(
                metric, found.summaries[method.name].get(name),
                drifts=method.runs_on, best=method.name in best,
            )
            for method in found.methods
        )  # fmt: skip
        rows.append(Row(metric, cells))
    return rows


def _cell(metric: Metric, summary: Summary | None, *, drifts: bool, best: bool) -> Cell:
    if summary is None or summary.mean is None:
        return Cell(None)
    shown: dict[str, Any] = {}
    if summary.low is not None:
        shown["interval"] = f"{metric.format(summary.low)} – {metric.format(summary.high)}"
    if summary.drift is not None and metric.better != "one" and drifts:
        shown["drift"] = f"{summary.drift:.2f}"
    return Cell(metric.format(summary.mean), best=best, **shown)


def _best(found: Evaluation, metric: Metric) -> set[str]:
    """The ranked methods with the best mean."""
    if metric.family is None:
        return set()
    means = {
        method.name: summary.mean
        for method in found.methods
        if not method.uses_ground_truth
        and (summary := found.summaries[method.name].get(metric.name)) is not None
        and summary.mean is not None
    }
    if len(means) < 2:
        return set()
    pick = max if metric.better == "higher" else min
    costs = {n: abs(v - 1) if metric.better == "one" else v for n, v in means.items()}
    return {n for n, cost in costs.items() if cost == pick(costs.values())}


def _clip_rows(found: Evaluation) -> list[Row]:
    """The model's mean per clip, and last the interval over clips."""
    rows = []
    for name, summary in found.summaries[found.name].items():
        if len(summary.clips) != len(found.clips):
            continue
        metric = all_metrics()[name]
        over = f"{metric.format(summary.clips_low)} – {metric.format(summary.clips_high)}"
        texts = [*(metric.format(mean) for mean in summary.clips), over]
        rows.append(Row(metric, tuple(map(Cell, texts))))
    return rows


def _unavailable(found: Evaluation) -> dict[str, list[str]]:
    """Titles of the unavailable metrics, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in found.unavailable.items():
        by_reason.setdefault(why, []).append(all_metrics()[name].title)
    return by_reason
