"""Extracts the pose of one tracked person: body and hands (MediaPipe)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.errors import NothingFound
from v2v.preprocess.detectors import Body, BodyDetector, Frame, box_of, detectors
from v2v.preprocess.extractor import ArrayExtractor, ClipContext, Finished, Record, write_arrays
from v2v.preprocess.tracks import (
    SingleTargetTracker,
    blocks,
    bridge_gaps,
    jitter,
    quietest_window,
    smooth,
)
from v2v.signals.pose import BODY, HEAD, LEFT_HAND, MIN_SCORE, NAMES, POINT, RIGHT_HAND

SHOULDERS = [POINT["left_shoulder"], POINT["right_shoulder"]]
HIPS = [POINT["left_hip"], POINT["right_hip"]]
EARS = [POINT["left_ear"], POINT["right_ear"]]
TORSO = [*SHOULDERS, *HIPS]
SEARCH = 3  # maximum number of people examined in a search for the tracked one
SURVEY_SECONDS = 2.0  # how often other people are searched for,
LEAST_SURVEYED, MOST_SURVEYED = 4, 100  # in how many frames of a clip


class BodyTracker:
    """Runs the body network on the tracked person.

    Pose (with hands) and segmentation (with the mask) share it, so that they track alike.
    """

    def __init__(self, settings: PreprocessSettings, clip: ClipContext, *, mask: bool) -> None:
        pose = settings.pose
        self.options: dict[str, Any] = {
            "hands": not mask,
            "mask": mask,
            "min_detection": pose.min_detection,
            "min_tracking": pose.min_tracking,
        }
        self.tracker = SingleTargetTracker(pose.max_jump, patience=round(float(clip.rate)))
        self.network: BodyDetector | None = None
        self.fresh = True  # the network has no region yet and will search the whole frame

    def begin(self, state: NDArray[np.float32] | None) -> None:
        """Continue from `state` (see `SingleTargetTracker.state`); None starts without a target."""
        self._renew()
        self.tracker.restore(state)

    @property
    def state(self) -> NDArray[np.float32]:
        return self.tracker.state

    def end(self) -> None:
        if self.network is not None:
            self.network.close()
            self.network = None

    def find(self, frame: Frame, cut: bool) -> Body | None:
        """The tracked person, or None if it is not found."""
        if cut:
            self.begin(None)
        if not self.tracker.searches:
            self.tracker.missed()
            return None
        if self.tracker.lost:
            people = detect_people(frame, self.options["min_detection"])
            if people:
                self.tracker.follow(*torso_center_and_size(people[0]))
        found = self._search(frame, tries=1 if not self.fresh else SEARCH)
        if found is None and not self.fresh:
            # The network lost the person or switched to another: search the whole frame.
            self._renew()
            found = self._search(frame, tries=SEARCH)
        if found is None:
            self.tracker.missed()
            self._renew()
        return found

    def _search(self, frame: Frame, *, tries: int) -> Body | None:
        """Run the network up to `tries` times, masking out people who are not the tracked one."""
        for _ in range(tries):
            assert self.network is not None
            body = self.network.find(frame)
            self.fresh = False
            if body is None:
                return None
            if self.tracker.accepts(*torso_center_and_size(body.points)):
                return body
            frame = mask_out_person(frame, body.points)
            self._renew()
        return None

    def _renew(self) -> None:
        if self.network is None or not self.fresh:
            self.end()
            self.network = detectors().body(**self.options)
            self.fresh = True


def torso_center_and_size(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Centre [2] and size of a torso, which identify the tracked person."""
    torso = points[TORSO, :2]
    return torso.mean(axis=0), float(np.ptp(torso, axis=0).max())


def mask_out_person(frame: Frame, points: NDArray[np.float32]) -> Frame:
    """Cover one person with grey, so that the detector finds the next one."""
    x, y, w, h = box_of(points[:, :2])
    out = frame.copy()
    top, left = max(int(y - 0.1 * h), 0), max(int(x - 0.1 * w), 0)
    out[top : max(int(y + 1.05 * h), 0), left : max(int(x + 1.1 * w), 0)] = 127
    return out


def detect_people(
    frame: Frame, min_detection: float = 0.5, *, most: int = SEARCH
) -> list[NDArray[np.float32]]:
    """Points [33, 4] of the people in a frame, RGB uint8 [H, W, 3], the main one first.

    The main person is the tallest, with a preference for the middle.
    """

    def find(frame: Frame) -> Body | None:
        with detectors().body(
            hands=False, mask=False, min_detection=min_detection, min_tracking=min_detection
        ) as network:
            return network.find(frame)

    def weight(points: NDArray[np.float32]) -> float:
        x, _, w, h = box_of(points[:, :2])
        offset = min(abs(x + w / 2 - width / 2) / (width / 2), 1.0)
        return h * (1 - 0.3 * offset)

    width = frame.shape[1]
    return sorted(people_found(frame, find, most), key=weight, reverse=True)


def people_found(
    frame: Frame, find: Callable[[Frame], Body | None], most: int
) -> list[NDArray[np.float32]]:
    """Points [33, 4] of up to `most` people.

    A detector finds one person, so each is masked out and the frame is searched again.
    """
    people: list[NDArray[np.float32]] = []
    while len(people) < most and (body := find(frame)) is not None:
        people.append(body.points)
        frame = mask_out_person(frame, body.points)
    return people


def is_another(points: NDArray[np.float32], main: NDArray[np.float32]) -> bool:
    """Whether points [33, 4] belong to another person than `main` [N, 2 or more].

    Hair and edges left by `mask_out_person` are detected as small people with low scores.
    """
    x, y, w, h = box_of(main[:, :2])
    centre, _ = torso_center_and_size(points)
    inside = x < centre[0] < x + w and y < centre[1] < y + h
    height = float(np.ptp(points[:, 1]))
    return not inside and height > 0.25 * h and bool(points[TORSO, 3].mean() >= MIN_SCORE)


def surveyed_frames(count: int, rate: float) -> frozenset[int]:
    """The frames of a clip in which other people are searched for, evenly spaced."""
    wanted = round(count / rate / SURVEY_SECONDS)
    chosen = np.linspace(0, count - 1, min(max(wanted, LEAST_SURVEYED), MOST_SURVEYED))
    return frozenset(int(index) for index in chosen)


class Extractor(ArrayExtractor):
    signal: ClassVar[str] = "pose"
    backend = "mediapipe"
    version = "blazepose-full 0.10.21, 1"

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        super().__init__(settings, clip)
        self.tracker = BodyTracker(settings, clip, mask=False)
        self.survey: BodyDetector | None = None
        self.surveyed = surveyed_frames(clip.count, float(clip.rate))

    def begin(self, carry: Record | None) -> None:
        self.tracker.begin(None if carry is None else carry["state"])

    def end(self) -> None:
        self.tracker.end()
        if self.survey is not None:
            self.survey.close()
            self.survey = None

    def step(self, index: int, frame: Frame, previous: Frame | None, cut: bool) -> Record:
        points = np.full((len(NAMES), 3), np.nan, np.float32)
        found = self.tracker.find(frame, cut or index == 0)
        if found is not None:
            points[: len(BODY)] = found.points[:, [0, 1, 3]]
            _hide_face_from_behind(points, found.points[:, 2])
            for part, hand in ((LEFT_HAND, found.left_hand), (RIGHT_HAND, found.right_hand)):
                if hand is not None:
                    _place_hand(points, part, hand)
        return {
            "points": points,
            "state": self.tracker.state,
            "others": self._others(index, frame, points),
        }

    def _others(self, index: int, frame: Frame, points: NDArray[np.float32]) -> NDArray[np.int8]:
        """[] 1 if other people are in view, 0 if not, -1 if this frame is not searched for them."""
        body = points[points[:, 2] >= MIN_SCORE]
        if index not in self.surveyed or not len(body):
            return np.array(-1, np.int8)
        if self.survey is None:
            self.survey = detectors().still_body()
        people = people_found(frame, self.survey.find, SEARCH)
        return np.array(any(is_another(person, body) for person in people), np.int8)

    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        arrays = self.load_parts(parts)
        raw, others = arrays["points"], arrays.get("others", np.empty(0, np.int8))
        found = np.isfinite(raw[:, 0, 0])
        if not found.any():
            raise NothingFound(
                f"no person found in any of the {len(raw)} frames of {self.clip.name}",
                hint="the person must be at least a tenth of the frame high; try --crop person or"
                " -s pose.min_detection=0.3, or check the footage with `v2v doctor`",
            )
        settings = self.settings.pose
        longest = round(settings.max_gap * float(self.clip.rate))
        points, filled = np.empty_like(raw), np.zeros(raw.shape[:2], np.bool_)
        torso_length = _torso_length(raw)
        for read, keep, place in blocks(shots):
            bridged, gaps = bridge_gaps(raw[read], longest)
            filled[place] = gaps[keep]
            if settings.smoothing is not None:
                bridged[..., :2] = smooth(
                    bridged[..., :2], float(self.clip.rate), torso_length[read],
                    **settings.smoothing.model_dump(),
                )  # fmt: skip
            points[place] = bridged[keep]
        write_arrays(
            folder / "pose.npz",
            {"points": points, "filled": filled, "raw": raw, "names": np.array(NAMES)},
        )
        return self._describe(raw, points, filled, others)

    def _describe(
        self,
        raw: NDArray[np.float32],
        points: NDArray[np.float32],
        filled: NDArray[np.bool_],
        others: NDArray[np.int8],
    ) -> Finished:
        body = slice(0, len(BODY))
        present = np.isfinite(points[:, 0, 0])
        start, stop = quietest_window(raw[:, TORSO, :2], round(float(self.clip.rate)))
        with np.errstate(invalid="ignore"):
            whole = (points[:, [*TORSO, *range(25, 29)], 2] >= MIN_SCORE).all(axis=1)
        measured: dict[str, Any] = {
            "still_frames": [start, stop],
            "jitter_before_px": round(jitter(raw[start:stop, body, :2]), 3),
            "jitter_after_px": round(jitter(points[start:stop, body, :2]), 3),
            "filled": round(float(filled[:, 0].mean()), 4),
            "whole_body": round(float(whole.mean()), 4),
            "left_hand": round(float(np.isfinite(points[:, LEFT_HAND.start, 0]).mean()), 4),
            "right_hand": round(float(np.isfinite(points[:, RIGHT_HAND.start, 0]).mean()), 4),
        }
        if len(others) == len(points):  # not in parts of a version that did not search for them
            measured["other_people"] = np.flatnonzero(others == 1).tolist()
        warnings = []
        if present.mean() < 0.9:
            warnings.append(
                f"no person in {int((~present).sum())} of {len(present)} frames"
                f" ({_ranges(np.flatnonzero(~present))})"
            )
        return Finished(
            files=("pose.npz",),
            spec={"shape": f"points [{len(points)}, {len(NAMES)}, 3]", "points": len(NAMES)},
            coverage=float(present.mean()),
            measured=measured,
            warnings=tuple(warnings),
        )


def _torso_length(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """[T] pixels from shoulders to hips; at least half the median; the median where unknown."""
    axis = points[:, SHOULDERS, :2].mean(axis=1) - points[:, HIPS, :2].mean(axis=1)
    length = np.linalg.norm(axis, axis=1)
    median = float(np.nanmedian(length))
    known = np.nan_to_num(length, nan=median)
    return np.asarray(np.maximum(known, max(0.5 * median, 1.0)), np.float32)


def _hide_face_from_behind(points: NDArray[np.float32], depth: NDArray[np.float32]) -> None:
    """Hide a face predicted on the back of a head: its nose is behind the ears."""
    if depth[0] > depth[EARS].mean():
        hidden = [i for i in range(HEAD.start, HEAD.stop) if i not in EARS]
        points[hidden, 2] = 0


def _place_hand(points: NDArray[np.float32], part: slice, hand: NDArray[np.float32]) -> None:
    """Keep a hand if it is near its own wrist; it inherits the wrist's score."""
    side = "left" if part == LEFT_HAND else "right"
    elbow, wrist = points[POINT[f"{side}_elbow"]], points[POINT[f"{side}_wrist"]]
    forearm = float(np.linalg.norm(elbow[:2] - wrist[:2]))
    torso = float(np.linalg.norm(points[SHOULDERS, :2].mean(0) - points[HIPS, :2].mean(0)))
    reach = 0.25 * max(forearm, 0.5 * torso)
    if np.linalg.norm(hand[0, :2] - wrist[:2]) > reach:
        return
    points[part, :2] = hand[:, :2]
    points[part, 2] = max(float(wrist[2]), MIN_SCORE)  # the hand network detected it


def _ranges(frames: NDArray[np.int64], most: int = 3) -> str:
    """Frame numbers as ranges: 3-17, 40, ..."""
    if not len(frames):
        return "none"
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    shown = [f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs[:most]]
    return ", ".join(shown) + (", ..." if len(runs) > most else "")
