"""Where a pose goes beyond the poses that a model was trained on, in words.

A model draws well what it has seen and guesses the rest. Before a minute is rendered, this says
which moments will be guessed and what to film so that they need not be.

Arms, legs, body and head are each looked up on their own: a left arm as in one training frame
over legs as in another is no new pose. What counts is where a bone points in the picture. One
that points at the camera has no direction there and is left out, so it is never reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from v2v.errors import NothingFound
from v2v.pipelines.retarget_pose import (
    EARS,
    HIPS,
    LONG,
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

LEAST, MOST = 25.0, 45.0  # degrees: nearer is never outside, farther always is
COMMON = 95  # percentile of the training frames' own distances that bounds what is inside
GRID = 4.0  # degrees: training frames closer to one another than this count once
PATIENCE = 0.3  # seconds: shorter stretches are dropped, and shorter gaps between them closed
APART = 1.0  # seconds between two training frames that are compared: neighbours are always alike
SAMPLE = 500  # training frames that set the limit
CHUNK = 256  # frames compared with all training frames at once
POINTING = 0.3  # of a bone's length: what looks shorter points at the camera
SIZE = 1.15  # times as large as ever, or as small
FRONTAL = 90.0  # degrees on our scale of facing, from the side to straight at the camera
MARGIN = 0.02  # of the picture's longer side by which a point must lie outside
CUT = 0.1  # more of the points outside the picture than ever in training


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
Words = tuple[str, str]  # what is there, and what to do: "film yourself ..."


def out_of_distribution(
    points: Points, trained: Points, rate: float, *, width: int, height: int
) -> list[Segment]:
    """The stretches of `points` [T, 75, 3] that lie outside the poses `trained` [N, 75, 3].

    Args:
        points, trained: in pixels of the same frames, `width` x `height`.
        rate: frames a second, of both.
    """
    now, known = with_middles(points), with_middles(trained)
    if not seen_points(known)[:, [HIPS, SHOULDERS]].any():
        raise NothingFound(
            f"no person in the {len(trained)} frames of training poses",
            hint="give the poses of the clips that the model was trained on",
        )
    found = [*_new_poses(now, known, rate), *_new_facing(now, known, rate)]
    found += [*_new_sizes(now, known, rate), *_cut_off(now, known, rate, width, height)]
    return sorted(found, key=lambda stretch: (stretch.start, stretch.stop))


def _new_poses(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    for part, bones in PARTS.items():
        angles, others = _directions(now, bones), _directions(known, bones)
        beyond = _away(angles, others) - _limit(others, rate)
        words = {int(t): _describe(part, now[t]) for t in np.flatnonzero(beyond > 0)}
        yield from _in_words(beyond > 0, words, rate)


def _new_facing(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    wide = _width(known)
    seen = wide[np.isfinite(wide)]
    if not seen.size:
        return
    straight = max(float(np.percentile(abs(seen), LONG)), 1e-6)
    angles, others = (FRONTAL * (w / straight)[:, None] for w in (_width(now), wide))
    beyond = _away(angles, others) - _limit(others, rate)
    words = {int(t): _describe_facing(float(angles[t, 0])) for t in np.flatnonzero(beyond > 0)}
    yield from _in_words(beyond > 0, words, rate)


def _new_sizes(now: Values, known: Values, rate: float) -> Iterator[Segment]:
    full = [_full_length(known, bone) for bone in BONES]
    sizes, others = _size(now, full), _size(known, full)
    others = others[np.isfinite(others)]
    if not others.size:
        return
    small, large = np.percentile(others, (1, 99))
    sizes = np.where(np.isfinite(sizes), sizes, (small + large) / 2)
    for start, stop in _runs(sizes > large * SIZE, rate):
        yield _segment(start, stop, ("the person is nearer than ever", "closer to the camera"))
    for start, stop in _runs(sizes < small / SIZE, rate):
        words = ("the person is farther away than ever", "farther from the camera")
        yield _segment(start, stop, words)


def _cut_off(now: Values, known: Values, rate: float, width: int, height: int) -> Iterator[Segment]:
    usual = float(np.percentile(_share_outside(known, width, height), 98))
    cut = _share_outside(now, width, height) > usual + CUT
    for start, stop in _runs(cut, rate):
        yield Segment(
            start,
            stop,
            "the person leaves the picture",
            "choose a driving video in which the person stays nearer to one place",
        )


def _in_words(flags: Flags, words: dict[int, Words], rate: float) -> Iterator[Segment]:
    """Stretches of one thing each; one in which nothing lasts goes by what is most often there."""
    for start, stop in _runs(flags, rate):
        said = [words.get(t) for t in range(start, stop)]
        counts = Counter(kind for kind in said if kind)
        found = []
        for kind in counts:
            runs = _runs(np.array([word == kind for word in said]), rate)
            found += [_segment(start + a, start + b, kind) for a, b in runs]
        yield from found or [_segment(start, stop, counts.most_common(1)[0][0])]


def _segment(start: int, stop: int, words: Words) -> Segment:
    return Segment(start, stop, words[0], f"film yourself {words[1]}")


# ---------------------------------------------------------------- what is compared


def _directions(points: Values, bones: list[tuple[int, int]]) -> Values:
    """[T, bones] degrees in the picture, 0 to the right, 90 down; NaN where there is none."""
    seen = seen_points(points)
    angles = np.full((len(points), len(bones)), np.nan)
    for column, (joint, point) in zip(angles.T, bones, strict=True):
        long = distance(points, joint, point) >= POINTING * _full_length(points, (joint, point))
        shown = seen[:, joint] & seen[:, point] & long
        along = points[shown, point] - points[shown, joint]
        column[shown] = np.degrees(np.arctan2(along[:, 1], along[:, 0]))
    return angles


def _full_length(points: Values, bone: tuple[int, int]) -> float:
    lengths = distance(points, *bone)[seen_points(points)[:, list(bone)].all(axis=1)]
    return float(np.percentile(lengths, LONG)) if lengths.size else float("nan")


def _width(points: Values) -> Values:
    """[T] shoulders' width over the spine: positive seen from the front, negative from behind."""
    ends = [POINT["left_shoulder"], POINT["right_shoulder"]]
    spine = distance(points, HIPS, SHOULDERS)
    spine = np.maximum(spine, 0.6 * _full_length(points, (HIPS, SHOULDERS)))  # somebody bent over
    width = (points[:, ends[0], 0] - points[:, ends[1], 0]) / np.where(spine > 0, spine, np.nan)
    return np.where(seen_points(points)[:, [*ends, HIPS]].all(axis=1), width, np.nan)


def _size(points: Values, full: list[float]) -> Values:
    """[T] size of the figure, by the bone that looks third longest for what it is; NaN: too few.

    Most bones are foreshortened, so a mean would take a crouching person for one far away.
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
    """[T] share of the seen joints that lie outside the picture."""
    seen = seen_points(points)[:, JOINTS]
    places = np.where(seen[..., None], points[:, JOINTS, :2], 0.0)
    margin = MARGIN * max(width, height)
    beyond = ((places < -margin) | (places > np.array([width, height]) + margin)).any(axis=-1)
    share: Values = (beyond & seen).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)
    return share


# ---------------------------------------------------------------- how far away


def _away(angles: Values, others: Values) -> Values:
    """[T] degrees from each row of [T, K] to the nearest of [N, K], by the bone farthest off.

    What a row does not show is not compared; 0 where it shows nothing. A row that shows a bone
    which no other shows has nothing to be compared with: 0 too, since it is not known to be new.
    """
    away = np.zeros(len(angles))
    grid = np.unique(np.where(np.isfinite(others), np.round(others / GRID) * GRID, _NONE), axis=0)
    grid = np.where(grid == _NONE, np.nan, grid)
    for start in range(0, len(angles), CHUNK):
        nearest = _gaps(angles[start : start + CHUNK], grid).min(axis=1, initial=np.inf)
        away[start : start + CHUNK] = np.where(np.isfinite(nearest), nearest, 0.0)
    return away


def _limit(others: Values, rate: float) -> float:
    """Degrees within which a pose is inside: as far as training frames are from one another."""
    chosen = np.unique(np.linspace(0, len(others) - 1, SAMPLE).round().astype(int))
    frames, nearest = np.arange(len(others)), []
    for start in range(0, len(chosen), CHUNK):
        rows = chosen[start : start + CHUNK]
        gaps = _gaps(others[rows], others)
        gaps[abs(rows[:, None] - frames) < APART * rate] = np.inf
        nearest.append(gaps.min(axis=1))
    known = np.concatenate(nearest)
    known = known[np.isfinite(known)]
    common = float(np.percentile(known, COMMON)) if known.size else LEAST
    return float(np.clip(common, LEAST, MOST))


_NONE = 1e4  # degrees that no bone has


def _gaps(angles: Values, others: Values) -> Values:
    """[T, N] largest difference over K between [T, K] and [N, K]; infinite: not comparable."""
    gaps = np.zeros((len(angles), len(others)))
    for mine, theirs in zip(angles.T, others.T, strict=True):
        turn = abs((mine[:, None] - theirs + 180) % 360 - 180)
        turn[:, np.isnan(theirs)] = np.inf
        turn[np.isnan(mine)] = 0.0
        np.maximum(gaps, turn, out=gaps)
    return gaps


def _runs(flags: Flags, rate: float) -> Iterator[tuple[int, int]]:
    """Start and stop of the stretches that are long enough, after small gaps are closed."""
    patience = PATIENCE * rate
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    runs: list[tuple[int, int]] = []
    for start, stop in edges.reshape(-1, 2).tolist():
        if runs and start - runs[-1][1] < patience:
            start = runs.pop()[0]
        runs.append((start, stop))
    yield from (run for run in runs if run[1] - run[0] >= patience)


# ---------------------------------------------------------------- in words


def _describe(part: str, points: Values) -> Words:
    """What a part does in one frame [78, 3]."""
    if part == "body":
        lean = points[SHOULDERS, :2] - points[HIPS, :2]
        if abs(lean[0]) < -lean[1]:
            where = "left" if lean[0] < 0 else "right"
            return f"leaning to the picture's {where}", f"leaning to the picture's {where}"
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
