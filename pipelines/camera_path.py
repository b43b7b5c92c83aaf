"""What the camera of a rendering does, for a model whose footage was filmed by hand.

The person is placed as a camera that stands still would see them, in the middle of all views that
training showed; the path then moves person and background together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.model import Trained
from pipelines.source import Source
from v2v.data.plate import Backgrounds
from v2v.errors import UnknownName, UsageError
from v2v.signals import Track
from v2v.signals.camera import CameraTrack, Matrices, carry

CAMERA_PATHS = ("still", "target", "source")


@dataclass(frozen=True)
class CameraPath:
    """Where each of n frames looks.

    Attributes:
        matrices: float64 [n, 3, 3] from pixels of the still view to those of each frame, in the
            model's size; None: the camera stands still.
        backgrounds: what is behind, where the camera moves.
    """

    matrices: Matrices | None = None
    backgrounds: Backgrounds | None = None

    def track(self, track: Track, first: int) -> Track:
        """Points as the still view has them, from frame `first` on, as the frames do."""
        if self.matrices is None:
            return track
        return seen_from(track, self.matrices[first : first + len(track)])

    @property
    def behind(self) -> Callable[[int, int], NDArray[np.uint8]] | None:
        """`Drive.behind`."""
        matrices, backgrounds = self.matrices, self.backgrounds
        if matrices is None or backgrounds is None:
            return None
        return lambda first, stop: np.stack(
            [backgrounds.of(change=matrix) for matrix in matrices[first:stop]]
        )


def seen_from(track: Track, matrices: Matrices) -> Track:
    """A track of points as other cameras see it: [T, 3, 3] from its pixels to theirs."""
    points: NDArray[np.float32] = np.array(track.points)  # type: ignore[attr-defined]
    for rows, matrix in zip(points, matrices, strict=True):
        rows[:, :2] = carry(matrix, rows[:, :2])
    return cast(Track, replace(cast(Any, track), points=points))


def steadied(points: NDArray[np.float32], driven: Source) -> NDArray[np.float32]:
    """Points [T, N, ...] of a whole source as they would be had its camera stood still.

    Those of each background as its middle frame sees it; as they are where the source has no
    `camera`.
    """
    track = _camera(driven)
    if track is None:
        return points
    found = np.array(points)
    back = np.linalg.inv(_from_the_middle(track))
    for rows, matrix in zip(found, back, strict=True):
        rows[:, :2] = carry(matrix, rows[:, :2])
    return found


def camera_path(trained: Trained, clip: int, driven: Source, kind: str) -> CameraPath:
    """The path of a rendering's camera.

    Args:
        kind: still; target: as the model's own footage was filmed, forth and back; source: as the
            driving footage was, from its `camera`.

    Raises `UnknownName`; `UsageError` where the model has only what a still camera saw.
    """
    if kind not in CAMERA_PATHS:
        raise UnknownName.among("--camera-path", kind, CAMERA_PATHS)
    if kind == "still":
        return CameraPath()
    backgrounds = trained.model.backgrounds.get(clip)
    if backgrounds is None:
        raise UsageError(
            f"{trained.name} knows no more of its background than a still camera shows: its"
            " footage was filmed so, or its store has no camera",
            hint="use --camera-path still; for footage filmed by hand add the camera with v2v"
            " preprocess STORE --signal camera, and train again",
        )
    count = len(driven)
    if kind == "target":
        middle = backgrounds.middle
        first, stop = trained.model.record.clips[clip].trained
        track = backgrounds.track
        own = (track.reference == track.reference[middle]) & track.present()
        frames = first + np.flatnonzero(own[first:stop])
        period = max(2 * (len(frames) - 1), 1)
        place = np.arange(count) % period
        chosen = frames[np.minimum(place, period - place)]
        matrices = track.homography[chosen] @ np.linalg.inv(track.homography[middle])
        return CameraPath(matrices, backgrounds)
    filmed = _camera(driven)
    assert filmed is not None, "the source was opened without its camera"
    matrices = _from_the_middle(filmed)[driven.start : driven.stop]
    # Of the source's height as of the model's; what lies beside it is cut or added on both sides.
    height, width = trained.size
    rows, columns = driven.size
    zoom = height / rows
    change = np.array([[zoom, 0, (width - zoom * columns) / 2], [0, zoom, 0], [0, 0, 1]])
    return CameraPath(change @ matrices @ np.linalg.inv(change), backgrounds)


def _camera(driven: Source) -> CameraTrack | None:
    if "camera" not in driven.store.signals:
        return None
    track = driven.store.track("camera")
    assert isinstance(track, CameraTrack)
    return track


def _from_the_middle(track: CameraTrack) -> Matrices:
    """[T, 3, 3] from the frame in the middle of each background's views to each of its frames."""
    found = np.empty_like(track.homography)
    for first in np.unique(track.reference):
        own = np.flatnonzero(track.reference == first)
        middle = Backgrounds.most_central(track, own)
        found[own] = track.homography[own] @ np.linalg.inv(track.homography[middle])
    moved: Matrices = found / found[:, 2:, 2:]
    return moved
