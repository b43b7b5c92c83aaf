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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from v2v.errors import NothingFound, UnknownName
from v2v.signals.pose import HEAD, LEFT_HAND, MIN_SCORE, NAMES, POINT, RIGHT_HAND

RETARGETS = ("none", "global", "limbs")

Points = NDArray[np.float32]  # [T, 75, 3]
Values = NDArray[np.float64]

ANCHORS = ("feet", "hips", "shoulders")  # reference for the position: the first that is in view

RATE = 25.0  # frames per second, default
HIDDEN_SCORE = 0.3  # score at which a foot has weight 0; at MIN_SCORE it has weight 1
MIN_FRAMES = 5  # minimum number of frames to measure a length
MIN_VISIBLE = 0.2  # minimum fraction of frames that must show the feet (or hips) as an anchor
LENGTH_PERCENTILE = 85  # for a bone's length: most frames foreshorten it, few overestimate it
MIN_DEPTH = 0.04  # fraction of the stature: a floor with less depth between its lines is flat
DEPTH_END = 0.2  # fraction of the floor's depth at either end: frames in it measure the size there
CAMERA_HEIGHT = 1 / 3  # fraction of the stature: minimum height of the camera above the floor
MAX_GAIN = 3.0  # maximum factor of motion in depth, relative to the figure's scale
BONE_RATIO = (0.6, 1.6)  # limits of a bone's ratio over the whole figure's; others are errors
END_RATIO = (0.8, 1.25)  # the same for hands, feet and head, whose length depends on their pose
MIN_WIDTH = 0.4  # shoulder width over the spine: a smaller maximum means seen from the side only
JUMP = 0.5  # seconds: feet off the floor for longer mean motion in depth, not a jump
SIDE_PERCENTILE = 98  # of the sideways position: must stay inside the frame
REACH_PERCENTILE = 80  # of the distance of the points from the middle of the body
SMOOTHING = 0.15  # seconds, standard deviation of the Gaussian that smooths the floor

# Three midpoints follow the 75 points.
HIPS, SHOULDERS, EARS = range(len(NAMES), len(NAMES) + 3)
MIDDLES = (
    ("left_hip", "right_hip"),
    ("left_shoulder", "right_shoulder"),
    ("left_ear", "right_ear"),
)
SIDES = ("left", "right")
FEET = [POINT[f"{side}_{part}"] for side in SIDES for part in ("ankle", "heel", "foot")]
STATURE = ("thigh", "shin", "spine", "neck")


def _tree() -> tuple[tuple[int, int, str], ...]:
    """(point, parent, bone) of the kinematic tree, parents first."""
    tree = [(SHOULDERS, HIPS, "spine"), (EARS, SHOULDERS, "neck")]
    tree += [(point, EARS, "head") for point in range(HEAD.start, HEAD.stop)]
    for side, hand in zip(SIDES, (LEFT_HAND, RIGHT_HAND), strict=True):
        at = {name.removeprefix(f"{side}_"): point for name, point in POINT.items() if side in name}
        wrist, ankle = at["wrist"], at["ankle"]
        tree += [
            (at["shoulder"], SHOULDERS, "shoulder"),
            (at["elbow"], at["shoulder"], "upper arm"),
            (wrist, at["elbow"], "forearm"),
            (at["hip"], HIPS, "hip"),
            (at["knee"], at["hip"], "thigh"),
            (ankle, at["knee"], "shin"),
        ]
        tree += [(at[finger], wrist, "hand") for finger in ("pinky", "index", "thumb")]
        tree += [(point, wrist, "hand") for point in range(hand.start, hand.stop)]
        tree += [(at[part], ankle, "foot") for part in ("heel", "foot")]
    return tuple(tree)


TREE = _tree()


def _measured() -> dict[str, list[tuple[int, int]]]:
    """The point pairs that measure each bone, both sides together: a body is symmetric."""
    pairs: dict[str, list[tuple[int, int]]] = {}
    for point, joint, bone in TREE:
        if bone not in ("head", "hand", "foot"):
            pairs.setdefault(bone, []).append((joint, point))
    for side in SIDES:
        pairs.setdefault("hand", []).append((POINT[f"{side}_wrist"], POINT[f"{side}_index"]))
        pairs.setdefault("foot", []).append((POINT[f"{side}_heel"], POINT[f"{side}_foot"]))
    return pairs


MEASURED = _measured()


# ---------------------------------------------------------------- a body


@dataclass(frozen=True)
class Body:
    """Measurements of the person in a clip. Lengths and positions are in pixels of its frames.

    Attributes:
        frames: number of frames that show the person.
        bones: length of each bone that was visible often enough, at the person's usual distance;
            shoulder and hip are half the width, head is the spread of its points.
        x: usual horizontal position of the person.
        heights: usual y of each anchor that is in view.
        near, far: y of the floor at the person's nearest and farthest position; equal if the clip
            has no significant depth.
        usual: usual distance of the person: 0 at the far line, 1 at the near line.
        shrink: size at the far line over that at the near line, at most 1.
    """

    width: int
    height: int
    frames: int
    bones: Mapping[str, float]
    x: float
    heights: Mapping[str, float]
    near: float
    far: float
    usual: float
    shrink: float

    @property
    def anchor(self) -> str:
        return next(anchor for anchor in ANCHORS if anchor in self.heights)

    @property
    def stature(self) -> float:
        """Total length of legs, spine and neck, as far as visible; independent of the pose."""
        return sum(self.bones.get(bone, 0.0) for bone in STATURE)

    @classmethod
    def measure(cls, points: Points, width: int, height: int, rate: float = RATE) -> Self:
        """Measure the person in a clip of `width` x `height` frames at `rate` frames per second.

        Raises `NothingFound` if neither hips nor shoulders are visible.
        """
        full = with_middles(points)
        seen = seen_points(full)
        present = seen[:, HIPS] | seen[:, SHOULDERS]
        frames = int(present.sum())
        if not frames:
            raise NothingFound(
                f"no person to measure in {len(points)} frames: neither hips nor shoulders visible",
                hint="choose a clip that shows one person from the hips or the shoulders up",
            )
        heights = {}
        for anchor, middle in (("hips", HIPS), ("shoulders", SHOULDERS)):
            if seen[:, middle].sum() >= MIN_VISIBLE * frames:
                heights[anchor] = float(np.median(full[seen[:, middle], middle, 1]))
        root = HIPS if "hips" in heights else SHOULDERS
        near = far = usual = 0.0
        shrink, depth = 1.0, np.ones(len(full))
        lowest, trust = _lowest_foot(full)
        if (trust >= 1).sum() >= MIN_VISIBLE * frames:
            floor = _floor(lowest, trust, rate)
            near, far, usual = _lines(floor[present], _stature(full, seen))
            heights["feet"] = far + usual * (near - far)
            if near > far:
                share = ((floor - far) / (near - far)).clip(0, 1)
                shrink = _shrink(share, full, seen, near - far)
                depth = _depth(share, usual, shrink)
        return cls(
            width=width,
            height=height,
            frames=frames,
            bones=_bones(full, seen, depth),
            x=float(np.median(full[seen[:, root], root, 0])),
            heights=heights,
            near=near,
            far=far,
            usual=usual,
            shrink=shrink,
        )

    def share(self, points: Points, rate: float = RATE) -> Values:
        """[T] position of the person in depth: 0 at the far line, 1 at the near line."""
        lowest, trust = _lowest_foot(with_middles(points))
        if self.near <= self.far or not (trust >= 1).any():
            return np.full(len(points), self.usual)
        share: Values = (_floor(lowest, trust, rate) - self.far) / (self.near - self.far)
        return share.clip(0, 1)

    def depth(self, share: Values) -> Values:
        """[T] the person's size relative to their usual size."""
        return _depth(share, self.usual, self.shrink)

    def level(self, anchor: str, share: Values) -> Values:
        """[T] usual y of the anchor; hips and shoulders are placed relative to the floor."""
        if "feet" not in self.heights:
            return np.full(len(share), self.heights[anchor])
        above = self.heights["feet"] - self.heights[anchor]
        level: Values = self.far + share * (self.near - self.far) - self.depth(share) * above
        return level


def with_middles(points: Points) -> Values:
    """[T, 78, 3] the points and the midpoints of hips, shoulders and ears.

    The score of a midpoint is the lower one of its pair.
    """
    assert points.ndim == 3 and points.shape[1:] == (len(NAMES), 3), points.shape
    points = points.astype(np.float64)
    middles = []
    for left, right in MIDDLES:
        pair = points[:, [POINT[left], POINT[right]]]
        middle = pair.mean(axis=1)
        middle[:, 2] = pair[..., 2].min(axis=1)
        middles.append(middle)
    return np.concatenate([points, np.stack(middles, axis=1)], axis=1)


def seen_points(points: Values) -> NDArray[np.bool_]:
    known = np.isfinite(points).all(axis=-1)
    seen: NDArray[np.bool_] = known & (np.where(known, points[..., 2], 0.0) >= MIN_SCORE)
    return seen


def _lowest_foot(points: Values) -> tuple[Values, Values]:
    """[T] y of the lowest point of the feet, and [T] its weight from 0 to 1."""
    trust = _trust(points[:, FEET])
    return _lowest(points[:, FEET, 1], trust), trust.max(axis=1)


def _trust(points: Values) -> Values:
    """Weight of points: 0 if missing or hidden, 1 if visible, continuous in between."""
    score = np.where(np.isfinite(points).all(axis=-1), points[..., 2], 0.0)
    trust: Values = ((score - HIDDEN_SCORE) / (MIN_SCORE - HIDDEN_SCORE)).clip(0, 1)
    return trust


def _lowest(y: Values, trust: Values) -> Values:
    """[T] largest y of [T, N], with a penalty on points of low weight; NaN if there is none."""
    spread = float(np.nanmax(y) - np.nanmin(y)) if np.isfinite(y).any() else 0.0
    best = trust.max(axis=1, keepdims=True)
    doubt = 1 - np.divide(trust, best, out=np.zeros_like(trust), where=best > 0)
    counts = np.where(trust > 0, y - doubt * spread, -np.inf).max(axis=1)
    return np.where(np.isfinite(counts), counts, np.nan)


def _floor(lowest: Values, trust: Values, rate: float) -> Values:
    """[T] y of the floor under the person: that of the feet, without steps and jumps."""
    floor = np.median(_windows(_interpolated(lowest, trust), 3), axis=1)
    jump = round(JUMP * rate / 2)
    floor = _windows(_windows(floor, jump).max(axis=1), jump).min(axis=1)
    return _smooth(floor, rate)


def _smooth(values: Values, rate: float) -> Values:
    """[T] the values smoothed by a Gaussian with standard deviation `SMOOTHING`."""
    reach = max(round(3 * SMOOTHING * rate), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(SMOOTHING * rate, 1e-3)) ** 2)
    smooth: Values = _windows(values, reach) @ (weights / weights.sum())
    return smooth


def _windows(values: Values, reach: int) -> Values:
    """[T, 2 reach + 1] each value with its neighbours; the ends are padded by repetition."""
    return sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)


def _interpolated(values: Values, trust: Values) -> Values:
    """Values [T] or [T, N]; where `trust` is below 1, blended with a linear interpolation."""
    known = np.flatnonzero(trust >= 1)
    if not known.size:
        return np.zeros_like(values)
    columns = values.reshape(len(values), -1)
    frames = np.arange(len(values))
    lines = np.stack([np.interp(frames, known, column[known]) for column in columns.T], axis=1)
    share = trust[:, None]
    blend = share * np.where(share > 0, columns, 0.0) + (1 - share) * lines
    interpolated: Values = blend.reshape(values.shape)
    return interpolated


def _lines(floor: Values, stature: float) -> tuple[float, float, float]:
    """Near and far line of the floor, and the usual position between them (1 = near).

    Everybody Dance Now ("max" and "horizon") takes single frames, and bounds the far line by the
    median because lifted feet would push it away. Here steps and jumps are already removed.
    """
    far, middle, near = (float(value) for value in np.percentile(floor, (2, 50, 98)))
    if near - far < MIN_DEPTH * stature:
        return middle, middle, 0.0
    return near, far, (middle - far) / (near - far)


def _stature(points: Values, seen: NDArray[np.bool_]) -> float:
    return sum(_bones(points, seen, np.ones(len(points))).get(bone, 0.0) for bone in STATURE)


def _shrink(share: Values, points: Values, seen: NDArray[np.bool_], deep: float) -> float:
    """The person's size at the far line over that at the near line."""
    legs = []
    for side in SIDES:
        hip, knee, ankle = (POINT[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        leg = distance(points, hip, knee) + distance(points, knee, ankle)
        legs.append(np.where(seen[:, [hip, knee, ankle]].all(axis=1), leg, -np.inf))
    size = np.maximum(*legs) + distance(points, HIPS, SHOULDERS)
    known = np.isfinite(size) & seen[:, HIPS] & seen[:, SHOULDERS]
    ends = []
    for end in (known & (share >= 1 - DEPTH_END), known & (share <= DEPTH_END)):
        if end.sum() < MIN_FRAMES:
            return 1.0
        ends.append((float(share[end].mean()), float(np.percentile(size[end], LENGTH_PERCENTILE))))
    (near, large), (far, small) = ends
    slope = (large - small) / (near - far)
    at_near, at_far = large + (1 - near) * slope, small - far * slope
    # The size is 0 at the horizon, the height of the camera, which bounds its growth.
    least = max(1 - deep / (CAMERA_HEIGHT * at_near), 0.25)
    return float(np.clip(at_far / at_near, least, 1.0))


def _depth(share: Values, usual: float, shrink: float) -> Values:
    return (shrink + share * (1 - shrink)) / (shrink + usual * (1 - shrink))


def _bones(points: Values, seen: NDArray[np.bool_], depth: Values) -> dict[str, float]:
    """Length at the usual depth of each bone that is visible in enough frames."""
    bones: dict[str, float] = {}
    enough = min(MIN_FRAMES, len(points))
    for bone, pairs in MEASURED.items():
        lengths = [(distance(points, a, b) / depth)[seen[:, a] & seen[:, b]] for a, b in pairs]
        _keep(bones, bone, np.concatenate(lengths), enough)
    about = points[:, HEAD, :2] - points[:, [EARS], :2]
    spread = np.sqrt((about**2).sum(axis=-1).mean(axis=1)) / depth
    _keep(bones, "head", spread[seen[:, EARS] & np.isfinite(spread)], enough)
    if 2 * bones.get("shoulder", 0.0) < MIN_WIDTH * bones.get("spine", 0.0):
        bones.pop("shoulder", None)
        bones.pop("hip", None)
    return bones


def _keep(bones: dict[str, float], bone: str, lengths: Values, enough: int) -> None:
    if len(lengths) >= enough and (length := float(np.percentile(lengths, LENGTH_PERCENTILE))) > 0:
        bones[bone] = length


def distance(points: Values, a: int, b: int) -> Values:
    """[T] distance in pixels between two of the 78 points; NaN if one is missing."""
    pixels: Values = np.linalg.norm(points[:, a, :2] - points[:, b, :2], axis=1)
    return pixels


# ---------------------------------------------------------------- retargeting


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
    smooth = _smooth(_interpolated(middle[:, None], seen.astype(np.float64))[:, 0], rate)
    moved = points.copy()
    moved[..., 0] += ((factor - 1) * (smooth - usual))[:, None]
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
    lean = _interpolated(lean, (rooted & np.isfinite(lean).all(axis=1)).astype(np.float64))
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
        return _interpolated(shift, np.isfinite(shift).all(axis=1).astype(np.float64))
    before, after = straight[:, FEET], new[:, FEET]
    trust = np.where(np.isfinite(after).all(axis=-1), _trust(before), 0.0)
    low = _lowest(before[..., 1], trust)
    down = low - _lowest(after[..., 1], trust)
    # The feet that carry the weight must not slide sideways: weight those near the floor.
    size = max(float(np.ptp(before[..., 1][trust > 0])) if (trust > 0).any() else 0.0, 1e-6)
    above = np.where(trust > 0, low[:, None] - before[..., 1], np.inf)
    carries = trust * np.exp(-np.maximum(above, 0) / (0.1 * size))
    offsets = np.where(trust > 0, before[..., 0] - after[..., 0], 0.0)
    total = carries.sum(axis=1)
    aside = np.divide(
        (carries * offsets).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0
    )
    shift = _interpolated(np.stack([aside, down], axis=1), trust.max(axis=1))
    if len(shift):
        shift[:, 0] = _smooth(shift[:, 0], rate)  # the weight shifts gradually between the feet
    return shift
