"""Folder listings: no system files, in natural order."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from v2v.evaluation.study.make import clips_in
from v2v.listing import is_hidden, natural_key, visible_files
from v2v.preprocess.run import expand_inputs
from v2v.video.probe import hash_files, image_files, probe

CLUTTER = (".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", ".hidden.png", "._a.mp4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*CLUTTER, "10.png", "2.png", "b.mp4", "a.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "3.png").mkdir()
    return tmp_path


def test_system_files_are_ignored(folder: Path) -> None:
    assert all(is_hidden(folder / name) for name in CLUTTER)
    assert [p.name for p in visible_files(folder)] == [
        "2.png", "10.png", "a.mp4", "b.mp4", "notes.txt"
    ]  # fmt: skip
    assert [p.name for p in image_files(folder)] == ["2.png", "10.png"]
    assert sorted(clips_in(folder)) == ["a", "b"]
    for given in (str(folder), f"{folder}/*.mp4", f"{folder}/[ab.T]*[4b]"):
        jobs = expand_inputs([given], None)
        assert [job.source.name for job in jobs] == ["a.mp4", "b.mp4"], given


def test_digits_without_a_decimal_value_are_text() -> None:
    names = ["2", "²", "1²2", "1²10", "٣", "10", "a²", "a2", "01", "1", "Ⅷ", "9" * 200]
    ordered = sorted((Path(f"{name}.png") for name in names), key=natural_key)
    assert [p.stem for p in ordered if p.stem.isascii()] == ["01", "1", "2", "10", "9" * 200, "a2"]
    assert ordered.index(Path("1²2.png")) < ordered.index(Path("1²10.png"))
    assert (
        ordered.index(Path("2.png")) < ordered.index(Path("٣.png")) < ordered.index(Path("10.png"))
    ), "decimal digits of other scripts are not sorted as numbers"
    shuffled = random.Random(0).sample(ordered, len(ordered))
    assert sorted(shuffled, key=natural_key) == ordered, "the order depends on the disk"


def test_names_that_are_not_valid_text(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    try:
        image.save(tmp_path / "1\udcff.png", format="PNG")
    except (OSError, UnicodeError):
        pytest.skip("this file system does not allow such names")
    image.save(tmp_path / "2.png")
    seen = probe(tmp_path)
    assert [p.name for p in seen.images] == ["1\udcff.png", "2.png"]
    assert len(hash_files(list(seen.images))) == 64
