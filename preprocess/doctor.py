"""Measures what footage is suitable for, before hours of training.

One pass decodes all frames at low resolution (cuts show only between neighbours) and analyses a
sample of them: people, face, sharpness, camera. Shares are fractions of the sampled frames, in
[0, 1]; left and right are in image coordinates.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from v2v.data.background import build_background_plate
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.preprocess.detectors import box_of
from v2v.preprocess.footage import (
    CameraFindings,
    FaceFindings,
    Facts,
    FootageReport,
    PersonFindings,
    Range,
    rate_suitability,
)
from v2v.preprocess.pose import HIPS, SHOULDERS, TORSO
from v2v.preprocess.sampling import Array, SampledFaces, SampledPeople
from v2v.preprocess.shots import find_cuts, thumbnail
from v2v.progress import Reporter
from v2v.signals.face import OVAL, POINTS, eye_openness, head_pose, mouth_openness
from v2v.signals.pose import HEAD, MIN_SCORE, POINT
from v2v.video.plan import FramePlan, plan_frames, plan_geometry
from v2v.video.probe import Probe, probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader

SAMPLES_PER_SECOND = 4
MOST_SAMPLES = 240
MOST_CROWDS = 60  # samples searched for other people than the main person
ANALYSIS_SIZE = 480  # pixels of the shorter side
SOFT = 0.5  # `_softness` of a frame blurred by a Gaussian with a sigma of 2 pixels
SOFTER = 1.5  # ratio to the softness of the clip's own sharp frames that means motion blur
STILL = 0.003  # of the longer side per second: movement due to codecs and tripods
CORNER = 2e-4  # minimum eigenvalue of a corner above noise, for grey levels in [0, 1]
LEGS = tuple(POINT[f"{s}_{n}"] for n in ("knee", "ankle") for s in ("left", "right"))


def examine(path: Path, report: Reporter) -> FootageReport:
    """Analyse a video file, an image, a folder of images, or a clip store.

    Signals of a store are used as stored. Footage without people gets a report too. Raises
    `MediaNotFound`, `NotAVideo`, `BrokenStream`, `StoreDamaged`, `StoreSchemaError`.
    """
    store = ClipStore.open(path) if (path / CLIP_FILE).is_file() else None
    source = probe(path / "frames.mp4" if store else path)
    plan = plan_frames(source)
    scan = _FootageScan(source, plan, store)
    scan.run(report)
    cuts = np.flatnonzero(find_cuts(np.stack(scan.thumbs)))
    if store:
        cuts = np.array(store.record.frames.shots[1:], np.int64)
    rate = float(plan.rate)
    seen = FootageReport(
        facts=_facts(path, source, plan, store, scan.lost),
        sampled=len(scan.samples),
        blurred=_blurred(np.array(scan.softness)),
        cuts=tuple(round(float(c) / rate, 2) for c in cuts),
        activity=round(float(np.mean(scan.changes or [0.0])), 3),
        camera=_with_camera_signal(_camera(scan, cuts), store),
        person=_person(scan, source),
        face=_face(scan, source),
    )
    return rate_suitability(seen)


def _facts(path: Path, source: Probe, plan: FramePlan, store: ClipStore | None, lost: int) -> Facts:
    audio = source.audio
    sound = f"{audio.codec} {audio.sample_rate} Hz, {audio.channels} channel(s)" if audio else None
    record = store.record.source if store else None
    if store and store.record.audio:
        sound = store.record.audio.codec
    return Facts(
        path=str(path),
        kind="store" if store else "images" if source.images else "video",
        duration=round(len(plan) / float(plan.rate) if store else source.duration, 3),
        fps=float(plan.rate),
        frames=source.frames,
        width=source.upright_width,
        height=source.upright_height,
        variable_rate=record.variable_rate if record else source.variable_rate,
        rotation=record.rotation if record else source.rotation,
        audio=sound,
        hdr=source.hdr,
        lost=len(store.record.frames.lost) if store else lost,
        notes=source.notes or (record.notes if record else ()),
    )


class _FootageScan:
    """One pass over the footage and its measurements, in pixels of the analysis frames."""

    def __init__(self, source: Probe, plan: FramePlan, store: ClipStore | None) -> None:
        self.source, self.plan, self.store = source, plan, store
        short = min(source.upright_width, source.upright_height)
        self.geometry = plan_geometry(source, size=min(ANALYSIS_SIZE, short - short % 2))
        count, rate = len(plan), float(plan.rate)
        every = max(round(rate / SAMPLES_PER_SECOND), -(-count // MOST_SAMPLES), 1)
        self.every = every if count >= 8 * every else max(count // 8, 1)
        self.gap = max(min(round(rate / SAMPLES_PER_SECOND), self.every), 1)
        self.samples = range(0, count, self.every)
        self.thumbs: list[Array] = []
        self.changes: list[float] = []
        self.lost = 0
        self.softness: list[float] = []
        self.shifts: list[tuple[int, float]] = []  # frame, pixels in `gap` frames
        self.others: list[bool] = []
        self.bodies = np.full((len(self.samples), 33, 3), np.nan, np.float32)
        self.faces = np.full((len(self.samples), POINTS, 4), np.nan, np.float32)
        self.people = SampledPeople(patience=SAMPLES_PER_SECOND)
        self.finder = SampledFaces()
        self.stored = {"pose", "face"} & set(store.signals) if store else set()
        if store:
            self._load_stored(store)

    def _load_stored(self, store: ClipStore) -> None:
        width, height = self.geometry.width, self.geometry.height
        index = list(self.samples)
        if "pose" in self.stored:
            track: Any = store.track("pose").scaled(width, height)
            self.bodies[:] = track.points[index, :33]
        if "face" in self.stored:
            track = store.track("face").scaled(width, height)
            self.faces[..., [0, 1, 3]] = track.points[index]
            self.faces[..., 2] = track.depth[index]

    def run(self, report: Reporter) -> None:
        pixels = PixelReader()
        recent: deque[Array] = deque(maxlen=self.gap + 1)
        crowds = max(-(-len(self.samples) // MOST_CROWDS), 1)
        report.start("examine", len(self.plan))
        for placed in read_upright(self.source, self.plan, self.geometry):
            frame = pixels(placed.frame)
            self.lost += int(placed.lost)
            recent.append(frame)
            small = thumbnail(frame)
            if self.thumbs:
                change = np.abs(small.astype(np.int16) - self.thumbs[-1]).mean()
                self.changes.append(float(change))
            self.thumbs.append(small)
            number, rest = divmod(placed.index, self.every)
            if rest == 0:
                before = recent[0] if len(recent) > self.gap else None
                self._sample(number, frame, before, crowd=number % crowds == 0)
            report.advance("examine")
        self.people.close()
        self.finder.close()
        report.finish("examine")

    def _sample(self, n: int, frame: Array, before: Array | None, *, crowd: bool) -> None:
        if "pose" not in self.stored:
            self.bodies[n], others = self.people.detect(frame, crowd)
        elif crowd:
            _, others = self.people.detect(frame, crowd)
        if crowd:
            self.others.append(others)
        body = self.bodies[n]
        if "face" not in self.stored:
            self.faces[n] = self.finder.find(frame, None if np.isnan(body[0, 0]) else body[HEAD])
        face = self.faces[n]
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        people = [p[:, :2] for p in (body, _with_hair(face)) if np.isfinite(p[0, 0])]
        self.softness.append(_softness(grey, self._sharp_part(body, face, grey.shape)))
        if before is not None:
            shift = _shift(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY), grey, people)
            self.shifts.append((n * self.every, shift))

    @staticmethod
    def _sharp_part(body: Array, face: Array, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """The region to measure sharpness in: head if large enough, else person, else all.

        The head is best because every task needs it sharp, and because a dress keeps a sharp
        outline while head and hands blur.
        """
        if np.isfinite(face[0, 0]):
            x, y, w, h = box_of(face[list(OVAL), :2])
        elif np.isfinite(body[0, 0]):
            x, y, w, h = box_of(body[HEAD, :2])
            x, y, w, h = x - 0.3 * w, y - h, 1.6 * w, 3 * h
        else:
            return slice(None), slice(None)
        if w < 32:
            x, y, w, h = box_of(body[:, :2]) if np.isfinite(body[0, 0]) else (0, 0, 0, 0)
        left, right = (int(np.clip(v, 0, shape[1])) for v in (x, x + w))
        top, bottom = (int(np.clip(v, 0, shape[0])) for v in (y, y + h))
        if right - left < 16 or bottom - top < 16:
            return slice(None), slice(None)
        return slice(top, bottom), slice(left, right)


def _with_hair(face: Array) -> Array:
    centre = face.mean(axis=0)
    grown: Array = centre + 1.7 * (face - centre)
    return grown


def _softness(grey: Array, part: tuple[slice, slice]) -> float:
    """Fraction of fine detail that survives more blur: about 0.15 if sharp, above 0.5 if blurred.

    The variance of the Laplacian depends on contrast and texture as much as on blur (it is lower
    for a sharp plain face than for a blurred crowd). The ratio of two scales depends only on the
    width of the edges. The finer scale is smoothed too, against noise.
    """
    picture = grey.astype(np.float32)
    fine, coarse = (
        cv2.Laplacian(cv2.GaussianBlur(picture, (0, 0), sigma), cv2.CV_32F)[part].var()
        for sigma in (1, 2)
    )
    return float(coarse / fine) if fine > 0.05 else float("nan")  # a plain surface has no edges


def _blurred(softness: Array) -> float:
    """Fraction of blurred frames, by an absolute threshold and one relative to the clip.

    Both are needed: a clip that is out of focus throughout has no sharp frames to compare with,
    and motion blur in otherwise sharp footage stays below any safe absolute threshold.
    """
    known = softness[np.isfinite(softness)]
    if not len(known):
        return 0.0
    own = float(np.percentile(known, 25))
    blurred = (known > SOFT) | (known > max(SOFTER * own, 0.3))
    return round(float(blurred.mean()), 3)


def _shift(before: Array, after: Array, people: list[Array]) -> float:
    """Motion of the background between two frames in pixels; NaN if it has no features.

    The 40th percentile over points tracked outside the outlines of `people` (points [N, 2]):
    nearly all points move with the camera, while captions, shadows and passers-by affect less than
    half. The points are spread out; otherwise they could all lie on a caption's sharp corners.
    """
    mask = np.full(before.shape, 255, np.uint8)
    for points in people:
        hull = cv2.convexHull(np.clip(points, -9999, 9999).astype(np.int32))
        around = int(0.15 * np.sqrt(cv2.contourArea(hull)))  # hair, clothes, shadow
        cv2.fillConvexPoly(mask, hull, (0,))
        cv2.polylines(mask, [hull], True, (0,), max(2 * around, 1))
    # An absolute threshold: on a plain wall the strongest corners are moving codec noise.
    strong = np.where(cv2.cornerMinEigenVal(before, 5) < CORNER, 0, mask).astype(np.uint8)
    corners = cv2.goodFeaturesToTrack(before, 200, 1e-4, max(before.shape) / 30, mask=strong)
    if corners is None or len(corners) < 8:
        # Without enough corners, edges (of a wall, a floor) can show that the camera is still.
        edges = (cv2.Canny(before, 40, 120) > 0) & (mask > 0)
        stay = edges.mean() > 0.001 and np.median(cv2.absdiff(before, after)[edges]) < 3
        return 0.0 if stay else float("nan")
    moved, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)  # type: ignore[call-overload]
    back, back_status, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None)  # type: ignore[call-overload]
    reliable = (status[:, 0] & back_status[:, 0]).astype(bool)
    reliable &= np.abs(back - corners).max(axis=(1, 2)) < 1
    length = np.linalg.norm((moved - corners)[reliable, 0], axis=1)
    shift = float(np.percentile(length, 40)) if len(length) else np.inf
    if len(length) < max(6, 0.2 * len(corners)) and shift > 1:
        return 0.1 * max(before.shape)  # too fast to track
    return shift


def _camera(scan: _FootageScan, cuts: Array) -> CameraFindings:
    within = [
        shift
        for index, shift in scan.shifts
        if np.isfinite(shift) and not ((cuts > index - scan.gap) & (cuts <= index)).any()
    ]
    if len(within) < max(0.2 * len(scan.shifts), 1):
        return CameraFindings("unclear", 0.0, 0.0)
    least = 0.3  # pixels: tracking error due to codec noise
    unit = max(scan.geometry.width, scan.geometry.height) * scan.gap / float(scan.plan.rate)
    speed = np.array(within) / unit
    moving = float(((speed > STILL) & (np.array(within) > least)).mean())
    state: Literal["still", "moving"] = "moving" if moving > 0.1 else "still"
    return CameraFindings(state, round(moving, 3), round(float(np.median(speed)), 4))


def _with_camera_signal(camera: CameraFindings, store: ClipStore | None) -> CameraFindings:
    """Add findings from the store's `camera` signal, if it has one."""
    if store is None or "camera" not in store.signals:
        return camera
    plate = build_background_plate(store)
    return replace(
        camera, followed=store.record.signals["camera"].coverage,
        explained=None if plate is None else plate.still,
    )  # fmt: skip


def _person(scan: _FootageScan, source: Probe) -> PersonFindings | None:
    present = np.isfinite(scan.bodies[:, 0, 0])
    if not present.any():
        return None
    points, (width, height) = scan.bodies[present], (scan.geometry.width, scan.geometry.height)
    clear = points[..., 2] >= MIN_SCORE
    whole = clear[:, [*TORSO, *LEGS]].all(axis=1)
    feet = [POINT["left_ankle"], POINT["right_ankle"]]
    cut = (points[:, feet, 1] > height).any(axis=1)
    hands = points[:, [POINT["left_index"], POINT["right_index"]], 0]
    top, bottom = points[..., 1].min(axis=1), points[..., 1].max(axis=1)
    top -= 0.08 * (bottom - top)  # the highest keypoints are the eyes
    tall = float(np.median(np.minimum(bottom, height) - np.maximum(top, 0))) / height
    coverage, arms, legs, missing = _poses(points)
    return PersonFindings(
        seen=_share(present),
        whole=round(float(whole.sum() / len(present)), 3),
        feet_cut=_share(cut),
        feet_hidden=_share(~cut & ~clear[:, feet].all(axis=1)),
        hands_cut=_share(((hands < 0) | (hands > width)).any(axis=1)),
        others=_share(np.array(scan.others)),
        height=round(tall, 3),
        height_px=round(tall * source.upright_height),
        coverage=coverage,
        arms=arms,
        legs=legs,
        missing=missing,
    )


def _poses(points: Array) -> tuple[float, Range | None, Range | None, tuple[str, ...]]:
    """Pose coverage of points [T, 33, 3]: fraction of bins visited, ranges of limbs, missing poses.

    Everything is measured in 2D, since the model's input is a 2D skeleton. Each arm has 4
    directions (hanging, sideways, raised, towards or away from the camera) with the elbow straight
    or bent, each leg 3 (standing, spread or stepping, lifted) with the knee straight or bent, and
    the body 4 facing directions: 32 bins. A limb that points at the camera looks short.
    """
    xy = np.where(points[..., 2:] >= MIN_SCORE, points[..., :2], np.nan).astype(np.float64)
    shoulders, hips = xy[:, SHOULDERS], xy[:, HIPS]
    if np.isfinite(xy[:, TORSO]).all(axis=(1, 2)).mean() < 0.1:
        return 0.0, None, None, ()
    down = np.nan_to_num(hips.mean(axis=1) - shoulders.mean(axis=1), nan=0.0)
    length = np.linalg.norm(down, axis=1)
    median_length = float(np.median(length[length > 0])) if (length > 0).any() else float("nan")
    torso = np.maximum(length, 0.7 * median_length)
    down[length == 0] = (0, 1)
    least = 1 if len(points) < 16 else 2  # a single sample may be a detection error
    bins: dict[str, list[Array]] = {}
    upright = np.broadcast_to((0.0, 1.0), down.shape)
    angles: dict[str, list[Array]] = {"arm": [], "leg": []}
    for side in ("left", "right"):
        for limb, names, axis in (
            ("arm", ("shoulder", "elbow", "wrist"), down),
            ("leg", ("hip", "knee", "ankle"), upright),
        ):
            a, b, c = (xy[:, POINT[f"{side}_{n}"]] for n in names)
            angle, bend = _angle(b - a, axis), _angle(c - b, b - a)
            size = np.linalg.norm(b - a, axis=1) / torso
            ahead = (
                size < 0.55 * np.nanpercentile(size, 90) if np.isfinite(size).any() else size < 0
            )
            if limb == "arm":
                places = {
                    "hanging": (angle < 50) & ~ahead,
                    "sideways": (angle >= 50) & (angle < 100) & ~ahead,
                    "raised": (angle >= 100) & ~ahead,
                    "forward": ahead,
                }
            else:
                places = {
                    "standing": (angle < 15) & ~ahead,
                    "stepping": (angle >= 15) & (angle < 45) & ~ahead,
                    "lifted": (angle >= 45) | ahead,
                }
            angles[limb].append(angle[~ahead])
            for name, place in places.items():
                bins[f"{side} {limb} {name}"] = [place & (bend < 40), place & (bend >= 40)]
    # The left shoulder of a person who faces the camera is on the right. In side views the
    # shoulders coincide, and the nose shows the direction.
    across = (shoulders[:, 0, 0] - shoulders[:, 1, 0]) / torso
    ears = points[:, [POINT["left_ear"], POINT["right_ear"]], 0].mean(axis=1)
    aside = np.abs(across) < 0.3
    ways = {
        "front": across >= 0.3,
        "back": across <= -0.3,
        "left": aside & (points[:, 0, 0] < ears),
        "right": aside & (points[:, 0, 0] >= ears),
    }
    bins |= {way: [seen] for way, seen in ways.items()}
    visited = {name: [cell.sum() >= least for cell in cells] for name, cells in bins.items()}
    share = np.mean([cell for cells in visited.values() for cell in cells])

    def never(*names: str) -> bool:
        return not any(any(visited[name]) for name in names)

    words = {
        "facing the camera": never("front"),
        "turned to the left": never("left"),
        "turned to the right": never("right"),
        "seen from behind": never("back"),
        "arms hanging": never("left arm hanging", "right arm hanging"),
        "arms stretched sideways": never("left arm sideways", "right arm sideways"),
        "upper arms above the shoulders": never("left arm raised", "right arm raised"),
        "arms towards the camera": never("left arm forward", "right arm forward"),
        "legs apart or stepping": never("left leg stepping", "right leg stepping"),
        "a leg lifted": never("left leg lifted", "right leg lifted"),
    }
    ranges = [_range(np.concatenate(angles[limb])) for limb in ("arm", "leg")]
    missing = tuple(word for word, is_missing in words.items() if is_missing)
    return round(float(share), 3), ranges[0], ranges[1], missing


def _angle(a: Array, b: Array) -> Array:
    """[T] degrees between vectors [T, 2], 0 to 180; NaN if either is unknown."""
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    degrees: Array = np.degrees(np.arctan2(np.abs(cross), (a * b).sum(axis=1)))
    return degrees


def _face(scan: _FootageScan, source: Probe) -> FaceFindings | None:
    present = np.isfinite(scan.faces[:, 0, 0])
    if not present.any():
        return None
    points = scan.faces[present]
    mesh = np.ascontiguousarray(points[..., [0, 1, 3]])
    angles = head_pose(mesh, points[..., 2]).angles()
    eyes = eye_openness(mesh).mean(axis=1)  # no percentiles: they would miss short blinks
    width = float(np.median(np.ptp(mesh[:, OVAL, 0], axis=1))) * source.upright_width
    return FaceFindings(
        seen=_share(present),
        width_px=round(width / scan.geometry.width),
        yaw=_range(angles[:, 0], 1) or (0.0, 0.0),
        pitch=_range(angles[:, 1], 1) or (0.0, 0.0),
        mouth=_range(mouth_openness(mesh), 2) or (0.0, 0.0),
        eyes=(round(float(np.nanmin(eyes)), 2), round(float(np.nanmax(eyes)), 2)),
    )


def _share(flags: Array) -> float:
    return round(float(flags.mean()), 3) if len(flags) else 0.0


def _range(values: Array, digits: int = 0) -> Range | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, (2, 98))
    return round(float(low), digits), round(float(high), digits)
