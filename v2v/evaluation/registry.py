"""All measures of `v2v evaluate` in one place: what each is called, what it needs, how it is taken.

A measure gives a value a frame, aligned with the frames: what lies between two frames belongs to
the later one, and is NaN where there is none before it or a cut lies between. Its curve, mean,
confidence interval and drift all come from these values (`statistics`).

Some values can be told only when a whole video has been seen (a median torso, a correlation), yet
frames are not kept. So a measure is two functions: a reading of some consecutive frames, a few
numbers a frame, and the values that the statistics of a whole video come to. Measures of one
detector share a reading.
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

Picture = NDArray[np.uint8]  # RGB [H, W, 3]
Better = Literal["higher", "lower", "one", "real"]  # the last: the real video's own value
MOST_DECIBELS = 100.0  # what equal frames count as, so that there is a mean


class Distance(Protocol):
    """A network that compares pictures."""

    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """[T] of frames [T, 3, H, W] in [-1, 1]."""


@dataclass
class FrameChunk:
    """Some consecutive frames of one video, and what has been found on them.

    The frame before the first new one comes along where there is one.
    """

    pictures: list[Picture]
    before: bool  # whether pictures[0] is the one before
    steady: NDArray[np.bool_]  # [T] false where a cut lies before a new frame, or nothing
    distance: Distance | None = None
    found: dict[str, NDArray[Any]] = field(default_factory=dict)  # detector -> [T, ...]
    person: int | None = None  # which of the labels is a person's
    region: NDArray[np.bool_] | None = None  # [H, W] what counts; None: all

    @cached_property
    def frames(self) -> Tensor:
        """[T (+ 1), 3, H, W] in [-1, 1]."""
        stacked = torch.from_numpy(np.stack(self.pictures))
        return stacked.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    @property
    def new(self) -> Tensor:
        """[T, 3, H, W] without the frame before."""
        return self.frames[1:] if self.before else self.frames

    @property
    def counted(self) -> Tensor:
        """[T, H, W] bool, the pixels that count."""
        new = self.new
        if self.region is None:
            return torch.ones(len(new), *new.shape[-2:], dtype=torch.bool)
        return torch.from_numpy(self.region).expand(len(new), -1, -1)

    @cached_property
    def motion(self) -> Motion:
        return measures.motion(self.frames)

    @cached_property
    def steps(self) -> Tensor:
        """Perceptual distance of each frame to the one before it."""
        assert self.distance is not None
        return self.distance(self.frames[1:], self.frames[:-1])

    def between(self, values: Tensor | Values) -> Values:
        """[T] values between neighbours, each at its later frame."""
        array = np.asarray(values, np.float64)
        whole = array if self.before else np.concatenate([[np.nan], array])
        return np.where(self.steady, whole, np.nan)


@dataclass(frozen=True)
class ChunkPair:
    """The same moments of an output and of the real video."""

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
    """[T, 3] PSNR and sharpness where the real frame shows a person, and PSNR where it does not."""
    shows = torch.from_numpy(pair.real.found["labels"] == pair.real.person)
    where, rest = shows & pair.real.counted, ~shows & pair.real.counted
    ours, real = pair.output.new, pair.real.new
    error, behind = (
        measures.psnr_within(ours, real, w).clamp(max=MOST_DECIBELS) for w in (where, rest)
    )
    sharp = measures.sharpness(ours, real, where)
    return torch.stack([error, sharp, behind], dim=1).double().numpy()


@dataclass(frozen=True)
class FrameStatistic:
    """A few numbers a frame: [T] or [T, k]."""

    take: Callable[[ChunkPair], Values]
    needs: tuple[str, ...] = ()  # of NEEDS
    temporal: bool = False  # between two frames: an own course needs two of them


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


def _same(statistics: Values) -> Values:
    return statistics


@dataclass(frozen=True)
class Measure:
    """One measure. `about` says in a sentence what it sees, and what it does not."""

    name: str
    title: str
    better: Better
    about: str
    family: str | None = None  # what it is weighed with in the order of rows; None: it is not
    unit: str = ""
    statistic: str = ""  # of READINGS; by default the one of its name
    values: Callable[[Values], Values] = _same  # of the statistics of a whole video
    digits: int = 3
    factor: float = 1.0  # that it is told with

    @property
    def source(self) -> str:
        return self.statistic or self.name

    def format(self, value: float | None) -> str:
        return _format(value, self.digits, self.factor)


@dataclass(frozen=True)
class SetMeasure:
    """A distance between all frames or clips of two videos: one number, without a curve."""

    name: str
    title: str
    about: str
    family: str
    enough: int  # samples below which it is biased
    samples: str  # what they are
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
    Measure("psnr", "PSNR", "higher", "error of the pixels; equal frames count as 100", PICTURE,
            unit="dB", digits=2),
    Measure("ssim", "SSIM", "higher", "structure in windows of 11 pixels", PICTURE),
    Measure("ms_ssim", "MS-SSIM", "higher", "structure at five scales", PICTURE),
    Measure("lpips", "LPIPS", "lower", "difference as AlexNet's features see it (torchmetrics)",
            PICTURE),
    Measure("vmaf", "VMAF", "higher", "what viewers of television would say (Netflix, by ffmpeg);"
            " it was made for larger pictures", PICTURE, unit="of 100", digits=1),
    Measure("sharpness", "sharpness", "one", "gradient (root mean square) over the real frame's:"
            " below 1 is blurred, above 1 noisy", PICTURE),
    Measure("person_psnr", "PSNR of the person", "higher", "error of the pixels where the real"
            " frame shows a person: a still background does not count", PICTURE, statistic="person",
            unit="dB", digits=2, values=lambda r: r[:, 0]),
    Measure("person_sharpness", "sharpness of the person", "one", "sharpness, there alone",
            PICTURE, statistic="person", values=lambda r: r[:, 1]),
    Measure("background_psnr", "PSNR of the background", "higher", "error of the pixels where the"
            " real frame shows no person", PICTURE, statistic="person", unit="dB", digits=2,
            values=lambda r: r[:, 2]),
    Measure("tof", "tOF", "lower", "difference of the flows of output and real video; a frozen"
            " one has all of the real motion", MOTION, unit="px"),
    Measure("tlp", "tLP", "lower", "difference of the perceptual steps from frame to frame; sees"
            " freezing", MOTION, factor=1000, unit="× 1000", digits=2),
    Measure("flicker", "flicker", "lower", "how much the error changes from frame to frame; a"
            " frozen video has the real one's frame difference", MOTION, factor=1000,
            unit="× 1000", digits=2),
    Measure("warping_error", "warping error", "real", "difference to the frame before, moved as"
            " the real video moves; blurred and frozen videos win it, so it ranks nothing: read it"
            " beside the floor and tOF", factor=1000, unit="× 1000"),
    Measure("frame_difference", "frame difference", "real", "mean change from frame to frame: 0 is"
            " frozen; it should be the real video's", factor=1000, unit="× 1000", digits=2),
    Measure("pose_error", "pose distance", "lower", "keypoints found again, over the torso's"
            " length, where somebody was found", SUBJECT, statistic="pose", unit="torsos",
            values=lambda r: measures.pose_error_of(r).distance),
    Measure("pck", "PCK@0.1", "higher", "share of keypoints within a tenth of the torso", SUBJECT,
            statistic="pose", values=lambda r: measures.pose_error_of(r).correct),
    Measure("pose_missed", "nobody found", "lower", "share of frames in which the detector finds"
            " nobody, though it does in the real ones", SUBJECT, statistic="pose", unit="%",
            factor=100, digits=1, values=lambda r: measures.pose_error_of(r).missed),
    Measure("face_error", "face NME", "lower", "mesh found again, over the distance of the eyes,"
            " where a face was found", SUBJECT, statistic="face", unit="eye distances",
            values=lambda r: measures.face_error_of(r).distance),
    Measure("eyes", "eyes r", "higher", "correlation of how far the eyes are open", SUBJECT,
            statistic="face", values=lambda r: measures.face_error_of(r).eyes),
    Measure("mouth", "mouth r", "higher", "correlation of how far the mouth is open", SUBJECT,
            statistic="face", values=lambda r: measures.face_error_of(r).mouth),
    Measure("face_missed", "no face found", "lower", "share of frames in which the detector finds"
            " no face, though it does in the real ones", SUBJECT, statistic="face", unit="%",
            factor=100, digits=1, values=lambda r: measures.face_error_of(r).missed),
    Measure("label_accuracy", "pixel accuracy", "higher", "labels of output and real frames by"
            " one segmenter", SUBJECT, statistic="labels", values=lambda r: r[:, 0]),
    Measure("label_iou", "mean IoU", "higher", "the same labels: intersection over union,"
            " mean of the classes that a frame has", SUBJECT, statistic="labels",
            values=lambda r: r[:, 1]),
)  # fmt: skip

SET_MEASURES: tuple[SetMeasure, ...] = (
    SetMeasure("fid", "FID", "Fréchet distance of Inception features of single frames", PICTURE,
               2048, "frames"),
    SetMeasure("fvd", "FVD (R3D-18)", "Fréchet distance of video features, of torchvision's R3D-18"
               " (Kinetics-400) on clips of 16 frames: it compares with no FVD by I3D", MOTION,
               2048, "clips"),
)  # fmt: skip

ALL: tuple[Measure | SetMeasure, ...] = (*MEASURES, *SET_MEASURES)
BY_NAME: Mapping[str, Measure | SetMeasure] = {measure.name: measure for measure in ALL}
