"""Parts cut out of references, as layers with soft edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from v2v.data.references.memory import References
from v2v.signals.parts import regions

# A part [h, w, 4] of a reference, premultiplied; its left and top.
Patch = tuple[NDArray[np.float32], int, int]


def part_patch(references: References, part: int, reference: int) -> Patch:
    """A part cut out of a reference."""

    def cut() -> list[Patch]:
        size = float(references.sizes[reference])
        own = regions(references.parts, references.points[reference], size, references.size)
        alphas = own * (references.masks[reference].astype(np.float32) / 255)
        picture = references.pictures[reference].astype(np.float32)
        return [_cut_out(picture, alpha) for alpha in alphas]

    return references.derived("parts", reference, cut)[part]


def _cut_out(picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> Patch:
    """A picture cut out by `alpha` [H, W], with a transparent border for a soft edge."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return np.empty((0, 0, 4), np.float32), 0, 0
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    opacity = alpha[box][..., None]
    patch = np.concatenate([picture[box] * opacity, opacity], axis=-1)
    return np.pad(patch, ((1, 1), (1, 1), (0, 0))), int(columns[0]) - 1, int(rows[0]) - 1
