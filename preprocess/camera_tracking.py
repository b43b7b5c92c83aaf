"""Tracks the camera by corners of the background: homographies to keyframes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.homography import Matrices, carry, centred, corners_of

LOST = 0.5  # seconds without a camera estimate after which a new background starts
STRIKES = 3  # mismatches with the background until a point is discarded

Picture = NDArray[np.uint8]
Points = NDArray[np.float32]  # [N, 2]
CELLS = 8  # grid cells along the longer side; corner points are selected per cell
CELL_POINTS = 12  # maximum number of points per cell
CORNER = 3e-5  # minimum corner strength: on a plain wall the strongest corners are codec noise

# Window sides in pixels: for the first, coarse tracking and for the refinement.
WINDOW, FINE_WINDOW = 11, 21
LEVELS = 3  # pyramid levels; they limit the distance of a point from its predicted position
MAX_UNWARPED = 0.015  # above this rotation or zoom, keyframes are warped before points are compared
ROUND_TRIP = 0.5  # pixels: maximum forward-backward error of a tracked point
INLIER = 1.5  # pixels: maximum distance of an inlier from the homography
MIN_INLIERS = 12
MIN_INLIER_SHARE = 0.4  # of the tracked points; fewer inliers may lie on a moving foreground object
MIN_SPAN = 0.25  # fraction of the frame's width and height that the inliers must span
OVERLAP = 0.6  # fraction of a keyframe's points in view; below it a new keyframe is added
COMPARED = 2  # keyframes that a frame is compared with
MAX_KEYFRAMES = 48  # per background: the first and the latest
SEARCHED = 8  # keyframes searched when the camera is lost


@dataclass
class Keyframe:
    """A frame that others are compared with, at analysis size."""

    index: int
    matrix: Matrices  # from the reference frame to this one
    picture: Picture  # grey
    points: Points
    against: NDArray[np.int64]  # [N] mismatches minus matches of each point

    @classmethod
    def made(cls, index: int, matrix: Matrices, picture: Picture, points: Points) -> Keyframe:
        return cls(index, matrix, picture, points, np.zeros(len(points), np.int64))


class CameraTracker:
    """Tracks the camera over one background.

    Pictures are grey and of equal size; `free` is not 0 at background pixels.
    """

    def __init__(self, rate: float) -> None:
        self.patience = max(round(LOST * rate), 1)
        self.keys: list[Keyframe] = []
        self.matrix: Matrices = np.eye(3)
        # Camera and picture of the last frame whose camera is known.
        self.before: tuple[Matrices, Picture] | None = None
        self.known = -1  # index of that frame
        self.lost = 0  # frames since then
        self.agreed = 1.0  # fraction of inliers among the points expected in the last frame
        self.moved = 0.0  # median distance of points from their positions in the reference frame

    @property
    def reference(self) -> int:
        return self.keys[0].index if self.keys else -1

    @property
    def points(self) -> int:
        """Maximum number of tracked points over the keyframes."""
        return max((len(key.points) for key in self.keys), default=0)

    def begin(self, index: int, picture: Picture, free: Picture) -> None:
        """Start a new background with this frame as its reference."""
        self.matrix, self.lost, self.moved = np.eye(3), 0, 0.0
        self.keys = [Keyframe.made(index, np.eye(3), picture, corners(picture, free))]
        self.before, self.known = (np.eye(3), picture), index

    def step(self, index: int, picture: Picture, free: Picture) -> tuple[float, bool]:
        """Track the next frame; returns its residual (NaN if lost) and whether it is a keyframe."""
        residual = self._align(picture, free, self.matrix)
        if residual is not None:
            # Windows do not rotate or scale: track again, starting from the fitted homography.
            residual = self._align(picture, free, self.matrix, fine=True)
        if residual is None and self.lost:  # the camera may point anywhere by now
            nearest = self._nearest_keys(picture, free, self.matrix, most=SEARCHED)
            guess = _relocalise([self.keys[number] for number in nearest], picture, free)
            residual = None if guess is None else self._align(picture, free, guess, fine=True)
        if residual is None:
            self.lost += 1
            if self.lost < self.patience:
                return float("nan"), False
            self.begin(index, picture, free)
            return 0.0, True
        self.lost = 0
        shown = [self._visible_share(key, picture, free) for key in self.keys]
        new = max(shown) < OVERLAP or self.agreed < OVERLAP / 2
        if new:
            points = self._on_background(corners(picture, free), picture)
            self.keys.append(Keyframe.made(index, self.matrix, picture, points))
            if len(self.keys) > MAX_KEYFRAMES:
                del self.keys[1]
        self.before, self.known = (self.matrix, picture), index
        return residual, new

    def _align(
        self, picture: Picture, free: Picture, guess: Matrices, *, fine: bool = False
    ) -> float | None:
        """Estimate the camera near `guess` from several keyframes; returns the residual or None.

        Maps all their points to the reference frame and fits one homography.
        """
        places, ends, owners = [], [], []
        tried = 0
        for number in self._nearest_keys(picture, free, guess):
            key = self.keys[number]
            change = guess @ np.linalg.inv(key.matrix)
            which, found = _track_points(key, change, picture, free, fine=fine)
            tried += len(which)
            reliable = np.isfinite(found).all(axis=1)
            places.append(carry(np.linalg.inv(key.matrix), key.points[which[reliable]]))
            ends.append(found[reliable])
            owners += [(number, int(point)) for point in which[reliable]]
        if not owners:
            return None
        source, target = np.concatenate(places), np.concatenate(ends)
        fitted = _fit(source, target, (picture.shape[1], picture.shape[0]))
        if fitted is None:
            return None
        self.matrix, inner = fitted
        self.agreed = float(inner.sum() / tried)
        self.moved = float(np.median(np.linalg.norm(source - target, axis=1)[inner]))
        distances = np.linalg.norm(carry(self.matrix, source) - target, axis=1)
        for (number, point), distance in zip(owners, distances, strict=True):
            self.keys[number].against[point] += 1 if distance > 2 * INLIER else -1
        for key in self.keys:  # points on captions, cars, leaves
            moving = key.against >= STRIKES
            if moving.any():
                key.points, key.against = key.points[~moving], key.against[~moving]
        return float(np.median(distances[inner]))

    def _nearest_keys(
        self, picture: Picture, free: Picture, guess: Matrices, *, most: int = COMPARED
    ) -> list[int]:
        """Keyframes to compare with: the oldest with enough points in view, then the best."""
        shown = [self._visible_share(key, picture, free, guess) for key in self.keys]
        order = sorted(range(len(shown)), key=lambda number: (-shown[number], number))
        enough = [number for number, share in enumerate(shown) if share >= OVERLAP / 2][:1]
        return list(dict.fromkeys([*enough, *order]))[:most]

    def _visible_share(
        self, key: Keyframe, picture: Picture, free: Picture, matrix: Matrices | None = None
    ) -> float:
        """Fraction of a keyframe's points that are expected in view."""
        if not len(key.points):
            return 0.0
        matrix = self.matrix if matrix is None else matrix
        places = carry(matrix @ np.linalg.inv(key.matrix), key.points)
        height, width = picture.shape
        inside = (places >= 0).all(axis=1) & (places < (width, height)).all(axis=1)
        return float((inside & _is_background(free, places)).mean())

    def _on_background(self, points: Points, picture: Picture) -> Points:
        """The points that moved with the background since the last frame with a known camera."""
        assert self.before is not None
        matrix, earlier = self.before
        if not len(points):
            return points
        key = Keyframe.made(0, np.eye(3), picture, points)
        all_free = np.full_like(picture, 255)
        change = matrix @ np.linalg.inv(self.matrix)
        which, found = _track_points(key, change, earlier, all_free)
        with np.errstate(invalid="ignore"):
            distances = np.linalg.norm(carry(change, points[which]) - found, axis=1)
            kept: Points = points[which[distances < INLIER / 2]]
        return kept


def corners(picture: Picture, free: Picture) -> Points:
    """[N, 2] trackable points, spread over the pixels where `free` is not 0.

    Without the spread, they could all lie on the sharp corners of a caption.
    """
    height, width = picture.shape
    side = max(height, width) / CELLS
    strength = cv2.cornerMinEigenVal(picture, 5)
    mask = np.where(strength > CORNER, free, 0).astype(np.uint8)
    found = []
    for top in np.arange(0, height, side):
        for left in np.arange(0, width, side):
            box = np.s_[int(top) : int(top + side) + 1, int(left) : int(left + side) + 1]
            if not mask[box].any():
                continue
            some = cv2.goodFeaturesToTrack(
                picture[box], CELL_POINTS, 1e-3, max(side / 8, 3.0), mask=mask[box]
            )
            if some is not None:
                found.append(some[:, 0] + (int(left), int(top)))
    if not found:
        return np.empty((0, 2), np.float32)
    # OpenCV's pixel centres are integers.
    spread: Points = np.unique(np.concatenate(found), axis=0).astype(np.float32)
    return spread + np.float32(0.5)


def _track_points(
    key: Keyframe, guess: Matrices, picture: Picture, free: Picture, *, fine: bool = False
) -> tuple[NDArray[np.int64], Points]:
    """Track a keyframe's points into `picture`.

    Args:
        guess: [3, 3] homography from the keyframe to the picture.

    Returns:
        Indices [n] of the points expected in view, and their positions [n, 2], NaN if lost.
    """
    height, width = picture.shape
    places = carry(guess, key.points) if len(key.points) else np.empty((0, 2))
    inside = ((places > 2) & (places < np.array([width, height]) - 2)).all(axis=1)
    inside &= _is_background(free, places)
    which = np.flatnonzero(inside)
    if not len(which):
        return which, np.empty((0, 2), np.float32)
    # OpenCV's pixel centres are integers.
    start = (places[which] - 0.5).astype(np.float32)[:, None]
    if np.abs(guess[:2, :2] - np.eye(2)).max() > MAX_UNWARPED:
        earlier = cv2.warpPerspective(
            key.picture, centred(guess), (width, height),
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        before = start
    else:
        earlier, before = key.picture, (key.points[which] - np.float32(0.5))[:, None]
    side, levels = (FINE_WINDOW, 1) if fine else (WINDOW, LEVELS)
    around: Any = {"winSize": (side, side), "flags": cv2.OPTFLOW_USE_INITIAL_FLOW}
    after, status, _ = cv2.calcOpticalFlowPyrLK(
        earlier, picture, before, start.copy(), maxLevel=levels, **around
    )
    # Track back for the forward-backward check; the start is near, so no pyramid is needed.
    returned, back_status, _ = cv2.calcOpticalFlowPyrLK(
        picture, earlier, after, before.copy(), maxLevel=0, **around
    )
    reliable = (status[:, 0] > 0) & (back_status[:, 0] > 0)
    reliable &= np.linalg.norm(returned - before, axis=-1)[:, 0] < ROUND_TRIP
    ends = np.asarray(after[:, 0] + np.float32(0.5), np.float32)
    reliable &= _is_background(free, ends)
    ends[~reliable] = np.nan
    return which, ends


def _relocalise(keys: list[Keyframe], picture: Picture, free: Picture) -> Matrices | None:
    """Estimate a lost camera without a guess, by matching SIFT descriptors."""
    finder = cv2.SIFT_create(800)  # type: ignore[attr-defined]
    new_points, new_descriptors = finder.detectAndCompute(picture, free)
    if new_descriptors is None:
        return None
    for key in keys:
        near = np.zeros_like(key.picture)
        for x, y in key.points.astype(int):
            cv2.circle(near, (int(x), int(y)), FINE_WINDOW, (255,), -1)
        old_points, old_descriptors = finder.detectAndCompute(key.picture, near)
        if old_descriptors is None:
            continue
        pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(old_descriptors, new_descriptors, k=2)
        good = [p[0] for p in pairs if len(p) == 2 and p[0].distance < 0.75 * p[1].distance]
        if len(good) < MIN_INLIERS:
            continue
        source = np.array([old_points[m.queryIdx].pt for m in good]) + 0.5
        target = np.array([new_points[m.trainIdx].pt for m in good]) + 0.5
        fitted = _fit(source, target, (picture.shape[1], picture.shape[0]))
        if fitted is not None:
            return fitted[0] @ key.matrix
    return None


def _is_background(free: Picture, places: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    height, width = free.shape
    with np.errstate(invalid="ignore"):
        x, y = np.nan_to_num(np.floor(places), nan=-1.0).astype(int).T
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    return np.asarray(free[y, x] > 0)


def _fit(
    source: NDArray[np.floating[Any]], target: NDArray[np.floating[Any]],
    size: tuple[int, int],
) -> tuple[Matrices, NDArray[np.bool_]] | None:  # fmt: skip
    """Robust homography and its inliers [N]; None if they are too few or span too little."""
    if len(source) < MIN_INLIERS:
        return None
    source, target = source.astype(np.float64), target.astype(np.float64)
    matrix, agreed = cv2.findHomography(
        source, target, cv2.USAC_MAGSAC, INLIER, maxIters=2000, confidence=0.999
    )
    if matrix is None or agreed is None:
        return None
    inner = agreed[:, 0] > 0
    if inner.sum() < max(MIN_INLIERS, MIN_INLIER_SHARE * len(source)):
        return None
    span = np.ptp(target[inner], axis=0) / size
    if (span < MIN_SPAN).any():
        return None
    better, _ = cv2.findHomography(source[inner], target[inner], 0)  # least squares over inliers
    matrix = matrix if better is None else better
    if not _is_plausible(np.asarray(matrix, np.float64), size):
        return None
    return matrix / matrix[2, 2], inner


def _is_plausible(matrix: Matrices, size: tuple[int, int]) -> bool:
    """Whether the homography is plausible: no corner beyond the horizon, not mirrored, not flat."""
    places = corners_of(*size)
    depth = np.concatenate([places, np.ones((4, 1))], axis=1) @ matrix[2]
    if depth.min() <= 0.1 * depth.max():
        return False
    ends = carry(matrix, places)
    # Area from the diagonals' cross product; negative if the picture is mirrored.
    first, second = ends[2] - ends[0], ends[3] - ends[1]
    area = (first[0] * second[1] - first[1] * second[0]) / (2 * size[0] * size[1])
    return bool(0.1 < area < 10)
