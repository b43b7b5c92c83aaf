"""References warped as a whole by a dense mesh: faces."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v.data.references.choosing import FrameChoice
from v2v.data.references.layers import composite
from v2v.data.references.memory import References
from v2v.signals.parts import hull_mask
from v2v.warp import dense_motion, twicing

BACKGROUND_WEIGHT = 0.01  # of `dense_motion`; low, so that hair, neck and shoulders follow the head
NARROWEST_POINT = 2.0  # radius of the narrowest control point, in pixels of the coarse motion field


def part_masks(
    references: References, points: NDArray[np.float32], size: float, shape: tuple[int, int]
) -> list[tuple[slice, slice, NDArray[np.float32] | None]]:
    """For each part its rows and columns, and its mask [h, w] within them.

    The first part covers the whole picture.
    """
    found: list[tuple[slice, slice, NDArray[np.float32] | None]] = [
        (slice(0, shape[0]), slice(0, shape[1]), None)
    ]
    for part in references.parts[1:]:
        ends = points[list(part.fit)]
        ends = ends[np.isfinite(ends).all(axis=1)]
        room = part.reach * part.radius * size
        low, high = (0, 0), (0, 0)
        if len(ends) and np.isfinite(room):
            low = np.clip(ends.min(axis=0) - room, 0, shape[::-1]).astype(int)
            high = np.clip(np.ceil(ends.max(axis=0) + room), 0, shape[::-1]).astype(int)
        rows, columns = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
        inner = (rows.stop - rows.start, columns.stop - columns.start)
        mask = None
        if min(inner) > 0:
            corner = np.asarray((columns.start, rows.start), np.float32)
            mask = hull_mask(ends - corner, part.radius * size, inner)
        found.append((rows, columns, mask))
    return found


def composite_mesh(
    references: References, found: NDArray[np.float32],
    part_masks: list[tuple[slice, slice, NDArray[np.float32] | None]], choice: FrameChoice,
    control_points: torch.Tensor, scale: tuple[float, float], shift: tuple[float, float],
) -> None:  # fmt: skip
    """Composite faces, warped by their control points, onto the canvases."""
    used, before, fading, far = choice
    points_before = _control_points_of(
        references, np.unique([used, before]), control_points, scale, shift
    )
    for p, (rows, columns, mask) in enumerate(part_masks):
        if p and mask is None:
            continue

        def warped(reference: int) -> NDArray[np.float32]:
            known = points_before[reference]
            box = rows, columns  # noqa: B023
            return _remap(references, reference, control_points, known, scale, shift, *box)

        for canvas, r, old, weight in zip(found, used[p], before[p], fading[p], strict=True):
            if r < 0:
                continue
            layer, away = warped(int(r)), float(far[p, r])
            if old >= 0 and weight > 0:
                layer = layer + weight * (warped(int(old)) - layer)
                away += float(weight * (far[p, old] - far[p, r]))
            if mask is not None:
                layer = layer * mask[..., None]
            composite(canvas, layer, columns.start, rows.start, away)


def _control_points_of(
    references: References, chosen: NDArray[np.int64], control_points: torch.Tensor,
    scale: tuple[float, float], shift: tuple[float, float],
) -> dict[int, torch.Tensor]:  # fmt: skip
    """[1, K, 3] control points in each of the references; -1 is skipped."""
    numbers = chosen[chosen >= 0].tolist()
    before = references.control_points[numbers].clone()
    before[..., :2] = before[..., :2] * torch.tensor(scale) + torch.tensor(shift)
    moved = twicing(control_points, before, background_weight=BACKGROUND_WEIGHT)
    return {number: moved[i : i + 1] for i, number in enumerate(numbers)}


def _remap(
    references: References, reference: int, control_points: torch.Tensor, before: torch.Tensor,
    scale: tuple[float, float], shift: tuple[float, float], rows: slice, columns: slice,
) -> NDArray[Any]:  # fmt: skip
    """[h, w, 4] a box of a reference warped by its control points, premultiplied by alpha.

    Args:
        control_points, before: [1, K, 3] in the frame and in the reference, in pixels of the
            frame.
    """
    corner = torch.tensor((columns.start, rows.start, 0.0))
    zoom, offset = np.asarray(scale, np.float32), np.asarray(shift, np.float32)
    # The motion field is smooth: a coarse grid, on which the narrowest control point is still
    # a few pixels wide, gives the same field in a fraction of the time.
    size = (rows.stop - rows.start, columns.stop - columns.start)
    shrink = _coarseness(control_points)
    small = (-(-size[0] // shrink), -(-size[1] // shrink))
    coarse = dense_motion(
        (control_points - corner) / shrink,
        (before - corner) / shrink,
        small,
        background_weight=BACKGROUND_WEIGHT,
    )
    flow = [
        shrink * cv2.resize(f, (shrink * small[1], shrink * small[0]))[: size[0], : size[1]]
        for f in coarse[0].numpy()
    ]
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5)
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5)
    across = (x + flow[0] - offset[0]) / zoom[0] - np.float32(0.5)
    down = (y + flow[1] - offset[1]) / zoom[1] - np.float32(0.5)
    moved = cv2.remap(
        _premultiplied(references, reference), across, down, cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    # Clamp the overshoot of bicubic interpolation.
    np.minimum(moved[..., :3], moved[..., 3:], out=moved[..., :3])
    layer = moved.astype(np.float32)
    layer[..., 3] *= np.float32(1 / 255)
    return layer


def _premultiplied(references: References, reference: int) -> NDArray[np.uint8]:
    """[H, W, 4] premultiplied RGB and alpha; alpha is 255 everywhere if `whole`."""

    def multiply() -> NDArray[np.uint8]:
        alpha = references.masks[reference][..., None]
        alpha = np.full_like(alpha, 255) if references.whole else alpha
        shown = np.rint(references.pictures[reference] * (alpha / np.float32(255)))
        return np.concatenate([shown.astype(np.uint8), alpha], axis=-1)

    return references.derived("premultiplied", reference, multiply)


def _coarseness(control_points: torch.Tensor) -> int:
    """Downscale factor of the motion field of control points [1, K, 3]: 1 to 4."""
    radii = control_points[..., 2]
    narrowest = float(radii[radii > 0].min()) if bool((radii > 0).any()) else 0.0
    return min(max(int(narrowest / NARROWEST_POINT), 1), 4)
