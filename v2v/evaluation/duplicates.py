"""Near-duplicate search between frame sets, to keep training frames out of the evaluation.

Frames are compared as thumbnails, cell by cell; their distance is that of the cell that differs
most. A mean over the frame would miss a small person who moves in front of a wide wall, and a
person mask is not always available. If every cell agrees, so do the person and the whole frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.images import Picture

CELLS = 8  # along the shorter side of a picture
FINE = 4  # thumbnail pixels along each side of a cell
# Distances in [0, 255]. Re-encoding a frame at crf 16 to 23 changes its worst cell by 1 to 2, the
# next frame of a dance or a talk by 3 to 12 (medians). In five real clips, the last 15 percent are
# at a distance of 12 or more from all earlier frames.
NOISE = 3.0
MOST = 6.0


Thumbnails = NDArray[np.uint8]  # [T, h, w, 3]; h and w are multiples of `FINE`


def thumbnail(picture: Picture) -> Picture:
    """Shrink a picture to [h, w, 3]: `CELLS` cells of `FINE` pixels along the shorter side.

    Averaging removes most sensor and compression noise.
    """
    height, width = picture.shape[:2]
    shorter = min(height, width)
    rows, columns = (max(round(CELLS * side / shorter), 1) * FINE for side in (height, width))
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def distances(frames: Thumbnails, other: Picture) -> NDArray[np.float32]:
    """[T] mean absolute difference, in [0, 255], of the cell in which `other` differs most."""
    difference = np.abs(frames.astype(np.int16) - other)
    worst: NDArray[np.float32] = _cells(difference).mean(axis=-1).max(axis=1)
    return worst


def tolerances(frames: Thumbnails) -> NDArray[np.float32]:
    """[T] distance thresholds, in [0, 255], below which another frame is a duplicate of each frame.

    Half the distance to the previous or the next frame, whichever is smaller, because a repeated
    motion is rarely sampled at the same phase; clipped to [`NOISE`, `MOST`].
    """
    steps = np.full(len(frames) + 1, np.inf, np.float32)
    for t in range(1, len(frames)):
        steps[t] = distances(frames[t - 1 : t], frames[t])[0]
    return np.clip(np.minimum(steps[:-1], steps[1:]) / 2, NOISE, MOST)


def still(frames: Thumbnails, reach: int) -> NDArray[np.bool_]:
    """[T] whether a frame equals all of the `reach` frames before and after it, up to `NOISE`."""
    found = np.empty(len(frames), np.bool_)
    for t, frame in enumerate(frames):
        around = frames[max(t - reach, 0) : t + reach + 1]
        found[t] = distances(around, frame).max() <= NOISE
    return found


class DuplicateFinder:
    """Finds frames of a set that have duplicates among other frames, which are streamed.

    Only the set is kept in memory. Most comparisons stop at the means of the cells, because cells
    differ at least as much as their means.
    """

    def __init__(self, frames: Thumbnails, tolerance: NDArray[np.float32]) -> None:
        """`tolerance` [T]: the largest distance at which another frame is a duplicate."""
        self.found: NDArray[np.bool_] = np.zeros(len(frames), np.bool_)
        self._frames, self._tolerance = frames, tolerance
        self._means = _cells(frames).reshape(len(frames), -1)
        self._remaining = np.arange(len(frames))

    @property
    def all_found(self) -> bool:
        return not len(self._remaining)

    def look_at(self, other: Picture, without: Sequence[tuple[int, int]] = ()) -> None:
        """Compare a thumbnail with the frames not found yet, except the ranges [begin, end) in
        `without`.
        """
        rest = self._remaining
        for begin, end in without:
            rest = rest[(rest < begin) | (rest >= end)]
        gap = np.abs(self._means[rest] - _cells(other[None]).reshape(-1)).max(axis=1, initial=0)
        rest = rest[gap <= self._tolerance[rest]]
        if len(rest):
            same = distances(self._frames[rest], other) <= self._tolerance[rest]
            self.found[rest[same]] = True
            self._remaining = np.flatnonzero(~self.found)


def _cells(thumbnails: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """[T, cells, 3] mean of each cell and channel."""
    count, height, width, colours = thumbnails.shape
    parts = thumbnails.reshape(count, height // FINE, FINE, width // FINE, FINE, colours)
    means: NDArray[np.float32] = parts.mean(axis=(2, 4), dtype=np.float32)
    return means.reshape(count, -1, colours)
