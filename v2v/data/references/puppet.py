"""References warped part by part, like a paper puppet: bodies."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.references.choosing import FrameChoice
from v2v.data.references.cutting import Patch, part_patch
from v2v.data.references.layers import centred_affine, composite
from v2v.data.references.memory import References

# A layer [h, w, 4], premultiplied; its left, top and distance.
_Layer = tuple[NDArray[np.float32], int, int, float]


def composite_parts(
    references: References, found: NDArray[np.float32], choice: FrameChoice,
    points: NDArray[np.float32], body: float, scale: float,
) -> None:  # fmt: skip
    """Composite parts, warped to their points, onto the canvases from back to front."""
    used, before, fading, far = choice
    # The reference that fades out comes first; its successor's layer is blended with it.
    both = np.stack([np.where(fading > 0, before, -1), used], axis=-1)
    parts, slots, order = np.nonzero((both >= 0) & (used >= 0)[..., None])
    chosen = both[parts, slots, order]
    matrices, valid = references.rig.transforms(
        parts, references.points[chosen], points, scale=scale,
        growth=body / references.sizes[chosen],
    )  # fmt: skip
    size = (found.shape[2], found.shape[3])
    outgoing: dict[int, _Layer] = {}
    for p, k, new, r, matrix, fitted in zip(
        parts.tolist(), slots.tolist(), order.tolist(), chosen.tolist(), matrices, valid,
        strict=True,
    ):  # fmt: skip
        layer = (
            _warp_patch(part_patch(references, p, r), matrix, size, float(far[p, r]))
            if fitted
            else None
        )
        if not new:
            if layer is not None:
                outgoing[k] = layer
            continue
        old = outgoing.pop(k, None)
        if old is not None:
            layer = _cross_fade(old, layer, float(fading[p, k]))
        if layer is not None:
            composite(found[k], *layer)


def _warp_patch(
    cut: Patch, matrix: NDArray[np.float64], size: tuple[int, int], far: float
) -> _Layer | None:
    """A part warped into a picture of `size` (H, W); None if it is outside."""
    patch, left, top = cut
    if not patch.size:
        return None
    (a, b, u), (c, d, v) = matrix.tolist()
    box = left, left + patch.shape[1], top, top + patch.shape[0]
    x0, x1 = _range(a, b, u, box, size[1])
    y0, y1 = _range(c, d, v, box, size[0])
    if x1 <= x0 or y1 <= y0:
        return None
    placed = matrix.copy()
    placed[:, 2] += matrix[:, :2] @ (left, top) - (x0, y0)
    layer: NDArray[Any] = cv2.warpAffine(
        patch, centred_affine(placed), (x1 - x0, y1 - y0), flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
    )  # fmt: skip
    # Bilinear interpolation would blur every part; the overshoot of bicubic is cut off.
    np.clip(layer[..., 3], 0, 1, out=layer[..., 3])
    np.clip(layer[..., :3], 0, 255 * layer[..., 3:], out=layer[..., :3])
    return layer, x0, y0, far


def _cross_fade(old: _Layer, new: _Layer | None, share: float) -> _Layer:
    """Blend of two layers over the union of their boxes; `share` is the weight of `old`."""
    weighted = [(old, share)] if new is None else [(old, share), (new, 1 - share)]
    left = min(x for (_, x, _, _), _ in weighted)
    top = min(y for (_, _, y, _), _ in weighted)
    right = max(x + layer.shape[1] for (layer, x, _, _), _ in weighted)
    bottom = max(y + layer.shape[0] for (layer, _, y, _), _ in weighted)
    blended = np.zeros((bottom - top, right - left, 4), np.float32)
    for (layer, x, y, _), weight in weighted:
        blended[y - top : y - top + layer.shape[0], x - left : x - left + layer.shape[1]] += (
            np.float32(weight) * layer
        )
    distance = sum(weight * layer_distance for (_, _, _, layer_distance), weight in weighted)
    return blended, left, top, distance / sum(weight for _, weight in weighted)


def _range(
    a: float, b: float, shift: float, box: tuple[int, int, int, int], length: int
) -> tuple[int, int]:
    """First pixel and end of the range of `a x + b y + shift` over a box, clipped to a side."""
    left, right, top, bottom = box
    low = min(a * left, a * right) + min(b * top, b * bottom) + shift
    high = max(a * left, a * right) + max(b * top, b * bottom) + shift
    return max(int(low) - 1, 0), min(int(high) + 2, length)
