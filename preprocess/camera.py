"""Estimates the camera's motion from the background.

Background points, outside the person's mask, are tracked from keyframes: a keyframe is warped to
the predicted camera of each frame, so that only small displacements remain (pyramidal Lucas and
Kanade 1981), and a homography is fitted robustly to the points (MAGSAC++, arXiv 1912.05909).
Errors do not accumulate from frame to frame: new keyframes are added only for new views, and a
camera that returns is matched to the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.data.store import CLIP_FILE, ClipStore, read_record
from v2v.errors import SignalMissing
from v2v.homography import Matrices, carry, corners_of
from v2v.preprocess.camera_tracking import (
    MAX_KEYFRAMES,
    MIN_INLIERS,
    CameraTracker,
    Keyframe,
    Picture,
    corners,
)
from v2v.preprocess.extractor import ArrayExtractor, ClipContext, Finished, Record, write_arrays
from v2v.signals.camera import CameraTrack
from v2v.signals.segmentation import LabelTrack

MASK_MARGIN = 0.015  # of the longer side: masks end slightly inside hair and sleeves

# Maximum median displacement of tracked points of a still camera, in analysis pixels. The frame's
# corners are unsuitable: without points to track, their positions are extrapolated.
STILL = 0.4
LABEL_BATCH = 32  # label maps read at once


class Extractor(ArrayExtractor):
    signal: ClassVar[str] = "camera"
    after: ClassVar[tuple[str, ...]] = ("segmentation",)
    backend = "keyframes"
    version = f"opencv {cv2.__version__}, 1"

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        super().__init__(settings, clip)
        side = settings.camera.side
        self.shrink = min(side / max(clip.width, clip.height), 1.0)
        self.size = (
            max(round(clip.width * self.shrink), 1), max(round(clip.height * self.shrink), 1),
        )  # fmt: skip
        self.tracker = CameraTracker(float(clip.rate))
        self.maps: tuple[int, LabelTrack] | None = None
        self.opened: ClipStore | None = None

    # ------------------------------------------------------------ the store

    @property
    def store(self) -> ClipStore:
        assert self.clip.folder is not None, "the camera extractor needs a finished store"
        if self.opened is None:
            self.opened = ClipStore.open(self.clip.folder)
        return self.opened

    def inputs(self) -> dict[str, Any]:
        """Hashes of the person mask."""
        if self.clip.folder is None or not (self.clip.folder / CLIP_FILE).is_file():
            return {}
        mask = read_record(self.clip.folder).signals.get("segmentation")
        return {} if mask is None else {"mask": [file.sha256 for file in mask.files.values()]}

    def _free(self, index: int, ahead: int = LABEL_BATCH) -> Picture:
        """[h, w] 255 at background pixels; `ahead` label maps are read at a time."""
        if self.maps is None or not self.maps[0] <= index < self.maps[0] + len(self.maps[1]):
            store = self.store
            if "segmentation" not in store.signals:
                raise SignalMissing(
                    "the camera is estimated from the background, which needs a person mask; the"
                    " store has no segmentation",
                    hint="extract both: --signal segmentation,camera",
                )
            track = store.track("segmentation", index, min(index + ahead, self.clip.count))
            assert isinstance(track, LabelTrack)
            self.maps = index, track
        first, track = self.maps
        labels = track.labels[index - first]
        table = np.zeros(256, np.uint8)
        table[[i for i, name in enumerate(track.classes) if name in MOVING_CLASSES]] = 1
        small = cv2.resize(cv2.LUT(labels, table), self.size, interpolation=cv2.INTER_NEAREST)
        reach = 2 * max(round(MASK_MARGIN * max(self.size)), 1) + 1
        wider = cv2.dilate(small, np.ones((reach, reach), np.uint8))
        return np.where(wider > 0, 0, 255).astype(np.uint8)

    def _grey(self, frame: NDArray[np.uint8]) -> Picture:
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.resize(grey, self.size, interpolation=cv2.INTER_AREA), np.uint8)

    # ------------------------------------------------------------ frame by frame

    def begin(self, carry: Record | None) -> None:
        self.maps, self.opened = None, None  # another process may resume here
        self.tracker = CameraTracker(float(self.clip.rate))
        if carry is None:
            return
        self.tracker.matrix, self.tracker.lost = carry["matrix"], int(carry["lost"])
        for index, matrix in zip(carry["keys"], carry["matrices"], strict=True):
            picture = self._grey(self.store.frames(int(index), int(index) + 1)[0])
            self.tracker.keys.append(
                Keyframe.made(
                    int(index), matrix, picture, corners(picture, self._free(int(index), 1))
                )
            )
        known = int(carry["known"])
        self.tracker.known = known
        self.tracker.before = carry["before"], self._grey(self.store.frames(known, known + 1)[0])
        self.maps = None

    def step(self, index: int, frame: Any, previous: Any, cut: bool) -> Record:
        picture, free = self._grey(frame), self._free(index)
        tracker = self.tracker
        if previous is None or cut:
            tracker.begin(index, picture, free)
            residual, key = 0.0, True
        else:
            residual, key = tracker.step(index, picture, free)
        return {
            "matrix": tracker.matrix.copy(), "residual": np.array(residual, np.float32),
            "reference": np.array(tracker.reference), "key": np.array(key),
            "lost": np.array(tracker.lost), "points": np.array(tracker.points),
            "known": np.array(tracker.known), "moved": np.array(tracker.moved, np.float32),
        }  # fmt: skip

    def last_record(self, path: Path) -> Record:
        """The carry of the next part: the last frame's record and all keyframes in use."""
        parts = sorted(p for p in path.parent.iterdir() if not p.name.startswith("."))
        made = self.load_parts([p for p in parts if p.name <= path.name])
        used = np.flatnonzero(made["key"] & (made["reference"] == made["reference"][-1]))
        used = np.concatenate([used[:1], used[1:][-(MAX_KEYFRAMES - 1) :]])
        last = {name: made[name][-1] for name in ("matrix", "lost", "known")}
        before = made["matrix"][int(last["known"])]
        return {**last, "before": before, "keys": used, "matrices": made["matrix"][used]}

    # ------------------------------------------------------------ the signal

    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        made = self.load_parts(parts)
        grow = np.diag([self.clip.width / self.size[0], self.clip.height / self.size[1], 1.0])
        matrices = np.asarray(grow @ made["matrix"] @ np.linalg.inv(grow), np.float64)
        residual = np.asarray(made["residual"] / self.shrink, np.float32)
        _interpolate_gaps(matrices, made["reference"], residual)
        # Without enough points to track, the camera is unknown.
        featureless = made["points"] < MIN_INLIERS
        residual[featureless] = np.nan
        track = CameraTrack(
            matrices / matrices[:, 2:, 2:], made["reference"], residual,
            self.clip.width, self.clip.height,
        )  # fmt: skip
        motion = track.motion()
        for first in np.unique(track.reference):
            own = track.reference == first
            seen = own & np.isfinite(residual)
            if seen.any() and np.percentile(made["moved"][seen], 95) < STILL:
                track.homography[own] = np.eye(3)
                motion[own] = 0
        write_arrays(
            folder / "camera.npz",
            {
                "homography": track.homography, "reference": track.reference,
                "residual": track.residual,
            },
        )  # fmt: skip
        known = track.present()
        corners = corners_of(self.clip.width, self.clip.height)
        steps = np.diff(carry(track.homography, corners), axis=0)
        joined = np.diff(track.reference) == 0
        speed = np.linalg.norm(steps, axis=-1).max(axis=-1)[joined]
        return Finished(
            files=("camera.npz",),
            spec={"shape": f"homography [{len(track)}, 3, 3]", "references": self._starts(track)},
            coverage=float(known.mean()),
            measured={
                "motion_px": round(float(motion.max()), 2),
                "speed_px": round(float(np.median(speed)) if len(speed) else 0.0, 3),
                "residual_px": round(float(np.nanmedian(residual)) if known.any() else -1.0, 3),
                "keyframes": int(made["key"].sum()),
                "backgrounds": len(np.unique(track.reference[known])),
            },
            warnings=tuple(self._warnings(track, featureless, shots)),
        )  # fmt: skip

    @staticmethod
    def _starts(track: CameraTrack) -> list[int]:
        return [int(first) for first in np.unique(track.reference)]

    @staticmethod
    def _warnings(
        track: CameraTrack, featureless: NDArray[np.bool_], shots: list[tuple[int, int]]
    ) -> Iterator[str]:
        if featureless.mean() > 0.1:
            yield (
                f"the background has too little texture in {featureless.mean():.0%} of the frames"
                " to estimate the camera (a plain wall, or the person fills the frame): its"
                " colours decide whether the camera is still"
            )
        untracked = ~track.present() & ~featureless
        if untracked.any():
            yield (
                f"camera tracking failed in {int(untracked.sum())} of {len(track)} frames (a"
                " fast pan, blur, or too little background); they are not used for the background"
            )
        backgrounds = len(np.unique(track.reference[track.present()]))
        if backgrounds > len(shots):
            yield (
                f"{backgrounds} backgrounds in {len(shots)} shot(s): the background after a fast"
                " pan could not be aligned with the one before"
            )


def _interpolate_gaps(
    matrices: Matrices, reference: NDArray[np.int64], residual: NDArray[np.float32]
) -> None:
    """Interpolate unknown cameras linearly between known ones of the same background, in place."""
    known = np.isfinite(residual)
    for first in np.unique(reference[~known]).tolist():
        own = np.flatnonzero(reference == first)
        valid = own[known[own]]
        if len(valid):
            flat = matrices[own].reshape(len(own), 9)
            flat = np.stack([np.interp(own, valid, entry[known[own]]) for entry in flat.T], axis=1)
            matrices[own] = flat.reshape(-1, 3, 3)


# Label classes that may move in front of the background.
MOVING_CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
