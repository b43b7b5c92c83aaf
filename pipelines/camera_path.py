"""The camera path of a rendering, for a model trained on hand-held footage.

The person is placed as seen by a still camera in the middle of all training views; the path then
moves person and background together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from v2v.data.background import Backgrounds
from v2v.errors import UnknownName, UsageError
from v2v.homography import Matrices, carry, carry_each
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.source import Source
from v2v.signals import Track
from v2v.signals.face import FaceTrack
from v2v.signals.traits import CameraMotion

CAMERA_PATHS = ("still", "target", "source")
SAMPLES = 24  # frames of a path that are checked
MIN_KNOWN = 0.95  # minimum known background area of a view, as a fraction of the still view's
STRENGTHS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True)
class CameraPath:
    """The view of each of n frames.

    Attributes:
        matrices: float64 [n, 3, 3] from pixels of the still view to those of each frame, in the
            model's size; None: the camera is still.
        backgrounds: the background for a moving camera.
        notes: notes for the user.
    """

    matrices: Matrices | None = None
    backgrounds: Backgrounds | None = None
    notes: tuple[str, ...] = ()

    def track(self, track: Track, first: int) -> Track:
        """Transform a track that starts at frame `first` from the still view to the frames."""
        if self.matrices is None:
            return track
        return seen_from(track, self.matrices[first : first + len(track)])

    @property
    def behind(self) -> Callable[[int, int], NDArray[np.uint8]] | None:
        """`ConditioningSource.behind`."""
        matrices, backgrounds = self.matrices, self.backgrounds
        if matrices is None or backgrounds is None:
            return None
        return lambda first, stop: np.stack(
            [backgrounds.of(change=matrix) for matrix in matrices[first:stop]]
        )


def seen_from(track: Track, matrices: Matrices) -> Track:
    """A track of points in another view; `matrices` [T, 3, 3] map its pixels to that view's."""
    points = carry_each(matrices, track.points)  # type: ignore[attr-defined]
    if not isinstance(track, FaceTrack):
        return cast(Track, replace(cast(Any, track), points=points))
    # Rotation and scale of the transform at the middle of the head.
    heads = zip(matrices, track.translation, strict=True)
    ends = np.stack([carry(matrix, np.stack([head, head + (1, 0)])) for matrix, head in heads])
    middle, beside = ends[:, 0], ends[:, 1]
    along = beside - middle
    grown = np.linalg.norm(along, axis=-1).astype(np.float32)
    x, y = (along / np.maximum(grown, 1e-6)[:, None]).T
    roll = np.zeros((len(track), 3, 3), np.float32)
    roll[:, 0, 0], roll[:, 0, 1], roll[:, 1, 0], roll[:, 1, 1], roll[:, 2, 2] = x, -y, y, x, 1
    return replace(
        track, points=points, translation=middle.astype(np.float32), scale=track.scale * grown,
        depth=track.depth * grown[:, None], rotation=roll @ track.rotation,
    )  # fmt: skip


def still_views(driven: Source) -> Matrices | None:
    """[T, 3, 3] from each frame of a source's store to a still camera; None without a camera."""
    track = _camera(driven)
    return None if track is None else track.steady()


def steadied(track: Track, views: Matrices | None, frames: Any) -> Track:
    """A track of the source as seen by a still camera.

    Args:
        views: the result of `still_views`.
        frames: the store's frames that `track` covers, as an index into `views`.
    """
    return track if views is None else seen_from(track, views[frames])


def check_camera_path(trained: LoadedModel, clip: int, kind: str) -> None:
    """Raises `UnknownName`; `UsageError` if the model only has the background of a still camera."""
    if kind not in CAMERA_PATHS:
        raise UnknownName.among("--camera-path", kind, CAMERA_PATHS)
    if kind != "still" and clip not in trained.model.backgrounds:
        raise UsageError(
            f"{trained.name} only knows the background of a still camera: its camera did not"
            " move, or its store has no camera signal",
            hint="use --camera-path still; for hand-held footage add the camera with v2v"
            " preprocess STORE --signal camera, and train again",
        )


def camera_path(trained: LoadedModel, clip: int, driven: Source, kind: str) -> CameraPath:
    """The camera path of a rendering.

    Args:
        kind: still; target: the path of the model's own footage, forwards and backwards; source:
            the path of the driving footage, from its `camera` signal.

    Raises what `check_camera_path` raises.
    """
    check_camera_path(trained, clip, kind)
    if kind == "still":
        return CameraPath()
    backgrounds = trained.model.backgrounds[clip]
    count = len(driven)
    if kind == "target":
        middle = backgrounds.middle
        first, stop = trained.model.record.clips[clip].trained
        track = backgrounds.track
        own = (track.reference == track.reference[middle]) & track.present()
        frames = first + np.flatnonzero(own[first:stop])
        period = max(2 * (len(frames) - 1), 1)
        phase = np.arange(count) % period
        chosen = frames[np.minimum(phase, period - phase)]
        matrices = track.homography[chosen] @ np.linalg.inv(track.homography[middle])
        return CameraPath(matrices, backgrounds)
    views = still_views(driven)
    assert views is not None, "the source was opened without its camera"
    matrices = np.asarray(np.linalg.inv(views[driven.start : driven.stop]), np.float64)
    # Scale the source's height to the model's; crop or extend the width on both sides.
    height, width = trained.size
    rows, columns = driven.size
    zoom = height / rows
    change = np.array([[zoom, 0, (width - zoom * columns) / 2], [0, zoom, 0], [0, 0, 1]])
    matrices = np.asarray(change @ matrices @ np.linalg.inv(change), np.float64)
    return _within(CameraPath(matrices / matrices[:, 2:, 2:], backgrounds), backgrounds)


def _within(path: CameraPath, backgrounds: Backgrounds) -> CameraPath:
    """The path, attenuated until it shows hardly more background than the training footage."""
    assert path.matrices is not None
    chosen = np.unique(np.linspace(0, len(path.matrices) - 1, SAMPLES).astype(int))
    least = MIN_KNOWN * float((backgrounds.of()[..., 3] > 127).mean())
    for strength in STRENGTHS:
        weaker = np.eye(3) + strength * (path.matrices - np.eye(3))
        known = [(backgrounds.of(change=weaker[i])[..., 3] > 127).mean() for i in chosen]
        if min(known) >= least:
            break
    if strength == 1:
        return path
    note = (
        "the source's camera shows background that the training footage does not: its motion is"
        f" reduced to {strength:.0%}"
    )
    return replace(path, matrices=weaker, notes=(note,))


def _camera(driven: Source) -> CameraMotion | None:
    if "camera" not in driven.store.signals:
        return None
    track = driven.store.track("camera")
    assert isinstance(track, CameraMotion)
    return track


def filmed(driven: Source) -> dict[str, Any]:
    """The stabilisation's settings that determine the frames, for `ConditioningSource.settings`."""
    record = driven.store.record.signals.get("camera")
    return {} if record is None else {"filmed": record.model_dump(mode="json")}
