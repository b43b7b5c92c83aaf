"""Small, validated containers that training and rendering exchange.

Shapes: B clips side by side, T frames, C channels of all signals, H height, W width,
P past frames (2). Frames are RGB in [-1, 1]; flow is backward, in pixels; occlusion is 1 where a
pixel cannot be copied from the past; mattes are 1 on the person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

REFERENCE_CHANNELS = 5  # of a warped reference: see `Condition.references`
PAST = 2  # number of past frames, L in equation 2 of arXiv 1808.06601


@dataclass(frozen=True)
class Tensors:
    """A bundle of tensors that prints its shapes and moves between devices as one."""

    def __repr__(self) -> str:
        shown = [
            f"{f.name}{list(v.shape)}" if isinstance(v, Tensor) else f"{f.name}={v!r}"
            for f in fields(self)
            if (v := getattr(self, f.name)) is not None
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same bundle with `change` applied to every tensor."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = change(value)
            elif isinstance(value, Tensors):
                changed[field.name] = value.map(change)
        return replace(self, **changed)

    def to(self, device: torch.device | str) -> Self:
        # The CPU would read a copy before it is complete, so only copies to CUDA are asynchronous.
        asynchronous = torch.device(device).type == "cuda"
        return self.map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def detach(self) -> Self:
        return self.map(Tensor.detach)


@dataclass(frozen=True, repr=False)
class Batch(Tensors):
    """Windows of B clips, for training.

    A field that any clip lacks is None for the whole batch.
    """

    frames: Tensor  # [B, T, 3, H, W]
    signals: Tensor  # [B, T, C, H, W] the conditions, in the order of the model's signals
    clip: Tensor  # [B] int64, the clip of each window
    # [B, T, 2, H, W] reference, from frame t to frame t - 1 of the window
    flow: Tensor | None = None
    occlusion: Tensor | None = None  # [B, T, 1, H, W]; the first frame of a window is all 1
    foreground: Tensor | None = None  # [B, T, 1, H, W] 1 on the person
    # [B, T or 1, 4, H, W] RGB and valid mask; one for all frames if no camera moves
    background_plate: Tensor | None = None
    style: Tensor | None = None  # [B, 3, H, W] another frame of the same clip
    instances: Tensor | None = None  # [B, T, 1, H, W] int64 instance ids
    boxes: Tensor | None = None  # [B, T, K, 4] x0, y0, x1, y1 pixels of face, hands; NaN if missing
    # [B, T, N, 3] x, y, radius in pixels; all 0 if not visible
    control_points: Tensor | None = None
    references: Tensor | None = None  # [B, T, K, 5, H, W], see `Condition`

    def __post_init__(self) -> None:
        shape = self.frames.shape
        assert self.frames.ndim == 5 and shape[2] == 3, f"frames must be [B,T,3,H,W], are {shape}"
        for name in ("signals", "flow", "occlusion", "foreground", "instances"):
            value = getattr(self, name)
            assert value is None or (
                value.ndim == 5 and value.shape[:2] == shape[:2] and value.shape[3:] == shape[3:]
            ), f"{name} {list(value.shape)} does not fit frames {list(shape)}"
        timed = self.control_points is None or self.control_points.shape[:2] == shape[:2]
        assert timed, f"control points do not fit frames {list(shape)}"

    def __len__(self) -> int:
        return self.frames.shape[0]

    @property
    def length(self) -> int:
        """T, the number of frames."""
        return self.frames.shape[1]

    def between(self, start: int, stop: int) -> Batch:
        """Frames `start` to `stop` of every window."""
        timed = (
            "frames", "signals", "flow", "occlusion", "foreground", "instances", "boxes",
            "control_points",
            "references",
        )  # fmt: skip
        cut = {n: v[:, start:stop] for n in timed if (v := getattr(self, n)) is not None}
        if self.background_plate is not None and self.background_plate.shape[1] > 1:
            cut["background_plate"] = self.background_plate[:, start:stop]
        return replace(self, **cut)

    def _background_plate(self, index: int) -> Tensor | None:
        if self.background_plate is None:
            return None
        return self.background_plate[:, min(index, self.background_plate.shape[1] - 1)]

    def condition(self, index: int) -> Condition:
        """The generator's inputs for frame `index`."""
        return Condition(
            signals=self.signals[:, index], clip=self.clip, style=self.style,
            background_plate=self._background_plate(index),
            instances=None if self.instances is None else self.instances[:, index],
            control_points=None if self.control_points is None else self.control_points[:, index],
            references=None if self.references is None else self.references[:, index],
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Condition(Tensors):
    """The inputs that one frame is rendered from."""

    signals: Tensor  # [B, C, H, W]
    clip: Tensor | None = None  # [B] int64, for models of several clips
    background_plate: Tensor | None = None  # [B, 4, H, W]
    style: Tensor | None = None  # [B, 3, H, W] the style image
    instances: Tensor | None = None  # [B, 1, H, W] int64
    features: Tensor | None = None  # [B, F, H, W] features of each instance (pix2pixHD)
    control_points: Tensor | None = None  # [B, N, 3] x, y, radius in pixels; radius 0: not visible
    # [B, K, 5, H, W] warped appearance references: RGB, 1 where valid, and the distance of their
    # pose from the rendered one, 0 to 1.
    references: Tensor | None = None


@dataclass(frozen=True, repr=False)
class GeneratorState(Tensors):
    """What one frame passes to the next; the newest frame is last."""

    frames: Tensor  # [B, P, 3, H, W] past outputs, 0 if missing
    signals: Tensor  # [B, P, C, H, W] their signals, 0 if missing
    valid: Tensor  # [B, P] 1 if the past frame exists, else 0
    control_points: Tensor  # [B, N, 3] of the newest past frame; radius 0: not visible

    @classmethod
    def empty(cls, condition: Condition, past: int = PAST) -> GeneratorState:
        """The state before the first frame."""
        signals = condition.signals
        batch, channels, height, width = signals.shape
        return cls(
            frames=signals.new_zeros(batch, past, 3, height, width),
            signals=signals.new_zeros(batch, past, channels, height, width),
            valid=signals.new_zeros(batch, past),
            control_points=_control_points(condition).new_zeros(_control_points(condition).shape),
        )

    @classmethod
    def from_frame(cls, condition: Condition, frame: Tensor, past: int = PAST) -> GeneratorState:
        """The state after a real first frame [B, 3, H, W] and its condition."""
        return cls.empty(condition, past).push(condition, frame)

    def with_frames(self, frames: Tensor) -> GeneratorState:
        """The same state with other past frames; missing ones stay 0."""
        exists = self.valid[:, :, None, None, None]
        return replace(self, frames=frames * exists.to(frames.dtype))

    def push(self, condition: Condition, frame: Tensor) -> GeneratorState:
        """The state after rendering `frame` [B, 3, H, W] from `condition`."""

        def append(past: Tensor, newest: Tensor) -> Tensor:
            return torch.cat([past[:, 1:], newest[:, None]], dim=1)

        return GeneratorState(
            # Clamped as in a video, so that overshoot does not grow from frame to frame.
            frames=append(self.frames, frame.to(self.frames.dtype).clamp(-1, 1)),
            signals=append(self.signals, condition.signals),
            valid=append(self.valid, torch.ones_like(self.valid[:, 0])),
            # A copy, or the whole window would stay in memory.
            control_points=_control_points(condition).clone(),  # a view would keep the whole window
        )


def _control_points(condition: Condition) -> Tensor:
    """[B, N, 3]; N is 0 if a condition has none."""
    if condition.control_points is not None:
        return condition.control_points
    return condition.signals.new_zeros(len(condition.signals), 0, 3)


@dataclass(frozen=True, repr=False)
class GeneratorOutput(Tensors):
    """One rendered frame and its components. Frame-by-frame models have only `frame`."""

    frame: Tensor  # [B, 3, H, W]
    synthesised: Tensor | None = None  # [B, 3, H, W] the frame without the blended past
    synthesis_only: Tensor | None = None  # [B, 3, H, W] without past frames and references
    warped: Tensor | None = None  # [B, 3, H, W] the newest past frame, warped by `flow`
    flow: Tensor | None = None  # [B, 2, H, W]
    occlusion: Tensor | None = None  # [B, 1, H, W] 1 where the frame is synthesised
    matte: Tensor | None = None  # [B, 1, H, W] 1 where the background plate is covered
    auxiliary: Tensor | None = None  # [] an additional loss of the model (SPADE's KL divergence)
