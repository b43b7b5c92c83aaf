"""The camera path of a rendering: person and background move together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from v2v.data.background import Backgrounds, Mosaic
from v2v.errors import UnknownName, UsageError
from v2v.homography import carry
from v2v.pipelines.camera_path import camera_path, seen_from, steadied, still_views
from v2v.signals.camera import CameraTrack
from v2v.signals.face import FaceTrack
from v2v.signals.pose import PoseTrack

HEIGHT, WIDTH, COUNT, TRAINED = 40, 60, 9, 7


def shifts(*offsets: float) -> Any:
    return np.stack([np.array([[1.0, 0, -x], [0, 1, 0], [0, 0, 1]]) for x in offsets])


def camera(matrices: Any, width: int = WIDTH, height: int = HEIGHT) -> CameraTrack:
    count = len(matrices)
    return CameraTrack(
        matrices, np.zeros(count, np.int64), np.zeros(count, np.float32), width, height
    )


def backgrounds() -> Backgrounds:
    """A wall whose brightness is its column; the camera pans by 2 pixels per frame."""
    wall = np.tile(np.arange(WIDTH + 2 * COUNT, dtype=np.uint8)[None, :, None], (HEIGHT, 1, 4))
    wall[..., 3] = 255
    return Backgrounds({0: Mosaic(wall, (0.0, 0.0))}, camera(shifts(*range(0, 2 * COUNT, 2))))


def trained(known: Backgrounds | None) -> Any:
    clip = SimpleNamespace(trained=(0, TRAINED))
    record = SimpleNamespace(clips=[clip])
    by_clip = {} if known is None else {0: known}
    return SimpleNamespace(
        name="b", size=(HEIGHT, WIDTH), model=SimpleNamespace(backgrounds=by_clip, record=record)
    )


class Driving:
    """The part of `Source` that a path needs: `start` to `stop` of a store."""

    def __init__(
        self, matrices: Any = None, *, start: int = 0, size: Any = (HEIGHT, WIDTH)
    ) -> None:
        signals = [] if matrices is None else ["camera"]
        self.start, self.stop = start, COUNT if matrices is None else len(matrices)
        self.size = size
        track = None if matrices is None else camera(matrices, size[1], size[0])
        self.store = SimpleNamespace(signals=signals, track=lambda _: track)

    def __len__(self) -> int:
        return self.stop - self.start


def driving(*args: Any, **values: Any) -> Any:
    return Driving(*args, **values)


def pose(x: float, y: float) -> PoseTrack:
    points = np.full((1, 75, 3), np.nan, np.float32)
    points[0, 5] = x, y, 1
    return PoseTrack(points, np.zeros((1, 75), np.bool_), WIDTH, HEIGHT)


def test_a_still_camera_changes_nothing() -> None:
    path = camera_path(trained(None), 0, driving(), "still")
    assert path.behind is None
    track = pose(10, 20)
    assert path.track(track, 3) is track


def test_the_target_s_camera_path_is_played_forwards_and_backwards() -> None:
    known = backgrounds()
    path = camera_path(trained(known), 0, driving(), "target")
    assert path.behind is not None
    shown = path.behind(0, COUNT)[:, 20, 30, 0].astype(int)
    expected = 30 + 2 * np.minimum(np.arange(COUNT), 2 * (TRAINED - 1) - np.arange(COUNT))
    assert shown.tolist() == expected.tolist()
    # The person keeps their position in the scene.
    middle = known.middle
    (x, y, _) = path.track(pose(30, 20), 0).points[0, 5]  # type: ignore[attr-defined]
    assert (x, y) == pytest.approx((30 + 2 * middle, 20))


def test_the_source_s_camera_path_is_scaled_to_the_model_s_size() -> None:
    """The source is twice as large: a motion of 8 of its pixels is 4 pixels of the model."""
    filmed = shifts(0, 8, 16)
    path = camera_path(
        trained(backgrounds()), 0, driving(filmed, size=(2 * HEIGHT, 2 * WIDTH)), "source"
    )
    assert path.behind is not None
    shown = path.behind(0, 3)[:, 20, 30, 0].astype(int)
    assert np.diff(shown).tolist() == [4, 4]
    part = camera_path(
        trained(backgrounds()), 0, driving(filmed, start=1, size=(2 * HEIGHT, 2 * WIDTH)), "source"
    )
    assert path.matrices is not None and part.matrices is not None
    np.testing.assert_allclose(part.matrices, path.matrices[1:])


def test_a_camera_path_that_exceeds_the_known_background_is_reduced() -> None:
    """Training covers 16 columns beside the first frame; the source pans by a whole frame."""
    path = camera_path(trained(backgrounds()), 0, driving(shifts(0, -30, 60)), "source")
    assert path.matrices is not None and path.behind is not None
    (note,) = path.notes
    assert "reduced to" in note
    assert np.abs(path.matrices[:, 0, 2]).max() < 20
    assert (path.behind(0, 3)[..., 3] > 127).mean() > 0.9


def test_a_model_of_still_footage_refuses_a_moving_camera() -> None:
    with pytest.raises(UsageError, match="b only knows the background of a still camera"):
        camera_path(trained(None), 0, driving(), "target")
    with pytest.raises(UnknownName, match="camera="):
        camera_path(trained(None), 0, driving(), "handheld")


def test_a_hand_held_source_is_stabilised() -> None:
    filmed = shifts(0, 3, -2, 5, 1)
    points = np.full((5, 75, 3), np.nan, np.float32)
    points[:, 5, :2] = carry(filmed, np.array([[20.0, 10.0]]))[:, 0]
    points[:, 5, 2] = 1
    track = PoseTrack(points, np.zeros((5, 75), np.bool_), WIDTH, HEIGHT)
    found = steadied(track, still_views(driving(filmed)), slice(None)).points  # type: ignore[attr-defined]
    assert np.ptp(found[:, 5, 0]) < 1e-4 and np.isnan(found[:, 6]).all()
    assert still_views(driving()) is None and steadied(track, None, slice(None)) is track


def test_the_source_s_camera_motion_is_not_applied_twice() -> None:
    """Stabilised and moved again, a person who stands still is where they were filmed."""
    filmed = shifts(0, 3, -2, 5, 1)
    source = driving(filmed)
    path = camera_path(trained(backgrounds()), 0, source, "source")
    points = np.full((5, 75, 3), 1, np.float32)
    points[:, 5, :2] = carry(filmed, np.array([[20.0, 10.0]]))[:, 0]
    track = PoseTrack(points, np.zeros((5, 75), np.bool_), WIDTH, HEIGHT)
    restored = path.track(steadied(track, still_views(source), slice(None)), 0)
    np.testing.assert_allclose(restored.points[:, 5], points[:, 5], atol=1e-4)  # type: ignore[attr-defined]


def test_a_head_rotates_and_scales_with_the_camera() -> None:
    points = np.zeros((1, 478, 3), np.float32)
    points[0, :, :2] = (10, 20)
    eye = np.eye(3, dtype=np.float32)[None]
    face = FaceTrack(
        points, np.ones((1, 478), np.float32), np.zeros(1, np.bool_), eye,
        np.array([[10.0, 20.0]], np.float32), np.array([8.0], np.float32), WIDTH, HEIGHT,
    )  # fmt: skip
    turned = np.array([[[0.0, -2, 40], [2, 0, 0], [0, 0, 1]]])  # a quarter turn, twice as large
    seen = seen_from(face, turned)
    assert isinstance(seen, FaceTrack)
    np.testing.assert_allclose(seen.translation, [[0, 20]], atol=1e-4)
    np.testing.assert_allclose(seen.scale, [16], rtol=1e-5)
    np.testing.assert_allclose(seen.rotation[0] @ [1, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(seen.points[0, 0], (0, 20, 0), atol=1e-4)


def test_points_move_with_the_background() -> None:
    turned = np.array([[[0.0, -1, 40], [1, 0, 0], [0, 0, 1]]])
    (x, y, score) = seen_from(pose(10, 20), turned).points[0, 5]  # type: ignore[attr-defined]
    assert (x, y, score) == pytest.approx((20, 10, 1))
