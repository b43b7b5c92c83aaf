"""Pages: values are escaped, styles and scripts inlined as they are, figures reproducible."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from v2v.figures import save_figure
from v2v.pages import read_template_file, render

DEMO = {
    "widths": (64, 128, 128), "steps": [("train <b>", 61.4)], "notes": ["5 > 4 & 3"],
    "minutes": 4.0, "updates": 900, "comparison": 'demo".mp4', "sheet": "demo.png",
    "video": "demo.mp4",
}  # fmt: skip


def test_values_are_escaped() -> None:
    page = render("v2v.pipelines", "demo.html", **DEMO)
    assert "train &lt;b&gt;" in page and "5 &gt; 4 &amp; 3" in page and "<b>" not in page
    assert 'src="demo&#34;.mp4"' in page
    assert "grid-template-columns: 64fr 128fr 128fr" in page


def test_styles_and_scripts_are_inlined_unchanged() -> None:
    page = render("v2v.pipelines", "demo.html", **DEMO)
    assert f"<style>\n{read_template_file('v2v.pipelines', 'demo.css')}" in page
    plan = {"study": "f", "question": "?", "trials": []}
    page = render("v2v.evaluation.study", "study.html", plan=plan)
    for name in ("study.css", "deal.js", "study.js"):
        assert read_template_file("v2v.evaluation.study", name) in page
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]+"', page)


def test_a_missing_value_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="notes"):
        render("v2v.pipelines", "demo.html", **{k: v for k, v in DEMO.items() if k != "notes"})


def test_templates_are_installed() -> None:
    """Every folder of templates is package data."""
    root = Path(__file__).parents[1]
    declared = (root / "pyproject.toml").read_text("utf-8")
    folders = [f for top in ("v2v", "pipelines") for f in (root / top).rglob("templates")]
    assert len(folders) >= 3
    for folder in folders:
        package = ".".join(folder.parent.relative_to(root).parts)
        package = package if package.startswith("v2v") else f"v2v.{package}"
        assert f'"{package}" = ["templates/*"]' in declared


@pytest.mark.parametrize("image_format", ["png", "svg", "pdf"])
def test_the_same_figure_gives_the_same_bytes(image_format: str) -> None:
    def drawn() -> bytes:
        figure = Figure((2, 1))
        figure.subplots().plot([1, 3, 2], marker="o")
        buffer = io.BytesIO()
        save_figure(figure, buffer, image_format)
        return buffer.getvalue()

    first = drawn()
    assert first == drawn()
    assert b"dc:date" not in first and b"CreationDate" not in first
