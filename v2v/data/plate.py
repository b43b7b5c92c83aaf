"""The background plate: what a still camera sees where the person is not.

Most of such a picture never changes. The median over the frames in which a pixel is free gives it
sharp and without noise, from the first minute of training.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore

SAMPLES = 150  # frames that the median is taken over,
MEMORY = 256 << 20  # and at most so many bytes of them
LEAST = 5  # frames in which a pixel must be free to be known
MARGIN = 0.015  # of the frame's longer side: masks end a little inside hair and sleeves
STILL = 6.0  # of 255: mean deviation from the plate that a still camera, its noise, may show
MOVED = 24.0  # of 255: a pixel that deviates by this shows something else
MOVED_SHARE = 0.05  # of the background's pixels that may


@dataclass(frozen=True)
class Plate:
    """A background and whether the camera stood still, so that it is one."""

    picture: NDArray[np.uint8]  # RGB [H, W, 3]
    known: NDArray[np.uint8]  # [H, W] 255 where the background was seen, else 0
    deviation: float  # of 255: mean difference of frames from the plate, where free
    moved: float  # share of free pixels that show something else

    @property
    def still(self) -> bool:
        return self.deviation <= STILL and self.moved <= MOVED_SHARE

    def __repr__(self) -> str:
        return (
            f"Plate({list(self.picture.shape)}, known {float((self.known > 0).mean()):.0%},"
            f" still={self.still}, deviation={self.deviation:.1f}/255, moved={self.moved:.1%})"
        )


def background_plate(store: ClipStore, start: int = 0, stop: int | None = None) -> Plate | None:
    """The plate of frames `start` to `stop`; None where no person mask says what is background.

    Memory does not grow with the clip: at most `SAMPLES` frames are looked at, spread evenly.
    """
    stop = len(store) if stop is None else stop
    if "segmentation" not in store.signals:
        return None
    classes = store.record.signals["segmentation"].spec.get("classes", [])
    if "person" not in classes:
        return None
    person = list(classes).index("person")
    stored = store.record.frames
    room = max(MEMORY // (3 * stored.width * stored.height), 3 * LEAST)
    count = min(SAMPLES, room, stop - start)
    places = np.unique(np.linspace(start, stop - 1, count).astype(int))
    frames = np.stack([store.frames(i, i + 1)[0] for i in places])
    free = np.stack([_free(store, int(i), person, frames.shape[1:3]) for i in places])

    height, width = frames.shape[1:3]
    picture = np.zeros((height, width, 3), np.uint8)
    for row in range(0, height, 32):  # sorting copies: a strip at a time
        part = slice(row, row + 32)
        picture[part] = _median(frames[:, part], free[:, part])
    known = (free.sum(axis=0) >= min(LEAST, len(places))).astype(np.uint8) * 255
    hidden = known == 0
    if hidden.any():  # a smooth guess, so that resizing does not bleed black into the known part
        picture = cv2.inpaint(picture, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA).astype(
            np.uint8
        )

    seen, apart, moved = 0, 0.0, 0
    mean = np.full((1, 3), 1 / 3, np.float32)  # over the colours; numpy's own is slow on three
    for frame, there in zip(frames, free, strict=True):
        deviation = cv2.transform(cv2.absdiff(frame, picture).astype(np.float32), mean)
        deviations = deviation[there & (known > 0)]
        seen += len(deviations)
        apart += float(deviations.sum(dtype=np.float64))
        moved += int((deviations > MOVED).sum())
    if not seen:
        return Plate(picture, known, 255.0, 1.0)
    return Plate(picture, known, apart / seen, moved / seen)


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
