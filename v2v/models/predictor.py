"""What comes next: small networks that continue a signal from its own past.

The first half of frame prediction in arXiv 1808.06601, section 4: the next signals are predicted
from the past ones, and a trained generator renders them. Points (pose, face) move as a compact
state; label maps move by a flow, and only where nothing can be copied is a label made up.

Both start as something sensible, so that training can only add to it: points as velocity that is
damped from frame to frame, labels as the last map copied.

Shapes: B clips, P past frames, N points of D axes, S numbers of a state, K label channels,
H height, W width. The newest of the past stands last.
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
    """What a predictor's record says of a `PointPredictor`: its arguments."""

    length: Annotated[int, Field(ge=3, le=4096)]
    past: Annotated[int, Field(ge=2, le=1024)] = 16
    hidden: Annotated[int, Field(ge=1, le=4096)] = 48
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.7


class LabelArguments(Config):
    """What a predictor's record says of a `LabelPredictor`: its arguments."""

    channels: Annotated[int, Field(ge=2, le=256)]
    width: Annotated[int, Field(ge=1, le=1024)] = 32
    embedding: Annotated[int, Field(ge=1, le=1024)] = 8


Floats = NDArray[np.float32]
SAMPLE = 4096  # frames that a shape code is fitted to

# ---------------------------------------------------------------- points


@dataclass(frozen=True)
class ShapePCA:
    """Points as a few numbers: where, how large (its logarithm), and the coefficients of shape.

    A shape is what is left of points when their middle is taken away and their size divided out;
    it is the mean shape, a sum of principal components (Cootes et al. 1995) and a rest. The rest
    is handed on unchanged: it is who the person is, not what they do.
    """

    mean: Floats  # [N, D], of size 1
    basis: Floats  # [C, N * D], orthonormal
    anchors: NDArray[np.int64]  # points that place and size are measured on

    @classmethod
    def fit(
        cls, shots: list[Floats], anchors: list[int], *, components: int, variance: float
    ) -> ShapePCA:
        """From the points [T, N, D] of each shot, NaN where missing.

        Args:
            anchors: points that place and size are measured on.
            components: at most so many.
            variance: share of the variation that they explain, if so many suffice.
        """
        chosen = np.asarray(anchors, np.int64)
        mean = _mean_shape(np.concatenate([_bridged(points) for points in shots]), chosen)
        start = cls(mean, np.zeros((0, mean.size), np.float32), chosen)
        complete = np.concatenate([start.complete(points) for points in shots])
        complete = complete[:: max(len(complete) // SAMPLE, 1)]
        shapes = start._split(complete)[0].reshape(len(complete), -1)
        mean = shapes.mean(axis=0)
        _, strengths, axes = np.linalg.svd(shapes - mean, full_matrices=False)
        share = np.cumsum(strengths**2) / max(float((strengths**2).sum()), 1e-12)
        count = min(int(np.searchsorted(share, variance)) + 1, components, len(axes))
        basis = axes[:count] if strengths[0] > 1e-6 else axes[:1]
        return cls(
            mean.reshape(start.mean.shape).astype(np.float32), basis.astype(np.float32), chosen
        )

    @property
    def length(self) -> int:
        """S."""
        return self.mean.shape[1] + 1 + len(self.basis)

    def complete(self, points: Floats) -> Floats:
        """Points [T, N, D] without NaN: gaps bridged in time, the never seen put where they belong.

        A point that no frame has stands where the mean shape has it.
        """
        bridged = _bridged(points)
        missing = ~np.isfinite(bridged).all(axis=2)
        for frame in np.flatnonzero(missing.any(axis=1)):
            gone = missing[frame]
            seen = self.anchors[~gone[self.anchors]]
            place, size = _fitted(bridged[frame, seen], self.mean[seen])
            bridged[frame, gone] = place + size * self.mean[gone]
        return bridged

    def encode(self, points: Floats) -> tuple[Floats, Floats]:
        """State [T, S] and rest [T, N, D] of complete points [T, N, D]."""
        shapes, place, size = self._split(points)
        away = (shapes - self.mean).reshape(len(points), -1)
        coefficients = away @ self.basis.T
        rest = (away - coefficients @ self.basis).reshape(shapes.shape)
        state = np.concatenate([place, np.log(size)[:, None], coefficients], axis=1)
        return state.astype(np.float32), rest.astype(np.float32)

    def decode(self, state: Floats, rest: Floats) -> Floats:
        """Points [T, N, D] of states [T, S] and a rest [N, D] or [T, N, D]."""
        axes = self.mean.shape[1]
        shapes = self.mean + (state[:, axes + 1 :] @ self.basis).reshape(-1, *self.mean.shape)
        size = np.exp(state[:, axes, None, None])
        points: Floats = ((shapes + rest) * size + state[:, None, :axes]).astype(np.float32)
        return points

    def weight(self) -> Floats:
        """[S] that turns a step of a state, its place in sizes, into the mean step of its points.

        As a root mean square, in sizes of the shape.
        """
        count, axes = self.mean.shape
        spread = np.sqrt((self.mean**2).sum(axis=1).mean())
        shape = np.full(len(self.basis), 1 / np.sqrt(count))
        weight: Floats = np.concatenate([np.ones(axes), [spread], shape]).astype(np.float32)
        return weight

    def _split(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        anchors = points[:, self.anchors]
        place = anchors.mean(axis=1)
        size = _size(anchors - place[:, None])
        return (points - place[:, None]) / size[:, None, None], place, size


def _size(around: Floats) -> Floats:
    """[T] root mean square distance of points [T, N, D] from 0."""
    size: Floats = np.sqrt((around**2).sum(axis=2).mean(axis=1)).clip(1e-4)
    return size


def _mean_shape(bridged: Floats, anchors: NDArray[np.int64]) -> Floats:
    """[N, D] of size 1: the median of the frames that show all anchors; 0 for points never seen."""
    whole = bridged[np.isfinite(bridged[:, anchors]).all(axis=(1, 2))]
    if not len(whole):  # some anchor is never seen: the others must do
        whole = np.where(np.isfinite(bridged), bridged, np.nanmean(bridged, axis=(0, 1)))
    place = whole[:, anchors].mean(axis=1)
    shapes = (whole - place[:, None]) / _size(whole[:, anchors] - place[:, None])[:, None, None]
    seen = np.isfinite(shapes).any(axis=(0, 2))
    mean = np.zeros(bridged.shape[1:], np.float32)
    mean[seen] = np.nanmedian(shapes[:, seen], axis=0)
    return mean


def _bridged(points: Floats) -> Floats:
    """Gaps filled in time, linearly, and held at the ends; NaN where a point is never seen."""
    count = len(points)
    flat = points.reshape(count, -1).copy()
    for column in flat.T:
        seen = np.flatnonzero(np.isfinite(column))
        if 0 < len(seen) < count:
            column[:] = np.interp(np.arange(count), seen, column[seen])
    return flat.reshape(points.shape)


def _fitted(points: Floats, shape: Floats) -> tuple[Floats, float]:
    """Place [D] and size that lay `shape` [n, D] nearest to `points` [n, D]."""
    if not len(points):
        return np.zeros(shape.shape[1], np.float32), 1.0
    middle, centre = points.mean(axis=0), shape.mean(axis=0)
    around = shape - centre
    size = float(((points - middle) * around).sum() / max(float((around**2).sum()), 1e-12))
    size = size if len(points) > 1 and size > 0 else 1.0
    return middle - size * centre, size


@dataclass(frozen=True, repr=False)
class PointState(Tensors):
    """What the next state depends on."""

    past: Tensor  # [B, P, S]
    low: Tensor  # [B, S] no state leaves these bounds, however long the rollout
    high: Tensor  # [B, S]

    def push(self, state: Tensor) -> PointState:
        """The past once `state` [B, S] has come to pass."""
        return replace(self, past=torch.cat([self.past[:, 1:], state[:, None]], dim=1))


class PointPredictor(nn.Module):
    """The next state of points: damped velocity, and what a network adds to it.

        v_t+1 = damping * v_t + linear(past) + mlp(past),   x_t+1 = x_t + v_t+1

    The damping is learned for each number of the state. The linear part is an autoregression of
    each number on its own past: all that circles and other harmonic motion need, and so few
    weights that seconds of footage do not overfit them. The other part sees the whole state.
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
        damping: float = 0.7,  # at the start
    ) -> None:
        super().__init__()
        self.past = past
        self.damping = nn.Parameter(torch.full((length,), float(np.log(damping / (1 - damping)))))
        seen = length * past  # the newest state, and the velocities that led to it
        self.linear = nn.Parameter(torch.zeros(past, length))
        self.mlp = nn.Sequential(
            nn.Dropout(dropout / 2), nn.Linear(seen, hidden), nn.Tanh(), nn.Dropout(dropout),
            zeroed(nn.Linear(hidden, length)),
        )  # fmt: skip
        # Of the training footage: where states lie, and how fast they change.
        self.register_buffer("low", torch.full((length,), -1e3))
        self.register_buffer("high", torch.full((length,), 1e3))
        self.register_buffer("centre", torch.zeros(length))
        self.register_buffer("spread", torch.ones(length))
        self.register_buffer("velocity_scale", torch.ones(length))

    def learn_range(self, states: Tensor, steps: Tensor, *, margin: float = 0.25) -> None:
        """Take in what is usual from states [T, S] and their steps [T', S] within shots."""
        low, high = states.amin(dim=0), states.amax(dim=0)
        self.low, self.high = low - margin * (high - low), high + margin * (high - low)
        self.centre, self.spread = states.mean(dim=0), states.std(dim=0).clamp(min=1e-5)
        self.velocity_scale = steps.square().mean(dim=0).sqrt().clamp(min=1e-6)

    def begin(self, past: Tensor) -> PointState:
        """The time state after real states [B, T, S]; held before their beginning where T < P.

        Where they are out of the range of training, as other footage may be, there they may stay.
        """
        past = past[:, -self.past :]
        missing = self.past - past.shape[1]
        padded = torch.cat([past[:, :1].expand(-1, missing, -1), past], dim=1)
        low = torch.minimum(self.low, past.amin(dim=1))
        return PointState(padded, low, torch.maximum(self.high, past.amax(dim=1)))

    def forward(self, state: PointState) -> tuple[Tensor, PointState]:
        """The next state [B, S], and the time state that has it as its newest."""
        past = state.past
        newest = past[:, -1]
        steps = past[:, 1:] - past[:, :-1]
        # Squashed: what is far from all training must not be answered with something further.
        seen = torch.cat(
            [((newest - self.centre) / self.spread)[:, None], steps / self.velocity_scale], dim=1
        )
        seen = 4 * torch.tanh(seen / 4)
        added = (seen * self.linear).sum(dim=1) + self.mlp(seen.flatten(1))
        step = (
            torch.sigmoid(self.damping) * steps[:, -1]
            + 2 * torch.tanh(added / 2) * self.velocity_scale
        )
        following = torch.minimum(torch.maximum(newest + step, state.low), state.high)
        return following, state.push(following)

    def rollout(self, state: PointState, frames: int) -> Tensor:
        """[B, frames, S], each from the ones before."""
        rolled = []
        for _ in range(frames):
            following, state = self(state)
            rolled.append(following)
        return torch.stack(rolled, dim=1)


# ---------------------------------------------------------------- labels

PAST_MAPS = 3


@dataclass(frozen=True, repr=False)
class LabelState(Tensors):
    """What the next map depends on."""

    maps: Tensor  # [B, 3, K, H, W] shares of each channel, one-hot where they are known

    def push(self, following: Tensor) -> LabelState:
        """The past once the map [B, K, H, W] has come to pass."""
        return LabelState(torch.cat([self.maps[:, 1:], following[:, None]], dim=1))


@dataclass(frozen=True, repr=False)
class LabelOutput(Tensors):
    """The next map, and how it came about."""

    following: Tensor  # [B, K, H, W] shares
    flow: Tensor  # [B, 2, H, W] backward, in pixels of the map
    occlusion: Tensor  # [B, 1, H, W] 1 where nothing can be copied
    made_up: Tensor  # [B, K, H, W] shares, where nothing can be copied


class LabelPredictor(nn.Module):
    """The next label map: next = (1 - m) * warp(last, flow) + m * softmax(logits).

    Equation 4 of arXiv 1808.06601, with maps for frames. The last channel is whatever has no
    class, or a class that training never showed: it can be copied and is never made up.
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
        # Two coordinates: where the road vanishes is a matter of place.
        self.stem = conv(4 * (PAST_MAPS * embedding + 2), width)
        widths = [width, width * 3 // 2, width * 2, width * 2]
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairs)
        self.middle = nn.Sequential(ResidualBlock(widths[-1]), ResidualBlock(widths[-1]))
        self.up = nn.ModuleList(conv(a + b, a) for a, b in reversed(pairs))
        self.head = zeroed(conv(width, 3 + channels))

    multiple = 16  # both sides of a map are divisible by this
    RESERVE = 4.0  # an untrained network says of every pixel: copied, with 98 percent

    def forward(self, state: LabelState) -> tuple[LabelOutput, LabelState]:
        """The next map, and the time state that has it as its newest."""
        maps = state.maps
        batch, count, channels, height, width = maps.shape
        seen = self.embed(maps.flatten(0, 1)).reshape(batch, -1, height, width)
        y = torch.linspace(-1, 1, height, device=maps.device)[:, None].expand(height, width)
        x = torch.linspace(-1, 1, width, device=maps.device).expand(height, width)
        place = torch.stack([x, y]).expand(batch, -1, -1, -1)
        h = F.leaky_relu(self.stem(F.pixel_unshuffle(torch.cat([seen, place], dim=1), 2)), 0.2)
        skips = []
        for layer in self.down:
            skips.append(h)
            h = F.leaky_relu(layer(h), 0.2)
        h = self.middle(h)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = F.leaky_relu(layer(torch.cat([h, skip], dim=1)), 0.2)
        said = self.head(h)
        flow = resize_flow(4 * said[:, :2], (height, width))
        rest = F.interpolate(said[:, 2:], (height, width), mode="bilinear", align_corners=False)
        occlusion = torch.sigmoid(rest[:, :1] - self.RESERVE)
        made_up = F.pad(torch.softmax(rest[:, 1:-1], dim=1), (0, 0, 0, 0, 0, 1))
        output = compose_map(maps[:, -1], flow, occlusion, made_up)
        return output, state.push(output.following)


def compose_map(last: Tensor, flow: Tensor, occlusion: Tensor, made_up: Tensor) -> LabelOutput:
    """The next map from the last [B, K, H, W]: moved by the flow, made up where occluded."""
    following = (1 - occlusion) * warp(last, flow) + occlusion * made_up
    return LabelOutput(following, flow, occlusion, made_up)


def one_hot(channels: Tensor, count: int) -> Tensor:
    """[..., count, H, W] float of channel numbers [..., H, W]."""
    return F.one_hot(channels.long(), count).movedim(-1, -3).float()
