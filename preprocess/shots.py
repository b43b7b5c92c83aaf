"""Hard cuts: where one shot ends and the next begins.

A cut is a frame that differs from the one before much more than its neighbours do, so that fast
motion and flashes, which differ over several frames, are none. A jump within a shot, where frames
are missing, is one too: motion does not go on across it. Fades are not looked for.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LOOKAHEAD = 2  # frames behind a frame that decide whether it is a cut
LEAST = 6.0  # mean difference of grey levels (of 255) that a cut makes
OUTSTANDING = 4.0  # and how many times that of the frames around
# Where the frames around repeat one another (stills, a rate that was raised), every new frame
# stands out, so the picture's content must change. Measured on real footage: at most 2.2 from
# motion between frames at 10 a second, at least 26 from a cut to another scene.
REPEATED = 0.5
NEW_CONTENT = 5.0

Thumbnail = NDArray[np.uint8]


def thumbnail(frame: NDArray[np.uint8]) -> Thumbnail:
    """A frame, RGB uint8 [H, W, 3], as grey [18, 32]."""
    step = max(min(frame.shape[:2]) // 128, 1)  # thin out first: averaging all pixels costs more
    small = cv2.resize(frame[::step, ::step], (32, 18), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def find_cuts(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """[T] true where a shot begins that is not the clip's first, from thumbnails [T, 18, 32].

    Whether frame t is a cut depends on the thumbnails from t - 3 to t + `LOOKAHEAD` only.
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
    """Mean difference that no shift of up to one cell explains."""
    lowest, highest = cv2.erode(before, _AROUND), cv2.dilate(before, _AROUND)
    beyond = cv2.subtract(after, highest) + cv2.subtract(lowest, after)
    return float(beyond.mean())


_AROUND = np.ones((3, 3), np.uint8)
