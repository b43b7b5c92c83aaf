"""Detects hard cuts: where one shot ends and the next begins.

A cut is a frame that differs from the previous one much more than its neighbours do. Fast motion
and flashes change several frames and are not cuts. A jump within a shot, where frames are missing,
is a cut too: motion is not continuous across it. Fades are not detected.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LOOKAHEAD = 2  # following frames needed to decide whether a frame is a cut
LEAST = 6.0  # minimum mean difference of grey levels (of 255) at a cut
OUTSTANDING = 4.0  # minimum ratio to the differences of neighbouring frames
# Among repeated frames (stills, a raised frame rate) every new frame stands out, so a cut must also
# show new content. Measured on real footage: at most 2.2 for motion between frames at 10 fps, at
# least 26 for a cut to another scene.
REPEATED = 0.5
NEW_CONTENT = 5.0

Thumbnail = NDArray[np.uint8]


def thumbnail(frame: NDArray[np.uint8]) -> Thumbnail:
    """Shrink a frame, RGB uint8 [H, W, 3], to grey uint8 [18, 32]."""
    step = max(min(frame.shape[:2]) // 128, 1)  # subsample first: averaging all pixels is slower
    small = cv2.resize(frame[::step, ::step], (32, 18), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def find_cuts(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[T] true at the first frame of every shot but the first, from thumbnails [T, 18, 32].

    Whether frame t is a cut depends only on the thumbnails from t - 3 to t + `LOOKAHEAD`.
    """
    count = len(thumbnails)
    change = np.zeros(count, np.float32)
    for t in range(1, count):
        change[t] = np.abs(thumbnails[t].astype(np.int16) - thumbnails[t - 1]).mean()
    cuts = np.zeros(count, np.bool_)
    for t in range(1, count):
        near = [change[n] for n in range(max(t - 2, 1), min(t + 3, count)) if n != t]
        around = max(near, default=np.inf)
        cuts[t] = change[t] > LEAST and change[t] > OUTSTANDING * around
        if cuts[t] and around < REPEATED:
            cuts[t] = _new_content(thumbnails[t - 1], thumbnails[t]) > NEW_CONTENT
    return cuts


def _new_content(before: Thumbnail, after: Thumbnail) -> float:
    """Mean difference that is not explained by a shift of up to one thumbnail pixel."""
    lowest, highest = cv2.erode(before, _AROUND), cv2.dilate(before, _AROUND)
    beyond = cv2.subtract(after, highest) + cv2.subtract(lowest, after)
    return float(beyond.mean())


_AROUND = np.ones((3, 3), np.uint8)
