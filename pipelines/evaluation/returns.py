"""World consistency: when a moment comes again, whether it looks as it did.

A model runs over the held-out frames forth and back again. What it renders of a frame the second
time differs from the first by what it carries from frame to frame: a background that drifts, a
texture that swims. The camera is where it was, so all of the picture is compared.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from v2v.data.video import read_stored

MOST = 24  # moments that are compared: memory does not grow with the clip
APART = 8  # frames between two passes, at least


def returns(order: NDArray[np.int64], *, most: int = MOST) -> list[tuple[int, int]]:
    """Places (first, again) of `order` that show the same frame, evenly spread."""
    first: dict[int, int] = {}
    pairs = []
    for place, frame in enumerate(order.tolist()):
        if frame not in first:
            first[frame] = place
        elif place - first[frame] >= APART:
            pairs.append((first[frame], place))
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(most, len(pairs))).astype(int))
    return [pairs[i] for i in chosen] if pairs else []


def difference_on_return(film: Path, order: NDArray[np.int64]) -> float | None:
    """Mean absolute difference, of 255, of what two passes show; None where nothing comes again."""
    pairs = returns(order)
    wanted = {again: before for before, again in pairs}
    kept: dict[int, NDArray[np.uint8]] = {}
    firsts = set(wanted.values())
    gaps = []
    for place, picture in enumerate(read_stored(film)):
        if place in wanted:
            before = kept[wanted[place]].astype(np.int16)
            gaps.append(float(np.abs(picture.astype(np.int16) - before).mean()))
        if place in firsts:
            kept[place] = picture
    return float(np.mean(gaps)) if gaps else None
