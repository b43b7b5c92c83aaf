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

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from scipy.spatial.transform import Rotation

from v2v.errors import ConfigError, UnknownName
from v2v.pipelines.retarget.face_parts import (
    EYES,
    LIPS,
    MIDDLE,
    MOUTH_CORNERS,
    PARTS,
    PIECES,
    Array,
    Eye,
    corner_frame,
    in_corner_frame,
    lids_at,
    narrowing,
    nearness,
    outside_lids,
    reach_of,
)
from v2v.pipelines.retarget.face_profile import CHUNK, FaceProfile, canonical, head_of
from v2v.signals.face import POINTS, FaceTrack, HeadPose

MIN_PART, MAX_PART = 0.7, 1.3  # scale of a part
MAX_STRENGTH = 2.0
BOUND = 2.0  # limit of the size ratio of a part between two people


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
        near = nearness(target.shape)
        self._ratio = near @ np.stack([self.ratios[name] for name in PARTS])  # [478, 3]
        self._narrowing = narrowing(target.shape)
        self._reach = {
            name: [reach_of(target.shape, piece) for piece in PIECES[name]] for name in PARTS
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
            shapes = self._scale_parts(self._driven(canonical(part)))
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
        rotation, centre, scale = head_of(track)
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
            in_corner_frame(s, MOUTH_CORNERS, LIPS)[..., 1] for s in (shapes, driver, target, moved)
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
        _, _, down = corner_frame(moved, MOUTH_CORNERS)
        moved = moved.copy()
        moved[:, LIPS, :2] += (heights - now)[..., None] * down[:, None, None]
        return moved

    def _with_eye(self, eye: Eye, shapes: Array, moved: Array) -> Array:
        """Apply blink and gaze in the frame of the eye's corners, after the expression."""
        lids = np.array([eye.upper, eye.lower])
        driver, target = self.driver.shape[None], self.target.shape[None]
        ratio = float(self.ratios["eyes"][0])

        # Blink: copy the driver's opening as a fraction of its neutral opening, so that a closed
        # eye is closed at any eye size; then add the residual, the shape of the opening. Depth
        # follows, because lids slide over a ball.
        seen, neutral, own, now = (
            in_corner_frame(s, eye.corners, lids)[..., 1:] for s in (shapes, driver, target, moved)
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
        origin, along, down = corner_frame(moved, eye.corners)
        moved = moved.copy()
        moved[:, lids, :2] += change[..., :1] * down[:, None, None]
        moved[:, lids, 2] += change[..., 1]

        # Gaze: copy the offset of the iris centre from neutral in eye widths; its rim follows.
        irises = [
            in_corner_frame(s, eye.corners, np.array(eye.iris)) for s in (shapes, driver, target)
        ]
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

    def _inside(self, eye: Eye, centre: Array, shapes: Array, moved: Array) -> Array:
        """Clamp iris centres [T, 2] (in the eye's frame) to the eye opening of `moved`.

        An iris may leave the eye as far as it does in the driver's frame or in the target's
        neutral frame: detected irises do so in a blink, and training includes that.
        """
        target = self.target.shape[None]
        ratio = float(self.ratios["eyes"][0])
        own = in_corner_frame(target, eye.corners, np.array(eye.iris))[0]
        seen = in_corner_frame(shapes, eye.corners, np.array(eye.iris[:1]))[:, 0]
        radius = float(np.linalg.norm(own[1:, :2] - own[0, :2], axis=1).mean())
        corners = moved[:, eye.corners[1], :2] - moved[:, eye.corners[0], :2]
        widest = np.maximum(np.linalg.norm(corners, axis=1) / 2 - radius, abs(own[0, 0]))
        widest = np.maximum(widest, ratio * np.abs(seen[:, 0]))
        across = np.clip(centre[:, 0], -widest, widest)

        upper, lower = lids_at(moved, eye, across)
        above, below = (ratio * v for v in outside_lids(shapes, eye, seen[:, :2]))
        own_above, own_below = outside_lids(target, eye, own[:1, :2])
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
            for piece, reach in zip(PIECES[name], self._reach[name], strict=True):
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
    """Rotations [T, 3, 3] about the same axes, by `strength` times the angle."""
    turned: Array = Rotation.from_rotvec(
        strength * Rotation.from_matrix(rotation).as_rotvec()
    ).as_matrix()
    return turned
