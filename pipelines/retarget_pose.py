"""One person's pose, moved to another person's body and place.

A model has learnt one person: their proportions, and where in the picture they stand. Driven by
somebody else's pose as it is, it is shown a body it has never seen. Two ways out:

- global: the figure as a whole is moved and scaled to where the target person would be, after the
  pose normalisation of Everybody Dance Now (arXiv 1808.07371): the height of the feet in the
  picture says how far away somebody stands, and that says how large they are.
- limbs: besides, every bone gets the target's length and keeps its direction, and the feet are
  brought back to the floor.

Points are [T, 75, 3]: x, y in pixels and score, as in `v2v.signals.pose`. NaN is missing and stays
missing; a score below `MIN_SCORE` is a guess, which is moved along but measures nothing. Whatever
changes from frame to frame changes gradually: also where points come and go.
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

ANCHORS = ("feet", "hips", "shoulders")  # what holds a person in place, the first that is in view

RATE = 25.0  # frames a second, where nobody says
UNSEEN = 0.3  # a score at which a foot counts nothing; from MIN_SCORE on it counts fully
FEW = 5  # frames that measure a length
SHARE = 0.2  # of the frames that must show feet (or hips) for them to hold the person in place
LONG = 85  # percentile that stands for a bone's length: most frames foreshorten it, few err
DEEP = 0.04  # of the stature: a floor whose near and far line are closer is one line
END = 0.2  # of the floor's depth: frames that tell the size at its near and at its far line
CAMERA = 1 / 3  # of a stature: cameras are held at least so high above the floor
GAIN = 3.0  # by which a way towards the camera may be longer than the figure's scale makes it
ODD = (0.6, 1.6)  # a bone's ratio over the whole figure's: beyond it is a wrong measurement
ENDS = (0.8, 1.25)  # the same of hands, feet and head, whose length depends on where they point
SIDEWAYS = 0.4  # shoulders' width over the spine: somebody never seen wider was seen from the side
JUMP = 0.5  # seconds: feet that leave the floor for longer have gone away from the camera
STRAY = 98  # percentile of the way to a side that must be inside the picture
REACH = 80  # percentile of how far a point is from the middle of the body
CALM = 0.15  # seconds, standard deviation: how gradually the floor under somebody changes

# Three middles follow the 75 points.
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
    """(point, the point it hangs on, bone), each after what it hangs on."""
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
    """Which distances measure a bone. Both sides measure the same one: a body is symmetric."""
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
    """What a clip says of the person in it. Lengths and places are in pixels of its frames.

    Attributes:
        bones: length of each bone that was seen often enough, where the person usually stands;
            the shoulder's and the hip's are half the width, the head's is how far its points
            spread.
        x: where the person usually is, from left to right.
        heights: y of each anchor that is in view, as it usually is.
        near, far: y of the floor where they come closest and where they are farthest; the same
            where the clip has no depth to speak of.
        usual: how near they usually stand: 0 at the far line, 1 at the near one.
        shrink: their size at the far line over that at the near one, at most 1.
        frames: how many show them.
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
        """Legs, spine and neck together, as far as they were seen: whatever the pose."""
        return sum(self.bones.get(bone, 0.0) for bone in STATURE)

    @classmethod
    def measure(cls, points: Points, width: int, height: int, rate: float = RATE) -> Self:
        """Measure the person in a clip of `width` x `height` frames, `rate` of them a second."""
        full = with_middles(points)
        seen = seen_points(full)
        there = seen[:, HIPS] | seen[:, SHOULDERS]
        frames = int(there.sum())
        if not frames:
            raise NothingFound(
                f"no person to measure in {len(points)} frames: neither hips nor shoulders seen",
                hint="choose a clip that shows one person from the hips or the shoulders up",
            )
        heights = {}
        for anchor, middle in (("hips", HIPS), ("shoulders", SHOULDERS)):
            if seen[:, middle].sum() >= SHARE * frames:
                heights[anchor] = float(np.median(full[seen[:, middle], middle, 1]))
        root = HIPS if "hips" in heights else SHOULDERS
        near = far = usual = 0.0
        shrink, depth = 1.0, np.ones(len(full))
        lowest, trust = _lowest_foot(full)
        if (trust >= 1).sum() >= SHARE * frames:
            floor = _floor(lowest, trust, rate)
            near, far, usual = _lines(floor[there], _stature(full, seen))
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
        """[T] how near the person stands: 0 at the far line, 1 at the near one."""
        lowest, trust = _lowest_foot(with_middles(points))
        if self.near <= self.far or not (trust >= 1).any():
            return np.full(len(points), self.usual)
        share: Values = (_floor(lowest, trust, rate) - self.far) / (self.near - self.far)
        return share.clip(0, 1)

    def depth(self, share: Values) -> Values:
        """[T] the person's size over their usual one."""
        return _depth(share, self.usual, self.shrink)

    def level(self, anchor: str, share: Values) -> Values:
        """[T] y at which the anchor usually is; hips and shoulders stand on the floor."""
        if "feet" not in self.heights:
            return np.full(len(share), self.heights[anchor])
        above = self.heights["feet"] - self.heights[anchor]
        level: Values = self.far + share * (self.near - self.far) - self.depth(share) * above
        return level


def with_middles(points: Points) -> Values:
    """[T, 78, 3] the points, and the middles of hips, shoulders and ears: seen where both are."""
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
    """[T] y of the lowest point of the feet, and [T] from 0 to 1 how far it is to be trusted."""
    trust = _trust(points[:, FEET])
    return _lowest(points[:, FEET, 1], trust), trust.max(axis=1)


def _trust(points: Values) -> Values:
    """0 for what is missing or hidden, 1 for what is seen, and no step in between."""
    score = np.where(np.isfinite(points).all(axis=-1), points[..., 2], 0.0)
    trust: Values = ((score - UNSEEN) / (MIN_SCORE - UNSEEN)).clip(0, 1)
    return trust


def _lowest(y: Values, trust: Values) -> Values:
    """[T] the largest y of [T, N]; what is hardly seen must lie far lower to be it. NaN: none."""
    spread = float(np.nanmax(y) - np.nanmin(y)) if np.isfinite(y).any() else 0.0
    best = trust.max(axis=1, keepdims=True)
    doubt = 1 - np.divide(trust, best, out=np.zeros_like(trust), where=best > 0)
    counts = np.where(trust > 0, y - doubt * spread, -np.inf).max(axis=1)
    return np.where(np.isfinite(counts), counts, np.nan)


def _floor(lowest: Values, trust: Values, rate: float) -> Values:
    """[T] height of the floor under the person: where the feet are, but for steps and jumps."""
    floor = np.median(_windows(_bridged(lowest, trust), 3), axis=1)
    jump = round(JUMP * rate / 2)
    floor = _windows(_windows(floor, jump).max(axis=1), jump).min(axis=1)
    return _calm(floor, rate)


def _calm(values: Values, rate: float) -> Values:
    """[T] the same without what is quicker than `CALM`."""
    reach = max(round(3 * CALM * rate), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(CALM * rate, 1e-3)) ** 2)
    calm: Values = _windows(values, reach) @ (weights / weights.sum())
    return calm


def _windows(values: Values, reach: int) -> Values:
    """[T, 2 reach + 1] each value amid its neighbours; the first and last go on beyond the ends."""
    return sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)


def _bridged(values: Values, trust: Values) -> Values:
    """Values [T] or [T, N], replaced by a line between their trusted neighbours as trust wanes."""
    known = np.flatnonzero(trust >= 1)
    if not known.size:
        return np.zeros_like(values)
    columns = values.reshape(len(values), -1)
    frames = np.arange(len(values))
    lines = np.stack([np.interp(frames, known, column[known]) for column in columns.T], axis=1)
    share = trust[:, None]
    blend = share * np.where(share > 0, columns, 0.0) + (1 - share) * lines
    bridged: Values = blend.reshape(values.shape)
    return bridged


def _lines(floor: Values, stature: float) -> tuple[float, float, float]:
    """Near and far line of the floor, and how near of the two the usual place is.

    Everybody Dance Now ("max" and "horizon") takes single frames, and bounds the far line by the
    median since lifted feet would push it away. Here steps and jumps are out of it already.
    """
    far, middle, near = (float(value) for value in np.percentile(floor, (2, 50, 98)))
    if near - far < DEEP * stature:
        return middle, middle, 0.0
    return near, far, (middle - far) / (near - far)


def _stature(points: Values, seen: NDArray[np.bool_]) -> float:
    return sum(_bones(points, seen, np.ones(len(points))).get(bone, 0.0) for bone in STATURE)


def _shrink(share: Values, points: Values, seen: NDArray[np.bool_], deep: float) -> float:
    """The person's size at the far line over that at the near one."""
    legs = []
    for side in SIDES:
        hip, knee, ankle = (POINT[f"{side}_{part}"] for part in ("hip", "knee", "ankle"))
        leg = distance(points, hip, knee) + distance(points, knee, ankle)
        legs.append(np.where(seen[:, [hip, knee, ankle]].all(axis=1), leg, -np.inf))
    size = np.maximum(*legs) + distance(points, HIPS, SHOULDERS)
    known = np.isfinite(size) & seen[:, HIPS] & seen[:, SHOULDERS]
    ends = []
    for end in (known & (share >= 1 - END), known & (share <= END)):
        if end.sum() < FEW:
            return 1.0
        ends.append((float(share[end].mean()), float(np.percentile(size[end], LONG))))
    (near, large), (far, small) = ends
    slope = (large - small) / (near - far)
    at_near, at_far = large + (1 - near) * slope, small - far * slope
    # Sizes grow from nothing at the height of the camera's eye, which bounds how fast.
    least = max(1 - deep / (CAMERA * at_near), 0.25)
    return float(np.clip(at_far / at_near, least, 1.0))


def _depth(share: Values, usual: float, shrink: float) -> Values:
    return (shrink + share * (1 - shrink)) / (shrink + usual * (1 - shrink))


def _bones(points: Values, seen: NDArray[np.bool_], depth: Values) -> dict[str, float]:
    """Length of each bone at the usual depth, of those that enough frames show."""
    bones: dict[str, float] = {}
    enough = min(FEW, len(points))
    for bone, pairs in MEASURED.items():
        lengths = [(distance(points, a, b) / depth)[seen[:, a] & seen[:, b]] for a, b in pairs]
        _keep(bones, bone, np.concatenate(lengths), enough)
    about = points[:, HEAD, :2] - points[:, [EARS], :2]
    spread = np.sqrt((about**2).sum(axis=-1).mean(axis=1)) / depth
    _keep(bones, "head", spread[seen[:, EARS] & np.isfinite(spread)], enough)
    if 2 * bones.get("shoulder", 0.0) < SIDEWAYS * bones.get("spine", 0.0):
        bones.pop("shoulder", None)
        bones.pop("hip", None)
    return bones


def _keep(bones: dict[str, float], bone: str, lengths: Values, enough: int) -> None:
    if len(lengths) >= enough and (length := float(np.percentile(lengths, LONG))) > 0:
        bones[bone] = length


def distance(points: Values, a: int, b: int) -> Values:
    """[T] pixels between two of the 78 points; NaN where one is missing."""
    pixels: Values = np.linalg.norm(points[:, a, :2] - points[:, b, :2], axis=1)
    return pixels


# ---------------------------------------------------------------- retargeting


def retarget(points: Points, source: Body, target: Body, mode: str, rate: float = RATE) -> Points:
    """The pose `points` of `source`'s clip in the frames of `target`'s.

    Args:
        mode: one of `RETARGETS`. "none" fits the whole frame into the target's, centred.
        rate: frames a second of the source's clip.
    """
    if mode not in RETARGETS:
        raise UnknownName.among("way to retarget", mode, RETARGETS)
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
    """Retargeted poses whose way across is shortened, where it would leave the picture.

    A person filmed by a camera that goes along, or on a wider stage, may walk further than the
    target's picture is wide. All of the way is shortened by one factor, so nothing flickers.

    Args:
        points: [T, 75, 3] in the target's stored pixels.
        trained: [N, 75, 3] the poses of training: how far to the sides they go is always kept.
        width: of the target's frames.

    Returns:
        The poses and the factor, 1 where nothing was shortened.
    """
    middle, known = _across(points), _across(trained)
    seen = np.isfinite(middle)
    if not seen.any() or not np.isfinite(known).any():
        return points, 1.0
    usual = float(np.nanmedian(known))
    reach = np.nanpercentile(np.abs(points[..., 0] - middle[:, None]), REACH)
    room = [max(usual - float(np.nanmin(known)), usual - reach)]
    room.append(max(float(np.nanmax(known)) - usual, width - reach - usual))
    low, high = np.percentile(middle[seen], (100 - STRAY, STRAY))
    factors = [
        max(space, 0.0) / way
        for space, way in zip(room, (usual - low, high - usual), strict=True)
        if way > max(space, 0.0)
    ]
    factor = min(factors, default=1.0)
    if factor == 1.0:
        return points, 1.0
    smooth = _calm(_bridged(middle[:, None], seen.astype(np.float64))[:, 0], rate)
    moved = points.copy()
    moved[..., 0] += ((factor - 1) * (smooth - usual))[:, None]
    return moved, factor


def _across(points: Points) -> Values:
    """[T] x of the middle of the hips, else of the shoulders; NaN where both are unseen."""
    full = with_middles(points)
    seen = seen_points(full)
    hips = np.where(seen[:, HIPS], full[:, HIPS, 0], np.nan)
    return np.where(
        np.isfinite(hips), hips, np.where(seen[:, SHOULDERS], full[:, SHOULDERS, 0], np.nan)
    )


@dataclass(frozen=True)
class _Move:
    """Scales by [T] about the places `before` [T, 2], and moves them to `after` [T, 2]."""

    scale: Values
    before: Values
    after: Values

    def __call__(self, points: Values) -> Values:
        away = points[..., :2] - self.before[:, None]
        places = self.after[:, None] + self.scale[:, None, None] * away
        return np.concatenate([places, points[..., 2:]], axis=-1)


def _fitted(count: int, source: Body, target: Body) -> _Move:
    """The largest copy of the source's frame that the target's holds, in its middle."""
    scale = min(target.width / source.width, target.height / source.height)
    middles = [np.full((count, 2), (body.width / 2, body.height / 2)) for body in (source, target)]
    return _Move(np.full(count, scale), *middles)


def _placed(points: Points, source: Body, target: Body, rate: float) -> _Move:
    """The source person at the place, and in the size, that the target person has there."""
    anchor = _shared_anchor(source, target)
    here = source.share(points, rate)
    there = np.full(len(points), target.usual)
    if anchor == "feet":
        follow = _follow(source, target)
        there = follow * here + (1 - follow) * there
    scale = _ratio(source, target) * target.depth(there) / source.depth(here)
    ends = [
        np.stack([np.full(len(points), body.x), body.level(anchor, share)], axis=1)
        for body, share in ((source, here), (target, there))
    ]
    return _Move(scale, *ends)


def _shared_anchor(source: Body, target: Body) -> str:
    for anchor in ANCHORS:
        if anchor in source.heights and anchor in target.heights:
            return anchor
    raise NothingFound(
        f"one clip shows only the person's {source.anchor}, the other only {target.anchor}",
        hint="use clips that both show the shoulders, or the whole person",
    )


def _follow(source: Body, target: Body) -> float:
    """How far the target goes along on the source's way towards the camera: 0 not, 1 all of it."""
    way, own = target.near - target.far, source.near - source.far
    if not own or not way:
        return 0.0
    return min(1.0, GAIN * _ratio(source, target) * own / way)


def _ratio(source: Body, target: Body) -> float:
    """The target's size over the source's, both where they usually stand."""
    shared = [bone for bone in source.bones if bone in target.bones]
    if "spine" in shared:
        shared = [bone for bone in shared if bone in STATURE]
    if not shared:
        raise NothingFound(
            "the two clips show no common part of the body long enough to compare their sizes",
            hint="use clips that both show the shoulders and arms, or the whole person",
        )
    return sum(target.bones[b] for b in shared) / sum(source.bones[b] for b in shared)


def _proportions(source: Body, target: Body) -> dict[str, float]:
    """Each bone's ratio of target to source over the whole figure's."""
    whole = _ratio(source, target)
    ratios = {}
    for bone in source.bones.keys() & target.bones.keys():
        least, most = ENDS if bone in ("hand", "foot", "head") else ODD
        ratio = target.bones[bone] / source.bones[bone] / whole
        ratios[bone] = min(max(ratio, least), most)
    usual = float(np.median(list(ratios.values())))
    return {bone: ratios.get(bone, usual) for bone in (*MEASURED, "head")}


def _reshaped(points: Values, source: Body, target: Body, rate: float) -> Values:
    """Points [T, 78, 3], already at the target's place, with the target's proportions.

    Every bone keeps its direction and its foreshortening. What hangs on a missing joint is
    missing, but for the upper body, which hangs on the hips and stands without them.
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
    # Without hips the shoulders are where they would be with them.
    lean = new[:, SHOULDERS, :2] - points[:, SHOULDERS, :2] + shift
    lean = _bridged(lean, (rooted & np.isfinite(lean).all(axis=1)).astype(np.float64))
    new[..., :2] += np.where(rooted[:, None], shift, lean)[:, None]
    return new


def _with_head(points: Values) -> Values:
    """The middle of the ears taken from what else there is of the head, where an ear is missing."""
    known = np.isfinite(points[:, HEAD, :2]).all(axis=-1, keepdims=True)
    total = np.where(known, points[:, HEAD, :2], 0.0).sum(axis=1)
    count = known.sum(axis=1)
    middle = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    points = points.copy()
    ears = points[:, EARS, :2]
    points[:, EARS, :2] = np.where(np.isfinite(ears), ears, middle)
    return points


def _grounded(straight: Values, new: Values, anchor: str, rate: float) -> Values:
    """[T, 2] the way back to where the anchor was before the bones were changed."""
    if anchor == "hips":
        return np.zeros((len(new), 2))
    if anchor == "shoulders":
        shift = straight[:, SHOULDERS, :2] - new[:, SHOULDERS, :2]
        return _bridged(shift, np.isfinite(shift).all(axis=1).astype(np.float64))
    before, after = straight[:, FEET], new[:, FEET]
    trust = np.where(np.isfinite(after).all(axis=-1), _trust(before), 0.0)
    low = _lowest(before[..., 1], trust)
    down = low - _lowest(after[..., 1], trust)
    # Sideways, the feet that carry the weight must not slide: those near the floor count.
    size = max(float(np.ptp(before[..., 1][trust > 0])) if (trust > 0).any() else 0.0, 1e-6)
    above = np.where(trust > 0, low[:, None] - before[..., 1], np.inf)
    carries = trust * np.exp(-np.maximum(above, 0) / (0.1 * size))
    away = np.where(trust > 0, before[..., 0] - after[..., 0], 0.0)
    total = carries.sum(axis=1)
    aside = np.divide(
        (carries * away).sum(axis=1), total, out=np.zeros(len(total)), where=total > 0
    )
    shift = _bridged(np.stack([aside, down], axis=1), trust.max(axis=1))
    if len(shift):
        shift[:, 0] = _calm(shift[:, 0], rate)  # or the weight would go from foot to foot at once
    return shift
