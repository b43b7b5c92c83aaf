"""Errors of predicted signals, and baselines without learning.

T frames, N points. A predictor that does not beat both `copy_last` and `constant_velocity` has
learned nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.errors import TooFewFrames, UnknownName
from v2v.signals import Track
from v2v.signals.face import FaceTrack, head_pose
from v2v.signals.pose import MIN_SCORE, POINT, PoseTrack
from v2v.signals.segmentation import VOID, LabelTrack

Floats = NDArray[np.float32]
TrackT = TypeVar("TrackT", bound=Track)
HORIZONS = (1, 5, 10, 30)  # prediction horizons in frames
MAX_STARTS = 12  # start frames per shot that errors are averaged over


# ---------------------------------------------------------------- baselines without learning


def copy_last(past: TrackT, frames: int) -> TrackT:
    """Repeat the last frame."""
    known(past, 1)
    if isinstance(past, PoseTrack | FaceTrack):
        last = past.points[-1:]
        return cast(TrackT, moved_points(past, np.repeat(last[..., :2], frames, axis=0)))
    labels = _labels(past)
    held = [len(labels) - 1] * frames
    return cast(TrackT, _picked(labels, held))


def constant_velocity(past: TrackT, frames: int) -> TrackT:
    """Repeat the last motion.

    Points: each repeats its last displacement; a point without one stays. Label maps: warped in
    every frame by the optical flow (DIS) between the last two rendered maps.
    """
    known(past, 2)
    if isinstance(past, PoseTrack | FaceTrack):
        before, last = past.points[-2:, :, :2]
        step = np.nan_to_num(last - before)
        ahead = np.arange(1, frames + 1, dtype=np.float32)[:, None, None]
        return cast(TrackT, moved_points(past, last + ahead * step))
    labels = _labels(past)
    before, last = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in labels[-2:].draw())
    dis: Any = cv2  # OpenCV's type stubs lack DIS
    finder = dis.DISOpticalFlow_create(dis.DISOPTICAL_FLOW_PRESET_MEDIUM)
    if min(last.shape) < 16:  # too small for the patches of DIS
        return copy_last(past, frames)
    flow = np.asarray(finder.calc(last, before, None), np.float32)
    propagator = LabelPropagator(labels[-1:])
    steps = [propagator.step(np.ascontiguousarray(flow.transpose(2, 0, 1))) for _ in range(frames)]
    return cast(TrackT, joined(steps))


def known(past: Track, least: int) -> None:
    """Raises `TooFewFrames` if the past has fewer than `least` frames."""
    if len(past) < least:
        raise TooFewFrames(
            f"{len(past)} past frames are too few for a prediction: {least} are needed",
            hint="give longer footage",
        )


def moved_points(
    past: PoseTrack | FaceTrack, places: Floats, depth: Floats | None = None
) -> PoseTrack | FaceTrack:
    """The track of the frames after `past`, with points at `places` [T, N, 2].

    Scores and missing points are those of the last frame; all points are marked as filled, because
    none was detected. The head pose of faces is measured on the new points, aligned with the last
    frame's axes; without `depth` [T, N] the last frame's depth is kept.
    """
    count = len(places)
    scores = np.repeat(past.points[-1:, :, 2:], count, axis=0)
    points = np.concatenate([places.astype(np.float32), scores], axis=2)
    points[~np.isfinite(points).all(axis=2)] = np.nan
    if isinstance(past, PoseTrack):
        return replace(past, points=points, filled=np.isfinite(points[..., 0]))
    if depth is None:
        depth = np.repeat(past.depth[-1:], count, axis=0)
    # The frontal direction of `head_pose` depends on all its frames: include the last known frame
    # and rotate all so that its pose matches the track.
    head = head_pose(
        np.concatenate([past.points[-1:], points]), np.concatenate([past.depth[-1:], depth])
    )
    turn = head.rotation[0].T @ past.rotation[-1]
    return replace(
        past, points=points, depth=depth.astype(np.float32), filled=np.ones(count, np.bool_),
        rotation=(head.rotation[1:] @ turn).astype(np.float32),
        translation=head.translation[1:] + (past.translation[-1] - head.translation[0]),
        scale=head.scale[1:] * (past.scale[-1] / head.scale[0]),
    )  # fmt: skip


class LabelPropagator:
    """Propagates label maps: records for each pixel its source map and its position there.

    Every frame samples the source maps directly. Sampling the previous frame would lose thin
    objects after a few frames, and would round motion of half a pixel per frame to zero.
    """

    def __init__(self, last: LabelTrack) -> None:
        self.last = last  # one frame
        self.maps = [last.labels[0]]
        self.instances = None if last.instances is None else [last.instances[0]]
        height, width = last.height, last.width
        self._grid = np.mgrid[:height, :width].astype(np.float32)[::-1]  # x, y
        self.source = np.zeros((height, width), np.int32)  # which map
        # Position in it, relative to this pixel: accumulated displacement and sub-pixel remainder.
        # Without the remainder, borders would not move at less than half a pixel per frame.
        self.offset = np.zeros((2, height, width), np.float32)
        self.carry = np.zeros((2, height, width), np.float32)

    def step(
        self,
        flow: Floats,  # [2, H, W] backward, pixels
        made_up: NDArray[np.uint8] | None = None,  # [H, W] synthesised labels
        where: NDArray[np.bool_] | None = None,  # [H, W] where to use them
    ) -> LabelTrack:
        """Advance by one frame and return it."""
        here = self._grid + flow
        here += self.carry[:, *_nearest(here)]
        row, column = _nearest(here)
        source = self.source[row, column]
        moved = here - self._grid
        carry = np.clip(here - np.stack([column, row]), -0.5, 0.5)
        offset = self.offset[:, row, column] + moved - carry
        if made_up is not None and where is not None and where.any():
            source = np.where(where, len(self.maps), source)
            offset, carry = np.where(where, 0, offset), np.where(where, 0, carry)
            self.maps.append(made_up)
            if self.instances is not None:
                # New objects have no instance number: as in Cityscapes, the class id alone.
                self.instances.append(made_up.astype(np.uint16))
        self.source = source.astype(np.int32)
        self.offset, self.carry = offset.astype(np.float32), carry.astype(np.float32)
        row, column = _nearest(self._grid + self.offset + self.carry)
        labels = np.empty_like(self.last.labels)
        instances = None if self.last.instances is None else np.empty_like(self.last.instances)
        for number in np.unique(source):
            own = source == number
            place = row[own], column[own]
            labels[0, own] = self.maps[number][place]
            if instances is not None and self.instances is not None:
                instances[0, own] = self.instances[number][place]
        return replace(self.last, labels=labels, instances=instances)


def _nearest(place: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of the pixels nearest to x, y [2, H, W], clamped to the frame."""
    height, width = place.shape[1:]
    column, row = np.floor(place + 0.5).astype(np.intp)
    return np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)


def joined(parts: list[LabelTrack]) -> LabelTrack:
    """Concatenate tracks over time."""
    instances = [p.instances for p in parts if p.instances is not None]
    return replace(
        parts[0],
        labels=np.concatenate([p.labels for p in parts]),
        instances=np.concatenate(instances) if instances else None,
    )


def _picked(track: LabelTrack, frames: list[int]) -> LabelTrack:
    instances = None if track.instances is None else track.instances[frames]
    return replace(track, labels=track.labels[frames], instances=instances)


def _labels(track: Track) -> LabelTrack:
    if not isinstance(track, LabelTrack):
        raise UnknownName.among(
            "kind of signal", type(track).__name__, ("PoseTrack", "FaceTrack", "LabelTrack")
        )
    return track


# ---------------------------------------------------------------- errors


def track_error(predicted: Track, true: Track) -> Floats:
    """[T] error of each frame: 0 if correct, NaN if there is nothing to compare.

    Pose: mean distance of the points visible in the truth, over its torso's length. Face: the
    same over the distance of the outer eye corners. Labels: fraction of wrong pixels.
    """
    assert type(predicted) is type(true) and len(predicted) == len(true)
    predicted = predicted.scaled(true.width, true.height)
    if isinstance(true, PoseTrack):
        joints = [POINT[f"{side}_{name}"] for name in ("shoulder", "hip") for side in _SIDES]
        middle = true.points[:, joints, :2].reshape(-1, 2, 2, 2).mean(axis=2)
        return _distance(cast(PoseTrack, predicted), true, middle)
    if isinstance(true, FaceTrack):
        return _distance(cast(FaceTrack, predicted), true, true.points[:, [33, 263], :2])
    truth, guess = _labels(true).labels, _labels(predicted).labels
    counted = truth != VOID
    wrong = ((truth != guess) & counted).sum(axis=(1, 2))
    return _ratio(wrong, counted.sum(axis=(1, 2)))


_SIDES = ("left", "right")


def _distance(
    predicted: PoseTrack | FaceTrack, true: PoseTrack | FaceTrack, ends: Floats
) -> Floats:
    unit = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    with np.errstate(invalid="ignore"):
        visible = true.points[..., 2] >= (MIN_SCORE if isinstance(true, PoseTrack) else 0)
    distance = np.linalg.norm(predicted.points[..., :2] - true.points[..., :2], axis=2)
    visible &= np.isfinite(distance)
    median = float(np.median(unit[np.isfinite(unit)])) if np.isfinite(unit).any() else np.nan
    total = np.where(visible, np.nan_to_num(distance), 0).sum(axis=1)
    return _ratio(total, visible.sum(axis=1)) / np.float32(max(median, 1e-6))


def _ratio(total: NDArray[Any], count: NDArray[Any]) -> Floats:
    ratio = np.full(len(count), np.nan, np.float32)
    some = count > 0
    ratio[some] = total[some] / count[some]
    return ratio


Extend = Callable[[Track, int], Track]


def compare(
    methods: dict[str, Extend],
    shots: list[Track],
    targets: list[int],
    *,
    least: int = 3,
    horizons: tuple[int, ...] = HORIZONS,
) -> dict[str, dict[int, float]]:
    """Mean prediction errors of each method at several horizons, from several starts per shot.

    Args:
        methods: name -> predictor (past, frames) -> the following frames.
        shots: continuous footage.
        targets: for each shot, the first frame to predict; earlier frames are past only.
        least: minimum number of past frames.

    Returns:
        {method: {horizon: error}}, without horizons longer than every shot.
    """
    found: dict[str, dict[int, list[float]]] = {name: {} for name in methods}
    for shot, target in zip(shots, targets, strict=True):
        starts = range(max(target, least), len(shot))
        for start in starts[:: max(len(starts) // MAX_STARTS, 1)]:
            frames = min(max(horizons), len(shot) - start)
            for name, extend in methods.items():
                predicted = extend(shot[slice(0, start)], frames)
                errors = track_error(predicted, shot[slice(start, start + frames)])
                for ahead in horizons:
                    if ahead <= frames and np.isfinite(errors[ahead - 1]):
                        found[name].setdefault(ahead, []).append(float(errors[ahead - 1]))
    return {
        name: {ahead: float(np.mean(errors[ahead])) for ahead in horizons if ahead in errors}
        for name, errors in found.items()
    }
