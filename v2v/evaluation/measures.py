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
from v2v.warp import occlusion, warp

Landmarks = NDArray[np.float32]
Values = NDArray[np.float64]

PCK = 0.1  # of the torso, within which a keypoint counts as correct
SHORTEST = 0.5  # of its median: a torso or a face seen from the side is no shorter unit than this
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


# ---------------------------------------------------------------- landmarks


@dataclass(frozen=True)
class PoseError:
    """Keypoints found on rendered frames against those on the real ones."""

    distance: Values  # [T] mean distance of keypoints over the torso's length; NaN: nothing found
    correct: Values  # [T] PCK: share of keypoints within 0.1 of the torso; 0 where nothing found
    missed: float  # share of the real frames' people that were not found in the output


def pose_error(output: Landmarks, truth: Landmarks) -> PoseError:
    """Compare the body keypoints [T, >= 33, 3] of two detections of the same moments.

    Keypoints that the real frames show (score of at least 0.5) count. The unit is the real
    torso's length, from the middle of the shoulders to that of the hips, in each frame; one
    that is foreshortened is at least half its median.
    """
    output, truth = output[:, : POINT["right_foot"] + 1], truth[:, : POINT["right_foot"] + 1]
    middles = [
        truth[:, [POINT[f"left_{part}"], POINT[f"right_{part}"]], :2].mean(axis=1)
        for part in ("shoulder", "hip")
    ]
    unit = _unit_length(middles[0], middles[1])
    with np.errstate(invalid="ignore"):
        shown = truth[..., 2] >= MIN_SCORE
    away = _distances(output, truth) / unit[:, None]
    found = np.isfinite(away)
    correct = np.where(found, np.nan_to_num(away) <= PCK, 0.0)
    return PoseError(
        distance=_mean(away, shown & found),
        correct=_mean(correct, shown),
        missed=_missed(found & shown, shown),
    )


@dataclass(frozen=True)
class FaceError:
    """Face meshes found on rendered frames against those on the real ones."""

    distance: Values  # [T] normalised mean error; NaN: no face found
    eyes: float  # correlation over time of how far the eyes are open, the mean of both; NaN: still
    mouth: float  # the same of the mouth
    missed: float  # share of the real frames' faces that were not found in the output


def face_error(output: Landmarks, truth: Landmarks) -> FaceError:
    """Compare the meshes [T, 478, 3] of two detections of the same moments.

    The unit is the real face's inter-ocular distance, between the outer corners of the eyes, in
    each frame; one seen from the side is at least half its median.
    """
    unit = _unit_length(truth[:, EYES[0], :2], truth[:, EYES[1], :2])
    away = _distances(output, truth) / unit[:, None]
    found, shown = np.isfinite(away), np.isfinite(truth[..., 0])
    eyes = zip(eye_openness(output).T, eye_openness(truth).T, strict=True)
    return FaceError(
        distance=_mean(away, found),
        eyes=float(np.mean([correlation(ours, real) for ours, real in eyes])),
        mouth=correlation(mouth_openness(output), mouth_openness(truth)),
        missed=_missed(found, shown),
    )


def correlation(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Pearson's correlation of two series [T] where both are known; NaN where one is still."""
    known = np.isfinite(one) & np.isfinite(other)
    a, b = (series[known].astype(np.float64) for series in (one, other))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _distances(output: Landmarks, truth: Landmarks) -> Values:
    """[T, N] pixels; NaN where a point is missing on either side."""
    assert output.shape == truth.shape, f"landmarks {output.shape} against {truth.shape}"
    gap = output[..., :2].astype(np.float64) - truth[..., :2]
    lengths: Values = np.linalg.norm(gap, axis=-1)
    return lengths


def _unit_length(one: NDArray[Any], other: NDArray[Any]) -> Values:
    """[T] distance between two points [T, 2] over time, nowhere shorter than half its median."""
    length: Values = np.linalg.norm(one.astype(np.float64) - other, axis=-1)
    known = length[np.isfinite(length)]
    return np.maximum(length, SHORTEST * float(np.median(known))) if known.size else length


def _mean(values: Values, where: NDArray[np.bool_]) -> Values:
    """[T] mean of [T, N] over the chosen points; NaN where none is."""
    count = where.sum(axis=1)
    total = np.where(where, np.nan_to_num(values), 0.0).sum(axis=1)
    mean: Values = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _missed(found: NDArray[np.bool_], shown: NDArray[np.bool_]) -> float:
    """Share of the frames that show something in which none of it was found; NaN: none shows."""
    there = shown.any(axis=1)
    return float((~found.any(axis=1))[there].mean()) if there.any() else float("nan")


# ---------------------------------------------------------------- small things


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
