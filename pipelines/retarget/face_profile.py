"""A face at rest: its neutral frame, the sizes of its parts, the range of its motion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from v2v.errors import ConfigError, NothingFound
from v2v.pipelines.retarget.face_parts import BROWS, DRAWN_POINTS, MOUTH_CORNERS, Array, part_sizes
from v2v.signals.face import RIGID, FaceTrack, eye_openness, head_pose, mouth_openness

# A clip: the whole track, or a function that iterates over its chunks from the start on each call.
FaceClip = FaceTrack | Callable[[], Iterable[FaceTrack]]
CHUNK = 1024  # frames processed together


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
        rotation, centre, scale = head_of(frame)
        return cls(
            neutral=number, shape=canonical(frame)[0], rotation=rotation[0], centre=centre[0],
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
ANGLES, MOUTH, OPEN = slice(0, 3), 6, slice(7, 9)


def measures(track: FaceTrack) -> NDArray[np.float32]:
    """[T, 9] the `MEASURES` of each frame, NaN without a face."""
    # In a turned head the face looks narrow and the eyes wide open: measure the frontal shape.
    front = canonical(track).astype(np.float32)
    numbers = (
        track.head.angles(), track.translation, track.scale[:, None],
        mouth_openness(front)[:, None], eye_openness(front),
    )  # fmt: skip
    return np.concatenate(numbers, axis=1)


def chunks(clip: FaceClip) -> Iterator[FaceTrack]:
    for part in [clip] if isinstance(clip, FaceTrack) else clip():
        for start in range(0, len(part), CHUNK):
            yield part[start : start + CHUNK]


def head_of(track: FaceTrack) -> tuple[Array, Array, Array]:
    """Rotation [T, 3, 3], centre [T, 3] (z is the rigid points' mean depth), and scale [T]."""
    depth = track.depth[:, list(RIGID)].astype(np.float64).mean(axis=1)
    centre = np.concatenate([track.translation, depth[:, None]], axis=1)
    return track.rotation.astype(np.float64), centre, track.scale.astype(np.float64)


def canonical(track: FaceTrack) -> Array:
    """Canonical shapes [T, 478, 3]: the head rotated to the front, centred and scaled to 1."""
    rotation, centre, scale = head_of(track)
    positions = np.concatenate([track.points[..., :2], track.depth[..., None]], axis=2)
    shapes: Array = (positions - centre[:, None]) @ rotation / scale[:, None, None]
    return shapes


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
        for chunk in chunks(clip):
            numbers.append(measures(chunk))
            filled.append(chunk.filled)
            positions = chunk.points[:, DRAWN_POINTS, :2]
            before = positions[:1] if last is None else last
            steps = np.diff(np.concatenate([before, positions]), axis=0)
            motion.append(np.linalg.norm(steps, axis=2).mean(axis=1) / chunk.scale)
            last = positions[-1:].copy()
            moving = canonical(chunk)[:, expressive]
            for i in range(-done % every, len(chunk), every):
                sampled.append(done + i)
                shapes.append(moving[i])
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
    for chunk in chunks(clip):
        if forced is not None:
            index = forced - start
            if 0 <= index < len(chunk):
                return forced, chunk[index : index + 1]
        else:
            gaps = np.linalg.norm(canonical(chunk)[:, expressive] - usual, axis=2)
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
    mouth, eyes, angles = numbers[:, MOUTH], numbers[:, OPEN], numbers[:, ANGLES]
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
