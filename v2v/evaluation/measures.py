"""Measures of rendered video against the real one, each a pure function, each a value a frame.

A value a frame, because rendering drifts: its course over time says more than its mean. `average`
takes the mean and leaves out frames that have no value.

No measure stands alone. A blurred or frozen video has a small warping error, so the real video's
own belongs beside it, and the flow difference and the mean frame difference, which see the
freezing. A detector is never still: its error on the real frames, encoded once more, is the floor
of every landmark error.

Shapes: T frames, H height, W width, N landmarks. Frames are [T, 3, H, W] RGB in [-1, 1], landmarks
[T, N, 3] x, y in pixels and score, NaN where nothing was found. What is measured between two
frames has T - 1 values, the first of them between frames 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.signals.face import eye_openness, mouth_openness
from v2v.signals.pose import MIN_SCORE, POINT
from v2v.signals.segmentation import VOID
from v2v.warp import occlusion, warp

Landmarks = NDArray[np.float32]
Values = NDArray[np.float64]

PCK = 0.1  # of the torso, within which a keypoint counts as correct
SHORTEST = 0.5  # of its median: a torso or a face seen from the side is no shorter unit than this
STILL = 0.2  # of the real face's motion; eyes or a mouth that move less do not move
EYES = (33, 263)  # the outer corners of the eyes in the face mesh


def average(values: Tensor | Values) -> float:
    """The mean over the frames that have a value; NaN where none has."""
    array = np.asarray(values, np.float64)
    there = array[~np.isnan(array)]
    return float(there.mean()) if there.size else float("nan")


# ---------------------------------------------------------------- pictures


def psnr(output: Tensor, truth: Tensor) -> Tensor:
    """[T] peak signal-to-noise ratio in dB; infinite where the frames are equal."""
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().peak_signal_noise_ratio(
        output, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values


def psnr_within(output: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """[T] the same over the pixels that `where` [T, H, W] picks; NaN where it picks none."""
    output, truth = _pair(output, truth)
    squared = (output - truth).square().mean(dim=1)
    return -10 * _mean_within(squared, where).log10()


def ssim(output: Tensor, truth: Tensor) -> Tensor:
    """[T] structural similarity (Wang et al. 2004), 1 where the frames are equal.

    Sides must be longer than 11 pixels, the window's. Taken on images in [0, 1]: its comparison
    of brightness has no meaning where dark is negative.
    """
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().structural_similarity_index_measure(
        output, truth, data_range=1.0, reduction="none"
    )
    return values.reshape(len(output))  # a single frame comes without its axis


def ms_ssim(output: Tensor, truth: Tensor) -> Tensor:
    """[T] structural similarity at five scales (Wang et al. 2003), 1 where the frames are equal.

    Sides must be longer than 160 pixels: the window is 11 wide at a sixteenth of them.
    """
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().multiscale_structural_similarity_index_measure(
        output, truth, data_range=1.0, reduction="none"
    )
    return values.reshape(len(output))


def sharpness(output: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """[T] gradient of the brightness over the real frame's: below 1 blurred, above 1 noisy.

    Root mean squares: a blurred edge climbs as high as a sharp one, only more slowly, so a plain
    mean would not see it. NaN where the real frame is flat, or `where` [T, H, W] picks nothing.
    """
    ours, real = (_gradient(frames, where) for frames in _pair(output, truth))
    return ours / torch.where(real > 0, real, torch.nan)


def _gradient(frames: Tensor, where: Tensor | None) -> Tensor:
    brightness = frames.mean(dim=1)
    if where is None:
        where = torch.ones_like(brightness, dtype=torch.bool)
    across = _mean_within(brightness.diff(dim=-1).square(), where[..., 1:] & where[..., :-1])
    down = _mean_within(brightness.diff(dim=-2).square(), where[..., 1:, :] & where[..., :-1, :])
    return (across + down).sqrt()


# ---------------------------------------------------------------- motion


@dataclass(frozen=True)
class Motion:
    """Flow between each frame and the one before it, by `motion`."""

    backward: Tensor  # [T-1, 2, H, W] pixels, from frame t to t - 1
    occluded: Tensor  # [T-1, 1, H, W] 1 where frame t cannot be compared with t - 1

    def __len__(self) -> int:
        return len(self.backward)


def motion(frames: Tensor) -> Motion:
    """Flow of a video by dense inverse search (Kroeger et al. 2016), on a CPU.

    OpenCV's medium preset, carried on to full resolution: its own last step is at half of it and
    is off by 0.03 pixel on a plain shift, this by 0.008.
    """
    method: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    method.setFinestScale(0)
    grey = [_grey(frame) for frame in frames]
    pairs = list(zip(grey, grey[1:], strict=False))
    size = (len(pairs), *frames.shape[-2:], 2)
    backward, forward = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for t, (before, now) in enumerate(pairs):
        backward[t], forward[t] = method.calc(now, before, None), method.calc(before, now, None)
    back, ahead = (torch.from_numpy(f).permute(0, 3, 1, 2) for f in (backward, forward))
    return Motion(back, occluded(back, ahead))


def occluded(backward: Tensor, forward: Tensor) -> Tensor:
    """[B, 1, H, W] 1 where frame t is not to be compared with the one before it.

    Where the forward-backward check fails, and at motion boundaries, where flow is blurred:
    `|grad u|^2 + |grad v|^2 > 0.01 |w|^2 + 0.002` (Lai et al. 2018, arXiv 1808.00449, after Ruder
    et al. 2016, arXiv 1604.08610).

    Args:
        backward, forward: [B, 2, H, W] from frame t to t - 1, and from t - 1 to t.
    """
    steep = torch.zeros_like(backward[:, :1])
    steep[..., :-1] += backward.diff(dim=-1).square().sum(1, keepdim=True)
    steep[..., :-1, :] += backward.diff(dim=-2).square().sum(1, keepdim=True)
    boundary = steep > 0.01 * backward.square().sum(1, keepdim=True) + 0.002
    return torch.maximum(occlusion(backward, forward), boundary.to(backward.dtype))


def warping_error(frames: Tensor, real: Motion) -> Tensor:
    """[T-1] mean squared difference of a frame and its warped neighbour (arXiv 1808.00449).

    Images in [0, 1]; over the pixels that the real video does not occlude, NaN where it occludes
    all. How steady the output is where the real video moves as `real` says; a blurred or frozen
    video has little of it, so print the real video's own, and `flow_difference`, beside it.
    """
    frames = _unit(frames)
    assert len(frames) == len(real) + 1, f"{len(frames)} frames, {len(real)} flows"
    seen = 1 - real.occluded
    squared = (frames[1:] - warp(frames[:-1], real.backward)).square().mean(1, keepdim=True)
    count = seen.sum(dim=(1, 2, 3))
    return (squared * seen).sum(dim=(1, 2, 3)) / torch.where(count > 0, count, torch.nan)


def flow_difference(output: Motion, real: Motion) -> Tensor:
    """[T-1] tOF, the L1 difference of two videos' flows in pixels (TecoGAN, arXiv 1811.09393).

    `|u - u'| + |v - v'|`, the mean over all pixels. A frozen video has the real one's motion.
    """
    return (output.backward - real.backward).abs().sum(1).mean(dim=(1, 2))


def frame_difference(frames: Tensor) -> Tensor:
    """[T-1] mean absolute difference of neighbouring frames, in [0, 1]: 0 is a frozen video."""
    return _unit(frames).diff(dim=0).abs().mean(dim=(1, 2, 3))


def flicker(output: Tensor, truth: Tensor) -> Tensor:
    """[T-1] how much the error changes from frame to frame: mean `|e_t - e_t-1|`, in [0, 1].

    `e` is the output less the real frame. An error that stays is none; brightness that jumps by
    `a` every frame is `a`; a frozen video has the real one's `frame_difference`.
    """
    output, truth = _pair(output, truth)
    return (output - truth).diff(dim=0).abs().mean(dim=(1, 2, 3))


# ---------------------------------------------------------------- landmarks


@dataclass(frozen=True)
class PoseError:
    """Keypoints found on rendered frames against those on the real ones."""

    distance: Values  # [T] mean distance of keypoints over the torso's length; NaN: nothing found
    correct: Values  # [T] PCK: share of keypoints within 0.1 of the torso; 0 where nothing found
    missed: Values  # [T] 1 where nobody was found, NaN where the real frame shows nobody


def pose_error(output: Landmarks, truth: Landmarks) -> PoseError:
    """Compare the body keypoints [T, >= 33, 3] of two detections of the same moments.

    Keypoints that the real frames show (score of at least 0.5) count. The unit is the real
    torso's length, from the middle of the shoulders to that of the hips, in each frame; one
    that is foreshortened is at least half its median.
    """
    return pose_error_of(pose_statistics(output, truth))


def pose_statistics(output: Landmarks, truth: Landmarks) -> Values:
    """[T, 34] what `pose_error_of` wants of each frame; statistics of parts of a video go in a row.

    The real torso's length, then each keypoint's distance in pixels: infinite where only the
    real frame shows it, NaN where that does not.
    """
    output, truth = output[:, : POINT["right_foot"] + 1], truth[:, : POINT["right_foot"] + 1]
    shoulders, hips = (
        truth[:, [POINT[f"left_{part}"], POINT[f"right_{part}"]], :2].mean(axis=1)
        for part in ("shoulder", "hip")
    )
    with np.errstate(invalid="ignore"):
        shown = truth[..., 2] >= MIN_SCORE
    away = np.nan_to_num(_distances(output, truth), nan=np.inf)
    torso = _length(shoulders, hips)[:, None]
    statistics: Values = np.concatenate([torso, np.where(shown, away, np.nan)], axis=1)
    return statistics


def pose_error_of(statistics: Values) -> PoseError:
    """The error that the statistics [T, 34] of a whole video come to."""
    away = statistics[:, 1:] / _unit_length(statistics[:, 0])[:, None]
    shown, found = ~np.isnan(away), np.isfinite(away)
    correct = np.where(found, np.nan_to_num(away, posinf=np.inf) <= PCK, 0.0)
    return PoseError(
        distance=_mean(np.where(found, away, 0.0), found),
        correct=_mean(correct, shown),
        missed=_missed(found, shown),
    )


@dataclass(frozen=True)
class FaceError:
    """Face meshes found on rendered frames against those on the real ones.

    `eyes` and `mouth` are products of standard scores over time: the mean of them is Pearson's
    correlation, all NaN where one side is still, or the output nearly so.
    """

    distance: Values  # [T] normalised mean error; NaN: no face found
    eyes: Values  # [T] how far the eyes are open, the mean of both
    mouth: Values  # [T] how far the mouth is open
    missed: Values  # [T] 1 where no face was found, NaN where the real frame shows none


def face_error(output: Landmarks, truth: Landmarks) -> FaceError:
    """Compare the meshes [T, 478, 3] of two detections of the same moments.

    The unit is the real face's inter-ocular distance, between the outer corners of the eyes, in
    each frame; one seen from the side is at least half its median.
    """
    return face_error_of(face_statistics(output, truth))


def face_statistics(output: Landmarks, truth: Landmarks) -> Values:
    """[T, 8] what `face_error_of` wants of each frame; statistics of parts of a video go in a row.

    The real inter-ocular distance; the points' mean distance in pixels, infinite where no face
    was found, NaN where there is none; openness of right eye, left eye and mouth, each ours and
    the real one.
    """
    away = _distances(output, truth)
    found, shown = np.isfinite(away), np.isfinite(truth[..., 0])
    mean = _mean(away, found)
    mean[np.isnan(mean) & shown.any(axis=1)] = np.inf
    eyes = zip(eye_openness(output).T, eye_openness(truth).T, strict=True)
    openness = [series for pair in eyes for series in pair]
    openness += [mouth_openness(output), mouth_openness(truth)]
    apart = _length(truth[:, EYES[0], :2], truth[:, EYES[1], :2])
    statistics: Values = np.stack([apart, mean, *openness], axis=1).astype(np.float64)
    return statistics


def face_error_of(statistics: Values) -> FaceError:
    """The error that the statistics [T, 8] of a whole video come to."""
    away = statistics[:, 1] / _unit_length(statistics[:, 0])
    shown, found = ~np.isnan(away), np.isfinite(away)
    right, left, mouth = (_following(*statistics[:, i : i + 2].T) for i in (2, 4, 6))
    return FaceError(
        distance=np.where(found, away, np.nan),
        eyes=(right + left) / 2,
        mouth=mouth,
        missed=_missed(found[:, None], shown[:, None]),
    )


def _following(output: Values, truth: Values) -> Values:
    """`scores`, all NaN where the output hardly moves: what correlates there is the detector."""
    known = np.isfinite(output) & np.isfinite(truth)
    if known.any() and output[known].std() < STILL * truth[known].std():
        return np.full(len(output), np.nan)
    return scores(output, truth)


def scores(one: NDArray[Any], other: NDArray[Any]) -> Values:
    """[T] products of the standard scores of two series: the mean of them is `correlation`.

    NaN where one is unknown, and everywhere if one is still.
    """
    known = np.isfinite(one) & np.isfinite(other)
    product = np.full(len(one), np.nan)
    a, b = (series[known].astype(np.float64) for series in (one, other))
    if len(a) >= 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
        product[known] = (a - a.mean()) / a.std() * (b - b.mean()) / b.std()
    return product


# ---------------------------------------------------------------- label maps


def label_agreement(output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[Values, Values]:
    """[T] pixel accuracy and [T] mean IoU of label maps [T, H, W], void (255) in the truth aside.

    The mean is over the classes that a frame of either has; NaN where the truth is all void.
    """
    assert output.shape == truth.shape, f"labels {output.shape} against {truth.shape}"
    accuracy, overlap = np.full(len(truth), np.nan), np.full(len(truth), np.nan)
    for t, (ours, real) in enumerate(zip(output, truth, strict=True)):
        counted = real != VOID
        if not counted.any():
            continue
        pairs = ours[counted].astype(np.int64) * 256 + real[counted]
        table = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        both = np.diag(table)
        either = table.sum(axis=0) + table.sum(axis=1) - both
        there = either > 0
        accuracy[t] = both.sum() / table.sum()
        overlap[t] = (both[there] / either[there]).mean()
    return accuracy, overlap


# ---------------------------------------------------------------- small things


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's correlation of two series [T] where both are known; NaN where one is still."""
    return average(scores(one, other))


def _distances(output: Landmarks, truth: Landmarks) -> Values:
    """[T, N] pixels; NaN where a point is missing on either side."""
    assert output.shape == truth.shape, f"landmarks {output.shape} against {truth.shape}"
    gap = output[..., :2].astype(np.float64) - truth[..., :2]
    lengths: Values = np.linalg.norm(gap, axis=-1)
    return lengths


def _length(one: NDArray[Any], other: NDArray[Any]) -> Values:
    """[T] distance between two points [T, 2] over time."""
    length: Values = np.linalg.norm(one.astype(np.float64) - other, axis=-1)
    return length


def _unit_length(length: Values) -> Values:
    """[T] lengths, none shorter than half the median."""
    known = length[np.isfinite(length)]
    return np.maximum(length, SHORTEST * float(np.median(known))) if known.size else length


def _mean(values: Values, where: NDArray[np.bool_]) -> Values:
    """[T] mean of [T, N] over the chosen points; NaN where none is."""
    count = where.sum(axis=1)
    total = np.where(where, np.nan_to_num(values), 0.0).sum(axis=1)
    mean: Values = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _missed(found: NDArray[np.bool_], shown: NDArray[np.bool_]) -> Values:
    """[T] 1 where something is shown and none of it was found, else 0; NaN where nothing shows."""
    return np.where(shown.any(axis=1), (~found.any(axis=1)).astype(np.float64), np.nan)


def _mean_within(values: Tensor, where: Tensor) -> Tensor:
    """[T] mean of values [T, H, W] where `where` is true; NaN where it never is."""
    return (values * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))


def _unit(frames: Tensor) -> Tensor:
    """Frames in [0, 1]."""
    assert frames.ndim == 4 and frames.shape[1] == 3, f"frames must be [T,3,H,W]: {frames.shape}"
    return (frames.float() + 1) / 2


def _pair(output: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    assert output.shape == truth.shape, f"frames {list(output.shape)} against {list(truth.shape)}"
    return _unit(output), _unit(truth)


def _grey(frame: Tensor) -> NDArray[np.uint8]:
    rgb = (_unit(frame[None])[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0)
    grey: NDArray[np.uint8] = cv2.cvtColor(  # type: ignore[assignment]
        np.ascontiguousarray(rgb.cpu().numpy()), cv2.COLOR_RGB2GRAY
    )
    return grey


@cache
def _torchmetrics() -> Any:
    """The functional image metrics, imported on first use: that takes seconds."""
    from v2v.weights import torchvision_models

    torchvision_models()  # they import torchvision, which some pairs of builds do not let through
    from torchmetrics.functional import image

    return image
