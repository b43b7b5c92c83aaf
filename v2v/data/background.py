"""The background plate: the scene without the person.

Most of a background never changes. The median of each pixel over the frames in which it is free
(outside the person mask and a margin) is sharp and free of noise from the first training step on.
If the camera moves, frames are first warped to the view of a reference frame by the homographies
of the `camera` signal: the background plate is then a mosaic, larger than a frame, and each frame
shows a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.homography import Matrices, carry, centred, corners_of
from v2v.signals.traits import CameraMotion, CameraSignal, LabelMaps, LabelSignal

SAMPLES = 150  # most frames that the median is computed from,
MEMORY = 256 << 20  # and most bytes of them
LEAST = 5  # frames in which a pixel must be free to be valid
MARGIN = 0.015  # of the frame's longer side: masks end slightly inside hair and sleeves
STILL = 6.0  # of 255: largest mean deviation from the background plate for a still camera (noise)
MOVED = 24.0  # of 255: a pixel that deviates more shows something else
MOVED_SHARE = 0.05  # largest fraction of such pixels for a still camera
# The same limits for a tracked camera. They tolerate passers-by: no other method gives a steadier
# background.
FOLLOWED_STILL, FOLLOWED_SHARE = 12.0, 0.15
LARGEST = 6.0  # largest area of a mosaic, in frames,
TOGETHER = 12.0  # and of all mosaics of a clip together
LONGEST = 16_000  # largest side of a mosaic in pixels
HORIZON = 0.1  # smallest depth, as a fraction of the nearest corner's: flatter views are left out
RIM = 2  # pixels at the border of each frame that a mosaic does not use: interpolation affects them

Picture = NDArray[np.uint8]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Mosaic:
    """A background in the view of one reference frame, extended beyond its borders.

    Attributes:
        picture: uint8 [h, w, 4] RGB and valid mask: 255 where the background was seen, else 0.
        corner: x, y of its top left corner, in pixels of the reference frame.
        scale: mosaic pixels per reference frame pixel, horizontally and vertically.
    """

    picture: Picture
    corner: tuple[float, float]
    scale: tuple[float, float] = (1.0, 1.0)

    def placed(self, placement: Placement) -> Mosaic:
        """The mosaic for placed frames, the reference frame included.

        The picture is only ever downscaled; if the frames are upscaled, it keeps its size.
        """
        assert not placement.flip, "a mosaic is not mirrored; mirror the views of it instead"
        height, width = self.picture.shape[:2]
        factor_x, factor_y = (min(side, 1.0) for side in placement.scale)
        small = max(round(width * factor_x), 1), max(round(height * factor_y), 1)
        picture = cv2.resize(self.picture, small, interpolation=cv2.INTER_AREA)
        (corner,) = carry(placement.matrix, np.array([self.corner]))
        placement_scale = placement.scale
        scale = small[0] / width / placement_scale[0], small[1] / height / placement_scale[1]
        return Mosaic(np.asarray(picture, np.uint8), (float(corner[0]), float(corner[1])), scale)

    def seen(self, matrix: Matrices, size: Size) -> Picture:
        """The view of a frame of `size`, uint8 [H, W, 4] RGB and valid mask.

        Outside the mosaic the colours of its border are repeated and are not valid.

        Args:
            matrix: [3, 3] from pixels of the reference frame to pixels of the frame.
        """
        shift = np.array([[1, 0, self.corner[0]], [0, 1, self.corner[1]], [0, 0, 1.0]])
        grow = np.diag([1 / self.scale[0], 1 / self.scale[1], 1])
        whole = centred(matrix @ shift @ grow)
        picture = cv2.warpPerspective(
            self.picture[..., :3], whole, size[::-1], flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        valid_mask = cv2.warpPerspective(
            self.picture[..., 3], whole, size[::-1], flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
        )  # fmt: skip
        return np.concatenate([picture, valid_mask[..., None]], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Backgrounds:
    """The background of each frame of a clip with a moving camera.

    Attributes:
        mosaics: one per reference frame, by its frame number.
        track: the clip's camera, in the same pixels.
    """

    mosaics: dict[int, Mosaic]
    track: CameraMotion

    def placed(self, placement: Placement) -> Backgrounds:
        mosaics = {first: mosaic.placed(placement) for first, mosaic in self.mosaics.items()}
        track = placement.track(self.track)
        assert isinstance(track, CameraMotion)
        return Backgrounds(mosaics, track)

    @cached_property
    def middle(self) -> int:
        """The most central frame of the largest mosaic."""
        areas = {first: mosaic.picture.size for first, mosaic in self.mosaics.items()}
        return self.track.central(max(areas, key=lambda first: areas[first]))

    def of(self, frame: int | None = None, *, change: Matrices | None = None,
           size: Size | None = None) -> Picture:  # fmt: skip
        """[H, W, 4] RGB and valid mask (255) of a frame's background; None: of the `middle` frame.

        Args:
            change: [3, 3] from the frame's pixels to those of a crop of it.
            size: (H, W) of the crop; by default that of the frames.
        """
        frame = self.middle if frame is None else frame
        first = int(self.track.reference[frame])
        matrix = self.track.homography[frame]
        # Where camera tracking failed, the view is a guess and nothing in it is valid.
        mosaic, valid_mask = self.mosaics.get(first), bool(np.isfinite(self.track.residual[frame]))
        if mosaic is None:  # a shot without a mosaic
            first = int(self.track.reference[self.middle])
            mosaic, valid_mask = self.mosaics[first], False
            matrix = self.track.homography[self.middle]
        size = (self.track.height, self.track.width) if size is None else size
        seen = mosaic.seen(matrix if change is None else change @ matrix, size)
        if not valid_mask:
            seen[..., 3] = 0
        return seen


@dataclass(frozen=True)
class BackgroundPlate:
    """A background and how well it explains the frames."""

    picture: Picture  # RGB [H, W, 3]; the view of the `middle` frame if the camera moves
    valid_mask: Picture  # [H, W] 255 where the background was seen, else 0
    deviation: float  # of 255: mean difference from the frames over free pixels
    moved: float  # fraction of free pixels that show something else
    backgrounds: Backgrounds | None = field(default=None, repr=False)  # if the camera moves

    @property
    def still(self) -> bool:
        """Whether it explains the frames: after alignment, little moves in the background."""
        deviation, moved = self.limits
        return self.deviation <= deviation and self.moved <= moved

    @property
    def limits(self) -> tuple[float, float]:
        """Largest `deviation` and `moved` of a usable background plate."""
        followed = self.backgrounds is not None
        return (FOLLOWED_STILL, FOLLOWED_SHARE) if followed else (STILL, MOVED_SHARE)

    def __repr__(self) -> str:
        camera = "still" if self.backgrounds is None else "tracked"
        return (
            f"BackgroundPlate({list(self.picture.shape)},"
            f" valid {float((self.valid_mask > 0).mean()):.0%}, camera {camera},"
            f" still={self.still}, deviation={self.deviation:.1f}/255, moved={self.moved:.1%})"
        )


def build_background_plate(
    store: ClipStore, start: int = 0, stop: int | None = None
) -> BackgroundPlate | None:
    """The background plate of frames `start` to `stop`; None without a person mask.

    It is a mosaic if the store has a moving `camera` and the mosaic explains the frames better
    than a plain background plate does.

    Memory does not grow with the clip: at most `SAMPLES` evenly spaced frames are used for each
    background.
    """
    stop = len(store) if stop is None else stop
    labels, camera = store.record.find(LabelSignal), store.record.find(CameraSignal)
    if labels is None:
        return None
    person = labels.person(store.record.signals[labels.name].spec)
    if person is None:
        return None
    mosaic = None
    if camera is not None:
        track = store.track(camera.name)
        assert isinstance(track, CameraMotion)
        part = track[start:stop]
        if (part.motion() > 0).any() or len(np.unique(part.reference)) > 1:
            mosaic = _mosaic(store, start, stop, person, track)
    if mosaic is not None and mosaic.still:
        return mosaic
    plain = _plain(store, start, stop, person)
    return plain if mosaic is None or plain.deviation < mosaic.deviation else mosaic


def _plain(store: ClipStore, start: int, stop: int, person: int) -> BackgroundPlate:
    stored = store.record.frames
    most = max(MEMORY // (3 * stored.width * stored.height), 3 * LEAST)
    count = min(SAMPLES, most, stop - start)
    indices = np.unique(np.linspace(start, stop - 1, count).astype(int))
    frames = np.stack([store.frames(i, i + 1)[0] for i in indices])
    free = np.stack([_free(store, int(i), person, frames.shape[1:3]) for i in indices])
    picture, valid_mask = _median_picture(frames, free)
    count_free, deviation, moved = _deviation(frames, free & (valid_mask > 0), picture)
    return BackgroundPlate(picture, valid_mask, *_per_pixel(count_free, deviation, moved))


def _mosaic(
    store: ClipStore, start: int, stop: int, person: int, track: CameraMotion
) -> BackgroundPlate | None:
    """The background plate for a moving camera; None if tracking succeeded in too few frames."""
    reference, valid_mask = track.reference[start:stop], track.present()[start:stop]
    shots = {
        first: start + np.flatnonzero((reference == first) & valid_mask)
        for first in np.unique(reference).tolist()
    }
    boxes = {
        first: _extent(track, frames) for first, frames in shots.items() if len(frames) >= LEAST
    }
    # Keep the mosaics with the most frames until the area is used up; drop the others.
    area_left = TOGETHER * track.width * track.height
    chosen_shots: list[int] = []
    for first in sorted(boxes, key=lambda first: -len(shots[first])):
        area_left -= boxes[first][2] * boxes[first][3]
        if chosen_shots and area_left < 0:
            break
        chosen_shots.append(first)
    mosaics, total = {}, np.zeros(3)
    for first in sorted(chosen_shots):
        frames, (left, top, width, height) = shots[first], boxes[first]
        count = min(SAMPLES, max(MEMORY // (4 * width * height), LEAST), len(frames))
        chosen = frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]
        pictures = np.empty((len(chosen), height, width, 3), np.uint8)
        free = np.empty((len(chosen), height, width), np.bool_)
        for i, t in enumerate(chosen.tolist()):
            pictures[i], free[i] = _warp_to_reference(store, t, person, track, boxes[first])
        picture, seen = _median_picture(pictures, free)
        mosaics[first] = Mosaic(
            np.concatenate([picture, seen[..., None]], axis=-1), (float(left), float(top))
        )
        total += _deviation(pictures, free & (seen > 0), picture)
    if not mosaics:
        return None
    backgrounds = Backgrounds(mosaics, track)
    view = backgrounds.of()
    return BackgroundPlate(
        np.ascontiguousarray(view[..., :3]), np.where(view[..., 3] > 127, 255, 0).astype(np.uint8),
        *_per_pixel(*total), backgrounds=backgrounds,
    )  # fmt: skip


def _extent(track: CameraMotion, frames: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """x, y, width, height of the area that frames cover, in pixels of their reference frame.

    It is limited to `LARGEST` frames around the median view: the ends of a long pan are cut off,
    as is everything beyond the horizon of the reference frame's plane.
    """
    inverse = np.linalg.inv(track.homography[frames])
    corners = corners_of(track.width, track.height)
    depth = np.concatenate([corners, np.ones((4, 1))], axis=1) @ inverse[:, 2].T  # [4, frames]
    warped_corners = carry(inverse[(depth > HORIZON * depth.max(axis=0)).all(axis=0)], corners)
    middle = np.median(warped_corners, axis=(0, 1))
    low, high = warped_corners.min(axis=(0, 1)), warped_corners.max(axis=(0, 1))
    size = np.array([track.width, track.height])
    shrink = min((LARGEST * size.prod() / np.prod(high - low)) ** 0.5, 1.0)
    shrink = min(shrink, *(LONGEST / (high - low)))
    left, top = np.floor(middle + shrink * (low - middle)).astype(int)
    right, bottom = np.ceil(middle + shrink * (high - middle)).astype(int)
    return int(left), int(top), int(right - left), int(bottom - top)


def _warp_to_reference(
    store: ClipStore, frame: int, person: int, track: CameraMotion, box: tuple[int, int, int, int]
) -> tuple[Picture, NDArray[np.bool_]]:
    """A frame warped to its reference frame, and where it shows the background."""
    left, top, width, height = box
    shift = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    picture = store.frames(frame, frame + 1)[0]
    free = _free(store, frame, person, picture.shape[:2])
    free[:RIM], free[-RIM:], free[:, :RIM], free[:, -RIM:] = False, False, False, False
    inverse: Matrices = np.linalg.inv(track.homography[frame])
    matrix = centred(np.asarray(shift @ inverse))
    warped = cv2.warpPerspective(picture, matrix, (width, height), flags=cv2.INTER_CUBIC)
    free_mask = cv2.warpPerspective(
        free.astype(np.uint8) * 255, matrix, (width, height), flags=cv2.INTER_LINEAR
    )
    return np.asarray(warped, np.uint8), np.asarray(free_mask > 254)


def _median_picture(frames: Picture, free: NDArray[np.bool_]) -> tuple[Picture, Picture]:
    """The median picture of the free pixels of frames, and its valid mask (255).

    Args:
        frames: [T, H, W, 3].
        free: [T, H, W].
    """
    height, width = frames.shape[1:3]
    picture = np.zeros((height, width, 3), np.uint8)
    for row in range(0, height, 32):  # sorting makes a copy: one strip at a time
        part = slice(row, row + 32)
        picture[part] = _median(frames[:, part], free[:, part])
    valid_mask = (free.sum(axis=0) >= min(LEAST, len(frames))).astype(np.uint8) * 255
    hidden = valid_mask == 0
    if hidden.any():  # a smooth guess, so that resizing does not bleed black into the valid part
        picture = cv2.inpaint(picture, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(
            np.uint8
        )
    return picture, valid_mask


def _deviation(
    frames: Picture, free: NDArray[np.bool_], picture: Picture
) -> tuple[int, float, int]:
    """Number of free pixels, sum of their deviations, and number of them above `MOVED`."""
    count, total, moved = 0, 0.0, 0
    mean = np.full((1, 3), 1 / 3, np.float32)  # over the colours; numpy's mean is slow for three
    for frame, mask in zip(frames, free, strict=True):
        deviation = cv2.transform(cv2.absdiff(frame, picture).astype(np.float32), mean)
        deviations = deviation[mask]
        count += len(deviations)
        total += float(deviations.sum(dtype=np.float64))
        moved += int((deviations > MOVED).sum())
    return count, total, moved


def _per_pixel(count: float, total: float, moved: float) -> tuple[float, float]:
    return (total / count, moved / count) if count else (255.0, 1.0)


def _median(frames: NDArray[np.uint8], free: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """[H, W, 3] median of `frames` [T, H, W, 3] where `free` [T, H, W]; 0 if never free.

    `nanmedian` takes four times as long, since it sorts floats.
    """
    # 255 sorts the pixels that are not free last.
    ordered = np.where(free[..., None], frames, np.uint8(255))
    ordered.sort(axis=0)
    count = free.sum(axis=0)[None, ..., None]
    low, high = (
        np.take_along_axis(ordered, np.maximum(place, 0), axis=0)[0].astype(np.float32)
        for place in ((count - 1) // 2, count // 2)
    )
    return np.where(count[0] > 0, np.rint((low + high) / 2), 0).astype(np.uint8)


def _free(store: ClipStore, index: int, person: int, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W] true outside the person and a margin."""
    signal = store.record.find(LabelSignal)
    assert signal is not None
    track = cast(LabelMaps, store.track(signal.name, index, index + 1))
    labels = track.scaled(size[1], size[0]).labels[0]
    reach = max(round(MARGIN * max(size)), 1)
    outside = labels != person
    if outside.all():
        return np.asarray(outside)
    distance = cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squared distances are integers: a threshold half-way between them is safe from rounding.
    return np.asarray(distance * distance > reach * reach + 0.5)
