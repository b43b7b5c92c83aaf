"""References gathered from a clip: sharp frames that cover its poses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.data.references.choosing import part_poses, pose_distance
from v2v.data.references.memory import References
from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.signals.traits import LabelMaps, LabelSignal, ReferenceSignal

SHARPEST = 0.6  # fraction of the frames, the sharpest, that references are chosen from
LOOKED_AT = 512  # evenly spaced frames that references are chosen from


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
    chosen = farthest_points(part_poses(type(track).joined([rows[i] for i in pool])), count, best)
    frames = np.sort(sampled[pool[chosen]])
    pictures = np.stack([_picture(store, int(t), placement) for t in frames])
    masks = np.stack([_mask(store, int(t), placement) for t in frames])
    own = [placement.track(store.track(signal.name, int(t), int(t) + 1)) for t in frames]
    chosen_track = type(track).joined(own)
    return References(pictures, masks, chosen_track, frames.astype(np.int64), whole)


def farthest_points(poses: Sequence[NDArray[np.float32]], count: int, first: int = 0) -> list[int]:
    """Indices of `count` frames that cover the poses (farthest point sampling).

    Args:
        poses: for each part [T, n, 2], from `part_poses`.
        count: number of indices; fewer if T is smaller.
        first: the index to start from.
    """
    found = [first]
    least = np.full(len(poses[0]), np.inf, np.float32)
    while len(found) < min(count, len(least)):
        newest = found[-1]
        distance = np.mean([pose_distance(part[newest], part) for part in poses], axis=0)
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
