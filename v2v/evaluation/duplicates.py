"""Which frames occur among others too, nearly identical: what is measured must not be trained on.

Frames are compared as thumbnails, cell by cell, and their distance is that of the cell that differs
most. A mean over the picture would overlook a person who stands otherwise before a wide wall, and a
person mask is not always there; where every cell agrees, so do the person and the whole picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

CELLS = 8  # along the shorter side of a picture
FINE = 4  # thumbnail pixels along each side of a cell
# Distances, of 255. Encoding a frame again at crf 16 to 23 changes its worst cell by 1 to 2, the
# next frame of a dance or a talk by 3 to 12 (medians). The last 15 percent of five real clips are
# 12 and more away from all that they show before.
NOISE = 3.0
MOST = 6.0

Picture = NDArray[np.uint8]  # RGB [H, W, 3]
Thumbnails = NDArray[np.uint8]  # [T, h, w, 3]; h and w are multiples of `FINE`


def thumbnail(picture: Picture) -> Picture:
    """A picture of any size as [h, w, 3]: `CELLS` cells of `FINE` pixels along the shorter side.

    Averaging takes away most of what sensors and codecs add.
    """
    height, width = picture.shape[:2]
    shorter = min(height, width)
    rows, columns = (max(round(CELLS * side / shorter), 1) * FINE for side in (height, width))
    return np.asarray(cv2.resize(picture, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def distances(frames: Thumbnails, other: Picture) -> NDArray[np.float32]:
    """[T] mean absolute difference, in [0, 255], of the cell in which `other` differs most."""
    away = np.abs(frames.astype(np.int16) - other)
    worst: NDArray[np.float32] = _cells(away).mean(axis=-1).max(axis=1)
    return worst


def tolerances(frames: Thumbnails) -> NDArray[np.float32]:
    """[T] the distance, in [0, 255], up to which another frame shows the same as each of these.

    Half of what changes to the next frame or since the last, whichever is less: a motion that
    repeats is seldom filmed at the very same moments. Within `NOISE` and `MOST`.
    """
    steps = np.full(len(frames) + 1, np.inf, np.float32)
    for t in range(1, len(frames)):
        steps[t] = distances(frames[t - 1 : t], frames[t])[0]
    return np.clip(np.minimum(steps[:-1], steps[1:]) / 2, NOISE, MOST)


def still(frames: Thumbnails, reach: int) -> NDArray[np.bool_]:
    """[T] whether a frame is the same as all of the `reach` frames before it and after it."""
    found = np.empty(len(frames), np.bool_)
    for t, frame in enumerate(frames):
        around = frames[max(t - reach, 0) : t + reach + 1]
        found[t] = distances(around, frame).max() <= NOISE
    return found


class DuplicateFinder:
    """Which of some frames occur among others, which are looked at once, one by one.

    Memory is that of the frames searched for. Most comparisons end with the means of cells: where
    these differ, the cells differ at least as much.
    """

    def __init__(self, frames: Thumbnails, tolerance: NDArray[np.float32]) -> None:
        """`tolerance` [T]: the largest distance at which each frame counts as found."""
        self.found: NDArray[np.bool_] = np.zeros(len(frames), np.bool_)
        self._frames, self._tolerance = frames, tolerance
        self._means = _cells(frames).reshape(len(frames), -1)
        self._left = np.arange(len(frames))

    @property
    def all_found(self) -> bool:
        return not len(self._left)

    def look_at(self, other: Picture, without: Sequence[tuple[int, int]] = ()) -> None:
        """Compare a thumbnail with all frames not found yet, those from `begin` to `end`
        (excluded) of each of `without` left out.
        """
        left = self._left
        for begin, end in without:
            left = left[(left < begin) | (left >= end)]
        away = np.abs(self._means[left] - _cells(other[None]).reshape(-1)).max(axis=1, initial=0)
        left = left[away <= self._tolerance[left]]
        if len(left):
            same = distances(self._frames[left], other) <= self._tolerance[left]
            self.found[left[same]] = True
            self._left = np.flatnonzero(~self.found)


def _cells(thumbnails: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    """[T, cells, 3]: the mean of each cell and colour."""
    count, height, width, colours = thumbnails.shape
    parts = thumbnails.reshape(count, height // FINE, FINE, width // FINE, FINE, colours)
    means: NDArray[np.float32] = parts.mean(axis=(2, 4), dtype=np.float32)
    return means.reshape(count, -1, colours)
