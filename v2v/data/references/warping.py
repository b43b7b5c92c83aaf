"""Candidates: references warped to the frames of a track."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v.data.references.choosing import Choice
from v2v.data.references.layers import centred_affine
from v2v.data.references.memory import References
from v2v.data.references.mesh import composite_mesh, part_masks
from v2v.data.references.puppet import composite_parts
from v2v.pixels import HALF
from v2v.signals import Track
from v2v.types import REFERENCE_CHANNELS

FAR = 0.5  # body sizes: a distance encoded as 1 - 1/e
VISIBLE = 1 / 64  # of alpha; colours below it are rounding errors


def candidates(
    references: References,
    track: Track,
    choice: Choice,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Iterator[NDArray[np.float32]]:
    """Each frame's candidates, float32 [K, 5, H, W]: RGB in [0, 255], valid, distance [0, 1].

    Args:
        track: T frames of the signal, at the size of the candidates.
        choice: result of a `Chooser` for the same frames.
        scale, shift: (x, y) transform from pixels of the references to pixels of `track`, for
            training windows that zoom in.
    """
    shape = (track.height, track.width)
    points, sizes = track.part_points(), track.body_size()
    dense = any(part.motion == "dense" for part in references.parts)
    control_points = track.control_point_tensor() if dense else None
    far = 1 - np.exp(-choice.distances / FAR)
    for t in range(len(track)):
        found = np.zeros((choice.used.shape[2], REFERENCE_CHANNELS, *shape), np.float32)
        choice_t = (choice.used[t], choice.before[t], choice.fading[t], far[t])
        if references.whole and not dense:
            for canvas, used in zip(found, choice.used[t].T, strict=True):
                _fill_background(references, canvas, used, scale, shift)
        if control_points is not None:
            pieces = part_masks(references, points[t], float(sizes[t]), shape)
            composite_mesh(
                references, found, pieces, choice_t, control_points[t : t + 1], scale, shift
            )
        else:
            composite_parts(references, found, choice_t, points[t], float(sizes[t]), sum(scale) / 2)
        found[:, :3] *= 1 / np.maximum(found[:, 3:4], VISIBLE)
        yield found


def _fill_background(
    references: References, canvas: NDArray[np.float32], chosen: NDArray[np.int64],
    scale: tuple[float, float], shift: tuple[float, float],
) -> None:  # fmt: skip
    """Fill a canvas with the background of the reference that most parts come from."""
    used = chosen[chosen >= 0]
    if not len(used):
        return
    height, width = canvas.shape[1:]
    matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
    most = int(np.bincount(used).argmax())
    shown = cv2.warpAffine(
        _inpainted(references, most), centred_affine(matrix), (width, height),
        flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    canvas[:3] = shown.transpose(2, 0, 1)
    canvas[3:] = 1


def _inpainted(references: References, reference: int) -> NDArray[np.uint8]:
    """A reference with the person inpainted."""

    def inpaint() -> NDArray[np.uint8]:
        hole = cv2.dilate((references.masks[reference] > 32).astype(np.uint8), np.ones((5, 5)))
        picture = references.pictures[reference]
        return np.asarray(cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA), np.uint8)

    return references.derived("inpainted", reference, inpaint)


def as_condition(warped: NDArray[np.float32]) -> torch.Tensor:
    """Convert [K, 5, H, W] of `References.candidates` for a `Condition`: RGB in [-1, 1]."""
    found = torch.from_numpy(warped)
    found[:, :3].mul_(1 / HALF).sub_(1).mul_(found[:, 3:4] > VISIBLE)
    return found
