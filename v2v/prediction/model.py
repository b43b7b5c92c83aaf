"""Signal prediction: small networks that continue a signal from its own past.

The first half of frame prediction in arXiv 1808.06601, section 4: the next signals are predicted
from past ones, and a trained generator renders them. Keypoints (pose, face) are predicted as a
compact state; label maps are warped by a flow, with new labels only where occluded.

Both are initialised to a sensible baseline: damped velocity for keypoints, a copy of the last map
for labels.

Shapes: B clips, P past frames, N points of D axes, S components of a state, K label channels,
H height, W width. The newest past entry is last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from v2v.config import Config
from v2v.models.blocks import ResidualBlock, conv, zeroed
from v2v.types import Tensors
from v2v.warp import resize_flow, warp


class PointArguments(Config):
    """The arguments of a `PointPredictor` in the record of a predictor."""

    length: Annotated[int, Field(ge=3, le=4096)]
    past: Annotated[int, Field(ge=2, le=1024)] = 16
    hidden: Annotated[int, Field(ge=1, le=4096)] = 48
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.7


class LabelArguments(Config):
    """The arguments of a `LabelPredictor` in the record of a predictor."""

    channels: Annotated[int, Field(ge=2, le=256)]
    width: Annotated[int, Field(ge=1, le=1024)] = 32
    embedding: Annotated[int, Field(ge=1, le=1024)] = 8


Floats = NDArray[np.float32]
SAMPLE = 4096  # frames that the PCA is fitted to

# ---------------------------------------------------------------- points


@dataclass(frozen=True)
class ShapePCA:
    """Keypoints as a low-dimensional state: position, log size, and PCA coefficients of the shape.

    The shape is what remains after removing position and size: the mean shape, plus principal
    components (Cootes et al. 1995), plus a remainder. The remainder is kept constant: it describes
    the person, not the motion.
    """

    mean: Floats  # [N, D], of size 1
    basis: Floats  # [C, N * D], orthonormal
    anchors: NDArray[np.int64]  # points that define position and size

    @classmethod
    def fit(
        cls, shots: list[Floats], anchors: list[int], *, components: int, variance: float
    ) -> ShapePCA:
        """Fit to the points [T, N, D] of each shot, NaN where missing.

        Args:
            anchors: points that define position and size.
            components: the largest number of components.
            variance: the fraction of variance to explain, within that number.
        """
        chosen = np.asarray(anchors, np.int64)
        mean = _mean_shape(np.concatenate([_bridged(points) for points in shots]), chosen)
        start = cls(mean, np.zeros((0, mean.size), np.float32), chosen)
        complete = np.concatenate([start.complete(points) for points in shots])
        complete = complete[:: max(len(complete) // SAMPLE, 1)]
        shapes = start._split(complete)[0].reshape(len(complete), -1)
        mean = shapes.mean(axis=0)
        _, singular_values, axes = np.linalg.svd(shapes - mean, full_matrices=False)
        explained = np.cumsum(singular_values**2) / max(float((singular_values**2).sum()), 1e-12)
        count = min(int(np.searchsorted(explained, variance)) + 1, components, len(axes))
        basis = axes[:count] if singular_values[0] > 1e-6 else axes[:1]
        return cls(
            mean.reshape(start.mean.shape).astype(np.float32), basis.astype(np.float32), chosen
        )

    @property
    def length(self) -> int:
        """S, the number of components of a state."""
        return self.mean.shape[1] + 1 + len(self.basis)

    def complete(self, points: Floats) -> Floats:
        """Points [T, N, D] without NaN: gaps are bridged by interpolation in time.

        A point that no frame shows is placed according to the mean shape.
        """
        bridged = _bridged(points)
        missing = ~np.isfinite(bridged).all(axis=2)
        for frame in np.flatnonzero(missing.any(axis=1)):
            gaps = missing[frame]
            visible = self.anchors[~gaps[self.anchors]]
            position, size = _fitted(bridged[frame, visible], self.mean[visible])
            bridged[frame, gaps] = position + size * self.mean[gaps]
        return bridged

    def encode(self, points: Floats) -> tuple[Floats, Floats]:
        """State [T, S] and remainder [T, N, D] of complete points [T, N, D]."""
        shapes, position, size = self._split(points)
        offsets = (shapes - self.mean).reshape(len(points), -1)
        coefficients = offsets @ self.basis.T
        rest = (offsets - coefficients @ self.basis).reshape(shapes.shape)
        state = np.concatenate([position, np.log(size)[:, None], coefficients], axis=1)
        return state.astype(np.float32), rest.astype(np.float32)

    def decode(self, state: Floats, rest: Floats) -> Floats:
        """Points [T, N, D] from states [T, S] and a remainder [N, D] or [T, N, D]."""
        axes = self.mean.shape[1]
        shapes = self.mean + (state[:, axes + 1 :] @ self.basis).reshape(-1, *self.mean.shape)
        size = np.exp(state[:, axes, None, None])
        points: Floats = ((shapes + rest) * size + state[:, None, :axes]).astype(np.float32)
        return points

    def weight(self) -> Floats:
        """[S] weights that convert a step of a state into the RMS step of its points.

        Positions are in units of the shape's size.
        """
        count, axes = self.mean.shape
        spread = np.sqrt((self.mean**2).sum(axis=1).mean())
        shape = np.full(len(self.basis), 1 / np.sqrt(count))
        weight: Floats = np.concatenate([np.ones(axes), [spread], shape]).astype(np.float32)
        return weight

    def _split(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        anchors = points[:, self.anchors]
        position = anchors.mean(axis=1)
        size = _size(anchors - position[:, None])
        return (points - position[:, None]) / size[:, None, None], position, size


def _size(around: Floats) -> Floats:
    """[T] root mean square distance of points [T, N, D] from 0."""
    size: Floats = np.sqrt((around**2).sum(axis=2).mean(axis=1)).clip(1e-4)
    return size


def _mean_shape(bridged: Floats, anchors: NDArray[np.int64]) -> Floats:
    """[N, D] of size 1: the median of frames that show all anchors; 0 for points never visible."""
    frames = bridged[np.isfinite(bridged[:, anchors]).all(axis=(1, 2))]
    if not len(frames):  # an anchor is never visible: use the others
        frames = np.where(np.isfinite(bridged), bridged, np.nanmean(bridged, axis=(0, 1)))
    centre = frames[:, anchors].mean(axis=1)
    shapes = (frames - centre[:, None]) / _size(frames[:, anchors] - centre[:, None])[:, None, None]
    visible = np.isfinite(shapes).any(axis=(0, 2))
    mean = np.zeros(bridged.shape[1:], np.float32)
    mean[visible] = np.nanmedian(shapes[:, visible], axis=0)
    return mean


def _bridged(points: Floats) -> Floats:
    """Gaps interpolated linearly in time, constant at the ends; NaN for points never visible."""
    count = len(points)
    flat = points.reshape(count, -1).copy()
    for column in flat.T:
        visible = np.flatnonzero(np.isfinite(column))
        if 0 < len(visible) < count:
            column[:] = np.interp(np.arange(count), visible, column[visible])
    return flat.reshape(points.shape)


def _fitted(points: Floats, shape: Floats) -> tuple[Floats, float]:
    """Position [D] and size that fit `shape` [n, D] to `points` [n, D]."""
    if not len(points):
        return np.zeros(shape.shape[1], np.float32), 1.0
    middle, centre = points.mean(axis=0), shape.mean(axis=0)
    around = shape - centre
    size = float(((points - middle) * around).sum() / max(float((around**2).sum()), 1e-12))
    size = size if len(points) > 1 and size > 0 else 1.0
    return middle - size * centre, size


@dataclass(frozen=True, repr=False)
class PointState(Tensors):
    """The inputs of the next prediction."""

    past: Tensor  # [B, P, S]
    low: Tensor  # [B, S] bounds of all predicted states
    high: Tensor  # [B, S]

    def push(self, state: Tensor) -> PointState:
        """The state of the predictor after `state` [B, S]."""
        return replace(self, past=torch.cat([self.past[:, 1:], state[:, None]], dim=1))


class PointPredictor(nn.Module):
    """Predicts the next state of keypoints: damped velocity plus a learned residual.

        v_t+1 = damping * v_t + linear(past) + mlp(past),   x_t+1 = x_t + v_t+1

    The damping is learned per component. The linear part is an autoregression of each component on
    its own past: sufficient for circular and other harmonic motion, with too few weights to overfit
    seconds of footage. The MLP sees the whole state.
    """

    low: Tensor
    high: Tensor
    spread: Tensor
    centre: Tensor
    velocity_scale: Tensor

    def __init__(
        self,
        length: int,  # S
        *,
        past: int = 16,  # P
        hidden: int = 48,
        dropout: float = 0.2,
        damping: float = 0.7,  # initial value
    ) -> None:
        super().__init__()
        self.past = past
        self.damping = nn.Parameter(torch.full((length,), float(np.log(damping / (1 - damping)))))
        inputs = length * past  # the newest state, and the velocities before it
        self.linear = nn.Parameter(torch.zeros(past, length))
        self.mlp = nn.Sequential(
            nn.Dropout(dropout / 2), nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(dropout),
            zeroed(nn.Linear(hidden, length)),
        )  # fmt: skip
        # Statistics of the training footage: range, mean, spread and velocity of the states.
        self.register_buffer("low", torch.full((length,), -1e3))
        self.register_buffer("high", torch.full((length,), 1e3))
        self.register_buffer("centre", torch.zeros(length))
        self.register_buffer("spread", torch.ones(length))
        self.register_buffer("velocity_scale", torch.ones(length))

    def learn_range(self, states: Tensor, steps: Tensor, *, margin: float = 0.25) -> None:
        """Set the statistics from states [T, S] and their steps [T', S] within shots."""
        low, high = states.amin(dim=0), states.amax(dim=0)
        self.low, self.high = low - margin * (high - low), high + margin * (high - low)
        self.centre, self.spread = states.mean(dim=0), states.std(dim=0).clamp(min=1e-5)
        self.velocity_scale = steps.square().mean(dim=0).sqrt().clamp(min=1e-6)

    def begin(self, past: Tensor) -> PointState:
        """The predictor's state after real states [B, T, S], padded with the first if T < P.

        The bounds are extended to states outside the training range, as in other footage.
        """
        past = past[:, -self.past :]
        missing = self.past - past.shape[1]
        padded = torch.cat([past[:, :1].expand(-1, missing, -1), past], dim=1)
        low = torch.minimum(self.low, past.amin(dim=1))
        return PointState(padded, low, torch.maximum(self.high, past.amax(dim=1)))

    def forward(self, state: PointState) -> tuple[Tensor, PointState]:
        """The next state [B, S], and the predictor's state after it."""
        past = state.past
        newest = past[:, -1]
        steps = past[:, 1:] - past[:, :-1]
        # Squashed, so that inputs far from the training data do not cause larger outputs.
        inputs = torch.cat(
            [((newest - self.centre) / self.spread)[:, None], steps / self.velocity_scale], dim=1
        )
        inputs = 4 * torch.tanh(inputs / 4)
        residual = (inputs * self.linear).sum(dim=1) + self.mlp(inputs.flatten(1))
        step = (
            torch.sigmoid(self.damping) * steps[:, -1]
            + 2 * torch.tanh(residual / 2) * self.velocity_scale
        )
        following = torch.minimum(torch.maximum(newest + step, state.low), state.high)
        return following, state.push(following)

    def rollout(self, state: PointState, frames: int) -> Tensor:
        """[B, frames, S], each predicted from the previous ones."""
        rolled = []
        for _ in range(frames):
            following, state = self(state)
            rolled.append(following)
        return torch.stack(rolled, dim=1)


# ---------------------------------------------------------------- labels

PAST_MAPS = 3


@dataclass(frozen=True, repr=False)
class LabelState(Tensors):
    """The maps that the next one is predicted from."""

    maps: Tensor  # [B, 3, K, H, W] class probabilities, one-hot for real maps

    def push(self, following: Tensor) -> LabelState:
        """The state after the map `following` [B, K, H, W]."""
        return LabelState(torch.cat([self.maps[:, 1:], following[:, None]], dim=1))


@dataclass(frozen=True, repr=False)
class LabelOutput(Tensors):
    """The next map and its components."""

    following: Tensor  # [B, K, H, W] class probabilities
    flow: Tensor  # [B, 2, H, W] backward, in pixels of the map
    occlusion: Tensor  # [B, 1, H, W] 1 where the last map cannot be copied
    made_up: Tensor  # [B, K, H, W] synthesised class probabilities


class LabelPredictor(nn.Module):
    """Predicts the next label map: (1 - m) * warp(last, flow) + m * softmax(logits).

    Equation 4 of arXiv 1808.06601, for maps instead of frames. The last channel holds pixels
    without a class, or of a class absent from training: it can be copied but is never synthesised.
    """

    def __init__(
        self,
        channels: int,  # K
        *,
        width: int = 32,
        embedding: int = 8,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.embed = nn.Conv2d(channels, embedding, 1, bias=False)
        # Plus two coordinates, because street layouts depend on the position.
        self.stem = conv(4 * (PAST_MAPS * embedding + 2), width)
        widths = [width, width * 3 // 2, width * 2, width * 2]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairs)
        self.middle = nn.Sequential(ResidualBlock(widths[-1]), ResidualBlock(widths[-1]))
        self.up = nn.ModuleList(conv(a + b, a) for a, b in reversed(pairs))
        self.head = zeroed(conv(width, 3 + channels))

    multiple = 16  # the divisor of both sides of a map
    RESERVE = 4.0  # in logits: an untrained network copies every pixel with probability 98 percent

    def forward(self, state: LabelState) -> tuple[LabelOutput, LabelState]:
        """The next map, and the state after it."""
        maps = state.maps
        batch, count, channels, height, width = maps.shape
        embedded = self.embed(maps.flatten(0, 1)).reshape(batch, -1, height, width)
        y = torch.linspace(-1, 1, height, device=maps.device)[:, None].expand(height, width)
        x = torch.linspace(-1, 1, width, device=maps.device).expand(height, width)
        xy = torch.stack([x, y]).expand(batch, -1, -1, -1)
        h = F.leaky_relu(self.stem(F.pixel_unshuffle(torch.cat([embedded, xy], dim=1), 2)), 0.2)
        skips = []
        for layer in self.down:
            skips.append(h)
            h = F.leaky_relu(layer(h), 0.2)
        h = self.middle(h)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = F.leaky_relu(layer(torch.cat([h, skip], dim=1)), 0.2)
        output = self.head(h)
        flow = resize_flow(4 * output[:, :2], (height, width))
        logits = F.interpolate(output[:, 2:], (height, width), mode="bilinear", align_corners=False)
        occlusion = torch.sigmoid(logits[:, :1] - self.RESERVE)
        made_up = F.pad(torch.softmax(logits[:, 1:-1], dim=1), (0, 0, 0, 0, 0, 1))
        predicted = compose_map(maps[:, -1], flow, occlusion, made_up)
        return predicted, state.push(predicted.following)


def compose_map(last: Tensor, flow: Tensor, occlusion: Tensor, made_up: Tensor) -> LabelOutput:
    """The next map from the last [B, K, H, W]: warped by the flow, synthesised where occluded."""
    following = (1 - occlusion) * warp(last, flow) + occlusion * made_up
    return LabelOutput(following, flow, occlusion, made_up)


def one_hot(channels: Tensor, count: int) -> Tensor:
    """One-hot [..., count, H, W] float from channel indices [..., H, W]."""
    return F.one_hot(channels.long(), count).movedim(-1, -3).float()
