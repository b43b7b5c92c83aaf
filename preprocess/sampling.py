"""Detection of people and faces in samples of a clip, for `v2v doctor`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.preprocess.detectors import box_of, detectors
from v2v.preprocess.pose import (
    SEARCH,
    detect_people,
    is_another,
    mask_out_person,
    torso_center_and_size,
)
from v2v.preprocess.tracks import SingleTargetTracker
from v2v.signals.face import POINTS

Array = NDArray[Any]


class SampledPeople:
    """Tracks the main person over the samples and detects whether others are in view.

    Like `detect_people`, but with one network for all frames: creating it takes ten times as long
    as running it.
    """

    def __init__(self, patience: int) -> None:
        self.network = detectors().still_body()
        # In the quarter of a second between samples a person may move by two torso lengths.
        self.tracker = SingleTargetTracker(max_jump=2.0, patience=patience)

    def close(self) -> None:
        self.network.close()

    def detect(self, frame: Array, crowd: bool) -> tuple[Array, bool]:
        """Points [33, 3] of the main person (NaN if missing); whether others are in view."""
        nobody = np.full((33, 3), np.nan, np.float32)
        people: list[NDArray[np.float32]] = []
        main: NDArray[np.float32] | None = None
        canvas = frame
        for _ in range(SEARCH):
            body = self.network.find(canvas)
            if body is None:
                break
            points = body.points
            if not people and self.tracker.lost:
                chosen = detect_people(frame)
                self.tracker.follow(*torso_center_and_size(chosen[0] if chosen else points))
            people.append(points)
            if not crowd and self._dissimilarity(points) < 1:
                break
            canvas = mask_out_person(canvas, points)
        nearest = min(people, key=self._dissimilarity, default=None)
        if nearest is not None and self.tracker.accepts(*torso_center_and_size(nearest)):
            main = nearest
        if main is None:
            self.tracker.missed()
            return nobody, bool(people)
        return main[:, [0, 1, 3]], any(is_another(p, main) for p in people if p is not main)

    def _dissimilarity(self, points: NDArray[np.float32]) -> float:
        """Dissimilarity to the main person: distance in torso lengths plus difference in size."""
        assert self.tracker.centre is not None
        centre, size = torso_center_and_size(points)
        known = max(self.tracker.size, 1e-3)
        away = np.linalg.norm(centre - self.tracker.centre) / known
        return float(away + 2 * abs(np.log(max(size, 1e-3) / known)))


class SampledFaces:
    """Detects the main person's face mesh in each frame; small faces in a crop."""

    def __init__(self) -> None:
        self.mesh = detectors().face(tracking=False)
        self.detector = detectors().face_boxes()

    def close(self) -> None:
        self.mesh.close()
        self.detector.close()

    def find(self, frame: Array, head: Array | None) -> Array:
        """Points [478, 4], NaN if none is found; `head` are the body's head keypoints."""
        found = self._mesh(frame, 0, 0)
        if found is None or not _same_head(found, head):
            found = None
            for x, y, w, h in self.detector.find(frame):
                side = 2.2 * max(w, h)
                left, top = max(int(x + w / 2 - side / 2), 0), max(int(y + h / 2 - side / 2), 0)
                part = frame[top : top + int(side), left : left + int(side)]
                closer = self._mesh(np.ascontiguousarray(part), left, top) if part.size else None
                if closer is not None and _same_head(closer, head):
                    found = closer
                    break
        return np.full((POINTS, 4), np.nan, np.float32) if found is None else found

    def _mesh(self, frame: Array, left: int, top: int) -> Array | None:
        points = self.mesh.find(frame)
        if points is not None:
            points[:, :2] += (left, top)
        return points


def _same_head(face: Array, head: Array | None) -> bool:
    if head is None:
        return True
    x, y, w, h = box_of(face[:, :2])
    away = np.abs(head[0, :2] - (x + w / 2, y + h / 2))  # the nose
    return bool(away.max() < max(w, h))
