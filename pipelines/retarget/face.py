"""Retarget the motion of a driver's face to a target's face, as landmarks. Pure numpy.

Every frame is decomposed into the head's rotation, position and size, and the canonical shape: the
mesh seen from the front, in units of the distance between the outer eye corners. The driver's
motion relative to its neutral frame is added to the target's neutral frame, as in LivePortrait
(arXiv 2407.03168), each part of the face at its own scale (Everybody's Talkin', and Deep Video
Portraits, arXiv 1805.11714, for the separation of the parts):

    rotation     R' = (R_i R_0^T)^strength R_target
    translation  t' = t_target + strength (t_i - t_0) s_target / s_0
    scale        s' = s_target (s_i / s_0)^strength
    expression   c' = c_target + strength ratio (c_i - c_0)
    points       x' = s' R' c' + t'

Eyelids and irises are separate from the expression. Their coordinate system is attached to the
corners of their eye. Every step is a continuous function of a single frame, so it adds no flicker,
and the chunks of a clip can be processed independently.

Left and right are the person's own; angles are as in `HeadPose.angles`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from v2v.errors import ConfigError, NothingFound, UnknownName
from v2v.pipelines.segments import Segment, joined
from v2v.signals.face import (
    IRISES,
    LIPS_INNER,
    LIPS_OUTER,
    MIRROR,
    NOSE_BASE,
    NOSE_BRIDGE,
    OVAL,
    POINTS,
    RIGID,
    FaceTrack,
    HeadPose,
    eye_openness,
    head_pose,
    mouth_openness,
)
from v2v.signals.face import PARTS as DRAWN

Array = NDArray[np.float64]
Indices = list[int]
# A clip: the whole track, or a function that iterates over its chunks from the start on each call.
FaceClip = FaceTrack | Callable[[], Iterable[FaceTrack]]

CHUNK = 1024  # frames processed together

# ---------------------------------------------------------------- the parts of a face


@dataclass(frozen=True)
class _Eye:
    """Points of one eye, from left to right in the image of a frontal face."""

    corners: tuple[int, int]
    upper: Indices
    lower: Indices
    iris: Indices  # the centre, then the rim

    @classmethod
    def named(cls, side: str) -> _Eye:
        rim = list(DRAWN[f"{side}_eye"][0])  # outer corner, upper lid, inner corner, lower lid
        outer, upper, inner, lower = rim[0], rim[1:8], rim[8], rim[:8:-1]
        centre, circle = IRISES[side]
        if side == "right":
            return cls((outer, inner), upper, lower, [centre, *circle])
        return cls((inner, outer), upper[::-1], lower[::-1], [centre, *circle])

    @property
    def rim(self) -> Indices:
        return [*self.corners, *self.upper, *self.lower]


EYES = {side: _Eye.named(side) for side in ("right", "left")}
MOUTH_CORNERS = (61, 291)
# Upper outer, upper inner, lower inner and lower outer lip: [4, 9], a column is one line down.
LIPS = np.array([LIPS_OUTER[1:10], LIPS_INNER[1:10], LIPS_INNER[:10:-1], LIPS_OUTER[:10:-1]])
BROWS = {side: list(DRAWN[f"{side}_brow"][0]) for side in ("right", "left")}
MIDDLE = [i for i in range(POINTS) if MIRROR[i] == i]

PARTS = ("face", "eyes", "brows", "nose", "mouth")
# The pieces of each part; each is scaled about its own centre.
_PIECES: dict[str, list[Indices]] = {
    "face": [list(OVAL)],
    "eyes": [[*eye.rim, *eye.iris] for eye in EYES.values()],
    "brows": list(BROWS.values()),
    "nose": [sorted({*NOSE_BRIDGE, *NOSE_BASE})],
    "mouth": [sorted({*LIPS_OUTER, *LIPS_INNER})],
}
_DRAWN = sorted({i for pieces in _PIECES.values() for piece in pieces for i in piece})
MIN_PART, MAX_PART = 0.7, 1.3  # scale of a part
MAX_STRENGTH = 2.0
BOUND = 2.0  # limit of the size ratio of a part between two people


def part_sizes(shape: Array) -> dict[str, Array]:
    """Size of each part of a canonical shape [478, 3] along x, y and z, [3] each.

    The sizes scale the motion, so a mouth has its width as its size in every direction (full lips
    do not open further) and the height of a brow is its distance above the eye. Depth is the least
    reliable coordinate of a mesh: its size is the geometric mean of the other two.
    """

    def gap(a: int, b: int) -> float:
        return float(np.hypot(*(shape[a, :2] - shape[b, :2])))

    def both(length: Callable[[int, int], float], a: int, b: int) -> float:
        return (length(a, b) + length(MIRROR[a], MIRROR[b])) / 2

    eye = both(gap, *EYES["right"].corners)
    brow = both(gap, 46, 55)
    above = np.mean(
        [shape[EYES[s].rim, 1].mean() - shape[BROWS[s], 1].mean() for s in ("right", "left")]
    )
    mouth = gap(*MOUTH_CORNERS)
    flat = {
        "face": (np.ptp(shape[list(OVAL), 0]), np.ptp(shape[list(OVAL), 1])),
        "eyes": (eye, eye),
        "brows": (brow, max(float(above), 0.05)),
        "nose": (gap(115, 344), gap(168, 2)),
        "mouth": (mouth, mouth),
    }
    return {name: np.array([x, y, np.sqrt(x * y)]) for name, (x, y) in flat.items()}


# ---------------------------------------------------------------- the profile of a person


@dataclass(frozen=True, eq=False)
class FaceProfile:
    """The measurements of one person in one clip: the neutral frame and the ranges of motion.

    `shape` [478, 3] is the canonical shape R^T (X - centre) / scale of the neutral frame, whose
    head pose is `rotation` [3, 3], `centre` [3] (x, y and depth in pixels) and `scale` (pixels).
    `ranges` holds the lowest and highest value of each of `MEASURES` over the clip, without the
    outermost half percent.
    """

    neutral: int
    shape: Array
    rotation: Array
    centre: Array
    scale: float
    width: int
    height: int
    ranges: Mapping[str, tuple[float, float]]

    def __repr__(self) -> str:
        return f"FaceProfile(neutral={self.neutral}, size={self.width}x{self.height})"

    @property
    def sizes(self) -> dict[str, Array]:
        return part_sizes(self.shape)

    @classmethod
    def measure(cls, clip: FaceClip, neutral: int | None = None) -> FaceProfile:
        """Measure a clip in two passes, with one chunk in memory at a time.

        Args:
            clip: a track, or a function that yields the clip's chunks in order, for clips that do
                not fit into memory: `lambda: (store.track("face", a, b) for a, b in ...)`.
            neutral: number of the neutral frame; by default it is found automatically.

        Raises:
            NothingFound: no face in the clip, or none in frame `neutral`.
            ConfigError: the clip has no frame `neutral`.
        """
        summary = _Summary.of(clip)
        count = len(summary.numbers)
        if neutral is not None and not 0 <= neutral < count:
            raise ConfigError(
                f"there is no neutral frame {neutral}: the clip has frames 0 to {count - 1}",
                hint="give a frame of the clip, or omit it to find one automatically",
            )
        seen = np.isfinite(summary.numbers[:, 0])
        if not seen.any():
            raise NothingFound(
                f"there is no face in any of the {count} frames",
                hint="the face should fill a fifth of the frame's height and look towards the"
                " camera; check the clip's preview.mp4",
            )
        if neutral is not None and not seen[neutral]:
            near = int(np.abs(np.flatnonzero(seen) - neutral).argmin())
            raise NothingFound(
                f"there is no face in frame {neutral}, which was given as the neutral frame",
                hint=f"the nearest frame with a face is {np.flatnonzero(seen)[near]};"
                " give that one, or omit it to find one automatically",
            )
        number, frame = _find_neutral(clip, summary, neutral)
        low, high = np.percentile(summary.numbers[seen], (0.5, 99.5), axis=0)
        rotation, centre, scale = _head(frame)
        return cls(
            neutral=number, shape=_canonical(frame)[0], rotation=rotation[0], centre=centre[0],
            scale=float(scale[0]), width=frame.width, height=frame.height,
            ranges={
                name: (float(a), float(b)) for name, a, b in zip(MEASURES, low, high, strict=True)
            },
        )  # fmt: skip

    @classmethod
    def remembered(
        cls,
        points: NDArray[np.float32],
        depth: NDArray[np.float32],
        width: int,
        height: int,
        neutral: int | None = None,
    ) -> FaceProfile:
        """The profile of the face in the frames that a model stores of its training clip.

        Args:
            points: [N, 478, 3] x, y, score in pixels of the stored frame; NaN without a face.
            depth: [N, 478] z in pixels.
            width, height: of the stored frame.
            neutral: as in `measure`, as an index of the N frames.
        """
        pose = head_pose(points, depth)
        track = FaceTrack(
            points, depth, np.zeros(len(points), np.bool_), pose.rotation, pose.translation,
            pose.scale, width, height,
        )  # fmt: skip
        return cls.measure(track, neutral)


# Of a long clip, only these values are kept per frame: angles in degrees, position and size in
# pixels, openness as defined by `eye_openness` and `mouth_openness`.
MEASURES = ("yaw", "pitch", "roll", "x", "y", "scale", "mouth", "right_eye", "left_eye")
_ANGLES, _MOUTH, _OPEN = slice(0, 3), 6, slice(7, 9)


def measures(track: FaceTrack) -> NDArray[np.float32]:
    """[T, 9] the `MEASURES` of each frame, NaN without a face."""
    # In a turned head the face looks narrow and the eyes wide open: measure the frontal shape.
    front = _canonical(track).astype(np.float32)
    numbers = (
        track.head.angles(), track.translation, track.scale[:, None],
        mouth_openness(front)[:, None], eye_openness(front),
    )  # fmt: skip
    return np.concatenate(numbers, axis=1)


def _chunks(clip: FaceClip) -> Iterator[FaceTrack]:
    for part in [clip] if isinstance(clip, FaceTrack) else clip():
        for start in range(0, len(part), CHUNK):
            yield part[start : start + CHUNK]


def _head(track: FaceTrack) -> tuple[Array, Array, Array]:
    """Rotation [T, 3, 3], centre [T, 3] (z is the rigid points' mean depth), and scale [T]."""
    depth = track.depth[:, list(RIGID)].astype(np.float64).mean(axis=1)
    centre = np.concatenate([track.translation, depth[:, None]], axis=1)
    return track.rotation.astype(np.float64), centre, track.scale.astype(np.float64)


def _canonical(track: FaceTrack) -> Array:
    """Canonical shapes [T, 478, 3]: the head rotated to the front, centred and scaled to 1."""
    rotation, centre, scale = _head(track)
    positions = np.concatenate([track.points[..., :2], track.depth[..., None]], axis=2)
    shapes: Array = (positions - centre[:, None]) @ rotation / scale[:, None, None]
    return shapes


# ---------------------------------------------------------------- the neutral frame

# Points that show an expression, besides eye and mouth opening: brows and corners of the mouth.
_EXPRESSIVE = [*BROWS["right"], *BROWS["left"]], list(MOUTH_CORNERS)
SPEECH, BLINK = 5, 4  # frames on each side that must be quiet as well


@dataclass(frozen=True)
class _Summary:
    """The result of the first pass over a clip of T frames."""

    numbers: NDArray[np.float32]  # [T, 9] `MEASURES`
    motion: NDArray[np.float32]  # [T] mean motion of the drawn points, in outer eye distances
    filled: NDArray[np.bool_]  # [T]
    sampled: NDArray[np.int64]  # frames, evenly spread
    shapes: Array  # [<= CHUNK, points of `_EXPRESSIVE`, 3] of the sampled frames

    @classmethod
    def of(cls, clip: FaceClip) -> _Summary:
        numbers, motion, filled = [], [], []
        sampled: list[int] = []
        shapes: list[Array] = []
        every, done = 1, 0
        last: NDArray[np.float32] | None = None
        expressive = [i for group in _EXPRESSIVE for i in group]
        for chunk in _chunks(clip):
            numbers.append(measures(chunk))
            filled.append(chunk.filled)
            positions = chunk.points[:, _DRAWN, :2]
            before = positions[:1] if last is None else last
            steps = np.diff(np.concatenate([before, positions]), axis=0)
            motion.append(np.linalg.norm(steps, axis=2).mean(axis=1) / chunk.scale)
            last = positions[-1:].copy()
            canonical = _canonical(chunk)[:, expressive]
            for i in range(-done % every, len(chunk), every):
                sampled.append(done + i)
                shapes.append(canonical[i])
            while len(sampled) > CHUNK:
                sampled, shapes, every = sampled[::2], shapes[::2], 2 * every
            done += len(chunk)
        if not numbers:
            raise NothingFound("the clip has no frames to find a face in", hint="check the clip")
        return cls(
            np.concatenate(numbers), np.concatenate(motion), np.concatenate(filled),
            np.array(sampled), np.stack(shapes),
        )  # fmt: skip


def _find_neutral(clip: FaceClip, summary: _Summary, forced: int | None) -> tuple[int, FaceTrack]:
    """Number of the neutral frame, and the frame.

    This second pass adds the distance of each frame's expression from the usual expression of the
    clip's quiet frames, which is only known after the first pass.
    """
    costs = _neutral_cost(summary)
    usual = np.zeros(summary.shapes.shape[1:])
    if forced is None:
        among = costs[summary.sampled]
        valid = np.isfinite(among)
        if valid.any():
            best = among <= np.percentile(among[valid], 20)
            usual = np.median(summary.shapes[best], axis=0)
    expressive = [i for group in _EXPRESSIVE for i in group]
    brows = len(_EXPRESSIVE[0])
    found, least, start = -1, np.inf, 0
    frame: FaceTrack | None = None
    for chunk in _chunks(clip):
        if forced is not None:
            index = forced - start
            if 0 <= index < len(chunk):
                return forced, chunk[index : index + 1]
        else:
            gaps = np.linalg.norm(_canonical(chunk)[:, expressive] - usual, axis=2)
            cost = costs[start : start + len(chunk)] + (gaps[:, :brows].mean(axis=1) / 0.03) ** 2
            cost += (gaps[:, brows:].mean(axis=1) / 0.04) ** 2
            cost = np.where(chunk.present() & np.isfinite(cost), cost, np.inf)
            if cost.min() < least or (frame is None and chunk.present().any()):
                index = int(cost.argmin() if np.isfinite(cost).any() else chunk.present().argmax())
                found, least, frame = start + index, float(cost[index]), chunk[index : index + 1]
        start += len(chunk)
    assert frame is not None, "the first pass found a face"
    return found, frame


def _neutral_cost(summary: _Summary) -> NDArray[np.float64]:
    """[T] cost of the openings, the head pose and the motion of each frame; 0 is neutral.

    A sum of squared terms, each about 1 at a just noticeable deviation: one large deviation costs
    more than several small ones. Infinite without a face.
    """
    numbers = summary.numbers.astype(np.float64)
    seen = np.isfinite(numbers[:, 0])
    mouth, eyes, angles = numbers[:, _MOUTH], numbers[:, _OPEN], numbers[:, _ANGLES]
    # Blinks are rare, so the median is the usual opening of the eyes.
    usual_eyes = np.maximum(np.nanmedian(eyes, axis=0), 1e-3) if seen.any() else np.ones(2)
    usual_head = np.nanmedian(angles, axis=0) if seen.any() else np.zeros(3)
    opening = eyes / usual_eyes
    motion = np.nan_to_num(summary.motion, nan=0.0)
    step = max(float(np.median(motion)), 0.004)
    cost = (mouth / 0.04) ** 2 + (_around(mouth, SPEECH, np.max) / 0.15) ** 2
    cost += (((opening - 1) / 0.12) ** 2).sum(axis=1)
    for side in opening.T:  # at the start or the end of a blink
        cost += (np.maximum(1 - _around(side, BLINK, np.min), 0) / 0.25) ** 2
    cost += (((angles - usual_head) / 6) ** 2).sum(axis=1) + ((angles / 15) ** 2).sum(axis=1)
    cost += (_around(motion, 2, np.max) / (3 * step)) ** 2
    cost += 4.0 * summary.filled  # interpolated, not detected
    total: NDArray[np.float64] = np.where(seen, cost, np.inf)
    return total


def _around(
    values: NDArray[np.float64] | NDArray[np.float32],
    reach: int,
    worst: Callable[..., NDArray[np.float64]],
) -> NDArray[np.float64]:
    """[T] `worst` over each frame's neighbours up to `reach` frames away; gaps are ignored."""
    # Frames without a face must not affect the result.
    ignored = -np.inf if worst is np.max else np.inf
    padded = np.pad(np.nan_to_num(values.astype(np.float64), nan=ignored), reach, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return worst(windows, axis=1)


# ---------------------------------------------------------------- the transfer


@dataclass(frozen=True)
class Strengths:
    """The strength of each kind of motion: 0 is the target's neutral, 1 the driver's motion.

    Values up to 2 exaggerate. Expression is the whole shape of the face except gaze (the irises in
    their eyes) and blink (the opening of the eyelids).
    """

    rotation: float = 1.0
    translation: float = 1.0
    scale: float = 1.0
    expression: float = 1.0
    gaze: float = 1.0
    blink: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value <= MAX_STRENGTH:
                raise ConfigError(
                    f"the strength of {field.name} is {value}",
                    hint=f"give 0 to {MAX_STRENGTH:g}: 0 keeps the target's neutral,"
                    " 1 copies the driver's motion",
                )


class FaceTransfer:
    """Applies the driver's motion to the target's face, frame by frame.

    Relative (the default): the driver's motion relative to its neutral frame is added to the
    target's neutral frame. The driver's position and size do not matter.

    Absolute: the head takes the driver's rotation, the driver's position as a fraction of the
    frame's width and height, and the driver's size as a fraction of the frame's height. The
    expression stays relative to the neutral frames: the face keeps the target's shape.

    Args:
        strengths: the strength of each kind of motion; 0 is the target's neutral in both modes.
        parts: scales of parts of the target's face, 0.7 to 1.3. Eyes, brows, nose and mouth scale
            about their own centres. "face" scales the width: fully at the oval, by half towards
            the middle line; heights do not change.

    Raises `ConfigError`, `UnknownName` for invalid parts.
    """

    def __init__(
        self,
        driver: FaceProfile,
        target: FaceProfile,
        strengths: Strengths | None = None,
        *,
        absolute: bool = False,
        parts: Mapping[str, float] | None = None,
    ) -> None:
        self.driver = driver
        self.target = target
        self.strengths = strengths or Strengths()
        self.absolute = absolute
        self.parts = _check_parts(parts or {})
        mine, theirs = target.sizes, driver.sizes
        self.ratios = {name: np.clip(mine[name] / theirs[name], 1 / BOUND, BOUND) for name in PARTS}
        near = _nearness(target.shape)
        self._ratio = near @ np.stack([self.ratios[name] for name in PARTS])  # [478, 3]
        self._narrowing = _narrowing(target.shape)
        self._reach = {
            name: [_reach(target.shape, piece) for piece in _PIECES[name]] for name in PARTS
        }

    def apply(self, chunk: FaceTrack) -> FaceTrack:
        """The target's face driven by the driver's in `chunk`, in the target's pixels.

        The result is as long as `chunk` and missing where the driver's face is missing. Each frame
        is independent of the others, so chunks may have any boundaries.
        """
        seen = chunk.present()
        count = len(chunk)
        points = np.full((count, POINTS, 3), np.nan, np.float32)
        depth = np.full((count, POINTS), np.nan, np.float32)
        rotation = np.full((count, 3, 3), np.nan, np.float32)
        translation = np.full((count, 2), np.nan, np.float32)
        scale = np.full(count, np.nan, np.float32)
        indices = np.flatnonzero(seen)
        for start in range(0, len(indices), CHUNK):
            rows = indices[start : start + CHUNK]
            frames = HeadPose(chunk.rotation[rows], chunk.translation[rows], chunk.scale[rows])
            part = FaceTrack(
                chunk.points[rows], chunk.depth[rows], chunk.filled[rows], frames.rotation,
                frames.translation, frames.scale, chunk.width, chunk.height,
            )  # fmt: skip
            turn, centre, size = self._head_pose(part)
            shapes = self._scale_parts(self._driven(_canonical(part)))
            moved = size[:, None, None] * shapes @ turn.transpose(0, 2, 1) + centre[:, None]
            points[rows, :, :2], depth[rows] = moved[..., :2], moved[..., 2]
            points[rows, :, 2] = part.points[..., 2]
            rotation[rows], translation[rows], scale[rows] = turn, centre[:, :2], size
        return FaceTrack(
            points, depth, chunk.filled.copy(), rotation, translation, scale,
            self.target.width, self.target.height,
        )  # fmt: skip

    def _head_pose(self, track: FaceTrack) -> tuple[Array, Array, Array]:
        """Rotation, centre and scale of the target's head in each frame."""
        driver, target, strengths = self.driver, self.target, self.strengths
        rotation, centre, scale = _head(track)
        pixels = target.scale / driver.scale
        if self.absolute:
            wide, high = target.width / track.width, target.height / track.height
            turned = rotation @ target.rotation.T
            shift = centre * (wide, high, pixels) - target.centre
            shift[:, 2] = (centre[:, 2] - driver.centre[2]) * pixels  # depth is always relative
            grown = scale * high / target.scale
        else:
            turned = rotation @ driver.rotation.T
            shift = (centre - driver.centre) * pixels
            grown = scale / driver.scale
        return (
            _scale_rotation(turned, strengths.rotation) @ target.rotation,
            target.centre + strengths.translation * shift,
            target.scale * grown**strengths.scale,
        )

    # ------------------------------------------------ shape

    def _driven(self, shapes: Array) -> Array:
        """The target's canonical shapes for the driver's [T, 478, 3]."""
        difference = shapes - self.driver.shape
        moved = self.target.shape + self.strengths.expression * self._ratio * difference
        moved = self._with_lips(shapes, moved)
        for eye in EYES.values():
            moved = self._with_eye(eye, shapes, moved)
        return moved

    def _with_lips(self, shapes: Array, moved: Array) -> Array:
        """Lips that close when the driver's close, and never intersect.

        Each column of `LIPS` has three distances: the upper lip, the mouth's opening and the lower
        lip. Above neutral they grow by the driver's change, below neutral they shrink in
        proportion.
        """
        driver, target = self.driver.shape[None], self.target.shape[None]
        seen, neutral, own, now = (
            _local(s, MOUTH_CORNERS, LIPS)[..., 1] for s in (shapes, driver, target, moved)
        )  # [T, 4, 9] heights in the mouth's frame
        ratio = self.ratios["mouth"][1]
        gaps, rest, mine = (np.diff(heights, axis=1) for heights in (seen, neutral, own))
        # Touching lips with noise have distances below 0: `least` bounds the ratios.
        least = 0.01
        closing = (np.maximum(mine, 0) + least) / (np.maximum(rest, 0) + least)
        change = gaps - rest
        grown = ratio * np.maximum(change, 0) + np.minimum(closing, BOUND) * np.minimum(change, 0)
        # The lips may not overlap more than the driver's own.
        floor = np.minimum(np.minimum(ratio * gaps, mine), 0)
        upper, opening, lower = np.moveaxis(
            np.maximum(mine + self.strengths.expression * grown, floor), 1, 0
        )
        middle = (now[:, 1] + now[:, 2]) / 2
        top, bottom = middle - opening / 2, middle + opening / 2
        heights = np.stack([top - upper, top, bottom, bottom + lower], axis=1)
        _, _, down = _frame(moved, MOUTH_CORNERS)
        moved = moved.copy()
        moved[:, LIPS, :2] += (heights - now)[..., None] * down[:, None, None]
        return moved

    def _with_eye(self, eye: _Eye, shapes: Array, moved: Array) -> Array:
        """Apply blink and gaze in the frame of the eye's corners, after the expression."""
        lids = np.array([eye.upper, eye.lower])
        driver, target = self.driver.shape[None], self.target.shape[None]
        ratio = float(self.ratios["eyes"][0])

        # Blink: copy the driver's opening as a fraction of its neutral opening, so that a closed
        # eye is closed at any eye size; then add the residual, the shape of the opening. Depth
        # follows, because lids slide over a ball.
        seen, neutral, own, now = (
            _local(s, eye.corners, lids)[..., 1:] for s in (shapes, driver, target, moved)
        )  # [T, 2, 7, 2] height and depth of the upper and the lower lid
        (gaps, middles), (rest, low), (mine, level) = (
            (lid[:, 1] - lid[:, 0], lid.mean(axis=1)) for lid in (seen, neutral, own)
        )
        usual = max(float(rest[..., 0].mean()), 1e-3)
        larger = float(np.clip(mine[..., 0].mean() / usual, 1 / BOUND, BOUND))
        share = gaps[..., 0].mean(axis=1)[:, None, None] / usual
        blink = self.strengths.blink
        opening = mine * np.maximum(1 + blink * (share - 1), 0)
        opening += blink * larger * (gaps - share * rest)
        floor = np.minimum(np.minimum(larger * gaps, mine), 0)  # as for the lips
        opening[..., 0] = np.maximum(opening, floor)[..., 0]
        middle = level + blink * larger * (middles - low)
        change = np.stack([middle - opening / 2, middle + opening / 2], axis=1) - now
        origin, along, down = _frame(moved, eye.corners)
        moved = moved.copy()
        moved[:, lids, :2] += change[..., :1] * down[:, None, None]
        moved[:, lids, 2] += change[..., 1]

        # Gaze: copy the offset of the iris centre from neutral in eye widths; its rim follows.
        irises = [_local(s, eye.corners, np.array(eye.iris)) for s in (shapes, driver, target)]
        for iris in irises:
            iris[:, 1:] -= iris[:, :1]
        seen_iris, neutral_iris, own_iris = irises
        change = ratio * (seen_iris - neutral_iris)
        iris = own_iris + self.strengths.gaze * change
        # The rim's shape is a detection of a circle: do not exaggerate it.
        iris[:, 1:] = own_iris[:, 1:] + min(self.strengths.gaze, 1.0) * change[:, 1:]
        iris[:, 0, :2] = self._inside(eye, iris[:, 0, :2], shapes, moved)
        iris[:, 1:] += iris[:, :1]
        moved[:, eye.iris, :2] = (
            origin[:, None, :2] + iris[..., :1] * along[:, None] + iris[..., 1:2] * down[:, None]
        )
        moved[:, eye.iris, 2] = origin[:, None, 2] + iris[..., 2]
        return moved

    def _inside(self, eye: _Eye, centre: Array, shapes: Array, moved: Array) -> Array:
        """Clamp iris centres [T, 2] (in the eye's frame) to the eye opening of `moved`.

        An iris may leave the eye as far as it does in the driver's frame or in the target's
        neutral frame: detected irises do so in a blink, and training includes that.
        """
        target = self.target.shape[None]
        ratio = float(self.ratios["eyes"][0])
        own = _local(target, eye.corners, np.array(eye.iris))[0]
        seen = _local(shapes, eye.corners, np.array(eye.iris[:1]))[:, 0]
        radius = float(np.linalg.norm(own[1:, :2] - own[0, :2], axis=1).mean())
        corners = moved[:, eye.corners[1], :2] - moved[:, eye.corners[0], :2]
        widest = np.maximum(np.linalg.norm(corners, axis=1) / 2 - radius, abs(own[0, 0]))
        widest = np.maximum(widest, ratio * np.abs(seen[:, 0]))
        across = np.clip(centre[:, 0], -widest, widest)

        upper, lower = _lids_at(moved, eye, across)
        above, below = (ratio * v for v in _outside_lids(shapes, eye, seen[:, :2]))
        own_above, own_below = _outside_lids(target, eye, own[:1, :2])
        top = np.minimum(upper, lower) - np.maximum(above, own_above)
        bottom = np.maximum(upper, lower) + np.maximum(below, own_below)
        return np.stack([across, np.clip(centre[:, 1], top, bottom)], axis=1)

    def _scale_parts(self, shapes: Array) -> Array:
        """Scale the parts of the target's face."""
        if not self.parts:
            return shapes
        scaled = shapes.copy()
        for name in PARTS[1:]:
            growth = self.parts.get(name, 1.0) - 1
            for piece, reach in zip(_PIECES[name], self._reach[name], strict=True):
                centre = shapes[:, piece].mean(axis=1, keepdims=True)
                scaled += growth * reach[:, None] * (shapes - centre)
        middle = self.target.shape[MIDDLE, 0].mean()
        shift = (self.parts.get("face", 1.0) - 1) * self._narrowing * (scaled[..., 0] - middle)
        for eye in EYES.values():  # keep the iris round
            shift[:, eye.iris] = shift[:, eye.iris[:1]]
        scaled[..., 0] += shift
        return scaled


def _check_parts(parts: Mapping[str, float]) -> dict[str, float]:
    for name, value in parts.items():
        if name not in PARTS:
            raise UnknownName.among("face part", name, PARTS)
        if not MIN_PART <= value <= MAX_PART:
            raise ConfigError(
                f"the size of {name} is {value}",
                hint=f"give {MIN_PART} to {MAX_PART}: below 1 is smaller (for face:"
                " slimmer), 1 is unchanged, above 1 is larger",
            )
    return {name: float(value) for name, value in parts.items() if value != 1}


def _scale_rotation(rotation: Array, strength: float) -> Array:
    """Rotations [T, 3, 3] about the same axes, by `strength` times the angle (Rodrigues)."""
    skew = (rotation - rotation.transpose(0, 2, 1)) / 2
    axis = np.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], axis=1)
    sine = np.linalg.norm(axis, axis=1)
    angle = np.arctan2(sine, (np.trace(rotation, axis1=1, axis2=2) - 1) / 2)
    unit = skew / np.maximum(sine, 1e-12)[:, None, None]
    angle = (strength * angle)[:, None, None]
    turned: Array = np.eye(3) + np.sin(angle) * unit + (1 - np.cos(angle)) * unit @ unit
    return turned


# ---------------------------------------------------------------- geometry of canonical shapes


def _frame(shapes: Array, corners: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Midpoint [T, 3] of two corners, and unit vectors [T, 2] along and down from their line."""
    left, right = shapes[:, corners[0]], shapes[:, corners[1]]
    along = right[:, :2] - left[:, :2]
    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-6)
    down = np.stack([-along[:, 1], along[:, 0]], axis=1)
    middle: Array = (left + right) / 2
    return middle, along, down


def _local(shapes: Array, corners: tuple[int, int], points: NDArray[np.int64]) -> Array:
    """Points [T, ..., 3] in the corners' frame: along their line, down from it, and depth."""
    origin, along, down = _frame(shapes, corners)
    positions = shapes[:, points.ravel()] - origin[:, None]
    u = (positions[..., :2] * along[:, None]).sum(axis=-1)
    v = (positions[..., :2] * down[:, None]).sum(axis=-1)
    local: Array = np.stack([u, v, positions[..., 2]], axis=-1)
    return local.reshape(len(shapes), *points.shape, 3)


def _lids_at(shapes: Array, eye: _Eye, across: Array) -> tuple[Array, Array]:
    """Heights [T] of the upper and the lower lid at `across` [T], in the eye's frame."""
    first, last = eye.corners
    lids = np.array([[first, *eye.upper, last], [first, *eye.lower, last]])
    curves = _local(shapes, eye.corners, lids)
    upper, lower = (
        np.array(
            [np.interp(x, c[:, 0], c[:, 1]) for x, c in zip(across, curves[:, i], strict=True)]
        )
        for i in (0, 1)
    )
    return upper, lower


def _outside_lids(shapes: Array, eye: _Eye, centre: Array) -> tuple[Array, Array]:
    """[T] distance of iris centres [T, 2] above the upper and below the lower lid, or 0."""
    upper, lower = _lids_at(shapes, eye, centre[:, 0])
    top, bottom = np.minimum(upper, lower), np.maximum(upper, lower)
    return np.maximum(top - centre[:, 1], 0), np.maximum(centre[:, 1] - bottom, 0)


def _distances(shape: Array, points: Indices) -> Array:
    """[478] distance from each point to the nearest of `points`."""
    distances = np.linalg.norm(shape[:, None] - shape[points][None], axis=2)
    nearest: Array = distances.min(axis=1)
    return nearest


def _nearness(shape: Array) -> Array:
    """[478, 5] weight of each point in each of `PARTS`; rows add up to 1.

    A drawn point belongs only to its part; other points are weighted by inverse squared distance.
    """
    pieces = [[i for piece in _PIECES[name] for i in piece] for name in PARTS]
    near = np.stack([1 / np.maximum(_distances(shape, p), 1e-3) ** 2 for p in pieces], axis=1)
    for column, points in enumerate(pieces):
        near[points] = np.eye(len(PARTS))[column]
    shares: Array = near / near.sum(axis=1, keepdims=True)
    return shares


def _reach(shape: Array, piece: Indices) -> Array:
    """[478] 1 on a piece's points, falling off around it, 0 on the other drawn points."""
    reach: Array = np.exp(-((_distances(shape, piece) / 0.1) ** 2))
    reach[_DRAWN] = 0
    reach[piece] = 1
    return reach


def _narrowing(shape: Array) -> Array:
    """[478] weight of the oval's narrowing at each point: 1 on the oval, 0.5 on the middle line.

    In between, it grows with the square of the distance, so that no points change their order.
    """
    middle = shape[MIDDLE, 0].mean()
    share = np.empty(POINTS)
    half = len(OVAL) // 2
    right, left = OVAL[: half + 1], (OVAL[0], *OVAL[: half - 1 : -1])  # both from the top down
    for side, oval in ((shape[:, 0] < middle, right), (shape[:, 0] >= middle, left)):
        down = np.maximum.accumulate(shape[list(oval), 1])
        out = np.abs(shape[list(oval), 0] - middle)
        width = np.maximum(np.interp(shape[side, 1], down, out), 1e-3)
        share[side] = np.minimum(np.abs(shape[side, 0] - middle) / width, 1)
    share = 0.5 + 0.5 * share**2
    share[list(OVAL)] = 1
    return share


# ---------------------------------------------------------------- out of distribution


DEGREES, SHARE = 5.0, 0.1  # tolerance beyond the range of training
SHORTEST = 0.3  # seconds


def out_of_distribution(moved: FaceClip, target: FaceProfile, rate: float) -> list[Segment]:
    """The segments in which the transferred face leaves the range of the target's training clip.

    The tolerance is 5 degrees for angles, 10 percent of the frame for the position, 10 percent for
    the size, and 10 percent of the maximum for the openness. Segments less than 0.3 s apart are
    merged; segments with less than 0.3 s outside the range are dropped.

    Args:
        moved: the result of `FaceTransfer.apply`, whole or in chunks.
        rate: frames per second.
    """
    numbers = np.concatenate([measures(chunk) for chunk in _chunks(moved)])
    shortest = max(round(SHORTEST * rate), 1)
    found = []
    for kind, names in _KINDS.items():
        values = numbers[:, [MEASURES.index(name) for name in names]]
        low, high = np.array([target.ranges[name] for name in names]).T
        margin = _margin(kind, high, target)
        for sign, limit in ((-1, low), (1, high)):
            with np.errstate(invalid="ignore"):
                beyond = np.nan_to_num(sign * (values - limit), nan=-np.inf)
            for start, stop in joined((beyond > margin).any(axis=1), shortest):
                frame, side = divmod(int(beyond[start:stop].argmax()), len(names))
                what = _format(kind, float(values[start + frame, side]), float(limit[side]), target)
                found.append(Segment(start, stop, *what))
    return sorted(found, key=lambda segment: (segment.start, segment.stop))


# Measures that are reported together: both eyes are one kind.
_KINDS = {name: (name,) for name in MEASURES[:7]} | {"eye": MEASURES[7:]}


def _margin(kind: str, high: Array, target: FaceProfile) -> Array | float:
    if kind in _DIRECTIONS:
        return DEGREES
    if kind in _POSITIONS:
        return SHARE * (target.width if kind == "x" else target.height)
    return SHARE * high


# For angles: verb, advice, and the directions of positive and negative values.
_DIRECTIONS = {
    "yaw": ("turns", "turning the head", "to the left", "to the right"),
    "pitch": ("nods", "nodding", "down", "up"),
    "roll": ("tilts", "tilting the head", "to the left", "to the right"),
}
_POSITIONS = {"x": ("width", "right", "left"), "y": ("height", "bottom", "top")}


def _format(kind: str, value: float, limit: float, target: FaceProfile) -> tuple[str, str]:
    """Describe a segment, and what to film to cover it."""
    more = value > limit
    if kind in _DIRECTIONS:
        verb, doing, positive, negative = _DIRECTIONS[kind]
        direction = positive if more else negative
        reached, trained = (f"{abs(angle):.0f} degrees" for angle in (value, limit))
        same_direction = (limit >= 0) == (value >= 0)
        suffix = "" if same_direction else f" {positive if limit >= 0 else negative}"
        actual = positive if value >= 0 else negative
        what = f"the head {verb} {reached} {actual}, training went to {trained}{suffix}"
        return what, f"film yourself {doing} further {direction}"
    if kind in _POSITIONS:
        side, high, low = _POSITIONS[kind]
        whole = target.width if kind == "x" else target.height
        edge = high if more else low
        what = (
            f"the face is at {value / whole:.0%} of the frame's {side},"
            f" training went to {limit / whole:.0%}"
        )
        return what, f"film yourself closer to the {edge} of the frame"
    if kind == "scale":
        end, where = ("largest", "closer to") if more else ("smallest", "farther from")
        return (
            f"the face is {value / limit:.2f} times the {end} size in training",
            f"film yourself {where} the camera",
        )
    which, yours = ("an eye", "your eyes") if kind == "eye" else ("the mouth", "your mouth")
    what = (
        f"{which} {'opens' if more else 'closes'} to {value:.2f} of its width,"
        f" training went to {limit:.2f}"
    )
    advice = f"opening {yours} wider" if more else f"closing {yours}"
    return what, f"film yourself {advice}"
