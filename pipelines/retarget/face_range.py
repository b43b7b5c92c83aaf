"""Motion that the training footage did not cover."""

from __future__ import annotations

import numpy as np

from v2v.pipelines.retarget.face_parts import Array
from v2v.pipelines.retarget.face_profile import MEASURES, FaceClip, FaceProfile, chunks, measures
from v2v.pipelines.segments import Segment, joined

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
    numbers = np.concatenate([measures(chunk) for chunk in chunks(moved)])
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
