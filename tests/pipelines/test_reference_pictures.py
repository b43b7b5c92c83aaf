"""Rendering with reference pictures: which are used, and the effect of changes to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2v.checkpoint import REFERENCES, load_model
from v2v.cli import models as model_commands
from v2v.data.references.memory import References
from v2v.errors import CheckpointInvalid, UsageError
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.references import drop_reference, list_references
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.output import Output
from v2v.pipelines.rendering.rendering import Rendering
from v2v.signals.pose import PoseTrack

HEIGHT, WIDTH = 64, 48
COUNT = 20


def track_of(points: np.ndarray) -> PoseTrack:
    return PoseTrack(points, np.zeros(points.shape[:2], bool), WIDTH, HEIGHT)


@pytest.fixture
def run(make_model: Callable[..., Path], skeletons: Callable[..., np.ndarray]) -> Path:
    """A run whose model has random weights and four reference pictures in different colours."""
    points = skeletons(40)[::10]
    pictures = np.empty((4, HEIGHT, WIDTH, 3), np.uint8)
    pictures[:] = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])[
        :, None, None
    ]
    masks = np.full((4, HEIGHT, WIDTH), 255, np.uint8)
    references = References(pictures, masks, track_of(points), 10 * np.arange(4), whole=True)
    arguments = {"references": 2, "past": "nothing"}
    return make_model(generator=arguments, references={0: references})


@pytest.fixture
def rendering(run: Path, skeletons: Callable[..., np.ndarray]) -> Callable[[], Rendering]:
    points = skeletons(COUNT)

    def make() -> Rendering:
        conditioning = ConditioningSource(
            pipeline="test", count=COUNT, rate=Fraction(25),
            tracks=lambda start, stop: [track_of(points[start:stop])], settings={},
            source="dance.mp4", source_sha256="1" * 64,
        )  # fmt: skip
        return Rendering(LoadedModel.open(run, device="cpu", precision="32"), conditioning)

    return make


@pytest.mark.parametrize("first", [1, 4, 7, 19])
def test_a_resumed_render_uses_the_same_references(rendering, first):
    steps = list(rendering().steps())
    rest = list(rendering().steps(first, steps[first - 1].state))
    assert len(rest) == COUNT - first
    for one, other in zip(steps[first:], rest, strict=True):
        assert torch.equal(one.frame, other.frame)


def test_reference_pictures_change_the_frames(rendering, run, tmp_path):
    whole, output = rendering(), Output(tmp_path / "a.mkv", codec="ffv1")
    before = np.stack(list(whole))
    whole.save(output)
    assert rendering().is_saved(output)
    drop_reference(run, 1)
    assert not rendering().is_saved(output)  # other pictures give another video
    assert not np.array_equal(before, np.stack(list(rendering())))


def test_reference_pictures_are_listed_and_dropped(run):
    found = list_references(run)
    assert [(p.number, p.frame) for p in found] == [(0, 0), (1, 10), (2, 20), (3, 30)]
    drop_reference(run, 2)
    assert [p.number for p in list_references(run)] == [0, 1, 3]
    with pytest.raises(UsageError, match="no reference 2"):
        drop_reference(run, 2)
    for number in (0, 1):
        drop_reference(run, number)
    with pytest.raises(UsageError, match="last"):
        drop_reference(run, 3)
    assert len(load_model(run).references[0]) == 1


def test_the_references_command(run, monkeypatch, capsys):
    monkeypatch.setattr(model_commands, "prepare_process", lambda: None)
    model_commands.references(str(run), drop=0, as_json=True)
    assert [entry["number"] for entry in json.loads(capsys.readouterr().out)] == [1, 2, 3]
    model_commands.references(str(run))
    listed = capsys.readouterr().out
    assert "frame 10" in listed and "0-01.png" in listed
    with pytest.raises(UsageError, match="both"):
        model_commands.references(str(run), add=Path("a.png"), drop=0)


def test_a_model_without_references_is_an_error(make_model):
    with pytest.raises(UsageError, match="without reference pictures"):
        list_references(make_model("plain"))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda folder: (folder / "0-02.png").write_bytes(b"no picture"), "0-02.png"),
        (lambda folder: [path.unlink() for path in folder.glob("*.png")], "no image of clip0"),
        (lambda folder: (folder / "points.safetensors").unlink(), "points.safetensors"),
        (lambda folder: (folder / "points.safetensors").write_bytes(b"x" * 90), "points"),
    ],
)
def test_damaged_references_are_named(run, damage: Any, words: str):
    damage(run / "model" / REFERENCES)
    with pytest.raises(CheckpointInvalid, match=words):
        load_model(run)
