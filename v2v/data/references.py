"""Appearance references: a few real frames of a person, warped to the pose that is wanted.

A reference is cut into the parts of its signal (`v2v.signals._parts`): limbs, torso, head and
hands of a body, each moved by its own affine transform; a face moves as a whole by the dense
motion of its control points (arXiv 2003.00196, equation 4, with known weights), its mouth and
eyes taken from other frames where those fit better. Each part comes from the reference that
shows it in the most similar pose. The best reference of every part together make candidate 0,
the second best candidate 1, and so on: what one lacks, since an arm hid it, another has.

Shapes: R references, P parts, K candidates, H, W pixels of the model's frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.signals import Track, load_signal
from v2v.signals._base import check_values
from v2v.signals._parts import Part, Rig, hull_mask, regions
from v2v.signals.face import FaceTrack
from v2v.signals.pose import PoseTrack
from v2v.signals.segmentation import LabelTrack
from v2v.types import REFERENCE_CHANNELS
from v2v.warp import dense_motion, twicing

MISSING = 1.0  # body sizes: what a point costs that is seen in one of two poses only
CROWDED = 0.3  # body sizes: what a part costs beside which others lie all along
KEEP = 0.75  # a reference in use counts as nearer by this factor: choices do not flicker
FADE = 4  # frames over which one reference fades into the next
FAR = 0.5  # body sizes: a distance shown as 1 - 1/e
BACKGROUND_WEIGHT = 0.01  # of `dense_motion`: hair, neck and shoulders go with the head
NARROWEST_POINT = 2.0  # pixels of its field that the narrowest handle is wide
VISIBLE = 1 / 64  # of alpha: below it a colour is rounding
SHARPEST = 0.6  # share of the frames, the sharpest, that references are chosen from
COUNTS = {"pose": 16, "face": 32}  # references that are kept of a clip
TRACKS = {"pose": PoseTrack, "face": FaceTrack}
LOOKED_AT = 512  # frames, evenly spread, that references are chosen from


# Of one frame: `Choice.used`, `before` and `fading`, and how far [P, R], 0 to 1.
_Shown = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Choice:
    """Which references the parts of T frames are from.

    Attributes:
        used: [T, P, K] the reference of each part of each candidate; -1: none.
        before: [T, P, K] the one that fades out; -1: none.
        fading: [T, P, K] float32, its share, below 1.
        distances: float32 [T, P, R] how far each part is from that in each reference.
    """

    used: NDArray[np.int64]
    before: NDArray[np.int64]
    fading: NDArray[np.float32]
    distances: NDArray[np.float32]

    def only(self, kept: NDArray[np.bool_]) -> Choice:
        """Candidates [K] that are not kept show nothing."""
        used, before = (np.where(kept, which, -1) for which in (self.used, self.before))
        return replace(self, used=used, before=before)


@dataclass(frozen=True)
class References:
    """R frames of a person in the model's pixels, with masks and points.

    Attributes:
        pictures: uint8 [R, H, W, 3].
        masks: uint8 [R, H, W], 255 on the person.
        track: their signal, R frames of it.
        frames: [R] which frames of the clip they are; -1 for pictures added by hand.
        whole: whether a candidate shows the background of its reference too, where no plate is.
    """

    pictures: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    track: Track
    frames: NDArray[np.int64]
    whole: bool = False
    # What is made of a reference once: by what it is, and the number of the reference.
    _made: dict[tuple[str, int], Any] = field(default_factory=dict, repr=False, compare=False)

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
            track=self.track.scaled(size[1], size[0]), _made={},
        )  # fmt: skip

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What makes up references beside their pictures: the track's arrays, and `frames`."""
        layout = load_signal(_signal_of(self.track)).layout  # type: ignore[attr-defined]
        return {name: getattr(self.track, name) for name in layout} | {"frames": self.frames}

    # ------------------------------------------------------------ choice

    @cached_property
    def _poses(self) -> list[NDArray[np.float32]]:
        return _poses(self.track)

    def distances(self, track: Track) -> NDArray[np.float32]:
        """[T, P, R] how far each part's pose is from that in each reference, in body sizes.

        Poses are compared with the middle of the part's points at the same place. A part that a
        reference shows only a share of, since it is covered or outside the picture, is farther.
        """
        found = [
            np.stack([_apart(now, known) for now in wanted])
            for wanted, known in zip(_poses(track), self._poses, strict=True)
        ]
        away = np.stack(found, axis=1)[:, self._leader]
        away += np.float32(MISSING) * self._hidden
        return away

    @cached_property
    def _leader(self) -> NDArray[np.intp]:
        """[P] which part is compared in its place: of a group the one that lies over the others."""
        last = {part.group: p for p, part in enumerate(self.parts)}
        return np.array([last[q.group] if q.group else p for p, q in enumerate(self.parts)])

    @cached_property
    def _hidden(self) -> NDArray[np.float32]:
        """[P, R] share of the places along a part's bones at which the part is not seen.

        A reference that hides one part of a group hides as much of all of it.
        """
        hidden = np.zeros((len(self.parts), len(self)), np.float32)
        for r in range(len(self)):
            for p, part in enumerate(self.parts):
                if part.motion == "dense":
                    continue
                patch, left, top = self._cut_out(p, r)
                places = self._along_bones(p, r)
                x, y = (places - (left, top)).astype(int).T
                inside = (x >= 0) & (y >= 0) & (x < patch.shape[1]) & (y < patch.shape[0])
                seen = patch[y[inside], x[inside], 3] > 0.5
                hidden[p, r] = 1 - seen.sum() / max(len(places), 1)
        return np.stack([hidden[self._leader == p].max(axis=0) for p in self._leader])

    @cached_property
    def crowded(self) -> NDArray[np.float32]:
        """[P, R] share of those places beside which something lies that is no neighbour.

        What is cut out there carries some of it along: cloth behind a hand, a hand before a face.
        """
        crowded = np.zeros((len(self.parts), len(self)), np.float32)
        joined = [{*part.fit, *part.base, *np.ravel(part.bones)} for part in self.parts]
        for r in range(len(self)):
            places = [self._along_bones(p, r) for p in range(len(self.parts))]
            for p, part in enumerate(self.parts):
                beside = np.zeros(len(places[p]), np.bool_)
                for q, other in enumerate(self.parts):
                    if joined[p] & joined[q] or part.motion == "dense" or not len(places[q]):
                        continue
                    gaps = np.linalg.norm(places[p][:, None] - places[q], axis=-1)
                    room = (part.radius + other.radius) * float(self._sizes[r])
                    beside |= (gaps < room).any(axis=1)
                crowded[p, r] = beside.sum() / max(len(beside), 1)
        return crowded[self._leader]

    def _along_bones(self, part: int, reference: int) -> NDArray[np.float32]:
        """[n, 2] places along the bones of a part that are known."""
        bones = np.array(self.parts[part].bones, np.intp).reshape(-1, 2)
        ends = self._points[reference][bones]
        ends = ends[np.isfinite(ends).all(axis=(1, 2))]
        steps = np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None]
        places: NDArray[np.float32] = ends[:, :1] + steps * (ends[:, 1:] - ends[:, :1])
        return places.reshape(-1, 2)

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
            track: T frames of the signal, whose size is that of the candidates.
            choice: of a `Chooser`, for the same frames.
            scale, shift: across and down, from pixels of the references to those of `track`: where
                a training window zooms in.
        """
        shape = (track.height, track.width)
        points, sizes = track.part_points(), track.body_size()
        dense = any(part.motion == "dense" for part in self.parts)
        control_points = track.control_point_tensor() if dense else None
        far = 1 - np.exp(-choice.distances / FAR)
        for t in range(len(track)):
            found = np.zeros((choice.used.shape[2], REFERENCE_CHANNELS, *shape), np.float32)
            shown = (choice.used[t], choice.before[t], choice.fading[t], far[t])
            if self.whole and not dense:
                for canvas, used in zip(found, choice.used[t].T, strict=True):
                    self._backdrop(canvas, used, scale, shift)
            if control_points is not None:
                pieces = self._pieces(points[t], float(sizes[t]), shape)
                self._move_densely(found, pieces, shown, control_points[t : t + 1], scale, shift)
            else:
                self._move_parts(found, shown, points[t], float(sizes[t]), sum(scale) / 2)
            found[:, :3] *= 1 / np.maximum(found[:, 3:4], VISIBLE)
            yield found

    # ------------------------------------------------------------ the background

    def _backdrop(
        self, canvas: NDArray[np.float32], chosen: NDArray[np.int64],
        scale: tuple[float, float], shift: tuple[float, float],
    ) -> None:  # fmt: skip
        """The background of the reference that most parts are from, as it is."""
        used = chosen[chosen >= 0]
        if not len(used):
            return
        height, width = canvas.shape[1:]
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        shown = cv2.warpAffine(
            self._emptied(int(np.bincount(used).argmax())), _centred(matrix), (width, height),
            flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        canvas[:3] = shown.transpose(2, 0, 1)
        canvas[3:] = 1

    def _emptied(self, reference: int) -> NDArray[np.uint8]:
        """A reference without its person: a smooth guess in their place."""
        key = ("emptied", reference)
        if key not in self._made:
            hole = cv2.dilate((self.masks[reference] > 32).astype(np.uint8), np.ones((5, 5)))
            picture = self.pictures[reference]
            self._made[key] = cv2.inpaint(picture, hole, 3, cv2.INPAINT_TELEA)
        emptied: NDArray[np.uint8] = self._made[key]
        return emptied

    # ------------------------------------------------------------ faces

    def _pieces(
        self, points: NDArray[np.float32], size: float, shape: tuple[int, int]
    ) -> list[tuple[slice, slice, NDArray[np.float32] | None]]:
        """For each part the rows and columns where it is seen, and [h, w] how far it is there.

        The first is everywhere.
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

    def _move_densely(
        self, found: NDArray[np.float32],
        pieces: list[tuple[slice, slice, NDArray[np.float32] | None]], shown: _Shown,
        control_points: torch.Tensor, scale: tuple[float, float], shift: tuple[float, float],
    ) -> None:  # fmt: skip
        """Composite faces, warped by their control points, over the canvas."""
        used, before, fading, far = shown
        were = self._control_points_before(np.unique([used, before]), control_points, scale, shift)
        for p, (rows, columns, mask) in enumerate(pieces):
            if p and mask is None:
                continue

            def warped(reference: int) -> NDArray[np.float32]:
                known = were[reference]
                return self._dense(reference, control_points, known, scale, shift, rows, columns)  # noqa: B023

            for canvas, r, old, share in zip(found, used[p], before[p], fading[p], strict=True):
                if r < 0:
                    continue
                layer, away = warped(int(r)), float(far[p, r])
                if old >= 0 and share > 0:
                    layer = layer + share * (warped(int(old)) - layer)
                    away += float(share * (far[p, old] - far[p, r]))
                if mask is not None:
                    layer = layer * mask[..., None]
                _lay_over(canvas, layer, columns.start, rows.start, away)

    @cached_property
    def _control_points(self) -> torch.Tensor:
        return self.track.control_point_tensor()

    def _control_points_before(
        self, wanted: NDArray[np.int64], control_points: torch.Tensor, scale: tuple[float, float],
        shift: tuple[float, float],
    ) -> dict[int, torch.Tensor]:  # fmt: skip
        """[1, K, 3] where the handles were in each of the references, -1 left out."""
        numbers = wanted[wanted >= 0].tolist()
        before = self._control_points[numbers].clone()
        before[..., :2] = before[..., :2] * torch.tensor(scale) + torch.tensor(shift)
        drawn = twicing(control_points, before, background_weight=BACKGROUND_WEIGHT)
        return {number: drawn[i : i + 1] for i, number in enumerate(numbers)}

    def _dense(
        self, reference: int, control_points: torch.Tensor, before: torch.Tensor,
        scale: tuple[float, float], shift: tuple[float, float], rows: slice, columns: slice,
    ) -> NDArray[Any]:  # fmt: skip
        """[h, w, 4] a box of a reference moved by its control points, colours times alpha.

        Args:
            handles, before: [1, K, 3] where they are and were, in pixels of the picture.
        """
        corner = torch.tensor((columns.start, rows.start, 0.0))
        zoom, offset = np.asarray(scale, np.float32), np.asarray(shift, np.float32)
        # The field is smooth: at a size at which the narrowest handle is a few pixels wide it is
        # the same, in a fraction of the time.
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
        # Bicubic interpolation, which blurs less, overshoots.
        np.minimum(moved[..., :3], moved[..., 3:], out=moved[..., :3])
        layer = moved.astype(np.float32)
        layer[..., 3] *= np.float32(1 / 255)
        return layer

    def _premultiplied(self, reference: int) -> NDArray[np.uint8]:
        """[H, W, 4] RGB times alpha, and alpha; alpha is 255 where the whole frame counts."""
        key = ("premultiplied", reference)
        if key not in self._made:
            alpha = self.masks[reference][..., None]
            alpha = np.full_like(alpha, 255) if self.whole else alpha
            shown = np.rint(self.pictures[reference] * (alpha / np.float32(255)))
            self._made[key] = np.concatenate([shown.astype(np.uint8), alpha], axis=-1)
        found: NDArray[np.uint8] = self._made[key]
        return found

    # ------------------------------------------------------------ bodies

    def _move_parts(
        self, found: NDArray[np.float32], shown: _Shown, points: NDArray[np.float32],
        body: float, scale: float,
    ) -> None:  # fmt: skip
        """Composite parts, warped to their points, over the canvas, from back to front."""
        used, before, fading, far = shown
        # What fades out comes first: the layer of its successor is blended with it.
        both = np.stack([np.where(fading > 0, before, -1), used], axis=-1)
        parts, slots, order = np.nonzero((both >= 0) & (used >= 0)[..., None])
        references = both[parts, slots, order]
        matrices, good = self._rig.transforms(
            parts, self._points[references], points, scale=scale,
            growth=body / self._sizes[references],
        )  # fmt: skip
        size = (found.shape[2], found.shape[3])
        leaving: dict[int, _Layer] = {}
        for p, k, new, r, matrix, fits in zip(
            parts.tolist(), slots.tolist(), order.tolist(), references.tolist(), matrices, good,
            strict=True,
        ):  # fmt: skip
            layer = _moved(self._cut_out(p, r), matrix, size, float(far[p, r])) if fits else None
            if not new:
                if layer is not None:
                    leaving[k] = layer
                continue
            old = leaving.pop(k, None)
            if old is not None:
                layer = _faded(old, layer, float(fading[p, k]))
            if layer is not None:
                _lay_over(found[k], *layer)

    @cached_property
    def _rig(self) -> Rig:
        return Rig(self.parts)

    @cached_property
    def _points(self) -> NDArray[np.float32]:
        return self.track.part_points()

    @cached_property
    def _sizes(self) -> NDArray[np.float32]:
        return self.track.body_size()

    def _cut_out(self, part: int, reference: int) -> _Patch:
        key = ("parts", reference)
        if key not in self._made:
            size = float(self._sizes[reference])
            own = regions(self.parts, self._points[reference], size, self.size)
            alphas = own * (self.masks[reference].astype(np.float32) / 255)
            picture = self.pictures[reference].astype(np.float32)
            self._made[key] = [_patch(picture, alpha) for alpha in alphas]
        found: _Patch = self._made[key][part]
        return found


# A part [h, w, 4] of a reference, colours times alpha; its left and top.
_Patch = tuple[NDArray[np.float32], int, int]


def _patch(picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> _Patch:
    """What `alpha` [H, W] shows of a picture, with a rim of nothing: its edge fades out."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if not len(rows):
        return np.empty((0, 0, 4), np.float32), 0, 0
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    shown = alpha[box][..., None]
    patch = np.concatenate([picture[box] * shown, shown], axis=-1)
    return np.pad(patch, ((1, 1), (1, 1), (0, 0))), int(columns[0]) - 1, int(rows[0]) - 1


# A layer [h, w, 4], colours times alpha; its left, its top, its distance.
_Layer = tuple[NDArray[np.float32], int, int, float]


def _moved(
    cut: _Patch, matrix: NDArray[np.float64], size: tuple[int, int], far: float
) -> _Layer | None:
    """A part where it lies in a picture of `size` (H, W); None: outside."""
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


def _faded(old: _Layer, new: _Layer | None, share: float) -> _Layer:
    """`share` of one layer and the rest of another, over the box of both."""
    weighted = [(old, share)] if new is None else [(old, share), (new, 1 - share)]
    left = min(x for (_, x, _, _), _ in weighted)
    top = min(y for (_, _, y, _), _ in weighted)
    right = max(x + layer.shape[1] for (layer, x, _, _), _ in weighted)
    bottom = max(y + layer.shape[0] for (layer, _, y, _), _ in weighted)
    both = np.zeros((bottom - top, right - left, 4), np.float32)
    for (layer, x, y, _), weight in weighted:
        both[y - top : y - top + layer.shape[0], x - left : x - left + layer.shape[1]] += (
            np.float32(weight) * layer
        )
    far = sum(weight * away for (_, _, _, away), weight in weighted)
    return both, left, top, far / sum(weight for _, weight in weighted)


def _range(
    a: float, b: float, shift: float, box: tuple[int, int, int, int], length: int
) -> tuple[int, int]:
    """First pixel and end of where `a x + b y + shift` is over a box, within a side."""
    left, right, top, bottom = box
    low = min(a * left, a * right) + min(b * top, b * bottom) + shift
    high = max(a * left, a * right) + max(b * top, b * bottom) + shift
    return max(int(low) - 1, 0), min(int(high) + 2, length)


def _lay_over(
    canvas: NDArray[np.float32], layer: NDArray[np.float32], x: int, y: int, far: float
) -> None:
    """Put a layer [h, w, 4], colours times alpha, over a canvas [5, H, W] at (x, y)."""
    place = canvas[:, y : y + layer.shape[0], x : x + layer.shape[1]]
    planes = cv2.split(layer)
    place *= 1 - planes[3]
    for target, plane in zip(place, planes, strict=False):
        target += plane
    place[4] += far * planes[3]


def _coarseness(control_points: torch.Tensor) -> int:
    """By which factor the field of handles [1, K, 3] may be coarser than the picture: 1 to 4."""
    radii = control_points[..., 2]
    narrowest = float(radii[radii > 0].min()) if bool((radii > 0).any()) else 0.0
    return min(max(int(narrowest / NARROWEST_POINT), 1), 4)


def _centred(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine map of continuous coordinates as OpenCV's: pixel centres are whole numbers."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return moved


def _poses(track: Track) -> list[NDArray[np.float32]]:
    """For each part [T, n, 2] its points and those it is compared by, centred, in body sizes."""
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


def _apart(now: NDArray[np.float32], known: NDArray[np.float32]) -> NDArray[np.float32]:
    """[R] mean distance of points [n, 2] from those of R references [R, n, 2]."""
    shown = np.isfinite(now[:, 0])
    if not shown.any():
        return np.full(len(known), np.float32(MISSING))
    away = np.linalg.norm(known[:, shown] - now[shown], axis=-1)
    mean: NDArray[np.float32] = np.nan_to_num(away, nan=MISSING).mean(axis=1)
    return mean


class Chooser:
    """Which reference each part of each candidate is from, frame after frame.

    A reference that is in use stays until another is clearly nearer, keeps its candidate, and
    fades into its successor: choices neither flicker nor pop. The choice for a frame follows from
    the frames before it.
    """

    def __init__(self, references: References, count: int, *, banned: Any = ()) -> None:
        """`count` is K; `banned` references are never chosen."""
        self.references, self.count = references, count
        self.usable = np.setdiff1d(np.arange(len(references)), np.asarray(banned, np.int64))
        shape = (len(references.parts), count)
        self.last, self.before = np.full((2, *shape), -1, np.int64)
        self.age = np.zeros(shape, np.int64)  # frames since it changed

    def __call__(self, track: Track) -> Choice:
        """The choice for T frames, that follow those of the call before."""
        distances = self.references.distances(track)
        used = np.empty((len(track), *self.last.shape), np.int64)
        before, fading = used.copy(), np.empty(used.shape, np.float32)
        costs = distances + np.float32(CROWDED) * self.references.crowded
        for t, away in enumerate(costs):
            now = np.stack([self._next(*row) for row in zip(self.last, away, strict=True)])
            changed = now != self.last
            self.before = np.where(changed, self.last, self.before)
            self.age = np.where(changed, 1, self.age + 1)
            self.last = now
            used[t], before[t] = now, self.before
            fading[t] = np.where(self.before >= 0, np.maximum(1 - self.age / FADE, 0), 0)
        return Choice(used, before, fading, distances)

    def _next(self, last: NDArray[np.int64], away: NDArray[np.float32]) -> NDArray[np.int64]:
        favoured = away.copy()
        favoured[last[last >= 0]] *= KEEP
        best = self.usable[np.argsort(favoured[self.usable], kind="stable")[: self.count]].tolist()
        found = [r if r in best else -1 for r in last.tolist()]
        fresh = [r for r in best if r not in found]
        return np.array([r if r >= 0 or not fresh else fresh.pop(0) for r in found])


def join(tracks: Sequence[Track]) -> Track:
    """Single frames of one signal, one after another."""
    first = tracks[0]
    timed = {
        name: np.concatenate([getattr(track, name) for track in tracks])
        for name, value in vars(first).items()
        if isinstance(value, np.ndarray) and len(value) == len(first)
    }
    return replace(first, **timed)  # type: ignore[type-var]


def as_condition(warped: NDArray[np.float32]) -> torch.Tensor:
    """[K, 5, H, W] of `References.candidates` as that of `Condition`, its RGB in [-1, 1]."""
    found = torch.from_numpy(warped)
    found[:, :3].mul_(1 / 127.5).sub_(1).mul_(found[:, 3:4] > VISIBLE)
    return found


def reference_signal(signals: Sequence[str]) -> str | None:
    """The first of a model's signals that a picture can be cut into parts by."""
    return next((name for name in signals if name in COUNTS), None)


# ---------------------------------------------------------------- the choice of references


def farthest_points(poses: Sequence[NDArray[np.float32]], count: int, first: int = 0) -> list[int]:
    """Indices of `count` frames that together cover all poses: each next is farthest from all.

    Args:
        poses: for each part [T, n, 2], of `_poses`.
    """
    found = [first]
    least = np.full(len(poses[0]), np.inf, np.float32)
    while len(found) < min(count, len(least)):
        newest = found[-1]
        away = np.mean([_apart(part[newest], part) for part in poses], axis=0)
        least = np.minimum(least, away)
        least[found] = -1
        found.append(int(least.argmax()))
    return found


def sharpness(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
    """Mean absolute Laplacian on the person: low where a frame is blurred by motion."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    edges = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    inner = cv2.erode(mask, np.ones((3, 3))) > 127
    return float(edges[inner].mean()) if inner.any() else 0.0


def gather(
    store: ClipStore,
    start: int,
    stop: int,
    *,
    signal: str,
    placement: Placement,
    count: int,
    whole: bool,
) -> References | None:
    """References out of frames `start` to `stop` (excluded), as rendering sees them.

    The sharpest frames in which the whole signal was detected are looked at first, and of those
    the ones that together cover the poses are taken. Memory does not grow with the clip.

    Args:
        whole: whether a candidate shows the background of its reference, where no plate is.

    Returns:
        None where the signal has no parts, or no frame shows it.
    """
    looked_at = np.unique(np.linspace(start, stop - 1, LOOKED_AT).astype(int))
    rows = [placement.track(store.track(signal, int(t), int(t) + 1)) for t in looked_at]
    track = join(rows)
    if not track.parts:
        return None
    points, size = track.part_points(), track.body_size()
    shown = np.isfinite(points).all(axis=-1).mean(axis=1) * np.isfinite(size)
    masked = "segmentation" in store.signals and "person" in _classes(store)
    usable = np.flatnonzero(shown > 0)
    if not len(usable):
        return None
    # All else equal a frame that shows every point and is not blurred.
    sharp = np.array([_sharpness(store, int(looked_at[i]), placement, masked) for i in usable])
    good = (sharp >= np.quantile(sharp, 1 - SHARPEST)) & (
        shown[usable] >= np.quantile(shown[usable], 0.3)
    )
    kept = usable[good] if good.sum() >= count else usable
    best = int(np.argmax(shown[kept]))
    chosen = farthest_points(_poses(join([rows[i] for i in kept])), count, best)
    frames = np.sort(looked_at[kept[chosen]])
    pictures = np.stack([_picture(store, int(t), placement) for t in frames])
    masks = np.stack([_mask(store, int(t), placement, masked) for t in frames])
    points_of = join([placement.track(store.track(signal, int(t), int(t) + 1)) for t in frames])
    return References(pictures, masks, points_of, frames.astype(np.int64), whole)


def _classes(store: ClipStore) -> list[str]:
    return list(store.record.signals["segmentation"].spec.get("classes", []))


def _picture(store: ClipStore, frame: int, placement: Placement) -> NDArray[np.uint8]:
    picture = store.frames(frame, frame + 1)[0]
    return np.asarray(placement.picture(picture), np.uint8)


def _mask(store: ClipStore, frame: int, placement: Placement, masked: bool) -> NDArray[np.uint8]:
    """[H, W] 255 on the person; everywhere where the clip has no mask."""
    if not masked:
        return np.full(placement.size, 255, np.uint8)
    track = store.track("segmentation", frame, frame + 1)
    assert isinstance(track, LabelTrack)
    person = (track.labels[0] == _classes(store).index("person")).astype(np.uint8) * 255
    return np.asarray(placement.picture(person), np.uint8)


def _sharpness(store: ClipStore, frame: int, placement: Placement, masked: bool) -> float:
    return sharpness(_picture(store, frame, placement), _mask(store, frame, placement, masked))


# ---------------------------------------------------------------- on disk


def picture_name(clip: int, index: int) -> str:
    return f"{clip}-{index:02}.png"


def write_pictures(folder: Path, clip: int, references: References) -> None:
    """References as ordinary pictures: RGBA, opaque on the person. Raises `OSError`."""
    folder.mkdir(exist_ok=True)
    for index in range(len(references)):
        path = folder / picture_name(clip, index)
        write_picture(path, references.pictures[index], references.masks[index])


def write_picture(path: Path, picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    both = np.concatenate([picture, mask[..., None]], axis=-1)
    Image.fromarray(both, "RGBA").save(path, format="PNG")


def _signal_of(track: Track) -> str:
    return next(name for name, kind in TRACKS.items() if isinstance(track, kind))


def read_references(
    folder: Path, clip: int, arrays: dict[str, NDArray[Any]], *, signal: str,
    size: tuple[int, int], whole: bool,
) -> References | None:  # fmt: skip
    """The references of a clip whose pictures are in `folder`; None where none are left.

    Pictures that were removed are passed over. Raises `ValueError`, which names what is wrong: a
    picture that is damaged or of another size than (H, W), arrays that do not fit the signal.
    """
    layout = load_signal(signal).layout  # type: ignore[attr-defined]
    frames = arrays.get("frames")
    if frames is None or frames.dtype != np.int64 or frames.ndim != 1 or not len(frames):
        raise ValueError("frames must be int64 numbers")
    for name, (kind, shape) in layout.items():
        values = arrays.get(name)
        if values is None or values.dtype != kind or values.shape != (len(frames), *shape):
            raise ValueError(f"{name} must be {kind} {[len(frames), *shape]}")
        check_values(name, values)
    there = [i for i in range(len(frames)) if (folder / picture_name(clip, i)).exists()]
    if not there:
        return None
    pictures, masks = [], []
    for index in there:
        path = folder / picture_name(clip, index)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.size != size[::-1] or image.mode != "RGBA":
                    raise ValueError(
                        f"{path.name} is {image.mode} of {image.width}x{image.height}, expected"
                        f" RGBA of {size[1]}x{size[0]}"
                    )
                both = np.asarray(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path.name} cannot be read ({error})") from error
        pictures.append(both[..., :3])
        masks.append(both[..., 3])
    kept = {name: arrays[name][there] for name in layout}
    track = TRACKS[signal](**kept, width=size[1], height=size[0])
    return References(np.stack(pictures), np.stack(masks), track, frames[there], whole)
