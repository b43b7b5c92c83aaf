"""Appearance references: a few real frames of a person, warped to the target pose.

A reference is cut into the parts of its signal (`v2v.signals.parts`). The limbs, torso, head and
hands of a body are each warped by an affine transform. A face is warped as a whole by the dense
motion of its control points (arXiv 2003.00196, equation 4, with known weights); its mouth and eyes
come from other frames if those fit better. Each part comes from the reference that shows it in the
most similar pose. The best references of all parts form candidate 0, the second best candidate 1,
and so on: what is hidden in one candidate may be visible in another.

Shapes: R references, P parts, K candidates, H, W pixels of the model's frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.signals import Track, find
from v2v.signals.arrays import check_values
from v2v.signals.parts import Part, Rig, hull_mask, regions
from v2v.signals.traits import LabelMaps, LabelSignal, ReferenceSignal
from v2v.types import REFERENCE_CHANNELS
from v2v.warp import dense_motion, twicing

MISSING = 1.0  # body sizes: cost of a point that is seen in only one of two poses
CROWDED = 0.3  # body sizes: cost of a part that has other parts beside it along all its bones
KEEP = 0.75  # the distance of a reference in use is scaled by this, so that choices do not flicker
FADE = 4  # frames over which one reference fades into the next
FAR = 0.5  # body sizes: a distance encoded as 1 - 1/e
BACKGROUND_WEIGHT = 0.01  # of `dense_motion`; low, so that hair, neck and shoulders follow the head
NARROWEST_POINT = 2.0  # radius of the narrowest control point, in pixels of the coarse motion field
VISIBLE = 1 / 64  # of alpha; colours below it are rounding errors
SHARPEST = 0.6  # fraction of the frames, the sharpest, that references are chosen from
LOOKED_AT = 512  # evenly spaced frames that references are chosen from


# For one frame: `Choice.used`, `before` and `fading`, and the encoded distances [P, R] in [0, 1].
_FrameChoice = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Choice:
    """The references chosen for the parts of T frames.

    Attributes:
        used: [T, P, K] the reference of each part of each candidate; -1: none.
        before: [T, P, K] the reference that fades out; -1: none.
        fading: float32 [T, P, K] blending weight of `before`, below 1.
        distances: float32 [T, P, R] distance of each part's pose from that in each reference.
    """

    used: NDArray[np.int64]
    before: NDArray[np.int64]
    fading: NDArray[np.float32]
    distances: NDArray[np.float32]

    def only(self, kept: NDArray[np.bool_]) -> Choice:
        """Empty the candidates [K] that are not kept."""
        used, before = (np.where(kept, which, -1) for which in (self.used, self.before))
        return replace(self, used=used, before=before)


@dataclass(frozen=True)
class References:
    """R frames of a person in the model's pixels, with masks and points.

    Attributes:
        pictures: uint8 [R, H, W, 3].
        masks: uint8 [R, H, W], 255 on the person.
        track: their signal, R frames.
        frames: [R] their frame numbers in the clip; -1 for pictures added by hand.
        whole: whether candidates include the background; true without a background plate.
    """

    pictures: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    track: Track
    frames: NDArray[np.int64]
    whole: bool = False
    # Cache of data derived from a reference, by kind and index of the reference.
    _cache: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.track.parts

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pictures.shape[1], self.pictures.shape[2]

    def scaled(self, size: tuple[int, int]) -> References:
        """The same references for frames of another size."""
        if size == self.size:
            return self

        def resize(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
            small = [cv2.resize(p, size[::-1], interpolation=cv2.INTER_AREA) for p in pictures]
            return np.asarray(small, np.uint8)

        return replace(
            self, pictures=resize(self.pictures), masks=resize(self.masks),
            track=self.track.scaled(size[1], size[0]), _cache={},
        )  # fmt: skip

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All data besides the pictures: the track's arrays and `frames`."""
        own = {name: getattr(self.track, name) for name in self.track.per_frame}
        return own | {"frames": self.frames}

    # ------------------------------------------------------------ choice

    @cached_property
    def _poses(self) -> list[NDArray[np.float32]]:
        return _poses(self.track)

    def distances(self, track: Track) -> NDArray[np.float32]:
        """[T, P, R] distance of each part's pose from that in each reference, in body sizes.

        Poses are compared after centring the part's points. The hidden fraction of a part in a
        reference (occluded or outside the picture) adds to the distance.
        """
        found = [
            np.stack([_pose_distance(now, reference_poses) for now in poses])
            for poses, reference_poses in zip(_poses(track), self._poses, strict=True)
        ]
        distances = np.stack(found, axis=1)[:, self._compared_part]
        distances += np.float32(MISSING) * self._hidden
        return distances

    @cached_property
    def _compared_part(self) -> NDArray[np.intp]:
        """[P] the part whose pose is compared instead: the frontmost part of a group."""
        last = {part.group: p for p, part in enumerate(self.parts)}
        return np.array([last[q.group] if q.group else p for p, q in enumerate(self.parts)])

    @cached_property
    def _hidden(self) -> NDArray[np.float32]:
        """[P, R] fraction of the points along a part's bones at which the part is not visible.

        All parts of a group get the value of the most hidden one.
        """
        hidden = np.zeros((len(self.parts), len(self)), np.float32)
        for r in range(len(self)):
            for p, part in enumerate(self.parts):
                if part.motion == "dense":
                    continue
                patch, left, top = self._part_patch(p, r)
                points = self._along_bones(p, r)
                x, y = (points - (left, top)).astype(int).T
                inside = (x >= 0) & (y >= 0) & (x < patch.shape[1]) & (y < patch.shape[0])
                visible = patch[y[inside], x[inside], 3] > 0.5
                hidden[p, r] = 1 - visible.sum() / max(len(points), 1)
        return np.stack([hidden[self._compared_part == p].max(axis=0) for p in self._compared_part])

    @cached_property
    def crowded(self) -> NDArray[np.float32]:
        """[P, R] fraction of the points along a part's bones with an unconnected part beside them.

        A cut-out there contains pixels of the other part: cloth behind a hand, a hand over a face.
        """
        crowded = np.zeros((len(self.parts), len(self)), np.float32)
        connected = [{*part.fit, *part.base, *np.ravel(part.bones)} for part in self.parts]
        for r in range(len(self)):
            points = [self._along_bones(p, r) for p in range(len(self.parts))]
            for p, part in enumerate(self.parts):
                beside = np.zeros(len(points[p]), np.bool_)
                for q, other in enumerate(self.parts):
                    if connected[p] & connected[q] or part.motion == "dense" or not len(points[q]):
                        continue
                    gaps = np.linalg.norm(points[p][:, None] - points[q], axis=-1)
                    room = (part.radius + other.radius) * float(self._sizes[r])
                    beside |= (gaps < room).any(axis=1)
                crowded[p, r] = beside.sum() / max(len(beside), 1)
        return crowded[self._compared_part]

    def _along_bones(self, part: int, reference: int) -> NDArray[np.float32]:
        """[n, 2] points along the bones of a part whose ends are known."""
        bones = np.array(self.parts[part].bones, np.intp).reshape(-1, 2)
        ends = self._points[reference][bones]
        ends = ends[np.isfinite(ends).all(axis=(1, 2))]
        steps = np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None]
        points: NDArray[np.float32] = ends[:, :1] + steps * (ends[:, 1:] - ends[:, :1])
        return points.reshape(-1, 2)

    # ------------------------------------------------------------ warping

    def candidates(
        self,
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
        dense = any(part.motion == "dense" for part in self.parts)
        control_points = track.control_point_tensor() if dense else None
        far = 1 - np.exp(-choice.distances / FAR)
        for t in range(len(track)):
            found = np.zeros((choice.used.shape[2], REFERENCE_CHANNELS, *shape), np.float32)
            choice_t = (choice.used[t], choice.before[t], choice.fading[t], far[t])
            if self.whole and not dense:
                for canvas, used in zip(found, choice.used[t].T, strict=True):
                    self._fill_background(canvas, used, scale, shift)
            if control_points is not None:
                pieces = self._part_masks(points[t], float(sizes[t]), shape)
                self._composite_dense(
                    found, pieces, choice_t, control_points[t : t + 1], scale, shift
                )
            else:
                self._composite_parts(found, choice_t, points[t], float(sizes[t]), sum(scale) / 2)
            found[:, :3] *= 1 / np.maximum(found[:, 3:4], VISIBLE)
            yield found

    # ------------------------------------------------------------ the background

    def _fill_background(
        self, canvas: NDArray[np.float32], chosen: NDArray[np.int64],
        scale: tuple[float, float], shift: tuple[float, float],
    ) -> None:  # fmt: skip
        """Fill a canvas with the background of the reference that most parts come from."""
        used = chosen[chosen >= 0]
        if not len(used):
            return
        height, width = canvas.shape[1:]
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        shown = cv2.warpAffine(
            self._inpainted(int(np.bincount(used).argmax())), _centred(matrix), (width, height),
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        canvas[:3] = shown.transpose(2, 0, 1)
        canvas[3:] = 1

    def _inpainted(self, reference: int) -> NDArray[np.uint8]:
        """A reference with the person inpainted."""
        key = ("emptied", reference)
        if key not in self._cache:
            hole = cv2.dilate((self.masks[reference] > 32).astype(np.uint8), np.ones((5, 5)))
            picture = self.pictures[reference]
            self._cache[key] = cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA)
        emptied: NDArray[np.uint8] = self._cache[key]
        return emptied

    # ------------------------------------------------------------ faces

    def _part_masks(
        self, points: NDArray[np.float32], size: float, shape: tuple[int, int]
    ) -> list[tuple[slice, slice, NDArray[np.float32] | None]]:
        """For each part its rows and columns, and its mask [h, w] within them.

        The first part covers the whole picture.
        """
        found: list[tuple[slice, slice, NDArray[np.float32] | None]] = [
            (slice(0, shape[0]), slice(0, shape[1]), None)
        ]
        for part in self.parts[1:]:
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

    def _composite_dense(
        self, found: NDArray[np.float32],
        part_masks: list[tuple[slice, slice, NDArray[np.float32] | None]], choice: _FrameChoice,
        control_points: torch.Tensor, scale: tuple[float, float], shift: tuple[float, float],
    ) -> None:  # fmt: skip
        """Composite faces, warped by their control points, onto the canvases."""
        used, before, fading, far = choice
        points_before = self._reference_control_points(
            np.unique([used, before]), control_points, scale, shift
        )
        for p, (rows, columns, mask) in enumerate(part_masks):
            if p and mask is None:
                continue

            def warped(reference: int) -> NDArray[np.float32]:
                known = points_before[reference]
                return self._remap(reference, control_points, known, scale, shift, rows, columns)  # noqa: B023

            for canvas, r, old, weight in zip(found, used[p], before[p], fading[p], strict=True):
                if r < 0:
                    continue
                layer, away = warped(int(r)), float(far[p, r])
                if old >= 0 and weight > 0:
                    layer = layer + weight * (warped(int(old)) - layer)
                    away += float(weight * (far[p, old] - far[p, r]))
                if mask is not None:
                    layer = layer * mask[..., None]
                _composite(canvas, layer, columns.start, rows.start, away)

    @cached_property
    def _control_points(self) -> torch.Tensor:
        return self.track.control_point_tensor()

    def _reference_control_points(
        self, chosen: NDArray[np.int64], control_points: torch.Tensor, scale: tuple[float, float],
        shift: tuple[float, float],
    ) -> dict[int, torch.Tensor]:  # fmt: skip
        """[1, K, 3] control points in each of the references; -1 is skipped."""
        numbers = chosen[chosen >= 0].tolist()
        before = self._control_points[numbers].clone()
        before[..., :2] = before[..., :2] * torch.tensor(scale) + torch.tensor(shift)
        moved = twicing(control_points, before, background_weight=BACKGROUND_WEIGHT)
        return {number: moved[i : i + 1] for i, number in enumerate(numbers)}

    def _remap(
        self, reference: int, control_points: torch.Tensor, before: torch.Tensor,
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
            self._premultiplied(reference), across, down, cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        # Clamp the overshoot of bicubic interpolation.
        np.minimum(moved[..., :3], moved[..., 3:], out=moved[..., :3])
        layer = moved.astype(np.float32)
        layer[..., 3] *= np.float32(1 / 255)
        return layer

    def _premultiplied(self, reference: int) -> NDArray[np.uint8]:
        """[H, W, 4] premultiplied RGB and alpha; alpha is 255 everywhere if `whole`."""
        key = ("premultiplied", reference)
        if key not in self._cache:
            alpha = self.masks[reference][..., None]
            alpha = np.full_like(alpha, 255) if self.whole else alpha
            shown = np.rint(self.pictures[reference] * (alpha / np.float32(255)))
            self._cache[key] = np.concatenate([shown.astype(np.uint8), alpha], axis=-1)
        found: NDArray[np.uint8] = self._cache[key]
        return found

    # ------------------------------------------------------------ bodies

    def _composite_parts(
        self, found: NDArray[np.float32], choice: _FrameChoice, points: NDArray[np.float32],
        body: float, scale: float,
    ) -> None:  # fmt: skip
        """Composite parts, warped to their points, onto the canvases from back to front."""
        used, before, fading, far = choice
        # The reference that fades out comes first; its successor's layer is blended with it.
        both = np.stack([np.where(fading > 0, before, -1), used], axis=-1)
        parts, slots, order = np.nonzero((both >= 0) & (used >= 0)[..., None])
        references = both[parts, slots, order]
        matrices, valid = self._rig.transforms(
            parts, self._points[references], points, scale=scale,
            growth=body / self._sizes[references],
        )  # fmt: skip
        size = (found.shape[2], found.shape[3])
        outgoing: dict[int, _Layer] = {}
        for p, k, new, r, matrix, fitted in zip(
            parts.tolist(), slots.tolist(), order.tolist(), references.tolist(), matrices, valid,
            strict=True,
        ):  # fmt: skip
            layer = (
                _warp_patch(self._part_patch(p, r), matrix, size, float(far[p, r]))
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
                _composite(found[k], *layer)

    @cached_property
    def _rig(self) -> Rig:
        return Rig(self.parts)

    @cached_property
    def _points(self) -> NDArray[np.float32]:
        return self.track.part_points()

    @cached_property
    def _sizes(self) -> NDArray[np.float32]:
        return self.track.body_size()

    def _part_patch(self, part: int, reference: int) -> _Patch:
        key = ("parts", reference)
        if key not in self._cache:
            size = float(self._sizes[reference])
            own = regions(self.parts, self._points[reference], size, self.size)
            alphas = own * (self.masks[reference].astype(np.float32) / 255)
            picture = self.pictures[reference].astype(np.float32)
            self._cache[key] = [_patch(picture, alpha) for alpha in alphas]
        found: _Patch = self._cache[key][part]
        return found


# A part [h, w, 4] of a reference, premultiplied; its left and top.
_Patch = tuple[NDArray[np.float32], int, int]


def _patch(picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> _Patch:
    """A picture cut out by `alpha` [H, W], with a transparent border for a soft edge."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return np.empty((0, 0, 4), np.float32), 0, 0
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    opacity = alpha[box][..., None]
    patch = np.concatenate([picture[box] * opacity, opacity], axis=-1)
    return np.pad(patch, ((1, 1), (1, 1), (0, 0))), int(columns[0]) - 1, int(rows[0]) - 1


# A layer [h, w, 4], premultiplied; its left, top and distance.
_Layer = tuple[NDArray[np.float32], int, int, float]


def _warp_patch(
    cut: _Patch, matrix: NDArray[np.float64], size: tuple[int, int], far: float
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
        patch, _centred(placed), (x1 - x0, y1 - y0), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
    )  # fmt: skip
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


def _composite(
    canvas: NDArray[np.float32], layer: NDArray[np.float32], x: int, y: int, far: float
) -> None:
    """Composite a premultiplied layer [h, w, 4] onto a canvas [5, H, W] at (x, y)."""
    target_box = canvas[:, y : y + layer.shape[0], x : x + layer.shape[1]]
    planes = cv2.split(layer)
    target_box *= 1 - planes[3]
    for channel, plane in zip(target_box, planes, strict=False):
        channel += plane
    target_box[4] += far * planes[3]


def _coarseness(control_points: torch.Tensor) -> int:
    """Downscale factor of the motion field of control points [1, K, 3]: 1 to 4."""
    radii = control_points[..., 2]
    narrowest = float(radii[radii > 0].min()) if bool((radii > 0).any()) else 0.0
    return min(max(int(narrowest / NARROWEST_POINT), 1), 4)


def _centred(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert an affine map to OpenCV's coordinates, where pixel centres are integers."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return moved


def _poses(track: Track) -> list[NDArray[np.float32]]:
    """For each part [T, n, 2] its `fit` and `compare` points, centred, in body sizes."""
    points, size = track.part_points(), track.body_size()
    found = []
    for part in track.parts:
        chosen = points[:, [*part.fit, *part.compare]]
        with np.errstate(all="ignore"):
            seen = np.isfinite(chosen[..., :1])
            count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
            middle = np.where(seen, chosen, 0).sum(axis=1, keepdims=True) / count
            found.append(((chosen - middle) / size[:, None, None]).astype(np.float32))
    return found


def _pose_distance(
    now: NDArray[np.float32], references: NDArray[np.float32]
) -> NDArray[np.float32]:
    """[R] mean distance of points [n, 2] from those of R references [R, n, 2]."""
    visible = np.isfinite(now[:, 0])
    if not visible.any():
        return np.full(len(references), np.float32(MISSING))
    distances = np.linalg.norm(references[:, visible] - now[visible], axis=-1)
    mean: NDArray[np.float32] = np.nan_to_num(distances, nan=MISSING).mean(axis=1)
    return mean


class Chooser:
    """Chooses the reference of each part of each candidate, frame by frame.

    A reference in use stays until another is clearly nearer, keeps its candidate and fades into
    its successor, so that choices neither flicker nor pop. Choices depend on the previous frames.
    """

    def __init__(self, references: References, count: int, *, banned: Any = ()) -> None:
        """`count` is K; `banned` references are never chosen."""
        self.references, self.count = references, count
        self.usable = np.setdiff1d(np.arange(len(references)), np.asarray(banned, np.int64))
        shape = (len(references.parts), count)
        self.last, self.before = np.full((2, *shape), -1, np.int64)
        self.age = np.zeros(shape, np.int64)  # frames since it changed

    def __call__(self, track: Track) -> Choice:
        """The choice for T frames, which must follow those of the previous call."""
        distances = self.references.distances(track)
        used = np.empty((len(track), *self.last.shape), np.int64)
        before, fading = used.copy(), np.empty(used.shape, np.float32)
        costs = distances + np.float32(CROWDED) * self.references.crowded
        for t, cost in enumerate(costs):
            now = np.stack([self._next(*row) for row in zip(self.last, cost, strict=True)])
            changed = now != self.last
            self.before = np.where(changed, self.last, self.before)
            self.age = np.where(changed, 1, self.age + 1)
            self.last = now
            used[t], before[t] = now, self.before
            fading[t] = np.where(self.before >= 0, np.maximum(1 - self.age / FADE, 0), 0)
        return Choice(used, before, fading, distances)

    def _next(self, last: NDArray[np.int64], cost: NDArray[np.float32]) -> NDArray[np.int64]:
        favoured = cost.copy()
        favoured[last[last >= 0]] *= KEEP
        best = self.usable[np.argsort(favoured[self.usable], kind="stable")[: self.count]].tolist()
        kept = [r if r in best else -1 for r in last.tolist()]
        new = [r for r in best if r not in kept]
        return np.array([r if r >= 0 or not new else new.pop(0) for r in kept])


def as_condition(warped: NDArray[np.float32]) -> torch.Tensor:
    """Convert [K, 5, H, W] of `References.candidates` for a `Condition`: RGB in [-1, 1]."""
    found = torch.from_numpy(warped)
    found[:, :3].mul_(1 / 127.5).sub_(1).mul_(found[:, 3:4] > VISIBLE)
    return found


def reference_signal(signals: Sequence[str]) -> ReferenceSignal | None:
    """The first of a model's signals that chooses and warps references."""
    return find(ReferenceSignal, signals)


# ---------------------------------------------------------------- the choice of references


def farthest_points(poses: Sequence[NDArray[np.float32]], count: int, first: int = 0) -> list[int]:
    """Indices of `count` frames that cover the poses (farthest point sampling).

    Args:
        poses: for each part [T, n, 2], from `_poses`.
        count: number of indices; fewer if T is smaller.
        first: the index to start from.
    """
    found = [first]
    least = np.full(len(poses[0]), np.inf, np.float32)
    while len(found) < min(count, len(least)):
        newest = found[-1]
        distance = np.mean([_pose_distance(part[newest], part) for part in poses], axis=0)
        least = np.minimum(least, distance)
        least[found] = -1
        found.append(int(least.argmax()))
    return found


def sharpness(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """Mean absolute Laplacian on the person: low in frames with motion blur."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    inner = cv2.erode(mask, np.ones((3, 3))) > 127
    return float(edges[inner].mean()) if inner.any() else 0.0


def gather(
    store: ClipStore,
    start: int,
    stop: int,
    *,
    signal: ReferenceSignal,
    placement: Placement,
    count: int,
    whole: bool,
) -> References | None:
    """Choose references from frames `start` to `stop` (excluded) and place them.

    Sharp frames with complete detections are preferred; among them, frames that cover the poses
    are chosen. Memory does not grow with the clip.

    Args:
        whole: whether candidates include the background; true without a background plate.

    Returns:
        None if no frame shows the signal.
    """
    sampled = np.unique(np.linspace(start, stop - 1, LOOKED_AT).astype(int))
    rows = [placement.track(store.track(signal.name, int(t), int(t) + 1)) for t in sampled]
    track = type(rows[0]).joined(rows)
    points, size = track.part_points(), track.body_size()
    completeness = np.isfinite(points).all(axis=-1).mean(axis=1) * np.isfinite(size)
    usable = np.flatnonzero(completeness > 0)
    if not len(usable):
        return None
    # Prefer frames that are sharp and show every point.
    sharp = np.array([_sharpness(store, int(sampled[i]), placement) for i in usable])
    preferred = (sharp >= np.quantile(sharp, 1 - SHARPEST)) & (
        completeness[usable] >= np.quantile(completeness[usable], 0.3)
    )
    pool = usable[preferred] if preferred.sum() >= count else usable
    best = int(np.argmax(completeness[pool]))
    chosen = farthest_points(_poses(type(track).joined([rows[i] for i in pool])), count, best)
    frames = np.sort(sampled[pool[chosen]])
    pictures = np.stack([_picture(store, int(t), placement) for t in frames])
    masks = np.stack([_mask(store, int(t), placement) for t in frames])
    own = [placement.track(store.track(signal.name, int(t), int(t) + 1)) for t in frames]
    chosen_track = type(track).joined(own)
    return References(pictures, masks, chosen_track, frames.astype(np.int64), whole)


def _person(store: ClipStore) -> tuple[LabelSignal, int] | None:
    """The clip's label maps and the class id of persons in them; None without either."""
    labels = store.record.find(LabelSignal)
    person = None if labels is None else labels.person(store.record.signals[labels.name].spec)
    return None if labels is None or person is None else (labels, person)


def _picture(store: ClipStore, frame: int, placement: Placement) -> NDArray[np.uint8]:
    picture = store.frames(frame, frame + 1)[0]
    return np.asarray(placement.picture(picture), np.uint8)


def _mask(store: ClipStore, frame: int, placement: Placement) -> NDArray[np.uint8]:
    """[H, W] 255 on the person; 255 everywhere if the clip has no mask."""
    found = _person(store)
    if found is None:
        return np.full(placement.size, 255, np.uint8)
    track = cast(LabelMaps, store.track(found[0].name, frame, frame + 1))
    mask = (track.labels[0] == found[1]).astype(np.uint8) * 255
    return np.asarray(placement.picture(mask), np.uint8)


def _sharpness(store: ClipStore, frame: int, placement: Placement) -> float:
    return sharpness(_picture(store, frame, placement), _mask(store, frame, placement))


# ---------------------------------------------------------------- on disk


def picture_name(clip: int, index: int) -> str:
    return f"{clip}-{index:02}.png"


def write_pictures(folder: Path, clip: int, references: References) -> None:
    """Write references as RGBA pictures, opaque on the person. Raises `OSError`."""
    folder.mkdir(exist_ok=True)
    for index in range(len(references)):
        path = folder / picture_name(clip, index)
        write_picture(path, references.pictures[index], references.masks[index])


def write_picture(path: Path, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    rgba = np.concatenate([picture, mask[..., None]], axis=-1)
    Image.fromarray(rgba, "RGBA").save(path, format="PNG")


def read_references(
    folder: Path, clip: int, arrays: dict[str, NDArray[Any]], *, signal: ReferenceSignal,
    size: tuple[int, int], whole: bool,
) -> References | None:  # fmt: skip
    """The references of a clip whose pictures are in `folder`; None if none are left.

    Removed pictures are skipped. Raises `ValueError` for a picture that is damaged or not of
    `size` (H, W), and for arrays that do not match the signal.
    """
    layout = signal.layout
    frames = arrays.get("frames")
    if frames is None or frames.dtype != np.int64 or frames.ndim != 1 or not len(frames):
        raise ValueError("frames must be a non-empty int64 array [R]")
    for name, (kind, shape) in layout.items():
        values = arrays.get(name)
        if values is None or values.dtype != kind or values.shape != (len(frames), *shape):
            raise ValueError(f"{name} must be {kind} {[len(frames), *shape]}")
        check_values(name, values)
    existing = [i for i in range(len(frames)) if (folder / picture_name(clip, i)).exists()]
    if not existing:
        return None
    pictures, masks = [], []
    for index in existing:
        path = folder / picture_name(clip, index)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.size != size[::-1] or image.mode != "RGBA":
                    raise ValueError(
                        f"{path.name} is {image.mode} of {image.width}x{image.height}, expected"
                        f" RGBA of {size[1]}x{size[0]}"
                    )
                rgba = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path.name} cannot be read ({error})") from error
        pictures.append(rgba[..., :3])
        masks.append(rgba[..., 3])
    chosen = {name: arrays[name][existing] for name in layout}
    track = signal.assemble(chosen, width=size[1], height=size[0])
    return References(np.stack(pictures), np.stack(masks), track, frames[existing], whole)
