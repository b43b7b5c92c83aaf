"""Tests that one person is tracked through a crowd in real footage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.preprocess.extractor import ClipContext
from v2v.preprocess.pose import HIPS, SHOULDERS, BodyTracker
from v2v.video.plan import Geometry

# Torso centre of the woman in the denim jacket and the pink skirt, annotated by eye. Another woman,
# in turquoise, dances around her, 100 pixels away at frame 150.
ANNOTATED = {0: (655, 165), 50: (740, 257), 100: (738, 248), 150: (684, 290), 200: (940, 267)}
NEAR = 45  # pixels; her torso is 100 to 160 long


@pytest.mark.slow
def test_dancer_is_tracked_among_passers_by(clips: Path) -> None:
    width, height = 1280, 720
    clip = ClipContext(
        name="street_crowd.avi", width=width, height=height, rate=Fraction(50), count=205,
        geometry=Geometry((0, 0, width, height), width, height), sources=np.arange(205),
        source_frames=205, upright=(width, height),
    )  # fmt: skip
    tracker = BodyTracker(load_config(PreprocessSettings, "preprocess"), clip, mask=False)
    tracker.begin(None)
    bodies: list[NDArray[np.float32]] = []
    with av.open(str(clips / "pose" / "street_crowd.avi")) as container:
        for index, frame in enumerate(container.decode(video=0)):
            found = tracker.find(frame.to_ndarray(format="rgb24"), index == 0)
            missing = np.full((33, 4), np.nan, np.float32)
            bodies.append(missing if found is None else found.points)
    tracker.end()

    points = np.stack(bodies)[..., :2]
    assert len(points) == 205
    shoulders, hips = points[:, SHOULDERS].mean(axis=1), points[:, HIPS].mean(axis=1)
    torso = (shoulders + hips) / 2
    length = np.linalg.norm(shoulders - hips, axis=1)
    assert np.isfinite(torso).all(axis=1).mean() > 0.98
    for index, place in ANNOTATED.items():
        distance = np.linalg.norm(torso[index] - place)
        assert distance < NEAR, f"frame {index}: {torso[index].round()} instead of {place}"
    # Between frames, in torso lengths: the camera sways and zooms with her.
    steps = np.linalg.norm(np.diff(torso, axis=0), axis=1) / length[1:]
    assert np.nanmax(steps) < 0.55
    assert np.nanpercentile(steps, 95) < 0.2
