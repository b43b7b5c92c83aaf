"""Extracts the face mesh of one tracked face (MediaPipe, with irises)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.errors import NothingFound, writing
from v2v.preprocess.detectors import FaceBoxDetector, FaceDetector, Frame, detectors
from v2v.preprocess.extractor import (
    ArrayExtractor,
    ClipContext,
    Finished,
    Record,
    release,
    write_arrays,
)
from v2v.preprocess.tracks import (
    SingleTargetTracker,
    blocks,
    bridge_gaps,
    jitter,
    quietest_window,
    smooth,
)
from v2v.signals.face import (
    OVAL,
    POINTS,
    RIGID,
    eye_openness,
    mouth_openness,
    rigid_points,
    rigid_pose,
)

EDGES = [OVAL[9], OVAL[27]]  # landmarks near the ears; their distance is the face's width


class Extractor(ArrayExtractor):
    signal: ClassVar[str] = "face"
    backend = "mediapipe"
    version = "face-mesh-attention 0.10.21, 1"

    def __init__(self, settings: PreprocessSettings, clip: ClipContext) -> None:
        super().__init__(settings, clip)
        face = settings.face
        self.tracker = SingleTargetTracker(face.max_jump, patience=round(float(clip.rate)))
        self.mesh: FaceDetector | None = None
        self.boxes: FaceBoxDetector | None = None

    def begin(self, carry: Record | None) -> None:
        self.end()
        face = self.settings.face
        # This network tracks; `boxes` is for faces too small for the network's own detector.
        self.mesh = detectors().face(
            tracking=True, min_detection=face.min_detection, min_tracking=face.min_tracking
        )
        self.tracker.restore(None if carry is None else carry["state"])

    def end(self) -> None:
        for network in (self.mesh, self.boxes):
            if network is not None:
                network.close()
        self.mesh = self.boxes = None

    def step(self, index: int, frame: Frame, previous: Frame | None, cut: bool) -> Record:
        if cut:
            self.begin(None)
        points = np.full((POINTS, 4), np.nan, np.float32)
        assert self.mesh is not None
        mesh = self.mesh.find(frame)
        found = None if mesh is None else self._accepted(mesh)
        if found is None and self.tracker.searches:
            found = self._find_in_crop(frame)
        if found is None:
            self.tracker.missed()
        else:
            points = found
        return {"points": points, "state": self.tracker.state}

    def _find_in_crop(self, frame: Frame) -> NDArray[np.float32] | None:
        """Detect faces at full range, then run the mesh on a crop of the tracked one."""
        minimum = self.settings.face.min_detection
        if self.boxes is None:
            self.boxes = detectors().face_boxes(min_detection=minimum)
        boxes = self.boxes.find(frame)
        height, width = frame.shape[:2]
        centre = self.tracker.centre
        if centre is not None:  # the nearest to the last position; otherwise the largest
            boxes.sort(
                key=lambda b: np.hypot(b[0] + b[2] / 2 - centre[0], b[1] + b[3] / 2 - centre[1])
            )
        else:
            boxes.sort(key=lambda b: -b[2])
        for x, y, w, h in boxes[:1]:
            side = 2.2 * max(w, h)
            left = int(np.clip(x + w / 2 - side / 2, 0, width - 1))
            top = int(np.clip(y + h / 2 - side / 2, 0, height - 1))
            crop = np.ascontiguousarray(frame[top : top + int(side), left : left + int(side)])
            with detectors().face(tracking=False, min_detection=minimum) as mesh:
                points = mesh.find(crop)
            if points is not None:
                points[:, :2] += (left, top)
                return self._accepted(points)
        return None

    def _accepted(self, points: NDArray[np.float32]) -> NDArray[np.float32] | None:
        width = float(np.linalg.norm(points[EDGES[0], :2] - points[EDGES[1], :2]))
        height = float(np.ptp(points[:, 1]))
        size = max(width, 0.8 * height)  # a face in profile is narrow
        return points if self.tracker.accepts(points[:, :2].mean(axis=0), size) else None

    @staticmethod
    def _array(path: Path, *shape: int) -> NDArray[np.float32]:
        """A memory-mapped array whose file is removed with the parts."""
        with writing(path):
            array = np.lib.format.open_memmap(path, "w+", np.float32, shape)  # type: ignore[no-untyped-call]
            if hasattr(os, "posix_fallocate"):  # a full disk raises here, not a bus error later
                with open(path, "rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return cast(NDArray[np.float32], array)

    def finish(self, parts: list[Path], folder: Path, shots: list[tuple[int, int]]) -> Finished:
        # A mesh takes 8 kB per frame: arrays of long clips are mapped files, processed in blocks.
        count = self.clip.count
        raw = self._array(parts[0].parent / ".raw.npy", count, POINTS, 4)  # x, y, z, score
        present, width = np.zeros(count, np.bool_), np.zeros(count, np.float32)
        offset = 0
        for part in parts:
            found = self.load_parts([part])["points"]
            place = slice(offset, offset + len(found))
            raw[place] = found
            present[place] = np.isfinite(found[:, 0, 0])
            width[place] = np.ptp(found[:, list(OVAL), 0], axis=1)
            offset += len(found)
            release(raw, place.start, place.stop)
        if not present.any():
            raise NothingFound(
                f"no face found in any of the {count} frames of {self.clip.name}",
                hint="the face should fill a fifth of the frame's height and look towards the"
                " camera; try --crop face or -s face.min_detection=0.3, or run `v2v doctor`",
            )
        settings = self.settings.face
        rate = float(self.clip.rate)
        longest = round(settings.max_gap * rate)
        median_width = float(np.nanmedian(width))
        face_width = np.maximum(np.nan_to_num(width, nan=median_width), 0.3 * median_width).astype(
            np.float32
        )
        points = self._array(parts[0].parent / ".points.npy", count, POINTS, 3)
        depth = self._array(parts[0].parent / ".depth.npy", count, POINTS)
        filled = np.zeros(count, np.bool_)
        before = np.empty((count, len(RIGID), 2), np.float32)
        rigid = np.empty((count, len(RIGID), 3), np.float32)
        eyes, mouth = np.empty((count, 2), np.float32), np.empty(count, np.float32)
        for read, keep, place in blocks(shots):
            # A face is either found or missing as a whole: one flag per frame.
            flat = np.array(raw[read]).reshape(-1, 1, POINTS * 4)
            before[place] = flat[keep].reshape(-1, POINTS, 4)[:, list(RIGID), :2]
            bridged, gaps = bridge_gaps(flat, longest)
            filled[place] = gaps[keep, 0]
            values = bridged.reshape(-1, POINTS, 4)
            if settings.smoothing is not None:
                values[..., :3] = smooth(
                    values[..., :3], rate, face_width[read], **settings.smoothing.model_dump()
                )
            kept, kept_depth = values[keep][..., [0, 1, 3]], values[keep][..., 2]
            points[place], depth[place] = kept, kept_depth
            rigid[place] = rigid_points(kept, kept_depth)
            eyes[place], mouth[place] = eye_openness(kept), mouth_openness(kept)
            present[place] = np.isfinite(kept[:, 0, 0])
            for array in (raw, points, depth):
                release(array, read.start, read.stop)
        pose = rigid_pose(rigid)
        write_arrays(
            folder / "face.npz",
            {
                "points": points, "depth": depth, "filled": filled,
                "rotation": pose.rotation, "translation": pose.translation, "scale": pose.scale,
                "eye_openness": eyes, "mouth_openness": mouth,
            },
        )  # fmt: skip
        start, stop = quietest_window(before, round(rate))
        warnings: tuple[str, ...] = ()
        if present.mean() < 0.9:
            warnings = (f"no face in {int((~present).sum())} of {len(present)} frames",)
        return Finished(
            files=("face.npz",),
            spec={"shape": f"points [{len(points)}, {POINTS}, 3]", "points": POINTS},
            coverage=float(present.mean()),
            measured={
                "still_frames": [start, stop],
                "jitter_before_px": round(jitter(raw[start:stop, :, :2]), 3),
                "jitter_after_px": round(jitter(points[start:stop, :, :2]), 3),
                "filled": round(float(filled.mean()), 4),
            },
            warnings=warnings,
        )
