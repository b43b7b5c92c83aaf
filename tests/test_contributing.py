"""The worked example in CONTRIBUTING.md, run as an installed package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from v2v.video.write import VideoWriter

DOCUMENT = Path(__file__).parents[1] / "CONTRIBUTING.md"

USE = """
import sys
from pathlib import Path
from v2v.preprocess.build import preprocess
from v2v import open_store
from v2v.config import PreprocessSettings, load_config

settings = load_config(PreprocessSettings, "preprocess")
made = preprocess(Path("clip.mp4"), ["edges"], settings, output=Path("store"))
assert made.made == ["edges"], made.failed
store = open_store("store")
window = store.window(2, 4, size=32)
assert window.signals["edges"].shape == (4, 1, 32, 32)
track = store.track("edges")
assert (track.flipped().flipped().edges == track.edges).all()
print(track.edges.max(), len(track))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The document's code blocks as files, with its entry points."""
    text = DOCUMENT.read_text("utf-8")
    folder = tmp_path / "site" / "my_edges"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for name, code in re.findall(r"`my_edges/(\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL):
        (folder / name).write_text(code)
    info = tmp_path / "site" / "my_edges-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_edges\nVersion: 1.0\n")
    table = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert table is not None
    lines = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", table[1]).replace('"', "")
    (info / "entry_points.txt").write_text(lines)
    return tmp_path / "site"


def test_the_example_works(package: Path, tmp_path: Path) -> None:
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[12:36, 16:48] = 255
    from fractions import Fraction

    with VideoWriter(tmp_path / "clip.mp4", width=64, height=48, rate=Fraction(25)) as video:
        for _ in range(10):
            video.write(frame)
    run = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["255", "10"]
