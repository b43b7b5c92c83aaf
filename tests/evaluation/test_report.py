"""Curves of the report."""

from __future__ import annotations

import re

import numpy as np

from v2v.evaluation.report.curves import plot, smoothed

COLOURS = {"a": "#0b6bcb", "b": "#d1495b"}


def lines(svg: bytes, colour: str) -> list[str]:
    """Path data of the lines in one colour."""
    pattern = rf'<path d="([^"]*)"[^>]*style="[^"]*stroke: {colour}'
    return re.findall(pattern, svg.decode(), re.DOTALL)


def test_a_plot_has_a_line_for_each_method_and_breaks_it_at_undefined_values() -> None:
    values = np.sin(np.arange(60) / 5)
    gap = values.copy()
    gap[20:40] = np.nan
    svg = plot({"a": values, "b": gap}, COLOURS, rate=2, mark=None)
    (whole,), (broken,) = lines(svg, COLOURS["a"]), lines(svg, COLOURS["b"])
    assert whole.count("M") == 1 and broken.count("M") == 2
    assert not lines(svg, "#999999")
    assert len(lines(plot({"a": values}, COLOURS, rate=2, mark=30), "#999999")) == 1
    assert svg == plot({"a": values, "b": gap}, COLOURS, rate=2, mark=None)


def test_constant_and_undefined_values_have_no_plot() -> None:
    assert plot({"a": np.ones(30)}, COLOURS, rate=25, mark=None) == b""
    assert plot({"a": np.full(30, np.nan)}, COLOURS, rate=25, mark=None) == b""


def test_smoothing_ignores_undefined_values() -> None:
    values = np.array([0.0, 3.0, np.nan, 3.0, 6.0])
    np.testing.assert_allclose(smoothed(values, 3), [1.5, 1.5, 3.0, 4.5, 4.5])
