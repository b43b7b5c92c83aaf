"""An option of a signal, from training to rendering: distance maps of the face.

The model alone decides on it: clip stores neither have it nor need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_retarget_face import about, filmed, person, speaking

from v2v.checkpoint import read_model_record
from v2v.config import load_config
from v2v.data.dataset import ClipDataset
from v2v.data.store import ClipStore
from v2v.errors import CheckpointInvalid
from v2v.evaluation.clips import measured_clips
from v2v.evaluation.methods import rendering as evaluated
from v2v.pipelines.face_reenactment import FaceReenactment
from v2v.progress import Silent
from v2v.signals.face import PARTS, FaceTrack
from v2v.training.loop import train
from v2v.training.settings import TrainSettings

COUNT, SIDE = 24, 64
MAPS = {"face": {"distance_maps": True}}
MakeStore = Callable[..., Path]


def talking(**shape: Any) -> FaceTrack:
    neutral = person(**shape)
    shapes = np.stack([speaking(neutral, 0.3 * max(np.sin(t / 3), 0)) for t in range(COUNT)])
    turns = np.stack([about(yaw=12 * np.sin(t / 6)) for t in range(COUNT)])
    return filmed(shapes, turns=turns, size=14, place=(28, 30), side=SIDE)


@pytest.fixture
def face_store(make_store: MakeStore) -> Callable[..., Path]:
    def make(name: str = "own", **shape: Any) -> Path:
        face = talking(**shape)
        return make_store(name, face=face.points, depth=face.depth, size=(SIDE, SIDE))

    return make


def fit(store: Path, folder: Path, *, maps: bool) -> Path:
    """Two updates on a store; returns the run."""
    values = {
        "task": "face", "budget.steps": 2, "data.size": SIDE, "data.hold_out": 0.4,
        "data.signal_options.face.distance_maps": maps, "schedule.lengths": [1, 2],
        "discriminator.width": 8, "discriminator.layers": 2, "discriminator.crop": 24,
        "losses.perceptual": "pyramid", "output.preview_seconds": 0.1, "loop.precision": "32",
    }  # fmt: skip
    settings = load_config(TrainSettings, "train", "train-face", values=values)
    train(settings, [store], folder, Silent())
    return folder


def test_a_model_with_distance_maps_renders_them(face_store, tmp_path):
    own, driver = face_store("own"), face_store("driver", eye=0.07, wide=0.9)
    model = fit(own, tmp_path / "run", maps=True)
    (use,) = read_model_record(model / "model").signals
    assert use.channels == 3 + len(PARTS) and use.spec["distance_maps"] is True
    for store in (own, driver):
        assert "distance_maps" not in ClipStore.open(store).record.signals["face"].spec

    reenact = FaceReenactment.from_pretrained(model, device="cpu")
    trained = reenact.trained
    rendering = reenact(driver)
    (track,) = tracks = rendering.conditioning.tracks(0, 4)
    signals = trained.conditions(tracks, trained.appearance()).signals
    assert torch.equal(signals, track.tensor(SIDE, SIDE, distance_maps=True))
    frames = list(rendering)
    assert len(frames) == COUNT and frames[0].shape == (SIDE, SIDE, 3)

    for data in ([own], [driver]):
        (clip,), _ = measured_clips(trained, data, frames=4, drift=0, report=Silent())
        assert len(list(evaluated(trained, clip))) == 4


def test_without_the_option_nothing_changes(face_store, tmp_path):
    store = face_store()
    file = store / "clip.json"
    record = json.loads(file.read_text())
    record["signals"]["face"]["spec"]["distance_maps"] = True
    file.write_text(json.dumps(record))
    (use,) = read_model_record(fit(store, tmp_path / "run", maps=False) / "model").signals
    assert use.channels == 3 and "distance_maps" not in use.spec


def test_a_record_that_contradicts_its_option_is_refused(face_store, tmp_path):
    model = fit(face_store(), tmp_path / "run", maps=True) / "model"
    file = model / "model.json"
    record = json.loads(file.read_text())
    for value, message in ((False, "14 channels, but its spec describes 3"), ("yes", "true or")):
        record["signals"][0]["spec"]["distance_maps"] = value
        file.write_text(json.dumps(record))
        with pytest.raises(CheckpointInvalid, match=message):
            read_model_record(model)


def test_mirrored_windows_have_the_maps_of_the_mirrored_face(face_store, tmp_path):
    settings = load_config(
        TrainSettings, "train", "train-face",
        values={"augment.flip": 1.0, "augment.crop_probability": 0.0, "augment.jitter": 0.0},
    )  # fmt: skip
    store = face_store()
    windows = ClipDataset(
        [store], ["face"], seed=0, augmentation=settings.augment, extras=(), options=MAPS
    )
    draw = windows.draw(3, 2, SIDE)
    signals = windows.load([draw]).signals[0]
    face: Any = ClipStore.open(store).track("face", draw.start, draw.stop)
    assert draw.placement.flip and windows.channels == signals.shape[1] == 3 + len(PARTS)
    truth = face[:: draw.stride].flipped().tensor(SIDE, SIDE, distance_maps=True)
    assert torch.equal(signals, truth)
