"""World consistency: whether a frame looks the same when it is rendered a second time.

A model renders the held-out frames forwards and backwards. Two renderings of the same frame differ
only through the model's temporal state: a drifting background, a swimming texture. The camera is
the same in both, so the whole frames are compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from v2v.video.stored import read_stored

MOST = 24  # maximum number of compared pairs: memory does not grow with the clip
APART = 8  # minimum number of frames between two renderings


def returns(order: NDArray[np.int64], *, most: int = MOST) -> list[tuple[int, int]]:
    """Evenly spread pairs of indices (first, again) into `order` that show the same frame."""
    first: dict[int, int] = {}
    pairs = []
    for index, frame in enumerate(order.tolist()):
        if frame not in first:
            first[frame] = index
        elif index - first[frame] >= APART:
            pairs.append((first[frame], index))
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(int))
    return [pairs[i] for i in chosen] if pairs else []


def difference_on_return(video: Path, order: NDArray[np.int64]) -> float | None:
    """Mean absolute difference (0 to 255) between two renderings of a frame; None if no repeats."""
    pairs = returns(order)
    earlier = {again: before for before, again in pairs}
    kept: dict[int, NDArray[np.uint8]] = {}
    firsts = set(earlier.values())
    gaps = []
    for index, picture in enumerate(read_stored(video)):
        if index in earlier:
            before = kept[earlier[index]].astype(np.int16)
            gaps.append(float(np.abs(picture.astype(np.int16) - before).mean()))
        if index in firsts:
            kept[index] = picture
    return float(np.mean(gaps)) if gaps else None
