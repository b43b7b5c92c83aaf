"""Detect and describe poses outside the range of a model's training poses.

A model renders poses from its training set well and guesses the others. Before rendering, this
module reports which segments are out of distribution and what to film to cover them.

Arms, legs, body and head are compared separately: a left arm from one training frame with legs
from another is not a new pose. The comparison uses the direction of each bone in the image. A bone
that points at the camera has no image direction; it is ignored and never reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from v2v.errors import NothingFound
from v2v.pipelines.retarget.body import (
    EARS,
    HIPS,
    LENGTH_PERCENTILE,
    SHOULDERS,
    SIDES,
    Points,
    Values,
    distance,
    seen_points,
    with_middles,
)
from v2v.pipelines.segments import Segment
from v2v.signals.pose import POINT

Flags = NDArray[np.bool_]

MIN_LIMIT, MAX_LIMIT = 25.0, 45.0  # degrees: clamps the threshold for out-of-distribution poses
PERCENTILE = 95  # of the distances between training frames: sets the threshold
GRID = 4.0  # degrees: training frames within the same grid cell count once
MIN_SECONDS = 0.3  # shorter segments are dropped, and shorter gaps between segments closed
MIN_GAP = 1.0  # seconds between compared training frames: neighbours are always alike
SAMPLE = 500  # training frames used to set the threshold
CHUNK = 256  # frames compared with all training frames at once
MIN_PROJECTED = 0.3  # fraction of a bone's length: shorter bones point at the camera
SIZE_RATIO = 1.15  # size beyond the training range that counts, as a ratio
FRONTAL = 90.0  # degrees on the facing scale, from the side to straight at the camera
MARGIN = 0.02  # fraction of the frame's longer side: points farther out count as outside
CUT_OFF = 0.1  # fraction of points outside the frame, beyond that in training


def _parts() -> dict[str, list[tuple[int, int]]]:
    parts = {"body": [(HIPS, SHOULDERS)], "head": [(SHOULDERS, EARS)]}
    for side in SIDES:
        for limb, names in {
            "arm": ("shoulder", "elbow", "wrist"),
            "leg": ("hip", "knee", "ankle"),
        }.items():
            chain = [POINT[f"{side}_{name}"] for name in names]
            parts[f"{side} {limb}"] = list(zip(chain, chain[1:], strict=False))
    return parts


PARTS = _parts()
BONES = [bone for bones in PARTS.values() for bone in bones]
JOINTS = sorted({point for bone in BONES for point in bone if point < HIPS} | {POINT["nose"]})
Words = tuple[str, str]  # description, and advice after "film yourself ..."


def out_of_distribution(
    points: Points, trained: Points, rate: float, *, width: int, height: int
) -> list[Segment]:
    """The segments of `points` [T, 75, 3] that lie outside the poses `trained` [N, 75, 3].

    Args:
        points, trained: in pixels of the same frame, `width` x `height`.
        rate: frames per second, of both.

    Raises `NothingFound` if the training poses show no person.
    """
    now, known = with_middles(points), with_middles(trained)
    if not seen_points(known)[:, [HIPS, SHOULDERS]].any():
        raise NothingFound(
            f"no person in the {len(trained)} frames of training poses",
            hint="give the poses of the model's training clips",
        )
    found = [*_new_poses(now, known, rate), *_new_facing(now, known, rate)]
    found += [*_new_sizes(now, known, rate), *_cut_off(now, known, rate, width, height)]
    return sorted(found, key=lambda segment: (segment.start, segment.stop))


def _new_poses(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    for part, bones in PARTS.items():
        angles, others = _directions(now, bones), _directions(known, bones)
        beyond = _distances(angles, others) - _limit(others, rate)
        words = {int(t): _describe(part, now[t]) for t in np.flatnonzero(beyond > 0)}
        yield from _described(beyond > 0, words, rate)


def _new_facing(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    wide = _width(known)
    seen = wide[np.isfinite(wide)]
    if not seen.size:
        return
    straight = max(float(np.percentile(abs(seen), LENGTH_PERCENTILE)), 1e-6)
    angles, others = (FRONTAL * (w / straight)[:, None] for w in (_width(now), wide))
    beyond = _distances(angles, others) - _limit(others, rate)
    words = {int(t): _describe_facing(float(angles[t, 0])) for t in np.flatnonzero(beyond > 0)}
    yield from _described(beyond > 0, words, rate)


def _new_sizes(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    full = [_full_length(known, bone) for bone in BONES]
    sizes, others = _size(now, full), _size(known, full)
    others = others[np.isfinite(others)]
    if not others.size:
        return
    small, large = np.percentile(others, (1, 99))
    sizes = np.where(np.isfinite(sizes), sizes, (small + large) / 2)
    for start, stop in _runs(sizes > large * SIZE_RATIO, rate):
        yield _segment(
            start, stop, ("the person is nearer than in training", "closer to the camera")
        )
    for start, stop in _runs(sizes < small / SIZE_RATIO, rate):
        words = ("the person is farther away than in training", "farther from the camera")
        yield _segment(start, stop, words)


def _cut_off(now: Values, known: Values, rate: float, width: int, height: int) -> Iterator[Segment]:
    usual = float(np.percentile(_share_outside(known, width, height), 98))
    cut = _share_outside(now, width, height) > usual + CUT_OFF
    for start, stop in _runs(cut, rate):
        yield Segment(
            start,
            stop,
            "the person leaves the frame",
            "choose a driving video in which the person moves around less",
        )


def _described(flags: Flags, words: dict[int, Words], rate: float) -> Iterator[Segment]:
    """Segments with one description each; if none of them lasts, use the most frequent one."""
    for start, stop in _runs(flags, rate):
        kinds = [words.get(t) for t in range(start, stop)]
        counts = Counter(kind for kind in kinds if kind)
        found = []
        for kind in counts:
            runs = _runs(np.array([word == kind for word in kinds]), rate)
            found += [_segment(start + a, start + b, kind) for a, b in runs]
        yield from found or [_segment(start, stop, counts.most_common(1)[0][0])]


def _segment(start: int, stop: int, words: Words) -> Segment:
    return Segment(start, stop, words[0], f"film yourself {words[1]}")


# ---------------------------------------------------------------- features


def _directions(points: Values, bones: list[tuple[int, int]]) -> Values:
    """[T, bones] direction in the image in degrees, 0 to the right, 90 down; NaN if undefined."""
    seen = seen_points(points)
    angles = np.full((len(points), len(bones)), np.nan)
    for column, (joint, point) in zip(angles.T, bones, strict=True):
        long = distance(points, joint, point) >= MIN_PROJECTED * _full_length(
            points, (joint, point)
        )
        valid = seen[:, joint] & seen[:, point] & long
        along = points[valid, point] - points[valid, joint]
        column[valid] = np.degrees(np.arctan2(along[:, 1], along[:, 0]))
    return angles


def _full_length(points: Values, bone: tuple[int, int]) -> float:
    lengths = distance(points, *bone)[seen_points(points)[:, list(bone)].all(axis=1)]
    return float(np.percentile(lengths, LENGTH_PERCENTILE)) if lengths.size else float("nan")


def _width(points: Values) -> Values:
    """[T] ratio of shoulder width to spine: positive seen from the front, negative from behind."""
    ends = [POINT["left_shoulder"], POINT["right_shoulder"]]
    spine = distance(points, HIPS, SHOULDERS)
    spine = np.maximum(spine, 0.6 * _full_length(points, (HIPS, SHOULDERS)))  # bent over
    width = (points[:, ends[0], 0] - points[:, ends[1], 0]) / np.where(spine > 0, spine, np.nan)
    return np.where(seen_points(points)[:, [*ends, HIPS]].all(axis=1), width, np.nan)


def _size(points: Values, full: list[float]) -> Values:
    """[T] size of the person: the third-largest relative bone length; NaN if too few are visible.

    Most bones are foreshortened, so with a mean a crouching person would look far away.
    """
    seen = seen_points(points)
    ratios = np.stack(
        [
            np.where(seen[:, a] & seen[:, b], distance(points, a, b) / length, np.nan)
            for (a, b), length in zip(BONES, full, strict=True)
        ],
        axis=1,
    )
    third = np.sort(np.where(np.isfinite(ratios), ratios, -np.inf), axis=1)[:, -3]
    return np.where(np.isfinite(third), third, np.nan)


def _share_outside(points: Values, width: int, height: int) -> Values:
    """[T] fraction of the visible joints that lie outside the frame."""
    seen = seen_points(points)[:, JOINTS]
    places = np.where(seen[..., None], points[:, JOINTS, :2], 0.0)
    margin = MARGIN * max(width, height)
    beyond = ((places < -margin) | (places > np.array([width, height]) + margin)).any(axis=-1)
    share: Values = (beyond & seen).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    return share


# ---------------------------------------------------------------- distance to the training poses


def _distances(angles: Values, others: Values) -> Values:
    """[T] degrees from each row of [T, K] to the nearest of [N, K], maximum over the bones.

    Bones that a row does not show are not compared; the result is 0 if it shows none. It is also 0
    if a row shows a bone that is visible in no training row: it is not known to be new.
    """
    distances = np.zeros(len(angles))
    grid = np.unique(np.where(np.isfinite(others), np.round(others / GRID) * GRID, _NONE), axis=0)
    grid = np.where(grid == _NONE, np.nan, grid)
    for start in range(0, len(angles), CHUNK):
        nearest = _differences(angles[start : start + CHUNK], grid).min(axis=1, initial=np.inf)
        distances[start : start + CHUNK] = np.where(np.isfinite(nearest), nearest, 0.0)
    return distances


def _limit(others: Values, rate: float) -> float:
    """Threshold in degrees for a pose: the usual distance between training frames."""
    chosen = np.unique(np.linspace(0, len(others) - 1, SAMPLE).round().astype(int))
    frames, nearest = np.arange(len(others)), []
    for start in range(0, len(chosen), CHUNK):
        rows = chosen[start : start + CHUNK]
        gaps = _differences(others[rows], others)
        gaps[abs(rows[:, None] - frames) < MIN_GAP * rate] = np.inf
        nearest.append(gaps.min(axis=1))
    known = np.concatenate(nearest)
    known = known[np.isfinite(known)]
    common = float(np.percentile(known, PERCENTILE)) if known.size else MIN_LIMIT
    return float(np.clip(common, MIN_LIMIT, MAX_LIMIT))


_NONE = 1e4  # degrees that no bone has


def _differences(angles: Values, others: Values) -> Values:
    """[T, N] largest difference over K between [T, K] and [N, K]; infinite if not comparable."""
    gaps = np.zeros((len(angles), len(others)))
    for mine, theirs in zip(angles.T, others.T, strict=True):
        difference = abs((mine[:, None] - theirs + 180) % 360 - 180)
        difference[:, np.isnan(theirs)] = np.inf
        difference[np.isnan(mine)] = 0.0
        np.maximum(gaps, difference, out=gaps)
    return gaps


def _runs(flags: Flags, rate: float) -> Iterator[tuple[int, int]]:
    """Start and stop of the segments that are long enough, after small gaps are closed."""
    shortest = MIN_SECONDS * rate
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    runs: list[tuple[int, int]] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if runs and start - runs[-1][1] < shortest:
            start = runs.pop()[0]
        runs.append((start, stop))
    yield from (run for run in runs if run[1] - run[0] >= shortest)


# ---------------------------------------------------------------- descriptions


def _describe(part: str, points: Values) -> Words:
    """Describe the pose of a body part in one frame [78, 3]."""
    if part == "body":
        lean = points[SHOULDERS, :2] - points[HIPS, :2]
        if abs(lean[0]) < -lean[1]:
            where = "left" if lean[0] < 0 else "right"
            return f"leaning to the {where} of the frame", f"leaning to the {where} of the frame"
        return "bent over", "bending over"
    if part == "head":
        return "the head tilted", "tilting the head"
    (start, middle), (_, end) = PARTS[part]
    upper, lower = points[middle, :2] - points[start, :2], points[end, :2] - points[middle, :2]
    reach = max(float(np.hypot(*upper) + np.hypot(*lower)), 1e-6)
    tip = upper + lower
    if not np.isfinite(tip).all() or not seen_points(points[None])[0, end]:
        reach, tip, lower = max(float(np.hypot(*upper)), 1e-6), upper, upper
    bent = float(np.dot(upper, lower)) < 0.5 * float(np.hypot(*upper) * np.hypot(*lower))
    limb = f"the {part}"
    if part.endswith("leg"):
        if upper[1] < 0.6 * np.hypot(*upper):
            return f"{limb} lifted", f"lifting {limb}"
        return (f"{limb} bent", f"bending {limb}") if bent else _moved(limb)
    inward = points[SHOULDERS, 0] - points[start, 0]
    if points[start, 1] + tip[1] < points[EARS, 1]:
        return f"{limb} raised above the head", f"raising {limb} above the head"
    if -tip[1] > 0.3 * reach:
        return f"{limb} raised", f"raising {limb}"
    if abs(tip[0]) > abs(inward) and tip[0] * inward > 0:
        return f"{limb} across the body", f"holding {limb} across the body"
    if abs(tip[0]) > 0.7 * reach:
        return f"{limb} held out to the side", f"holding {limb} out to the side"
    return (f"{limb} bent", f"bending {limb}") if bent else _moved(limb)


def _describe_facing(angle: float) -> Words:
    if angle < -FRONTAL / 3:
        return "turned away from the camera", "turning your back to the camera"
    if angle > FRONTAL / 3:
        return "turned towards the camera", "turning towards the camera"
    return "turned to the side", "turning to the side"


def _moved(limb: str) -> Words:
    return f"{limb} in a new position", f"moving {limb} in all directions"
