"""Crop box around the person or the face, fixed over the whole clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from v2v.config import PreprocessSettings
from v2v.errors import NothingFound
from v2v.preprocess.detectors import Frame, box_of, detectors
from v2v.preprocess.pose import detect_people
from v2v.progress import Reporter
from v2v.signals.face import OVAL
from v2v.video.plan import FramePlan, plan_geometry
from v2v.video.probe import Probe
from v2v.video.read import read_upright
from v2v.video.stored import PixelReader

SAMPLES_PER_SECOND = 3
LEAST = 24  # minimum box side, pixels of the analysed frame; smaller faces are false detections
ANALYSIS_SIZE = 480  # pixels of the shorter side; the networks' input is 256

Box = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]
Finder = Callable[[Frame, NDArray[np.float64] | None], FloatBox | None]


def find_box(
    probe: Probe, plan: FramePlan, settings: PreprocessSettings, report: Reporter
) -> Box | None:
    """Crop box for `--crop` in upright source pixels: x, y, width, height; None for `none`.

    Raises `NothingFound` if no sampled frame shows a person or face.
    """
    kind = settings.frames.crop
    if kind == "none":
        return None
    every = max(round(float(plan.rate) / SAMPLES_PER_SECOND), 1)
    if len(plan) < 8 * every:
        every = max(len(plan) // 8, 1)
    sampled = replace(plan, sources=plan.sources[::every])
    short = min(probe.upright_width, probe.upright_height)
    geometry = plan_geometry(probe, size=min(ANALYSIS_SIZE, short - short % 2))
    boxes: list[NDArray[np.float64]] = []
    report.start(f"find {kind}", len(sampled))
    finder = _people(settings) if kind == "person" else _faces(settings)
    pixels = PixelReader()
    for placed in read_upright(probe, sampled, geometry):
        box = finder(pixels(placed.frame), boxes[-1] if boxes else None)
        if box is not None and min(box[2:]) >= LEAST:
            boxes.append(np.asarray(box, np.float64))
        report.advance(f"find {kind}")
    report.finish(f"find {kind}")
    if not boxes:
        raise NothingFound(
            f"--crop {kind}: no {kind} in {len(sampled)} frames sampled from {probe.path}",
            hint="omit --crop, or select a range that shows one with --start and --end",
        )
    found = np.array(boxes) / np.array([*geometry.scale, *geometry.scale])
    bounds = (probe.upright_width, probe.upright_height)
    if kind == "person":
        return _upright_box(found, settings.frames.crop_margin, bounds)
    return _face_square(found, settings.frames.crop_face_widths, bounds)


def _people(settings: PreprocessSettings) -> Finder:
    def find(frame: Frame, last: NDArray[np.float64] | None) -> FloatBox | None:
        people = detect_people(frame, settings.pose.min_detection, most=1 if last is None else 2)
        if not people:
            return None
        boxes = [box_of(points[:, :2]) for points in people]
        if last is None:
            return boxes[0]
        return min(boxes, key=lambda b: abs(b[0] + b[2] / 2 - last[0] - last[2] / 2))

    return find


def _faces(settings: PreprocessSettings) -> Finder:
    minimum = settings.face.min_detection
    mesh = detectors().face(tracking=False, irises=False, min_detection=minimum)
    detector = detectors().face_boxes(min_detection=minimum)

    def find(frame: Frame, last: NDArray[np.float64] | None) -> FloatBox | None:
        face = mesh.find(frame)
        if face is not None:
            return box_of(face[list(OVAL), :2])
        boxes = detector.find(frame)
        if not boxes:
            return None
        # The detector's box ends at the eyebrows; the face oval extends to the hairline.
        x, y, w, h = max(boxes, key=lambda box: box[2])
        return (x, y - 0.25 * h, w, 1.25 * h)

    return find


def _upright_box(boxes: NDArray[np.float64], margin: float, bounds: tuple[int, int]) -> Box:
    """Bounding box of the person in all frames plus a margin; percentiles drop outliers."""
    left, top = (float(np.percentile(boxes[:, i], 2)) for i in (0, 1))
    right = float(np.percentile(boxes[:, 0] + boxes[:, 2], 98))
    bottom = float(np.percentile(boxes[:, 1] + boxes[:, 3], 98))
    top -= 0.08 * (bottom - top)  # the highest keypoints are the eyes
    side, up = margin * (right - left), margin * (bottom - top)
    left, right = max(left - side, 0), min(right + side, bounds[0])
    top, bottom = max(top - up, 0), min(bottom + up, bounds[1])
    return round(left), round(top), round(right - left), round(bottom - top)


def _face_square(boxes: NDArray[np.float64], widths: float, bounds: tuple[int, int]) -> Box:
    """A square of `widths` face widths, centred on the face's positions, inside the frame."""
    centres = boxes[:, :2] + boxes[:, 2:] / 2
    middle = (np.percentile(centres, 2, axis=0) + np.percentile(centres, 98, axis=0)) / 2
    travel = np.ptp(np.percentile(centres, (2, 98), axis=0), axis=0).max()
    width = np.median(boxes[:, 2])
    side = min(max(widths * width, travel + 1.6 * width), *bounds)
    left = np.clip(middle[0] - side / 2, 0, bounds[0] - side)
    top = np.clip(middle[1] - side / 2, 0, bounds[1] - side)
    return round(left), round(top), round(side), round(side)
