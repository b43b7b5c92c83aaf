"""The end-to-end pipeline on synthetic people with a tiny network: caching and refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from v2v.errors import RunConflict, UsageError
from v2v.pipelines.demo import demo
from v2v.pipelines.end_to_end import run
from v2v.pipelines.provenance import read_provenance
from v2v.progress import Silent
from v2v.samples.clips import write_sample
from v2v.video.probe import probe
from v2v.video.stored import read_stored

pytestmark = pytest.mark.slow
SMALL = [
    "schedule.lengths=[1,2]", "schedule.frames=2", "discriminator.width=8",
    "discriminator.layers=2", "discriminator.scales=1", "discriminator.crop=24",
    "output.preview_seconds=0.1",
]  # fmt: skip


class Stages(Silent):
    """Records the stages and messages."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[str] = []
        self.messages: list[str] = []

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self.started.append(stage)

    def describe(self, stage: str, text: str) -> None:
        self.messages.append(text)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("people")
    return {who: write_sample("person", folder, seconds=1.6, who=who) for who in ("host", "guest")}


@pytest.fixture
def do(people: dict[str, Path], tmp_path: Path) -> Callable[..., Any]:
    def once(**options: Any) -> Any:
        given = {
            "minutes": 0.02, "size": 64, "settings": SMALL, "output": tmp_path / "out.mp4",
            "data": tmp_path / "data", "runs": tmp_path / "runs", **options,
        }  # fmt: skip
        target = given.pop("target", people["host"])
        return run(target, given.pop("source", people["guest"]), **given)

    return once


def test_a_second_run_reuses_all_stages(do, people, tmp_path):
    stages = Stages()
    made = do(compare=True, report=stages)
    assert [text[0] for text in stages.messages if " of 4: " in text] == ["1", "2", "3", "4"]
    assert not made.kept and made.rendered.frames == 48
    seen = probe(made.rendered.video)
    assert (seen.frames, seen.rate) == (48, 30) and seen.audio is not None
    mark = read_provenance(made.rendered.video)
    assert mark is not None and (mark.model, mark.source) == ("person", "guest.mp4")
    assert [what.split()[0] for what, _ in made.steps] == ["signals", "signals", "train", "render"]

    again = Stages()
    kept = do(compare=True, report=again)
    assert kept.kept and not {"frames", "render"} & set(again.started)
    assert kept.training["steps"] == made.training["steps"]

    longer = do(minutes=0.04)  # continues training and renders again
    assert longer.training["steps"] > made.training["steps"] and not longer.kept


def test_files_of_other_origin_are_not_replaced(do, people, tmp_path):
    for name in ("out.mp4", "out-compare.mp4"):
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(UsageError, match="was not made from this target"):
            do(compare=True)
        assert (tmp_path / name).read_bytes() == b"precious"
        assert not (tmp_path / "data").exists(), "the refusal must come before any work"
        (tmp_path / name).unlink()
    do(overwrite=True)
    with pytest.raises(RunConflict, match="was trained on person.mp4"):
        do(target=people["guest"], name="person", output=tmp_path / "other.mp4")


def test_the_demo_writes_video_sheet_and_page(tmp_path, monkeypatch):
    monkeypatch.setattr("v2v.pipelines.demo.SETTINGS", SMALL)
    monkeypatch.setattr("v2v.pipelines.demo.SIZE", 64)
    (tmp_path / "person.mp4").write_bytes(b"mine")
    made = demo(tmp_path, seconds=1.6, minutes=0.02)
    assert (tmp_path / "person.mp4").read_bytes() == b"mine"
    assert probe(made.video).upright_width == 128
    assert len(list(read_stored(made.video))) == 48
    assert made.sheet.stat().st_size > 10_000
    page = made.page.read_text("utf-8")
    shown = re.findall(r'src="([^"]+)"', page)
    assert shown and all((tmp_path / name).is_file() for name in shown)
    assert "http" not in page, "the page must not need a network connection"
    assert sum(seconds for _, seconds in made.steps) > 0
    before = np.stack(list(read_stored(made.video)))
    assert np.array_equal(
        np.stack(list(read_stored(demo(tmp_path, seconds=1.6, minutes=0.02).video))), before
    )
