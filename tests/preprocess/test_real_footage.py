"""Tests preprocessing on real footage; skipped if it is not available."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore
from v2v.preprocess.build import preprocess
from v2v.preprocess.pose import surveyed_frames
from v2v.preprocess.run import expand_signals
from v2v.signals.face import FaceTrack
from v2v.signals.pose import POINT, PoseTrack

pytestmark = pytest.mark.slow


def build_store(source: Path, folder: Path, signals: str, **values: object) -> ClipStore:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    settings = load_config(PreprocessSettings, "preprocess", values=dotted)
    outcome = preprocess(source, expand_signals([signals]), settings, output=folder)
    assert not outcome.failed, outcome.failed
    return ClipStore.open(folder)


def test_dancer(clips: Path, tmp_path: Path) -> None:
    store = build_store(
        clips / "pose" / "dancer.mp4", tmp_path / "s", "pose,segmentation", frames__size=480
    )
    assert len(store) == 288 and store.shots == [(0, 288)] and store.audio is not None
    pose = store.record.signals["pose"]
    assert pose.coverage == 1.0
    # Smoothing reduces jitter in the quietest second by more than half.
    assert pose.measured["jitter_after_px"] < 0.5 * pose.measured["jitter_before_px"]
    assert pose.measured["other_people"] == []
    track = store.track("pose")
    assert isinstance(track, PoseTrack)
    left, right = (track.points[:, POINT[f"{side}_shoulder"], 0] for side in ("left", "right"))
    assert (left > right).all()  # she faces the camera throughout
    labels = store.track("segmentation").labels  # type: ignore[attr-defined]
    hips = track.points[:, [POINT["left_hip"], POINT["right_hip"]], :2].mean(axis=1).astype(int)
    inside = [labels[t, y, x] for t, (x, y) in enumerate(hips)]
    assert np.mean(inside) > 0.99


@pytest.mark.slow
def test_passers_by_are_other_people(clips: Path, tmp_path: Path) -> None:
    store = build_store(
        clips / "pose" / "street_crowd.avi", tmp_path / "s", "pose", frames__size=480
    )
    found = store.record.signals["pose"].measured["other_people"]
    assert found and set(found) <= surveyed_frames(len(store), 50)


def test_small_actor_is_cropped(clips: Path, tmp_path: Path) -> None:
    store = build_store(clips / "pose" / "actor.avi", tmp_path / "s", "pose", frames__crop="person")
    assert len(store) == 103
    assert store.record.signals["pose"].coverage == 1.0
    height, width = store.frames(0, 1).shape[1:3]
    assert height > 1.5 * width  # a standing person
    points = store.track("pose").points  # type: ignore[attr-defined]
    body = points[:, :33, :2]
    assert (body > 0).all() and (body < [width, height]).all()


def test_talker(clips: Path, tmp_path: Path) -> None:
    store = build_store(clips / "face" / "talker_long.mp4", tmp_path / "s", "face", frames__end=10)
    track = store.track("face")
    assert isinstance(track, FaceTrack)
    assert store.record.signals["face"].coverage == 1.0
    assert np.ptp(track.mouth) > 0.5  # she opens her mouth wide
    assert np.abs(track.head.angles()).max() < 30  # and does not turn her head away
    assert np.ptp(track.scale) < 0.15 * track.scale.mean()


def test_street_has_35_classes(clips: Path, tmp_path: Path) -> None:
    store = build_store(
        clips / "street" / "images", tmp_path / "s", "segmentation,flow", frames__fps=17,
        frames__size=256, segmentation__backend="labels",
        segmentation__labels=str(clips / "street" / "labels"),
    )  # fmt: skip
    assert len(store) == 10 and store.rate == 17
    spec = store.record.signals["segmentation"].spec
    assert len(spec["classes"]) == 35
    share = store.record.signals["segmentation"].measured["share"]
    assert share["road"] > 0.2 and share["vegetation"] > 0.1 and "car" in share
    window = store.window(0, 10)
    assert window.signals["segmentation"].shape == (10, 36, 256, 512)
