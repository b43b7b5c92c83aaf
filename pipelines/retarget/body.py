"""A body measured in the frames of a clip: bone lengths, stature, floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from v2v.errors import NothingFound
from v2v.signals.pose import HEAD, LEFT_HAND, MIN_SCORE, NAMES, POINT, RIGHT_HAND

JUMP = 0.5  # seconds: feet off the floor for longer mean motion in depth, not a jump
MIN_WIDTH = 0.4  # shoulder width over the spine: a smaller maximum means seen from the side only
SMOOTHING = 0.15  # seconds, standard deviation of the Gaussian that smooths the floor

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
    weight = trust(points[:, FEET])
    return lowest(points[:, FEET, 1], weight), weight.max(axis=1)


def trust(points: Values) -> Values:
    """Weight of points: 0 if missing or hidden, 1 if visible, continuous in between."""
    score = np.where(np.isfinite(points).all(axis=-1), points[..., 2], 0.0)
    trust: Values = ((score - HIDDEN_SCORE) / (MIN_SCORE - HIDDEN_SCORE)).clip(0, 1)
    return trust


def lowest(y: Values, trust: Values) -> Values:
    """[T] largest y of [T, N], with a penalty on points of low weight; NaN if there is none."""
    spread = float(np.nanmax(y) - np.nanmin(y)) if np.isfinite(y).any() else 0.0
    best = trust.max(axis=1, keepdims=True)
    doubt = 1 - np.divide(trust, best, out=np.zeros_like(trust), where=best > 0)
    counts = np.where(trust > 0, y - doubt * spread, -np.inf).max(axis=1)
    return np.where(np.isfinite(counts), counts, np.nan)


def _floor(lowest: Values, trust: Values, rate: float) -> Values:
    """[T] y of the floor under the person: that of the feet, without steps and jumps."""
    floor = np.median(_windows(interpolated(lowest, trust), 3), axis=1)
    jump = round(JUMP * rate / 2)
    floor = _windows(_windows(floor, jump).max(axis=1), jump).min(axis=1)
    return smooth(floor, rate)


def smooth(values: Values, rate: float) -> Values:
    """[T] the values smoothed by a Gaussian with standard deviation `SMOOTHING`."""
    reach = max(round(3 * SMOOTHING * rate), 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(SMOOTHING * rate, 1e-3)) ** 2)
    smooth: Values = _windows(values, reach) @ (weights / weights.sum())
    return smooth


def _windows(values: Values, reach: int) -> Values:
    """[T, 2 reach + 1] each value with its neighbours; the ends are padded by repetition."""
    return sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)


def interpolated(values: Values, trust: Values) -> Values:
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
