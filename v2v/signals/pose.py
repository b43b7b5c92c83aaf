"""Human pose: 33 body points and 21 points per hand, drawn as coloured limbs.

The body points are BlazePose's (arXiv 2006.10204), the hand points those of MediaPipe Hands
(arXiv 2006.10214). Left and right are the person's own.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.pixels import planes
from v2v.signals import landmarks as marks
from v2v.signals.arrays import Layout
from v2v.signals.base import Track
from v2v.signals.landmarks import Colour, Landmarks
from v2v.signals.parts import Part
from v2v.signals.traits import ReferenceSignal

if TYPE_CHECKING:
    import torch

BODY = (
    "nose",
    "left_eye_inner", "left_eye", "left_eye_outer",
    "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_foot", "right_foot",
)  # fmt: skip
HAND = ("wrist",) + tuple(
    f"{finger}_{joint}"
    for finger in ("thumb", "index", "middle", "ring", "pinky")
    for joint in range(1, 5)
)
NAMES = (*BODY, *(f"left_hand_{n}" for n in HAND), *(f"right_hand_{n}" for n in HAND))
POINT = {name: i for i, name in enumerate(NAMES)}
LEFT_HAND, RIGHT_HAND = slice(33, 54), slice(54, 75)
HEAD = slice(0, 11)

MIN_SCORE = 0.5  # below it a point is only estimated: occluded or outside the picture
GUESSED = 0.2  # below it a point is unusable


def _twin(name: str) -> str:
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(word, word) for word in name.split("_"))


MIRROR = tuple(POINT[_twin(name)] for name in NAMES)


def _hue(degrees: float, value: float = 1.0) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(degrees / 360, 0.85, value)
    return round(255 * r), round(255 * g), round(255 * b)


def _limbs() -> tuple[tuple[str, str, Colour], ...]:
    """Limbs in drawing order: warm colours on the right side, cool ones on the left."""
    limbs: list[tuple[str, str, Colour]] = [
        ("left_shoulder", "right_shoulder", _hue(60)),
        ("left_hip", "right_hip", _hue(75)),
    ]
    for side, start in (("right", 0), ("left", 180)):
        chain = ["shoulder", "hip", "knee", "ankle", "foot"]
        for i, (a, b) in enumerate(zip(chain, chain[1:], strict=False)):
            limbs.append((f"{side}_{a}", f"{side}_{b}", _hue(start + 12 * i, 1 - 0.1 * i)))
        limbs.append((f"{side}_ankle", f"{side}_heel", _hue(start + 40, 0.6)))
        arm = ["shoulder", "elbow", "wrist"]
        for i, (a, b) in enumerate(zip(arm, arm[1:], strict=False)):
            limbs.append((f"{side}_{a}", f"{side}_{b}", _hue(start - 20 - 16 * i)))
        limbs.append((f"{side}_wrist", f"{side}_index", _hue(start - 50, 0.8)))
    return tuple(limbs)


LIMBS = _limbs()
FACE_LINES = (
    (("right_ear", "right_eye_outer", "right_eye", "right_eye_inner", "nose"), _hue(300)),
    (("left_ear", "left_eye_outer", "left_eye", "left_eye_inner", "nose"), _hue(270)),
    (("mouth_right", "mouth_left"), _hue(320)),
)
FINGERS = tuple((0, *range(1 + 4 * f, 5 + 4 * f)) for f in range(5))
LIMB_GROUPS = {  # points that are dropped together in training
    **{
        f"{side}_{part}": tuple(POINT[f"{side}_{name}"] for name in names)
        for side in ("left", "right")
        for part, names in {
            "arm": ("elbow", "wrist", "pinky", "index", "thumb"),
            "leg": ("knee", "ankle", "heel", "foot"),
        }.items()
    },
    "left_hand": tuple(range(33, 54)),
    "right_hand": tuple(range(54, 75)),
    "face": tuple(range(11)),
}


def _jitter_leaders() -> NDArray[np.intp]:
    """[75] the point whose jitter each point shares, so that limbs stay connected."""
    leader = np.arange(len(NAMES))
    leader[HEAD] = POINT["nose"]
    for side, hand in (("left", LEFT_HAND), ("right", RIGHT_HAND)):
        wrist = POINT[f"{side}_wrist"]
        leader[hand] = wrist
        leader[[POINT[f"{side}_{name}"] for name in ("pinky", "index", "thumb")]] = wrist
    return leader


_JITTER_LEADERS = _jitter_leaders()


# Number and radius of the control points along each bone; radii in torso lengths, tuned so that
# the dense motion follows the body best.
BONES = (
    ("shoulder", "elbow", 6, 0.12), ("elbow", "wrist", 6, 0.10), ("wrist", "index", 3, 0.09),
    ("hip", "knee", 7, 0.16), ("knee", "ankle", 7, 0.13),
    ("ankle", "foot", 3, 0.09), ("ankle", "heel", 2, 0.09),
)  # fmt: skip


def _control_points() -> list[marks.ControlPoint]:
    """157 points along the bones, over the torso, on the head and the hands."""
    found: list[marks.ControlPoint] = []
    for side in ("left", "right"):
        for start, stop, count, radius in BONES:
            for fraction in (np.arange(count) + 0.5) / count:
                ends = POINT[f"{side}_{start}"], POINT[f"{side}_{stop}"]
                found.append(({ends[0]: 1 - fraction, ends[1]: fraction}, radius))
    torso = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    corners = [POINT[name] for name in torso]
    for vertical in np.linspace(0, 1, 7):
        for horizontal in np.linspace(0, 1, 5):
            weights = np.outer([1 - vertical, vertical], [1 - horizontal, horizontal]).ravel()
            # Leave out corners of weight 0: the shoulder row must not need the hips.
            found.append(({c: s for c, s in zip(corners, weights, strict=True) if s}, 0.15))
    found += [({point: 1.0}, 0.19) for point in range(HEAD.start, HEAD.stop)]
    # The crown, as far above the ears as the mouth is below them.
    ears, mouth = ("left_ear", "right_ear"), ("mouth_left", "mouth_right")
    found.append(({**{POINT[e]: 1.0 for e in ears}, **{POINT[m]: -0.5 for m in mouth}}, 0.22))
    found += [({point: 1.0}, 0.05) for point in range(LEFT_HAND.start, RIGHT_HAND.stop)]
    return found


_CONTROL_POINTS = marks.control_point_matrix(_control_points(), len(NAMES))
# Estimates of the body size: distances with their length in torso lengths. Foreshortening makes an
# estimate too small, so the largest is used.
_SIZE_ESTIMATES = tuple(
    (tuple(POINT[n] for n in a), tuple(POINT[n] for n in b), length)
    for a, b, length in (
        (("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"), 1.0),
        (("left_shoulder",), ("right_shoulder",), 0.75),
        (("left_ear", "right_ear"), ("left_shoulder", "right_shoulder"), 0.5),
    )
)


# Points between the named ones, as ends of the regions of parts.
_INTERPOLATED_POINTS = marks.control_point_matrix(
    [
        *(({POINT[f"{side}_hip"]: 1 - t, POINT[f"{side}_knee"]: t}, 1.0)
          for t in (0.55, 0.7) for side in ("left", "right")),
        # The crown, as far above the ears as the mouth is below them; the neck, below the mouth.
        ({7: 1.0, 8: 1.0, 9: -0.5, 10: -0.5}, 1.0),
        ({7: 0.1, 8: 0.1, 9: 0.1, 10: 0.1, 11: 0.3, 12: 0.3}, 1.0),
        # Between the shoulders.
        ({11: 0.5, 12: 0.5}, 1.0),
    ],
    len(NAMES),
)  # fmt: skip
_SKIRT_LEFT, _SKIRT_RIGHT, _LEG_LEFT, _LEG_RIGHT, _CROWN, _NECK_POINT, _CHEST = (
    len(NAMES) + i for i in range(7)
)


def _parts() -> tuple[Part, ...]:
    """From back to front: legs, skirt or trousers, neck, torso, head, arms, hands."""
    p, sides = POINT, ("left", "right")
    found: list[Part] = []

    def limb(side: str, start: str, stop: str, radius: float, *beside: str) -> None:
        ends = (p[f"{side}_{start}"], p[f"{side}_{stop}"])
        others = tuple(p[f"{side}_{name}"] for name in beside)
        found.append(Part(f"{side}_{start}", ends, (ends,), radius, compare=others, motion="bone"))

    for side in sides:
        limb(side, "knee", "ankle", 0.14, "hip", "heel", "foot")
    for side in sides:
        ankle, heel, toe = (p[f"{side}_{name}"] for name in ("ankle", "heel", "foot"))
        bones = ((ankle, toe), (ankle, heel))
        found.append(
            Part(f"{side}_foot", (ankle, heel, toe), bones, 0.12, compare=(p[f"{side}_knee"],))
        )
    for side, start in zip(sides, (_LEG_LEFT, _LEG_RIGHT), strict=True):
        hip, knee = p[f"{side}_hip"], p[f"{side}_knee"]
        found.append(
            Part(
                f"{side}_thigh", (hip, knee), ((start, knee),), 0.15, reach=1.7,
                compare=(p[f"{side}_ankle"],), motion="bone", group="skirt",
            )
        )  # fmt: skip
    left_hip, right_hip = p["left_hip"], p["right_hip"]
    left_shoulder, right_shoulder = p["left_shoulder"], p["right_shoulder"]
    found.append(
        Part(
            "hips", (left_hip, right_hip, p["left_knee"], p["right_knee"]),
            (
                (left_hip, right_hip), (left_hip, _SKIRT_LEFT), (right_hip, _SKIRT_RIGHT),
                (_SKIRT_LEFT, _SKIRT_RIGHT), (left_hip, _SKIRT_RIGHT), (right_hip, _SKIRT_LEFT),
            ),
            0.15, reach=4.0, compare=(left_shoulder, right_shoulder),
            motion="affine", group="skirt",
        )
    )  # fmt: skip
    found.append(
        Part(
            "neck", (_NECK_POINT, _CHEST), ((_NECK_POINT, _CHEST),), 0.1, reach=1.2, under=True,
            compare=(left_shoulder, right_shoulder), motion="bone", group="head",
        )
    )  # fmt: skip
    found.append(
        Part(
            "torso", (left_shoulder, right_shoulder, left_hip, right_hip),
            (
                (left_shoulder, right_shoulder), (left_shoulder, left_hip),
                (right_shoulder, right_hip), (left_shoulder, right_hip),
                (right_shoulder, left_hip),
            ),
            0.15, reach=4.4, compare=(p["left_elbow"], p["right_elbow"]), motion="affine",
        )
    )  # fmt: skip
    found.append(
        Part(
            "head", tuple(range(HEAD.start, HEAD.stop)),
            (
                (7, 8), (0, 9), (0, 10), (7, 9), (8, 10), (_CROWN, 0), (_CROWN, 7), (_CROWN, 8),
                (9, _NECK_POINT), (10, _NECK_POINT),
            ),
            0.18, reach=2.5, compare=(left_shoulder, right_shoulder),
            base=(left_shoulder, right_shoulder), group="head",
        )
    )  # fmt: skip
    for side in sides:
        limb(side, "shoulder", "elbow", 0.15, "wrist", "hip")
    for side in sides:
        limb(side, "elbow", "wrist", 0.10, "shoulder", "index")
    for side, hand in zip(sides, (LEFT_HAND, RIGHT_HAND), strict=True):
        coarse = tuple(p[f"{side}_{name}"] for name in ("wrist", "index", "pinky", "thumb"))
        fine = tuple(range(hand.start, hand.stop))
        fingers = tuple((fine[0], fine[tip]) for tip in (4, 5, 8, 12, 16, 17, 20))
        found.append(
            Part(
                f"{side}_hand", coarse + fine,
                tuple((coarse[0], end) for end in coarse[1:]) + fingers,
                0.06, compare=(p[f"{side}_elbow"],),
            )
        )  # fmt: skip
    return tuple(found)


PARTS = _parts()


@dataclass(frozen=True)
class PoseTrack(Track):
    """T frames of pose: `points` [T, 75, 3]; `filled` [T, 75] is true for interpolated gaps."""

    points: Landmarks
    filled: NDArray[np.bool_]
    width: int
    height: int
    regions: ClassVar[tuple[str, ...]] = ("face", "left_hand", "right_hand")
    parts: ClassVar[tuple[Part, ...]] = PARTS
    per_frame: ClassVar[tuple[str, ...]] = ("points", "filled")

    def __post_init__(self) -> None:
        assert self.points.shape == (*self.filled.shape, 3), (self.points.shape, self.filled.shape)
        assert self.points.shape[1] == len(NAMES), self.points.shape

    def __repr__(self) -> str:
        return f"PoseTrack(frames={len(self)}, points=75, size={self.width}x{self.height})"

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: slice) -> Self:
        return replace(self, points=self.points[index], filled=self.filled[index])

    def scaled(self, width: int, height: int) -> Self:
        points = marks.scaled(self.points, width / self.width, height / self.height)
        return replace(self, points=points, width=width, height=height)

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        return replace(self, points=marks.moved(self.points, -x, -y), width=width, height=height)

    def flipped(self) -> Self:
        points = marks.flipped(self.points, self.width, MIRROR)
        return replace(self, points=points, filled=self.filled[:, MIRROR])

    def dropped(self, generator: np.random.Generator, probability: float = 0.05) -> Self:
        """Drop each limb, each hand and the face with `probability`, as detectors do."""
        points = self.points.copy()
        for group in LIMB_GROUPS.values():
            lost = generator.random(len(points)) < probability
            points[np.flatnonzero(lost)[:, None], list(group)] = np.nan
        return replace(self, points=points)

    def jittered(self, generator: np.random.Generator, sigma: float) -> Self:
        """Add noise of `sigma` pixels; hands move with their wrists, the face as a whole."""
        offsets = marks.jitter(generator, len(self), len(NAMES), sigma)[:, _JITTER_LEADERS]
        points = self.points.copy()
        points[..., :2] += offsets
        return replace(self, points=points)

    def present(self) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            seen: NDArray[np.bool_] = (self.points[:, list(_JOINTS), 2] >= MIN_SCORE).any(axis=1)
        return seen

    def boxes(self) -> NDArray[np.float32]:
        # The face points do not include hair and chin, so its box grows more.
        parts = ((HEAD, 6, 1.8), (LEFT_HAND, 21, 1.5), (RIGHT_HAND, 21, 1.5))
        found = [
            marks.squares(self.points[:, part], least=least, min_score=MIN_SCORE, grow=grow)
            for part, least, grow in parts
        ]
        return np.stack(found, axis=1)

    def _seen(self, least: float = MIN_SCORE) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            found: NDArray[np.bool_] = self.points[..., 2] >= least
        found &= np.isfinite(self.points[..., :2]).all(axis=-1)
        return found

    def body_size(self) -> NDArray[np.float32]:
        places, seen = self.points[..., :2], self._seen()
        size = np.full(len(self), np.nan, np.float32)
        for a, b, length in _SIZE_ESTIMATES:
            visible = seen[:, [*a, *b]].all(axis=1)
            offset = places[visible][:, a].mean(axis=1) - places[visible][:, b].mean(axis=1)
            size[visible] = np.fmax(size[visible], np.linalg.norm(offset, axis=1) / length)
        return size

    def control_points(self) -> NDArray[np.float32]:
        return marks.control_points(self.points, self._seen(), self.body_size(), _CONTROL_POINTS)

    def part_points(self) -> NDArray[np.float32]:
        # A rough estimate of a hidden point is better for the motion of its limb than no point.
        seen, one = self._seen(GUESSED), np.ones(len(self), np.float32)
        places = np.where(seen[..., None], self.points[..., :2], np.float32(np.nan))
        between = marks.control_points(self.points, seen, one, _INTERPOLATED_POINTS)[..., :2]
        return np.concatenate([places, between], axis=1)

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        height, width = height or self.height, width or self.width
        track = self.scaled(width, height)
        canvas = np.zeros((len(self), height, width, 3), np.uint8)
        for points, image in zip(track.points, canvas, strict=True):
            draw_pose(image, points)
        return canvas

    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """The drawing, RGB in [-1, 1], float32 [T, 3, height, width]."""
        import torch

        return torch.from_numpy(planes(self.draw(height, width)))


def draw_pose(canvas: NDArray[np.uint8], points: NDArray[np.float32]) -> None:
    """Draw one skeleton [75, 3] onto `canvas` (RGB uint8 [H, W, 3]), in place.

    Limbs are 6 pixels wide at 512 and scale with the shorter side; lines of hands and face have a
    third of that width. Lines to points that are missing or score below `MIN_SCORE` are left out.
    """
    size = min(canvas.shape[:2])
    limb = max(round(size * 6 / 512), 1)
    thin = max(round(size * 2 / 512), 1)
    with np.errstate(invalid="ignore"):
        seen = points[:, 2] >= MIN_SCORE
    places = marks.fixed_point(np.nan_to_num(points[:, :2]))

    ends = [POINT[n] for n in ("left_shoulder", "right_shoulder", "left_ear", "right_ear")]
    if seen[ends].all():  # the neck, from between the shoulders to between the ears
        neck = np.stack([places[ends[:2]].mean(0), places[ends[2:]].mean(0)]).astype(np.int32)
        marks.polyline(canvas, neck, _NECK, limb, False)
    for start, stop, colour in _LIMB_INDICES:
        if seen[start] and seen[stop]:
            marks.polyline(canvas, places[[start, stop]], colour, limb, False)
    for line, colour in _FACE_INDICES:
        if seen[line].all():
            marks.polyline(canvas, places[line], colour, thin, False)
    for hand in (LEFT_HAND, RIGHT_HAND):
        if seen[hand].all():
            for finger, colour in zip(FINGERS, _FINGER_COLOURS[hand.start], strict=True):
                marks.polyline(canvas, places[hand][list(finger)], colour, thin, False)
    for point in _JOINTS:
        if seen[point]:
            x, y = places[point]
            cv2.circle(
                canvas, (int(x), int(y)), limb << (marks.SHIFT - 1), (255, 255, 255), -1,
                cv2.LINE_AA, marks.SHIFT,
            )  # fmt: skip


_NECK = _hue(48)
_LIMB_INDICES = tuple((POINT[a], POINT[b], colour) for a, b, colour in LIMBS)
_FACE_INDICES = tuple(([POINT[n] for n in names], colour) for names, colour in FACE_LINES)
_FINGER_COLOURS = {
    LEFT_HAND.start: [_hue(150 + 18 * f) for f in range(5)],
    RIGHT_HAND.start: [_hue(330 + 18 * f) for f in range(5)],
}
_JOINTS = tuple(
    POINT[f"{side}_{name}"]
    for side in ("left", "right")
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
)


class Pose(ReferenceSignal):
    name: ClassVar[str] = "pose"
    files: ClassVar[tuple[str, ...]] = ("pose.npz",)
    reference_count: ClassVar[int] = 16
    warped_by: ClassVar[Literal["parts", "dense"]] = "parts"
    layout: ClassVar[Layout] = {
        "points": ("float32", (len(NAMES), 3)),
        "filled": ("bool", (len(NAMES),)),
    }

    def assemble(self, arrays: dict[str, Any], *, width: int, height: int) -> PoseTrack:
        own = {name: arrays[name] for name in self.layout}
        return PoseTrack(**own, width=width, height=height)

    def channels(self, spec: dict[str, Any]) -> int:
        return 3


SIGNAL = Pose()
