"""Measures of rendered against real video: pure functions that return one value per frame.

Values per frame, because rendering drifts: the curve over time says more than the mean. `average`
takes the mean and ignores undefined frames.

No measure suffices alone. A blurred or frozen video has a small warping error: compare it with the
real video's own, and read it with the flow difference and the frame difference, which detect
freezing. Detectors are noisy: their error on the re-encoded real frames is the floor of every
landmark error.

Shapes: T frames, H height, W width, N landmarks. Frames are [T, 3, H, W] RGB in [-1, 1], landmarks
[T, N, 3] x, y in pixels and score, NaN if nothing was detected. Measures between two frames have
T - 1 values, the first of them between frames 0 and 1.
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

PCK = 0.1  # threshold for a correct keypoint, as a fraction of the torso's length
SHORTEST = 0.5  # minimum unit length (torso or eye distance), as a fraction of its median
STILL = 0.2  # fraction of the real face's motion below which eyes or a mouth count as still
EYES = (33, 263)  # the outer corners of the eyes in the face mesh


def average(values: Tensor | Values) -> float:
    """The mean over the frames with a defined value; NaN if there are none."""
    array = np.asarray(values, np.float64)
    defined = array[~np.isnan(array)]
    return float(defined.mean()) if defined.size else float("nan")


# ---------------------------------------------------------------- pictures


def psnr(output: Tensor, truth: Tensor) -> Tensor:
    """[T] peak signal-to-noise ratio in dB; infinite for identical frames."""
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().peak_signal_noise_ratio(
        output, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values


def psnr_within(output: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """[T] PSNR over the pixels selected by `where` [T, H, W]; NaN if none are selected."""
    output, truth = _pair(output, truth)
    squared = (output - truth).square().mean(dim=1)
    return -10 * _mean_within(squared, where).log10()


def ssim(output: Tensor, truth: Tensor) -> Tensor:
    """[T] structural similarity (Wang et al. 2004), 1 for identical frames.

    Sides must be longer than the window of 11 pixels. Computed on images in [0, 1], because its
    luminance term is meaningless for negative values.
    """
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().structural_similarity_index_measure(
        output, truth, data_range=1.0, reduction="none"
    )
    return values.reshape(len(output))  # torchmetrics drops the axis of a single frame


def ms_ssim(output: Tensor, truth: Tensor) -> Tensor:
    """[T] structural similarity at five scales (Wang et al. 2003), 1 for identical frames.

    Sides must be longer than 160 pixels: the window of 11 pixels must fit at a scale of 1/16.
    """
    output, truth = _pair(output, truth)
    values: Tensor = _torchmetrics().multiscale_structural_similarity_index_measure(
        output, truth, data_range=1.0, reduction="none"
    )
    return values.reshape(len(output))


def sharpness(output: Tensor, truth: Tensor, where: Tensor | None = None) -> Tensor:
    """[T] brightness gradient relative to the real frame's: below 1 blurred, above 1 noisy.

    Root mean squares, because blurring an edge does not change the mean of its gradient. NaN if
    the real frame is flat or `where` [T, H, W] selects nothing.
    """
    ours, real = (_gradient(frames, where) for frames in _pair(output, truth))
    return ours / torch.where(real > 0, real, torch.nan)


def _gradient(frames: Tensor, where: Tensor | None) -> Tensor:
    brightness = frames.mean(dim=1)
    if where is None:
        where = torch.ones_like(brightness, dtype=torch.bool)
    dx = _mean_within(brightness.diff(dim=-1).square(), where[..., 1:] & where[..., :-1])
    dy = _mean_within(brightness.diff(dim=-2).square(), where[..., 1:, :] & where[..., :-1, :])
    return (dx + dy).sqrt()


# ---------------------------------------------------------------- motion


@dataclass(frozen=True)
class Motion:
    """Flow between each frame and the previous one, by `motion`."""

    backward: Tensor  # [T-1, 2, H, W] pixels, from frame t to t - 1
    occluded: Tensor  # [T-1, 1, H, W] 1 where frame t cannot be compared with t - 1

    def __len__(self) -> int:
        return len(self.backward)


def motion(frames: Tensor) -> Motion:
    """Flow of a video by dense inverse search (Kroeger et al. 2016), on the CPU.

    OpenCV's medium preset, refined to full resolution: the preset stops at half resolution with an
    error of 0.03 pixel on a pure translation; this has 0.008.
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
    """[B, 1, H, W] 1 where frame t cannot be compared with the previous one.

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
    """[T-1] mean squared difference of a frame and its warped predecessor (arXiv 1808.00449).

    On images in [0, 1], over the pixels not occluded in the real video; NaN if all are occluded.
    It measures temporal stability along the real motion. A blurred or frozen video scores low, so
    report the real video's own value and `flow_difference` with it.
    """
    frames = _unit(frames)
    assert len(frames) == len(real) + 1, f"{len(frames)} frames, {len(real)} flows"
    visible = 1 - real.occluded
    squared = (frames[1:] - warp(frames[:-1], real.backward)).square().mean(1, keepdim=True)
    count = visible.sum(dim=(1, 2, 3))
    return (squared * visible).sum(dim=(1, 2, 3)) / torch.where(count > 0, count, torch.nan)


def flow_difference(output: Motion, real: Motion) -> Tensor:
    """[T-1] tOF, the L1 difference of two videos' flows in pixels (TecoGAN, arXiv 1811.09393).

    Mean of `|u - u'| + |v - v'|` over all pixels. For a frozen video it equals the real motion.
    """
    return (output.backward - real.backward).abs().sum(1).mean(dim=(1, 2))


def frame_difference(frames: Tensor) -> Tensor:
    """[T-1] mean absolute difference of neighbouring frames, in [0, 1]; 0 for a frozen video."""
    return _unit(frames).diff(dim=0).abs().mean(dim=(1, 2, 3))


def flicker(output: Tensor, truth: Tensor) -> Tensor:
    """[T-1] how much the error changes from frame to frame: mean `|e_t - e_t-1|`, in [0, 1].

    `e` is the output minus the real frame. A constant error gives 0, brightness that jumps by `a`
    every frame gives `a`, and a frozen video gives the real one's `frame_difference`.
    """
    output, truth = _pair(output, truth)
    return (output - truth).diff(dim=0).abs().mean(dim=(1, 2, 3))


# ---------------------------------------------------------------- landmarks


@dataclass(frozen=True)
class PoseError:
    """Keypoints detected on rendered frames, compared with those on the real ones."""

    distance: Values  # [T] mean keypoint distance in torso lengths; NaN if nothing was detected
    correct: Values  # [T] PCK: fraction of keypoints within 0.1 torso; 0 if nothing was detected
    missed: Values  # [T] 1 if nobody was detected, NaN if the real frame shows nobody


def pose_error(output: Landmarks, truth: Landmarks) -> PoseError:
    """Compare the body keypoints [T, >= 33, 3] detected on two videos of the same frames.

    Keypoints visible in the real frames (score of at least 0.5) count. The unit is the real
    torso's length in each frame, from the mid-shoulders to the mid-hips, but at least half its
    median, in case the torso is foreshortened.
    """
    return pose_error_of(pose_statistics(output, truth))


def pose_statistics(output: Landmarks, truth: Landmarks) -> Values:
    """[T, 34] the input of `pose_error_of`; statistics of consecutive chunks are concatenated.

    The real torso's length, then each keypoint's distance in pixels: infinite if only the real
    frame shows it, NaN if the real frame does not.
    """
    output, truth = output[:, : POINT["right_foot"] + 1], truth[:, : POINT["right_foot"] + 1]
    shoulders, hips = (
        truth[:, [POINT[f"left_{part}"], POINT[f"right_{part}"]], :2].mean(axis=1)
        for part in ("shoulder", "hip")
    )
    with np.errstate(invalid="ignore"):
        shown = truth[..., 2] >= MIN_SCORE
    distance = np.nan_to_num(_distances(output, truth), nan=np.inf)
    torso = _length(shoulders, hips)[:, None]
    statistics: Values = np.concatenate([torso, np.where(shown, distance, np.nan)], axis=1)
    return statistics


def pose_error_of(statistics: Values) -> PoseError:
    """The pose error from the statistics [T, 34] of a whole video."""
    distance = statistics[:, 1:] / _unit_length(statistics[:, 0])[:, None]
    shown, found = ~np.isnan(distance), np.isfinite(distance)
    correct = np.where(found, np.nan_to_num(distance, posinf=np.inf) <= PCK, 0.0)
    return PoseError(
        distance=_mean(np.where(found, distance, 0.0), found),
        correct=_mean(correct, shown),
        missed=_missed(found, shown),
    )


@dataclass(frozen=True)
class FaceError:
    """Face meshes detected on rendered frames, compared with those on the real ones.

    `eyes` and `mouth` are products of standard scores over time: their mean is Pearson's
    correlation. They are all NaN if either side is still, or the output nearly so.
    """

    distance: Values  # [T] normalised mean error; NaN if no face was detected
    eyes: Values  # [T] openness of the eyes, mean of both
    mouth: Values  # [T] openness of the mouth
    missed: Values  # [T] 1 if no face was detected, NaN if the real frame shows none


def face_error(output: Landmarks, truth: Landmarks) -> FaceError:
    """Compare the meshes [T, 478, 3] detected on two videos of the same frames.

    The unit is the real face's inter-ocular distance in each frame, between the outer corners of
    the eyes, but at least half its median, in case the face is seen from the side.
    """
    return face_error_of(face_statistics(output, truth))


def face_statistics(output: Landmarks, truth: Landmarks) -> Values:
    """[T, 8] the input of `face_error_of`; statistics of consecutive chunks are concatenated.

    The real inter-ocular distance; the points' mean distance in pixels, infinite if no face was
    detected, NaN if there is none; openness of right eye, left eye and mouth, each of the output
    and the real frame.
    """
    distance = _distances(output, truth)
    found, shown = np.isfinite(distance), np.isfinite(truth[..., 0])
    mean = _mean(distance, found)
    mean[np.isnan(mean) & shown.any(axis=1)] = np.inf
    eyes = zip(eye_openness(output).T, eye_openness(truth).T, strict=True)
    openness = [series for pair in eyes for series in pair]
    openness += [mouth_openness(output), mouth_openness(truth)]
    eye_distance = _length(truth[:, EYES[0], :2], truth[:, EYES[1], :2])
    statistics: Values = np.stack([eye_distance, mean, *openness], axis=1).astype(np.float64)
    return statistics


def face_error_of(statistics: Values) -> FaceError:
    """The face error from the statistics [T, 8] of a whole video."""
    distance = statistics[:, 1] / _unit_length(statistics[:, 0])
    shown, found = ~np.isnan(distance), np.isfinite(distance)
    right, left, mouth = (_moving_scores(*statistics[:, i : i + 2].T) for i in (2, 4, 6))
    return FaceError(
        distance=np.where(found, distance, np.nan),
        eyes=(right + left) / 2,
        mouth=mouth,
        missed=_missed(found[:, None], shown[:, None]),
    )


def _moving_scores(output: Values, truth: Values) -> Values:
    """`scores`; all NaN if the output hardly moves, because then only detector noise correlates."""
    known = np.isfinite(output) & np.isfinite(truth)
    if known.any() and output[known].std() < STILL * truth[known].std():
        return np.full(len(output), np.nan)
    return scores(output, truth)


def scores(one: NDArray[Any], other: NDArray[Any]) -> Values:
    """[T] products of the standard scores of two series; their mean is `correlation`.

    NaN where one is undefined, and everywhere if one is constant.
    """
    known = np.isfinite(one) & np.isfinite(other)
    product = np.full(len(one), np.nan)
    a, b = (series[known].astype(np.float64) for series in (one, other))
    if len(a) >= 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
        product[known] = (a - a.mean()) / a.std() * (b - b.mean()) / b.std()
    return product


# ---------------------------------------------------------------- label maps


def label_agreement(output: NDArray[np.uint8], truth: NDArray[np.uint8]) -> tuple[Values, Values]:
    """[T] pixel accuracy and [T] mean IoU of label maps [T, H, W], ignoring void (255) in `truth`.

    The mean is over the classes present in either frame; NaN if the truth is all void.
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
        present = either > 0
        accuracy[t] = both.sum() / table.sum()
        overlap[t] = (both[present] / either[present]).mean()
    return accuracy, overlap


# ---------------------------------------------------------------- helpers


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's correlation of two series [T] where both are finite; NaN if one is constant."""
    return average(scores(one, other))


def _distances(output: Landmarks, truth: Landmarks) -> Values:
    """[T, N] distances in pixels; NaN where a point is missing on either side."""
    assert output.shape == truth.shape, f"landmarks {output.shape} against {truth.shape}"
    gap = output[..., :2].astype(np.float64) - truth[..., :2]
    lengths: Values = np.linalg.norm(gap, axis=-1)
    return lengths


def _length(one: NDArray[Any], other: NDArray[Any]) -> Values:
    """[T] distance between two points [T, 2] over time."""
    length: Values = np.linalg.norm(one.astype(np.float64) - other, axis=-1)
    return length


def _unit_length(length: Values) -> Values:
    """[T] lengths, clamped to at least half the median."""
    known = length[np.isfinite(length)]
    return np.maximum(length, SHORTEST * float(np.median(known))) if known.size else length


def _mean(values: Values, where: NDArray[np.bool_]) -> Values:
    """[T] mean of [T, N] over the selected points; NaN if none are selected."""
    count = where.sum(axis=1)
    total = np.where(where, np.nan_to_num(values), 0.0).sum(axis=1)
    mean: Values = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _missed(found: NDArray[np.bool_], shown: NDArray[np.bool_]) -> Values:
    """[T] 1 if something is shown but none of it was found, else 0; NaN if nothing is shown."""
    return np.where(shown.any(axis=1), (~found.any(axis=1)).astype(np.float64), np.nan)


def _mean_within(values: Tensor, where: Tensor) -> Tensor:
    """[T] mean of values [T, H, W] where `where` is true; NaN if it is nowhere true."""
    return (values * where).sum(dim=(1, 2)) / where.sum(dim=(1, 2))


def _unit(frames: Tensor) -> Tensor:
    """Convert frames from [-1, 1] to [0, 1]."""
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
    """The functional image metrics, imported on first use because that takes seconds."""
    from v2v.weights import torchvision_models

    torchvision_models()  # works around torch and torchvision builds that do not match
    from torchmetrics.functional import image

    return image
