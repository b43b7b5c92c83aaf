"""Retarget one person's pose to another person's body and position.

A model has learnt the proportions of one person and their position in the frame. The pose of
somebody else would show it a body outside its training data. Two modes correct this:

- global: moves and scales the whole figure to where the target person would be, after the pose
  normalisation of Everybody Dance Now (arXiv 1808.07371): the height of the feet in the frame
  gives the distance of the person, and the distance gives their size.
- limbs: in addition, every bone takes the target's length and keeps its direction, and the feet
  are moved back to the floor.

Points are [T, 75, 3]: x, y in pixels and score, as in `v2v.signals.pose`. NaN is missing and stays
missing; a score below `MIN_SCORE` is a guess, which is transformed but not measured. All
corrections vary smoothly over time, also where points appear and disappear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from v2v.errors import NothingFound, UnknownName
from v2v.pipelines.retarget.body import (
    ANCHORS,
    EARS,
    FEET,
    HIPS,
    MEASURED,
    RATE,
    SHOULDERS,
    STATURE,
    TREE,
    Body,
    Points,
    Values,
    interpolated,
    lowest,
    seen_points,
    smooth,
    trust,
    with_middles,
)
from v2v.signals.pose import HEAD, NAMES

RETARGETS = ("none", "global", "limbs")
MAX_GAIN = 3.0  # maximum factor of motion in depth, relative to the figure's scale
BONE_RATIO = (0.6, 1.6)  # limits of a bone's ratio over the whole figure's; others are errors
END_RATIO = (0.8, 1.25)  # the same for hands, feet and head, whose length depends on their pose
SIDE_PERCENTILE = 98  # of the sideways position: must stay inside the frame
REACH_PERCENTILE = 80  # of the distance of the points from the middle of the body


def retarget(points: Points, source: Body, target: Body, mode: str, rate: float = RATE) -> Points:
    """Retarget the poses `points` of `source`'s clip to the frames of `target`'s clip.

    Args:
        mode: one of `RETARGETS`. "none" fits the whole frame into the target's, centred.
        rate: frames per second of the source's clip.

    Raises `UnknownName` for another mode, `NothingFound` if the clips share no visible anchor or
    bone.
    """
    if mode not in RETARGETS:
        raise UnknownName.among("retargeting mode", mode, RETARGETS)
    move = _fitted(len(points), source, target)
    if mode != "none":
        move = _placed(points, source, target, rate)
    moved = move(with_middles(points))
    if mode == "limbs":
        moved = _reshaped(moved, source, target, rate)
    return moved[:, : len(NAMES)].astype(np.float32)


def kept_inside(
    points: Points, trained: Points, width: int, rate: float = RATE
) -> tuple[Points, float]:
    """Reduce the sideways motion of retargeted poses if it would leave the frame.

    A person on a wider stage, or filmed by a moving camera, may walk further than the width of the
    target's frame. One factor scales the whole motion, so nothing flickers.

    Args:
        points: [T, 75, 3] in the target's stored pixels.
        trained: [N, 75, 3] the training poses: their sideways range is always kept.
        width: width of the target's frames.
        rate: frames per second of `points`.

    Returns:
        The poses and the factor, 1 if nothing was reduced.
    """
    middle, known = _middle_x(points), _middle_x(trained)
    seen = np.isfinite(middle)
    if not seen.any() or not np.isfinite(known).any():
        return points, 1.0
    usual = float(np.nanmedian(known))
    reach = np.nanpercentile(np.abs(points[..., 0] - middle[:, None]), REACH_PERCENTILE)
    room = [max(usual - float(np.nanmin(known)), usual - reach)]
    room.append(max(float(np.nanmax(known)) - usual, width - reach - usual))
    low, high = np.percentile(middle[seen], (100 - SIDE_PERCENTILE, SIDE_PERCENTILE))
    factors = [
        max(space, 0.0) / way
        for space, way in zip(room, (usual - low, high - usual), strict=True)
        if way > max(space, 0.0)
    ]
    factor = min(factors, default=1.0)
    if factor == 1.0:
        return points, 1.0
    steady = smooth(interpolated(middle[:, None], seen.astype(np.float64))[:, 0], rate)
    moved = points.copy()
    moved[..., 0] += ((factor - 1) * (steady - usual))[:, None]
    return moved, factor


def _middle_x(points: Points) -> Values:
    """[T] x of the middle of the hips, else of the shoulders; NaN if neither is visible."""
    full = with_middles(points)
    seen = seen_points(full)
    hips = np.where(seen[:, HIPS], full[:, HIPS, 0], np.nan)
    return np.where(
        np.isfinite(hips), hips, np.where(seen[:, SHOULDERS], full[:, SHOULDERS, 0], np.nan)
    )


@dataclass(frozen=True)
class _Move:
    """Scales by `scale` [T] about the points `before` [T, 2], and moves these to `after` [T, 2]."""

    scale: Values
    before: Values
    after: Values

    def __call__(self, points: Values) -> Values:
        offsets = points[..., :2] - self.before[:, None]
        places = self.after[:, None] + self.scale[:, None, None] * offsets
        return np.concatenate([places, points[..., 2:]], axis=-1)


def _fitted(count: int, source: Body, target: Body) -> _Move:
    """Fit the source's frame into the target's, as large as possible and centred."""
    scale = min(target.width / source.width, target.height / source.height)
    middles = [np.full((count, 2), (body.width / 2, body.height / 2)) for body in (source, target)]
    return _Move(np.full(count, scale), *middles)


def _placed(points: Points, source: Body, target: Body, rate: float) -> _Move:
    """Move the source person to the target's position, at the size the target has there."""
    anchor = _shared_anchor(source, target)
    source_share = source.share(points, rate)
    target_share = np.full(len(points), target.usual)
    if anchor == "feet":
        follow = _follow(source, target)
        target_share = follow * source_share + (1 - follow) * target_share
    scale = _ratio(source, target) * target.depth(target_share) / source.depth(source_share)
    ends = [
        np.stack([np.full(len(points), body.x), body.level(anchor, share)], axis=1)
        for body, share in ((source, source_share), (target, target_share))
    ]
    return _Move(scale, *ends)


def _shared_anchor(source: Body, target: Body) -> str:
    for anchor in ANCHORS:
        if anchor in source.heights and anchor in target.heights:
            return anchor
    raise NothingFound(
        f"one clip shows only the person's {source.anchor}, the other only the {target.anchor}",
        hint="use two clips that show the shoulders, or the whole person",
    )


def _follow(source: Body, target: Body) -> float:
    """How much of the source's motion in depth the target follows, from 0 to 1."""
    target_depth, source_depth = target.near - target.far, source.near - source.far
    if not source_depth or not target_depth:
        return 0.0
    return min(1.0, MAX_GAIN * _ratio(source, target) * source_depth / target_depth)


def _ratio(source: Body, target: Body) -> float:
    """The target's size over the source's, both at their usual position."""
    shared = [bone for bone in source.bones if bone in target.bones]
    if "spine" in shared:
        shared = [bone for bone in shared if bone in STATURE]
    if not shared:
        raise NothingFound(
            "the two clips show no common part of the body long enough to compare sizes",
            hint="use two clips that show the shoulders and arms, or the whole person",
        )
    return sum(target.bones[b] for b in shared) / sum(source.bones[b] for b in shared)


def _proportions(source: Body, target: Body) -> dict[str, float]:
    """Each bone's ratio of target to source over the whole figure's."""
    whole = _ratio(source, target)
    ratios = {}
    for bone in source.bones.keys() & target.bones.keys():
        low, high = END_RATIO if bone in ("hand", "foot", "head") else BONE_RATIO
        ratio = target.bones[bone] / source.bones[bone] / whole
        ratios[bone] = min(max(ratio, low), high)
    usual = float(np.median(list(ratios.values())))
    return {bone: ratios.get(bone, usual) for bone in (*MEASURED, "head")}


def _reshaped(points: Values, source: Body, target: Body, rate: float) -> Values:
    """Give points [T, 78, 3], already at the target's position, the target's proportions.

    Every bone keeps its direction and its foreshortening. Children of a missing joint are missing,
    except for the upper body, which is kept without hips.
    """
    ratios = _proportions(source, target)
    new = np.full_like(points, np.nan)
    new[..., 2] = points[..., 2]
    rooted = np.isfinite(points[:, HIPS, :2]).all(axis=1)
    new[:, HIPS, :2] = points[:, HIPS, :2]
    points = _with_head(points)
    for point, joint, bone in TREE:
        new[:, point, :2] = new[:, joint, :2] + ratios[bone] * (
            points[:, point, :2] - points[:, joint, :2]
        )
        if point == SHOULDERS:
            new[~rooted, point, :2] = points[~rooted, point, :2]
    shift = _grounded(points, new, _shared_anchor(source, target), rate)
    # Without hips, interpolate the shift of the shoulders, so that they do not jump.
    lean = new[:, SHOULDERS, :2] - points[:, SHOULDERS, :2] + shift
    lean = interpolated(lean, (rooted & np.isfinite(lean).all(axis=1)).astype(np.float64))
    new[..., :2] += np.where(rooted[:, None], shift, lean)[:, None]
    return new


def _with_head(points: Values) -> Values:
    """Replace a missing midpoint of the ears by the mean of the visible points of the head."""
    known = np.isfinite(points[:, HEAD, :2]).all(axis=-1, keepdims=True)
    total = np.where(known, points[:, HEAD, :2], 0.0).sum(axis=1)
    count = known.sum(axis=1)
    middle = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    points = points.copy()
    ears = points[:, EARS, :2]
    points[:, EARS, :2] = np.where(np.isfinite(ears), ears, middle)
    return points


def _grounded(straight: Values, new: Values, anchor: str, rate: float) -> Values:
    """[T, 2] the shift that restores the anchor's position from before the bones were changed."""
    if anchor == "hips":
        return np.zeros((len(new), 2))
    if anchor == "shoulders":
        shift = straight[:, SHOULDERS, :2] - new[:, SHOULDERS, :2]
        return interpolated(shift, np.isfinite(shift).all(axis=1).astype(np.float64))
    before, after = straight[:, FEET], new[:, FEET]
    weight = np.where(np.isfinite(after).all(axis=-1), trust(before), 0.0)
    low = lowest(before[..., 1], weight)
    down = low - lowest(after[..., 1], weight)
    # The feet that carry the weight must not slide sideways: weight those near the floor.
    size = max(float(np.ptp(before[..., 1][weight > 0])) if (weight > 0).any() else 0.0, 1e-6)
    above = np.where(weight > 0, low[:, None] - before[..., 1], np.inf)
    carries = weight * np.exp(-np.maximum(above, 0) / (0.1 * size))
    offsets = np.where(weight > 0, before[..., 0] - after[..., 0], 0.0)
    total = carries.sum(axis=1)
    aside = np.divide(
        (carries * offsets).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0
    )
    shift = interpolated(np.stack([aside, down], axis=1), weight.max(axis=1))
    if len(shift):
        shift[:, 0] = smooth(shift[:, 0], rate)  # the weight shifts gradually between the feet
    return shift
