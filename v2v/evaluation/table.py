"""Print an evaluation on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.results import Evaluation


def table(found: Evaluation) -> Table:
    """A table with one row per metric and one column per method."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("")
    for method in found.methods:
        grid.add_column(escape(method.name), justify="right")
    for name, metric in all_metrics().items():
        if not any(name in summaries for summaries in found.summaries.values()):
            continue
        title = f"{metric.title} ({metric.unit})" if metric.unit else metric.title
        cells = []
        for method in found.methods:
            summary = found.summaries[method.name].get(name)
            cells.append(metric.format(None if summary is None else summary.mean))
        grid.add_row(escape(title), *cells)
    return grid


def lines(found: Evaluation) -> Iterator[str]:
    """Ranking, notes and unavailable metrics, line by line."""
    for place in found.order:
        yield f"{escape(place.method)}: {escape('; '.join(place.faults) or 'no obvious fault')}"
    for note in found.notes:
        yield f"note: {escape(note)}"
    if found.unavailable:
        titles = ", ".join(all_metrics()[name].title for name in found.unavailable)
        yield f"unavailable: {escape(titles)} (the report explains why)"
    yield f"see {escape(str(found.folder / 'report.html'))}"
