"""docs/python.md: its code blocks run as one program, from footage to evaluation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "python.md"


def program() -> str:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return "\n".join(blocks)


def test_the_readme_links_to_it() -> None:
    assert "docs/python.md" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_the_document_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program()], cwd=tmp_path, capture_output=True, text=True,
        timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout
    for words in (
        "ClipStore(data/person)", "runs/dancer 2 ", "Model(pose, 64x", "dance.mp4 15",
        "runs/dancer/evaluation/report.html", "dance.mp4 exists already",
        "replace it with overwrite=True",
    ):  # fmt: skip
        assert words in printed, printed
    assert (tmp_path / "dance-compare.mp4").stat().st_size > 0
    assert "INFO:v2v:flow: finished" in done.stderr
    assert "━" not in done.stderr, "progress bars without a terminal"
