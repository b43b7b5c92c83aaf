"""The background plate: what the camera sees where the person is not.

Most of such a picture never changes. The median over the frames in which a pixel is free gives it
sharp and without noise, from the first minute of training. Where the camera moves, frames are
first brought to the view of a reference frame by the homographies of the `camera` signal: the
plate is then a mosaic, larger than a frame, and each frame sees its part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.signals.camera import CameraTrack, Matrices, carry, centred, corners_of

SAMPLES = 150  # frames that the median is taken over,
MEMORY = 256 << 20  # and at most so many bytes of them
LEAST = 5  # frames in which a pixel must be free to be known
MARGIN = 0.015  # of the frame's longer side: masks end a little inside hair and sleeves
STILL = 6.0  # of 255: mean deviation from the plate that a still camera, its noise, may show
MOVED = 24.0  # of 255: a pixel that deviates by this shows something else
MOVED_SHARE = 0.05  # of the background's pixels that may
# Of a camera that was followed: nothing else shows a background as steady, passers-by or not.
FOLLOWED_STILL, FOLLOWED_SHARE = 12.0, 0.15
LARGEST = 6.0  # frames that a mosaic may be as large as,
TOGETHER = 12.0  # and all mosaics of a clip together
LONGEST = 16_000  # pixels of a side
HORIZON = 0.1  # of the nearest corner's depth: what is seen at a flatter angle is left out
RIM = 2  # pixels at the edge of a frame that a mosaic does without: they are interpolated with none

Picture = NDArray[np.uint8]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Mosaic:
    """A background as the camera of one reference frame would see it, if it saw as far.

    Attributes:
        picture: uint8 [h, w, 4] RGB, and 255 where the background was seen, else 0.
        corner: x, y of its first pixel, in pixels of the reference frame.
        scale: its pixels for each of the reference frame, across and down.
    """

    picture: Picture
    corner: tuple[float, float]
    scale: tuple[float, float] = (1.0, 1.0)

    def placed(self, placement: Placement) -> Mosaic:
        """The same where frames, the reference frame among them, are shown smaller.

        Rarely larger: a mosaic never grows.
        """
        assert not placement.flip, "a mosaic is not mirrored; what is seen of it may be"
        height, width = self.picture.shape[:2]
        across, down = (min(side, 1.0) for side in placement.scale)
        small = max(round(width * across), 1), max(round(height * down), 1)
        picture = cv2.resize(self.picture, small, interpolation=cv2.INTER_AREA)
        (corner,) = carry(placement.matrix, np.array([self.corner]))
        shown = placement.scale
        scale = small[0] / width / shown[0], small[1] / height / shown[1]
        return Mosaic(np.asarray(picture, np.uint8), (float(corner[0]), float(corner[1])), scale)

    def seen(self, matrix: Matrices, size: Size) -> Picture:
        """What a frame of `size` shows, uint8 [H, W, 4]; beyond the mosaic its edge, not known.

        Args:
            matrix: [3, 3] from pixels of the reference frame to those of the frame.
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
    """What is behind the person in each frame of a clip whose camera moves.

    Attributes:
        mosaics: one for each reference frame, by its number.
        track: the clip's camera, in the same pixels.
    """

    mosaics: dict[int, Mosaic]
    track: CameraTrack

    def placed(self, placement: Placement) -> Backgrounds:
        mosaics = {first: mosaic.placed(placement) for first, mosaic in self.mosaics.items()}
        track = placement.track(self.track)
        assert isinstance(track, CameraTrack)
        return Backgrounds(mosaics, track)

    @cached_property
    def middle(self) -> int:
        """The frame whose view is nearest to all others of the largest mosaic."""
        areas = {first: mosaic.picture.size for first, mosaic in self.mosaics.items()}
        return self.track.central(max(areas, key=lambda first: areas[first]))

    def of(self, frame: int | None = None, *, change: Matrices | None = None,
           size: Size | None = None) -> Picture:  # fmt: skip
        """[H, W, 4] RGB, and 255 where known, behind a frame; None: in the middle of all views.

        Args:
            change: [3, 3] from the frame's pixels to those shown, where that is another part of
                it, and `size` of what is shown.
        """
        frame = self.middle if frame is None else frame
        first = int(self.track.reference[frame])
        matrix = self.track.homography[frame]
        # Where the camera was lost its place is a guess, and so is all that is seen from there.
        mosaic, valid_mask = self.mosaics.get(first), bool(np.isfinite(self.track.residual[frame]))
        if mosaic is None:  # a shot that nothing was learned of
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
    """A background, and how well it explains the frames."""

    picture: Picture  # RGB [H, W, 3]: in the middle of all views, where the camera moves
    valid_mask: Picture  # [H, W] 255 where the background was seen, else 0
    deviation: float  # of 255: mean difference of frames from the plate, where free
    moved: float  # share of free pixels that show something else
    backgrounds: Backgrounds | None = field(default=None, repr=False)  # where the camera moves

    @property
    def still(self) -> bool:
        """Whether it explains the frames: once their views are brought together, little moves."""
        deviation, moved = self.limits
        return self.deviation <= deviation and self.moved <= moved

    @property
    def limits(self) -> tuple[float, float]:
        """The `deviation` and `moved` that it may have."""
        followed = self.backgrounds is not None
        return (FOLLOWED_STILL, FOLLOWED_SHARE) if followed else (STILL, MOVED_SHARE)

    def __repr__(self) -> str:
        camera = "still" if self.backgrounds is None else "followed"
        return (
            f"Plate({list(self.picture.shape)}, known {float((self.valid_mask > 0).mean()):.0%},"
            f" camera {camera}, still={self.still}, deviation={self.deviation:.1f}/255,"
            f" moved={self.moved:.1%})"
        )


def build_background_plate(
    store: ClipStore, start: int = 0, stop: int | None = None
) -> BackgroundPlate | None:
    """The plate of frames `start` to `stop`; None where no person mask says what is background.

    A mosaic where the store has a `camera` that moved, and the mosaic explains the frames better
    than a plate that takes no notice of it.

    Memory does not grow with the clip: at most `SAMPLES` frames of each background are looked at,
    spread evenly.
    """
    stop = len(store) if stop is None else stop
    if "segmentation" not in store.signals:
        return None
    classes = store.record.signals["segmentation"].spec.get("classes", [])
    if "person" not in classes:
        return None
    person = list(classes).index("person")
    mosaic = None
    if "camera" in store.signals:
        track = store.track("camera")
        assert isinstance(track, CameraTrack)
        part = track[start:stop]
        if (part.motion() > 0).any() or len(np.unique(part.reference)) > 1:
            mosaic = _mosaic(store, start, stop, person, track)
    if mosaic is not None and mosaic.still:
        return mosaic
    plain = _plain(store, start, stop, person)
    return plain if mosaic is None or plain.deviation < mosaic.deviation else mosaic


def _plain(store: ClipStore, start: int, stop: int, person: int) -> BackgroundPlate:
    stored = store.record.frames
    room = max(MEMORY // (3 * stored.width * stored.height), 3 * LEAST)
    count = min(SAMPLES, room, stop - start)
    places = np.unique(np.linspace(start, stop - 1, count).astype(int))
    frames = np.stack([store.frames(i, i + 1)[0] for i in places])
    free = np.stack([_free(store, int(i), person, frames.shape[1:3]) for i in places])
    picture, valid_mask = _middle(frames, free)
    seen, apart, moved = _deviation(frames, free & (valid_mask > 0), picture)
    return BackgroundPlate(picture, valid_mask, *_shares(seen, apart, moved))


def _mosaic(
    store: ClipStore, start: int, stop: int, person: int, track: CameraTrack
) -> BackgroundPlate | None:
    """The plate of a camera that moves; None where it is never known."""
    inside, valid_mask = track.reference[start:stop], track.present()[start:stop]
    shots = {
        first: start + np.flatnonzero((inside == first) & valid_mask)
        for first in np.unique(inside).tolist()
    }
    boxes = {
        first: _extent(track, frames) for first, frames in shots.items() if len(frames) >= LEAST
    }
    # Those that most frames see, as long as there is room: of the others nothing is known.
    room = TOGETHER * track.width * track.height
    kept: list[int] = []
    for first in sorted(boxes, key=lambda first: -len(shots[first])):
        room -= boxes[first][2] * boxes[first][3]
        if kept and room < 0:
            break
        kept.append(first)
    mosaics, total = {}, np.zeros(3)
    for first in sorted(kept):
        frames, (left, top, width, height) = shots[first], boxes[first]
        count = min(SAMPLES, max(MEMORY // (4 * width * height), LEAST), len(frames))
        chosen = frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]
        pictures = np.empty((len(chosen), height, width, 3), np.uint8)
        there = np.empty((len(chosen), height, width), np.bool_)
        for i, t in enumerate(chosen.tolist()):
            pictures[i], there[i] = _brought(store, t, person, track, boxes[first])
        picture, seen = _middle(pictures, there)
        mosaics[first] = Mosaic(
            np.concatenate([picture, seen[..., None]], axis=-1), (float(left), float(top))
        )
        total += _deviation(pictures, there & (seen > 0), picture)
    if not mosaics:
        return None
    backgrounds = Backgrounds(mosaics, track)
    view = backgrounds.of()
    return BackgroundPlate(
        np.ascontiguousarray(view[..., :3]), np.where(view[..., 3] > 127, 255, 0).astype(np.uint8),
        *_shares(*total), backgrounds=backgrounds,
    )  # fmt: skip


def _extent(track: CameraTrack, frames: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """x, y, width, height of what frames see together, in pixels of their reference frame.

    At most `LARGEST` frames, around the middle of all: a camera that goes far is not followed to
    the end, nor past the horizon of the reference frame's plane.
    """
    back = np.linalg.inv(track.homography[frames])
    places = corners_of(track.width, track.height)
    depth = np.concatenate([places, np.ones((4, 1))], axis=1) @ back[:, 2].T  # [4, frames]
    ends = carry(back[(depth > HORIZON * depth.max(axis=0)).all(axis=0)], places)
    middle = np.median(ends, axis=(0, 1))
    low, high = ends.min(axis=(0, 1)), ends.max(axis=(0, 1))
    size = np.array([track.width, track.height])
    shrink = min((LARGEST * size.prod() / np.prod(high - low)) ** 0.5, 1.0)
    shrink = min(shrink, *(LONGEST / (high - low)))
    left, top = np.floor(middle + shrink * (low - middle)).astype(int)
    right, bottom = np.ceil(middle + shrink * (high - middle)).astype(int)
    return int(left), int(top), int(right - left), int(bottom - top)


def _brought(
    store: ClipStore, frame: int, person: int, track: CameraTrack, box: tuple[int, int, int, int]
) -> tuple[Picture, NDArray[np.bool_]]:
    """A frame as the camera of its reference frame sees it, and where it shows background."""
    left, top, width, height = box
    shift = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    picture = store.frames(frame, frame + 1)[0]
    free = _free(store, frame, person, picture.shape[:2])
    free[:RIM], free[-RIM:], free[:, :RIM], free[:, -RIM:] = False, False, False, False
    back: Matrices = np.linalg.inv(track.homography[frame])
    matrix = centred(np.asarray(shift @ back))
    brought = cv2.warpPerspective(picture, matrix, (width, height), flags=cv2.INTER_CUBIC)
    there = cv2.warpPerspective(
        free.astype(np.uint8) * 255, matrix, (width, height), flags=cv2.INTER_LINEAR
    )
    return np.asarray(brought, np.uint8), np.asarray(there > 254)


def _middle(frames: Picture, free: NDArray[np.bool_]) -> tuple[Picture, Picture]:
    """The median picture of frames where they are free, and 255 where it is known.

    Args:
        frames: [T, H, W, 3].
        free: [T, H, W].
    """
    height, width = frames.shape[1:3]
    picture = np.zeros((height, width, 3), np.uint8)
    for row in range(0, height, 32):  # sorting copies: a strip at a time
        part = slice(row, row + 32)
        picture[part] = _median(frames[:, part], free[:, part])
    valid_mask = (free.sum(axis=0) >= min(LEAST, len(frames))).astype(np.uint8) * 255
    hidden = valid_mask == 0
    if hidden.any():  # a smooth guess, so that resizing does not bleed black into the known part
        picture = cv2.inpaint(picture, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(
            np.uint8
        )
    return picture, valid_mask


def _deviation(
    frames: Picture, free: NDArray[np.bool_], picture: Picture
) -> tuple[int, float, int]:
    """Free pixels, how far they deviate from the plate in sum, and how many show something else."""
    seen, apart, moved = 0, 0.0, 0
    mean = np.full((1, 3), 1 / 3, np.float32)  # over the colours; numpy's own is slow on three
    for frame, there in zip(frames, free, strict=True):
        deviation = cv2.transform(cv2.absdiff(frame, picture).astype(np.float32), mean)
        deviations = deviation[there]
        seen += len(deviations)
        apart += float(deviations.sum(dtype=np.float64))
        moved += int((deviations > MOVED).sum())
    return seen, apart, moved


def _shares(seen: float, apart: float, moved: float) -> tuple[float, float]:
    return (apart / seen, moved / seen) if seen else (255.0, 1.0)


def _median(frames: NDArray[np.uint8], free: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """[H, W, 3] of those of `frames` [T, H, W, 3] where `free` [T, H, W]; 0 where none is.

    `nanmedian` of the same takes four times as long: it sorts floats.
    """
    # What is not free is sorted behind all that is.
    ordered = np.where(free[..., None], frames, np.uint8(255))
    ordered.sort(axis=0)
    count = free.sum(axis=0)[None, ..., None]
    low, high = (
        np.take_along_axis(ordered, np.maximum(place, 0), axis=0)[0].astype(np.float32)
        for place in ((count - 1) // 2, count // 2)
    )
    return np.where(count[0] > 0, np.rint((low + high) / 2), 0).astype(np.uint8)


def _free(store: ClipStore, index: int, person: int, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """[H, W] where the person, with a margin, is not."""
    track = store.track("segmentation", index, index + 1).scaled(size[1], size[0])
    labels: NDArray[np.uint8] = track.labels[0]  # type: ignore[attr-defined]
    reach = max(round(MARGIN * max(size)), 1)
    apart = labels != person
    if apart.all():
        return np.asarray(apart)
    away = cv2.distanceTransform(apart.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares are whole numbers: half a one beside them, what rounds differently changes nothing.
    return np.asarray(away * away > reach * reach + 0.5)
