"""The background plate: what the camera sees where the person is not.

Most of such a picture never changes. The median over the frames in which a pixel is free gives it
sharp and without noise, from the first minute of training. Where the camera moves, frames are
first brought to the view of a reference frame by the homographies of the `camera` signal: the
plate is then a mosaic, larger than a frame, and each frame sees its part of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.signals.camera import CameraTrack, Matrices, carry, corners_of

SAMPLES = 150  # frames that the median is taken over,
MEMORY = 256 << 20  # and at most so many bytes of them
LEAST = 5  # frames in which a pixel must be free to be known
MARGIN = 0.015  # of the frame's longer side: masks end a little inside hair and sleeves
STILL = 6.0  # of 255: mean deviation from the plate that a still camera, its noise, may show
MOVED = 24.0  # of 255: a pixel that deviates by this shows something else
MOVED_SHARE = 0.05  # of the background's pixels that may
LARGEST = 6.0  # frames that a mosaic may be as large as
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
        whole = _centred(matrix @ shift @ grow)
        picture = cv2.warpPerspective(
            self.picture[..., :3], whole, size[::-1], flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )  # fmt: skip
        known = cv2.warpPerspective(
            self.picture[..., 3], whole, size[::-1], flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
        )  # fmt: skip
        return np.concatenate([picture, known[..., None]], axis=-1).astype(np.uint8)


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
        known = self.track.present()
        areas = {first: m.picture.shape[0] * m.picture.shape[1] for first, m in
                 self.mosaics.items()}  # fmt: skip
        largest = max(areas, key=lambda first: areas[first])
        frames = np.flatnonzero((self.track.reference == largest) & known)
        return self.most_central(self.track, frames)

    @staticmethod
    def most_central(track: CameraTrack, frames: NDArray[np.int64]) -> int:
        """Of frames of one background the one whose view is nearest to all others."""
        places = corners_of(track.width, track.height)
        ends = carry(np.linalg.inv(track.homography[frames]), places)
        away = np.linalg.norm(ends - np.median(ends, axis=0), axis=-1).sum(axis=-1)
        return int(frames[away.argmin()])

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
        mosaic, known = self.mosaics.get(first), True
        if mosaic is None:  # a shot that nothing was learned of
            first = int(self.track.reference[self.middle])
            mosaic, known = self.mosaics[first], False
            matrix = self.track.homography[self.middle]
        size = (self.track.height, self.track.width) if size is None else size
        seen = mosaic.seen(matrix if change is None else change @ matrix, size)
        if not known:
            seen[..., 3] = 0
        return seen


@dataclass(frozen=True)
class Plate:
    """A background, and how well it explains the frames."""

    picture: Picture  # RGB [H, W, 3]: in the middle of all views, where the camera moves
    known: Picture  # [H, W] 255 where the background was seen, else 0
    deviation: float  # of 255: mean difference of frames from the plate, where free
    moved: float  # share of free pixels that show something else
    backgrounds: Backgrounds | None = field(default=None, repr=False)  # where the camera moves

    @property
    def still(self) -> bool:
        """Whether it explains the frames: once their views are brought together, nothing moves."""
        return self.deviation <= STILL and self.moved <= MOVED_SHARE

    def __repr__(self) -> str:
        camera = "still" if self.backgrounds is None else "followed"
        return (
            f"Plate({list(self.picture.shape)}, known {float((self.known > 0).mean()):.0%},"
            f" camera {camera}, still={self.still}, deviation={self.deviation:.1f}/255,"
            f" moved={self.moved:.1%})"
        )


def background_plate(store: ClipStore, start: int = 0, stop: int | None = None) -> Plate | None:
    """The plate of frames `start` to `stop`; None where no person mask says what is background.

    A mosaic where the store has a `camera` that moved, and the mosaic explains the frames better
    than a plate that takes no notice of it.

    Memory does not grow with the clip: at most `SAMPLES` frames are looked at, spread evenly.
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
        if (track[start:stop].motion() > 0).any():
            mosaic = _mosaic(store, start, stop, person, track)
    if mosaic is not None and mosaic.still:
        return mosaic
    plain = _plain(store, start, stop, person)
    return plain if mosaic is None or plain.deviation < mosaic.deviation else mosaic


def _plain(store: ClipStore, start: int, stop: int, person: int) -> Plate:
    stored = store.record.frames
    room = max(MEMORY // (3 * stored.width * stored.height), 3 * LEAST)
    count = min(SAMPLES, room, stop - start)
    places = np.unique(np.linspace(start, stop - 1, count).astype(int))
    frames = np.stack([store.frames(i, i + 1)[0] for i in places])
    free = np.stack([_free(store, int(i), person, frames.shape[1:3]) for i in places])
    picture, known = _middle(frames, free)
    seen, apart, moved = _deviation(frames, free & (known > 0), picture)
    return Plate(picture, known, *_shares(seen, apart, moved))


def _mosaic(
    store: ClipStore, start: int, stop: int, person: int, track: CameraTrack
) -> Plate | None:
    """The plate of a camera that moves; None where it is never known."""
    known = track.present()
    mosaics, total = {}, np.zeros(3)
    references = np.unique(track.reference[start:stop])
    for first in references.tolist():
        frames = start + np.flatnonzero((track.reference[start:stop] == first) & known[start:stop])
        if len(frames) < LEAST:
            continue
        box = _extent(track, frames)
        room = max(MEMORY // (3 * box[2] * box[3]) // len(references), 3 * LEAST)
        count = min(SAMPLES, room, len(frames))
        chosen = frames[np.unique(np.linspace(0, len(frames) - 1, count).astype(int))]
        brought, free = zip(*_brought(store, chosen, person, track, box), strict=True)
        pictures, there = np.stack(brought), np.stack(free)
        picture, seen = _middle(pictures, there)
        mosaics[int(first)] = Mosaic(
            np.concatenate([picture, seen[..., None]], axis=-1), (float(box[0]), float(box[1]))
        )
        total += _deviation(pictures, there & (seen > 0), picture)
    if not mosaics:
        return None
    backgrounds = Backgrounds(mosaics, track)
    view = backgrounds.of()
    return Plate(
        np.ascontiguousarray(view[..., :3]), np.where(view[..., 3] > 127, 255, 0).astype(np.uint8),
        *_shares(*total), backgrounds=backgrounds,
    )  # fmt: skip


def _extent(track: CameraTrack, frames: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """x, y, width, height of what frames see together, in pixels of their reference frame.

    At most `LARGEST` frames, around the middle of all: a camera that goes far is not followed to
    the end.
    """
    ends = carry(np.linalg.inv(track.homography[frames]), corners_of(track.width, track.height))
    low, high = ends.min(axis=(0, 1)), ends.max(axis=(0, 1))
    middle = np.median(ends, axis=(0, 1))
    most = LARGEST * track.width * track.height
    for _ in range(64):
        if np.prod(high - low) <= most:
            break
        low, high = middle + 0.95 * (low - middle), middle + 0.95 * (high - middle)
    left, top = np.floor(low).astype(int)
    right, bottom = np.ceil(high).astype(int)
    return int(left), int(top), int(right - left), int(bottom - top)


def _brought(
    store: ClipStore, frames: NDArray[np.int64], person: int, track: CameraTrack,
    box: tuple[int, int, int, int],
) -> Iterator[tuple[Picture, NDArray[np.bool_]]]:  # fmt: skip
    """Frames as the camera of their reference frame sees them, and where they show background."""
    left, top, width, height = box
    shift = np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])
    for t in frames.tolist():
        frame = store.frames(t, t + 1)[0]
        free = _free(store, t, person, frame.shape[:2])
        free[:RIM], free[-RIM:], free[:, :RIM], free[:, -RIM:] = False, False, False, False
        back: Matrices = np.linalg.inv(track.homography[t])
        matrix = _centred(np.asarray(shift @ back))
        picture = cv2.warpPerspective(frame, matrix, (width, height), flags=cv2.INTER_CUBIC)
        there = cv2.warpPerspective(
            free.astype(np.uint8) * 255, matrix, (width, height), flags=cv2.INTER_LINEAR
        )
        yield np.asarray(picture, np.uint8), np.asarray(there > 254)


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
    known = (free.sum(axis=0) >= min(LEAST, len(frames))).astype(np.uint8) * 255
    hidden = known == 0
    if hidden.any():  # a smooth guess, so that resizing does not bleed black into the known part
        picture = cv2.inpaint(picture, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(
            np.uint8
        )
    return picture, known


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


def _centred(matrix: Matrices) -> Matrices:
    """A homography of continuous coordinates as OpenCV's: pixel centres are whole numbers."""
    half = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    moved: Matrices = np.linalg.inv(half) @ matrix @ half
    return moved
