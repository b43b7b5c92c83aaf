"""Optical flow to the previous frame, and occlusion.

Flow is backward, in pixels, u to the right and v down:
`frame_t(p) ~ frame_{t-1}(p + flow_t(p))`. It is stored at half size, u above v above occlusion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.signals.traits import FlowField, FlowSignal
from v2v.video.stored import check_stored, read_range

if TYPE_CHECKING:
    import torch

UNIT = 64  # stored value = round(UNIT * pixels) + ZERO: 1/64 pixel, up to 512 pixels
ZERO = 32768
FULL_BRIGHTNESS = 0.02  # speed drawn at full brightness, in longer sides per frame


def pack(flow: NDArray[np.float32], occlusion: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Flow [2, h, w] in pixels and occlusion [h, w] in [0, 1] as one grey image [3h, w]."""
    steps = np.clip(np.rint(flow * UNIT) + ZERO, 0, 65535)
    hidden = np.rint(np.clip(occlusion, 0, 1) * 65535)
    image: NDArray[np.uint16] = np.concatenate([*steps, hidden]).astype(np.uint16)
    return image


def unpack(images: NDArray[np.uint16]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Flow [T, 2, h, w] and occlusion [T, 1, h, w] from stored images [T, 3h, w]."""
    count, rows, width = images.shape
    planes = images.reshape(count, 3, rows // 3, width).astype(np.float32)
    return (planes[:, :2] - ZERO) / UNIT, planes[:, 2:] / 65535


@dataclass(frozen=True)
class FlowTrack(FlowField):
    """T frames of backward flow on a grid that may be coarser than the frames.

    `flow` [T, 2, h, w] is in pixels of the grid; `occlusion` [T, 1, h, w] is 1 where the pixel
    cannot be copied from the previous frame. The first frame of a shot is fully occluded.
    """

    flow: NDArray[np.float32]
    occlusion: NDArray[np.float32]
    width: int
    height: int
    transparent: ClassVar[bool] = False
    per_frame: ClassVar[tuple[str, ...]] = ("flow", "occlusion")

    def __post_init__(self) -> None:
        assert self.flow.shape[1] == 2 and self.occlusion.shape[1] == 1
        assert self.flow.shape[2:] == self.occlusion.shape[2:]

    def __repr__(self) -> str:
        grid = f"{self.flow.shape[3]}x{self.flow.shape[2]}"
        return f"FlowTrack(frames={len(self)}, grid={grid}, size={self.width}x{self.height})"

    def __len__(self) -> int:
        return len(self.flow)

    def __getitem__(self, index: slice) -> Self:
        return replace(self, flow=self.flow[index], occlusion=self.occlusion[index])

    def with_flow(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32], *, width: int, height: int
    ) -> Self:
        return replace(self, flow=flow, occlusion=occlusion, width=width, height=height)

    def scaled(self, width: int, height: int) -> Self:
        return replace(self, width=width, height=height)  # the grid is resampled when it is used

    def cropped(self, x: int, y: int, width: int, height: int) -> Self:
        full = self.tensor(self.height, self.width)[..., y : y + height, x : x + width].numpy()
        return replace(self, flow=full[:, :2], occlusion=full[:, 2:], width=width, height=height)

    def flipped(self) -> Self:
        flow = self.flow[..., ::-1] * np.array([-1, 1], np.float32)[:, None, None]
        return replace(self, flow=flow, occlusion=np.ascontiguousarray(self.occlusion[..., ::-1]))

    def tensor(self, height: int | None = None, width: int | None = None) -> torch.Tensor:
        """u, v in pixels of the given size and occlusion, float32 [T, 3, height, width]."""
        import torch

        from v2v.warp import resize_flow

        size = (height or self.height, width or self.width)
        flow = resize_flow(torch.from_numpy(np.ascontiguousarray(self.flow)), size)
        occlusion = torch.nn.functional.interpolate(
            torch.from_numpy(self.occlusion), size, mode="bilinear", align_corners=False
        )
        return torch.cat([flow, occlusion], dim=1)

    def draw(self, height: int | None = None, width: int | None = None) -> NDArray[np.uint8]:
        """Colour wheel: hue is the direction, brightness the speed; occluded pixels are grey."""
        planes = self.tensor(height, width).numpy()
        # A fixed scale, so that brightness means the same speed in all clips.
        fastest = FULL_BRIGHTNESS * max(planes.shape[2:])
        pictures = [draw_flow(p[:2], p[2], fastest=fastest) for p in planes]
        return np.stack(pictures) if pictures else np.zeros((0, *planes.shape[2:], 3), np.uint8)


def draw_flow(
    flow: NDArray[np.float32], occlusion: NDArray[np.float32], *, fastest: float
) -> NDArray[np.uint8]:
    """RGB uint8 [h, w, 3] of one flow field; full brightness is `fastest` pixels per frame."""
    speed, angle = cv2.cartToPolar(flow[0], flow[1], angleInDegrees=True)
    value = np.clip(speed * (255 / fastest), 0, 255)
    hsv = np.stack([angle / 2, np.full_like(angle, 255), value], axis=-1).astype(np.uint8)
    rgb: NDArray[np.uint8] = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    rgb[occlusion > 0.5] = 90
    return rgb


class Flow(FlowSignal):
    name: ClassVar[str] = "flow"
    files: ClassVar[tuple[str, ...]] = ("flow.mkv",)

    def check_spec(self, spec: dict[str, Any]) -> None:
        grid = spec.get("grid")
        if not (
            isinstance(grid, list | tuple)
            and len(grid) == 2
            and all(type(side) is int and 0 < side < 1 << 16 for side in grid)
        ):
            raise ValueError(
                "flow needs a grid: [width, height] in pixels, integers from 1 to 65535"
            )

    def check_files(
        self, folder: Path, spec: dict[str, Any], *, frames: int, width: int, height: int
    ) -> None:
        columns, rows = spec["grid"]
        check_stored(folder / self.files[0], width=columns, height=3 * rows, frames=frames)

    def read(
        self, folder: Path, spec: dict[str, Any], start: int, stop: int, *, width: int, height: int
    ) -> FlowTrack:
        flow, occlusion = unpack(self.packed(folder, start, stop))
        return FlowTrack(flow, occlusion, width, height)

    def channels(self, spec: dict[str, Any]) -> int:
        return 3

    def packed(self, folder: Path, start: int, stop: int) -> NDArray[np.uint16]:
        stored: NDArray[np.uint16] = read_range(
            folder / self.files[0], start, stop, pixel_format="gray16le"
        )
        return stored

    def packed_bytes(self, spec: dict[str, Any]) -> int:
        columns, rows = spec["grid"]
        return 6 * int(columns) * int(rows)

    def unpack(self, packed: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return unpack(packed)

    def build(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32], *, width: int, height: int
    ) -> FlowTrack:
        return FlowTrack(flow, occlusion, width, height)


SIGNAL = Flow()
