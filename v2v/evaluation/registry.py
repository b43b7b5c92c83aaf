"""The registry of all measures of `v2v evaluate`: their names, requirements and functions.

A measure gives one value per frame: a value between two frames belongs to the later one, and is
NaN if there is no previous frame or a cut lies between. Curve, mean, confidence interval and drift
are derived from these values (`statistics`).

Some values depend on the whole video (a median torso, a correlation), but frames are not kept. A
measure therefore consists of two functions: a frame statistic, which reduces a chunk of frames to
a few numbers per frame, and a function from the statistics of the whole video to the values.
Measures of one detector share a frame statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.evaluation import measures
from v2v.evaluation.measures import Motion, Values
from v2v.images import Picture

Better = Literal["higher", "lower", "one", "real"]  # real: the real video's own value is best
MOST_DECIBELS = 100.0  # PSNR assigned to identical frames, to keep the mean finite


class Distance(Protocol):
    """A network that measures perceptual distance."""

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """[T] distances of frames [T, 3, H, W] in [-1, 1]."""


@dataclass
class FrameChunk:
    """Consecutive frames of one video with their detections.

    Includes the frame before the first new one, if there is one.
    """

    pictures: list[Picture]
    before: bool  # whether pictures[0] is the frame before the first new one
    steady: NDArray[np.bool_]  # [T] false for new frames after a cut and for the first frame
    distance: Distance | None = None
    found: dict[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]
    person: int | None = None  # label id of the person class
    region: NDArray[np.bool_] | None = None  # [H, W] the measured region; None: all pixels

    @cached_property
    def frames(self) -> Tensor:
        """[T (+ 1), 3, H, W] in [-1, 1]."""
        stacked = torch.from_numpy(np.stack(self.pictures))
        return stacked.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    @property
    def new(self) -> Tensor:
        """[T, 3, H, W] without the frame before the first new one."""
        return self.frames[1:] if self.before else self.frames

    @property
    def counted(self) -> Tensor:
        """[T, H, W] bool, the measured pixels."""
        new = self.new
        if self.region is None:
            return torch.ones(len(new), *new.shape[-2:], dtype=torch.bool)
        return torch.from_numpy(self.region).expand(len(new), -1, -1)

    @cached_property
    def motion(self) -> Motion:
        return measures.motion(self.frames)

    @cached_property
    def steps(self) -> Tensor:
        """Perceptual distance of each frame to the previous one."""
        assert self.distance is not None
        return self.distance(self.frames[1:], self.frames[:-1])

    def between(self, values: Tensor | Values) -> Values:
        """[T] values between neighbouring frames, assigned to the later one."""
        array = np.asarray(values, np.float64)
        whole = array if self.before else np.concatenate([[np.nan], array])
        return np.where(self.steady, whole, np.nan)


@dataclass(frozen=True)
class ChunkPair:
    """The same frames of an output and of the real video."""

    output: FrameChunk
    real: FrameChunk

    def between(self, values: Tensor | Values) -> Values:
        return self.output.between(values)


# ---------------------------------------------------------------- statistics


def _psnr(pair: ChunkPair) -> Values:
    if pair.real.region is None:
        found = measures.psnr(pair.output.new, pair.real.new)
    else:
        found = measures.psnr_within(pair.output.new, pair.real.new, pair.real.counted)
    return np.minimum(np.asarray(found, np.float64), MOST_DECIBELS)


def _sharpness(pair: ChunkPair) -> Values:
    where = None if pair.real.region is None else pair.real.counted
    return np.asarray(measures.sharpness(pair.output.new, pair.real.new, where), np.float64)


def _lpips(pair: ChunkPair) -> Values:
    assert pair.real.distance is not None
    return np.asarray(pair.real.distance(pair.output.new, pair.real.new), np.float64)


def _labels(pair: ChunkPair) -> Values:
    found = measures.label_agreement(pair.output.found["labels"], pair.real.found["labels"])
    return np.stack(found, axis=1)


def _person(pair: ChunkPair) -> Values:
    """[T, 3] PSNR and sharpness inside the real frame's person mask, and PSNR outside it."""
    person = torch.from_numpy(pair.real.found["labels"] == pair.real.person)
    where, rest = person & pair.real.counted, ~person & pair.real.counted
    ours, real = pair.output.new, pair.real.new
    inside, outside = (
        measures.psnr_within(ours, real, w).clamp(max=MOST_DECIBELS) for w in (where, rest)
    )
    sharp = measures.sharpness(ours, real, where)
    return torch.stack([inside, sharp, outside], dim=1).double().numpy()


@dataclass(frozen=True)
class FrameStatistic:
    """A few numbers per frame: [T] or [T, k]."""

    take: Callable[[ChunkPair], Values]
    needs: tuple[str, ...] = ()  # requirements, from NEEDS
    temporal: bool = False  # compares two frames, so it is undefined for a single one


FRAME_STATISTICS: Mapping[str, FrameStatistic] = {
    "psnr": FrameStatistic(_psnr),
    "ssim": FrameStatistic(
        lambda p: np.asarray(measures.ssim(p.output.new, p.real.new), np.float64), ("12 pixels",)
    ),
    "ms_ssim": FrameStatistic(
        lambda p: np.asarray(measures.ms_ssim(p.output.new, p.real.new), np.float64),
        ("161 pixels",),
    ),
    "lpips": FrameStatistic(_lpips, ("lpips",)),
    "sharpness": FrameStatistic(_sharpness),
    "tof": FrameStatistic(
        lambda p: p.between(measures.flow_difference(p.output.motion, p.real.motion)),
        ("16 pixels",), temporal=True,
    ),
    "tlp": FrameStatistic(
        lambda p: p.between((p.output.steps - p.real.steps).abs()), ("lpips",), temporal=True
    ),
    "flicker": FrameStatistic(
        lambda p: p.between(measures.flicker(p.output.frames, p.real.frames)), temporal=True
    ),
    "warping_error": FrameStatistic(
        lambda p: p.between(measures.warping_error(p.output.frames, p.real.motion)),
        ("16 pixels",), temporal=True,
    ),
    "frame_difference": FrameStatistic(
        lambda p: p.between(measures.frame_difference(p.output.frames)), temporal=True
    ),
    "pose": FrameStatistic(
        lambda p: measures.pose_statistics(p.output.found["pose"], p.real.found["pose"]), ("pose",)
    ),
    "face": FrameStatistic(
        lambda p: measures.face_statistics(p.output.found["face"], p.real.found["face"]), ("face",)
    ),
    "labels": FrameStatistic(_labels, ("labels",)),
    "person": FrameStatistic(_person, ("labels", "person")),
}  # fmt: skip

NEEDS = ("12 pixels", "16 pixels", "161 pixels", "lpips", "pose", "face", "labels", "person")


# ---------------------------------------------------------------- measures


def _identity(statistics: Values) -> Values:
    return statistics


@dataclass(frozen=True)
class Measure:
    """One measure. `about` describes in a sentence what it detects and what it misses."""

    name: str
    title: str
    better: Better
    about: str
    family: str | None = None  # group in the ranking; None: not ranked
    unit: str = ""
    statistic: str = ""  # key of FRAME_STATISTICS; defaults to the measure's name
    values: Callable[[Values], Values] = _identity  # from the statistics of a whole video to values
    digits: int = 3
    factor: float = 1.0  # display factor

    @property
    def source(self) -> str:
        return self.statistic or self.name

    def format(self, value: float | None) -> str:
        return _format(value, self.digits, self.factor)


@dataclass(frozen=True)
class SetMeasure:
    """A distance between the sets of frames or clips of two videos: one number, no curve."""

    name: str
    title: str
    about: str
    family: str
    enough: int  # minimum number of samples for an unbiased value
    samples: str  # noun for the samples
    better: Better = "lower"
    unit: str = ""
    digits: int = 1
    factor: float = 1.0

    def format(self, value: float | None) -> str:
        return _format(value, self.digits, self.factor)


def _format(value: float | None, digits: int, factor: float) -> str:
    return "–" if value is None or np.isnan(value) else format(value * factor, f".{digits}f")


PICTURE, MOTION, SUBJECT = "picture", "motion", "subject"

MEASURES: tuple[Measure, ...] = (
    Measure("psnr", "PSNR", "higher", "pixel error; identical frames count as 100", PICTURE,
            unit="dB", digits=2),
    Measure("ssim", "SSIM", "higher", "structure in windows of 11 pixels", PICTURE),
    Measure("ms_ssim", "MS-SSIM", "higher", "structure at five scales", PICTURE),
    Measure("lpips", "LPIPS", "lower", "perceptual distance in AlexNet's features (torchmetrics)",
            PICTURE),
    Measure("vmaf", "VMAF", "higher", "perceived quality of television (Netflix, by ffmpeg);"
            " designed for larger frames", PICTURE, unit="of 100", digits=1),
    Measure("sharpness", "sharpness", "one", "RMS gradient relative to the real frame's: below 1"
            " is blurred, above 1 noisy", PICTURE),
    Measure("person_psnr", "PSNR of the person", "higher", "pixel error where the real frame"
            " shows a person, without the static background", PICTURE, statistic="person",
            unit="dB", digits=2, values=lambda r: r[:, 0]),
    Measure("person_sharpness", "sharpness of the person", "one", "sharpness in the person mask",
            PICTURE, statistic="person", values=lambda r: r[:, 1]),
    Measure("background_psnr", "PSNR of the background", "higher", "pixel error where the real"
            " frame shows no person", PICTURE, statistic="person", unit="dB", digits=2,
            values=lambda r: r[:, 2]),
    Measure("tof", "tOF", "lower", "difference between the flows of output and real video;"
            " for a frozen video it equals the real motion", MOTION, unit="px"),
    Measure("tlp", "tLP", "lower", "difference between the perceptual distances from frame to"
            " frame; detects freezing", MOTION, factor=1000, unit="× 1000", digits=2),
    Measure("flicker", "flicker", "lower", "change of the error from frame to frame; for a"
            " frozen video it equals the real one's frame difference", MOTION, factor=1000,
            unit="× 1000", digits=2),
    Measure("warping_error", "warping error", "real", "difference to the previous frame, warped"
            " by the real flow; blurred and frozen videos score low, so it is not ranked: compare"
            " it with the real video's value and tOF", factor=1000, unit="× 1000"),
    Measure("frame_difference", "frame difference", "real", "mean change from frame to frame: 0 is"
            " frozen; it should equal the real video's", factor=1000, unit="× 1000", digits=2),
    Measure("pose_error", "pose distance", "lower", "distance of detected keypoints in torso"
            " lengths, where a person is detected", SUBJECT, statistic="pose", unit="torsos",
            values=lambda r: measures.pose_error_of(r).distance),
    Measure("pck", "PCK@0.1", "higher", "fraction of keypoints within 0.1 torso lengths", SUBJECT,
            statistic="pose", values=lambda r: measures.pose_error_of(r).correct),
    Measure("pose_missed", "nobody found", "lower", "fraction of frames in which the detector finds"
            " a person in the real frame only", SUBJECT, statistic="pose", unit="%",
            factor=100, digits=1, values=lambda r: measures.pose_error_of(r).missed),
    Measure("face_error", "face NME", "lower", "error of the detected mesh in eye distances,"
            " where a face is detected", SUBJECT, statistic="face", unit="eye distances",
            values=lambda r: measures.face_error_of(r).distance),
    Measure("eyes", "eyes r", "higher", "correlation of the openness of the eyes", SUBJECT,
            statistic="face", values=lambda r: measures.face_error_of(r).eyes),
    Measure("mouth", "mouth r", "higher", "correlation of the openness of the mouth", SUBJECT,
            statistic="face", values=lambda r: measures.face_error_of(r).mouth),
    Measure("face_missed", "no face found", "lower", "fraction of frames in which the detector"
            " finds a face in the real frame only", SUBJECT, statistic="face", unit="%",
            factor=100, digits=1, values=lambda r: measures.face_error_of(r).missed),
    Measure("label_accuracy", "pixel accuracy", "higher", "agreement of output and real labels from"
            " the same segmenter", SUBJECT, statistic="labels", values=lambda r: r[:, 0]),
    Measure("label_iou", "mean IoU", "higher", "intersection over union of the same labels,"
            " mean over the classes present", SUBJECT, statistic="labels",
            values=lambda r: r[:, 1]),
)  # fmt: skip

SET_MEASURES: tuple[SetMeasure, ...] = (
    SetMeasure("fid", "FID", "Fréchet distance of Inception features of single frames", PICTURE,
               2048, "frames"),
    SetMeasure("fvd", "FVD (R3D-18)", "Fréchet distance of features of torchvision's R3D-18"
               " (Kinetics-400) on 16-frame clips; not comparable with FVD by I3D", MOTION,
               2048, "clips"),
)  # fmt: skip

ALL: tuple[Measure | SetMeasure, ...] = (*MEASURES, *SET_MEASURES)
BY_NAME: Mapping[str, Measure | SetMeasure] = {measure.name: measure for measure in ALL}
