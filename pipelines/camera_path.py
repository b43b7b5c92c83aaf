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

from v2v.data.background import Backgrounds
from v2v.errors import UnknownName, UsageError
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.source import Source
from v2v.signals import Track
from v2v.signals.camera import CameraTrack, Matrices, carry, carry_each
from v2v.signals.face import FaceTrack

CAMERA_PATHS = ("still", "target", "source")
LOOKS = 24  # frames of a path that are looked at
SHOWN = 0.95  # of what the still view knows of the background must be known everywhere
STRENGTHS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)


@dataclass(frozen=True)
class CameraPath:
    """Where each of n frames looks.

    Attributes:
        matrices: float64 [n, 3, 3] from pixels of the still view to those of each frame, in the
            model's size; None: the camera stands still.
        backgrounds: what is behind, where the camera moves.
        notes: what the user should know.
    """

    matrices: Matrices | None = None
    backgrounds: Backgrounds | None = None
    notes: tuple[str, ...] = ()

    def track(self, track: Track, first: int) -> Track:
        """Points as the still view has them, from frame `first` on, as the frames do."""
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
    """A track of points as other cameras see it: [T, 3, 3] from its pixels to theirs."""
    points = carry_each(matrices, track.points)  # type: ignore[attr-defined]
    if not isinstance(track, FaceTrack):
        return cast(Track, replace(cast(Any, track), points=points))
    # How the camera turns and grows what is around the middle of the head.
    heads = zip(matrices, track.translation, strict=True)
    ends = np.stack([carry(matrix, np.stack([head, head + (1, 0)])) for matrix, head in heads])
    middle, beside = ends[:, 0], ends[:, 1]
    across = beside - middle
    grown = np.linalg.norm(across, axis=-1).astype(np.float32)
    x, y = (across / np.maximum(grown, 1e-6)[:, None]).T
    roll = np.zeros((len(track), 3, 3), np.float32)
    roll[:, 0, 0], roll[:, 0, 1], roll[:, 1, 0], roll[:, 1, 1], roll[:, 2, 2] = x, -y, y, x, 1
    return replace(
        track, points=points, translation=middle.astype(np.float32), scale=track.scale * grown,
        depth=track.depth * grown[:, None], rotation=roll @ track.rotation,
    )  # fmt: skip


def still_views(driven: Source) -> Matrices | None:
    """[T, 3, 3] from each frame of a source's store to a camera at rest; None: it is unknown."""
    track = _camera(driven)
    return None if track is None else track.steady()


def steadied(track: Track, views: Matrices | None, frames: Any) -> Track:
    """Frames of a source as a camera at rest sees them.

    Args:
        views: of `still_views`.
        frames: which frames of the store `track` has, as an index of `views`.
    """
    return track if views is None else seen_from(track, views[frames])


def check_camera_path(trained: LoadedModel, clip: int, kind: str) -> None:
    """Raises `UnknownName`; `UsageError` where the model has only what a still camera saw."""
    if kind not in CAMERA_PATHS:
        raise UnknownName.among("--camera-path", kind, CAMERA_PATHS)
    if kind != "still" and clip not in trained.model.backgrounds:
        raise UsageError(
            f"{trained.name} knows no more of its background than a still camera shows: its"
            " footage was filmed so, or its store has no camera",
            hint="use --camera-path still; for footage filmed by hand add the camera with v2v"
            " preprocess STORE --signal camera, and train again",
        )


def camera_path(trained: LoadedModel, clip: int, driven: Source, kind: str) -> CameraPath:
    """The path of a rendering's camera.

    Args:
        kind: still; target: as the model's own footage was filmed, forth and back; source: as the
            driving footage was, from its `camera`.

    Raises as `check_camera_path` does.
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
        place = np.arange(count) % period
        chosen = frames[np.minimum(place, period - place)]
        matrices = track.homography[chosen] @ np.linalg.inv(track.homography[middle])
        return CameraPath(matrices, backgrounds)
    views = still_views(driven)
    assert views is not None, "the source was opened without its camera"
    matrices = np.asarray(np.linalg.inv(views[driven.start : driven.stop]), np.float64)
    # Of the source's height as of the model's; what lies beside it is cut or added on both sides.
    height, width = trained.size
    rows, columns = driven.size
    zoom = height / rows
    change = np.array([[zoom, 0, (width - zoom * columns) / 2], [0, zoom, 0], [0, 0, 1]])
    matrices = np.asarray(change @ matrices @ np.linalg.inv(change), np.float64)
    return _within(CameraPath(matrices / matrices[:, 2:, 2:], backgrounds), backgrounds)


def _within(path: CameraPath, backgrounds: Backgrounds) -> CameraPath:
    """The path, weakened until it shows hardly more than what the training footage did."""
    assert path.matrices is not None
    chosen = np.unique(np.linspace(0, len(path.matrices) - 1, LOOKS).astype(int))
    least = SHOWN * float((backgrounds.of()[..., 3] > 127).mean())
    for strength in STRENGTHS:
        weaker = np.eye(3) + strength * (path.matrices - np.eye(3))
        shown = [(backgrounds.of(change=weaker[i])[..., 3] > 127).mean() for i in chosen]
        if min(shown) >= least:
            break
    if strength == 1:
        return path
    note = (
        "the source's camera looks farther than that of the training footage did: its motion is"
        f" weakened to {strength:.0%}"
    )
    return replace(path, matrices=weaker, notes=(note,))


def _camera(driven: Source) -> CameraTrack | None:
    if "camera" not in driven.store.signals:
        return None
    track = driven.store.track("camera")
    assert isinstance(track, CameraTrack)
    return track


def filmed(driven: Source) -> dict[str, Any]:
    """What decides about a steadied source's frames, for `ConditioningSource.settings`."""
    record = driven.store.record.signals.get("camera")
    return {} if record is None else {"filmed": record.model_dump(mode="json")}
