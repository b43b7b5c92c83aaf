"""Data augmentation of training windows.

A `Placement` is a window's crop of the stored frames, its scale and whether it is mirrored. It is
sampled once per window and applied to everything with image coordinates: frames, points, label
maps, flow, boxes and background plate. The colour change is constant over a window.

Coordinates are those of `Track`: continuous, the picture spans [0, width] x [0, height].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from v2v.config import Config, Unit
from v2v.pixels import HALF
from v2v.signals import Track
from v2v.signals.traits import FlowField

Pictures = NDArray[np.uint8]


def _zoom(value: tuple[float, float]) -> tuple[float, float]:
    if not 1 <= value[0] <= value[1] <= 4:
        # No zoom below 1: there are no pixels outside the stored frame.
        raise ValueError("expected two numbers from 1 to 4, the smaller first, such as [1, 1.2]")
    return value


class PastCorruption(Config):
    """Corruption of the past frames fed to the generator, so that it learns to resist drift."""

    noise: Unit  # largest standard deviation, for values in [-1, 1]
    blur: Annotated[float, Field(ge=0, le=8)]  # standard deviation in pixels at 512
    colour: Unit


class AugmentationSettings(Config):
    """Strength of the augmentation. All at 0 and scale at [1, 1] disable it."""

    crop_probability: Unit  # probability that a window is zoomed and shifted
    flip: Unit | None  # probability of mirroring; None: no mirroring unless `open_windows` sets it
    scale: Annotated[tuple[float, float], AfterValidator(_zoom)]  # zoom, log-uniform
    shift: Unit  # fraction of the possible shift that is used; 0 keeps the crop centred
    colour: Unit  # brightness, contrast, saturation, hue
    drop: Unit  # probability that a limb group is missing in a frame
    jitter: Annotated[float, Field(ge=0, le=32)]  # standard deviation in pixels at 512
    reference_drop: Unit  # probability that a candidate is missing in a window
    past: PastCorruption


@dataclass(frozen=True)
class Placement:
    """A crop of a clip's frames, resized and optionally mirrored.

    The box has integer coordinates, so that a single `cv2.resize` of a view crops, scales and
    antialiases. All other mappings follow the rounded box exactly.
    """

    source: tuple[int, int]  # (height, width) of the stored frames
    size: tuple[int, int]  # (height, width) of the result
    box: tuple[int, int, int, int]  # x, y, width, height in stored pixels, multiples of `downscale`
    flip: bool = False  # mirrored left to right, after cropping
    downscale: int = 1  # pictures are first downscaled by this integer factor

    def __post_init__(self) -> None:
        x, y, width, height = self.box
        assert width > 0 and height > 0 and x >= 0 and y >= 0, self.box
        assert x + width <= self.source[1] and y + height <= self.source[0], self
        assert all(side % self.downscale == 0 for side in self.box), self

    @classmethod
    def plain(cls, source: tuple[int, int], size: tuple[int, int], *, downscale: int = 1) -> Self:
        """The largest centred crop, without augmentation: what rendering uses."""
        return cls(source, size, _box(source, size, downscale), downscale=downscale)

    @classmethod
    def sampled(
        cls,
        source: tuple[int, int],
        size: tuple[int, int],
        augmentation: AugmentationSettings,
        generator: np.random.Generator,
        *,
        downscale: int = 1,
    ) -> Self:
        """A random placement; draws five numbers from `generator` for any settings."""
        crop, flip, zoom, x, y = generator.random(5)
        flipped = bool(flip < (augmentation.flip or 0))
        if crop >= augmentation.crop_probability:
            return cls(source, size, _box(source, size, downscale), flipped, downscale)
        low, high = augmentation.scale
        # Log-uniform: a step from 1 to 1.1 is as likely as one from 1.1 to 1.21.
        box = _box(
            source, size, downscale, zoom=float(low * (high / low) ** zoom),
            x=0.5 + augmentation.shift * (x - 0.5), y=0.5 + augmentation.shift * (y - 0.5),
        )  # fmt: skip
        return cls(source, size, box, flipped, downscale)

    @property
    def scale(self) -> tuple[float, float]:
        """Result pixels per stored pixel, horizontally and vertically."""
        return self.size[1] / self.box[2], self.size[0] / self.box[3]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[3, 3] from stored pixels to result pixels."""
        scale_x, scale_y = self.scale
        matrix = np.array(
            [
                [scale_x, 0, -scale_x * self.box[0]],
                [0, scale_y, -scale_y * self.box[1]],
                [0, 0, 1.0],
            ]
        )
        if self.flip:
            matrix = np.array([[-1.0, 0, self.size[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
        return matrix

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points [..., 2] from stored to result pixels. Does not swap left and right names."""
        moved = (points - np.array(self.box[:2], np.float32)) * np.array(self.scale, np.float32)
        if self.flip:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return cast(NDArray[np.float32], moved.astype(np.float32))

    def picture(self, picture: Pictures) -> Pictures:
        """Place a picture [h, w, ...] of the stored size or already shrunk by `downscale`."""
        if picture.shape[:2] == self.source:
            picture = shrink(picture[None], self.downscale)[0]
        x, y, width, height = (side // self.downscale for side in self.box)
        part = picture[y : y + height, x : x + width]
        if part.shape[:2] != self.size:
            smaller = part.shape[0] > self.size[0] or part.shape[1] > self.size[1]
            kind = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            part = cast(Pictures, cv2.resize(part, self.size[::-1], interpolation=kind))
        return np.ascontiguousarray(part[:, ::-1] if self.flip else part)

    def track(self, track: Track) -> Track:
        """Place a signal like the frames. Label maps may already be shrunk by `downscale`."""
        if isinstance(track, FlowField):
            flow, occlusion = self.flow(track.flow, track.occlusion)
            return track.with_flow(flow, occlusion, width=self.size[1], height=self.size[0])
        unit = 1 if (track.height, track.width) == self.source else self.downscale
        x, y, width, height = (side // unit for side in self.box)
        if (x, y, width, height) != (0, 0, track.width, track.height):
            track = track.cropped(x, y, width, height)
        track = track.scaled(self.size[1], self.size[0])
        return track.flipped() if self.flip else track

    def flow(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Convert flow on any grid over the stored frames to flow of the placed frames.

        Args:
            flow: [T, 2, h, w] in pixels of its grid.
            occlusion: [T, 1, h, w] in [0, 1].

        Returns:
            [T, 2, H, W] in result pixels and [T, 1, H, W]; also occluded where the flow leaves the
            crop, since the previous frame is cropped too.
        """
        count, _, rows, columns = flow.shape
        height, width = self.size
        planes = np.concatenate([flow, occlusion], axis=1).reshape(-1, rows, columns)
        grid = columns / self.source[1], rows / self.source[0]  # grid pixels per stored pixel
        finer = [max(int(g / s), 1) for g, s in zip(grid, self.scale, strict=True)]
        if max(finer) > 1:  # bilinear sampling alone would skip pixels of a much finer grid
            small = max(columns // finer[0], 1), max(rows // finer[1], 1)
            planes = np.stack(
                [cv2.resize(plane, small, interpolation=cv2.INTER_AREA) for plane in planes]
            )
        # Position of each result pixel in the stored frame, which spans [-1, 1].
        x = (np.arange(width) + 0.5) / self.scale[0] + self.box[0]
        y = (np.arange(height) + 0.5) / self.scale[1] + self.box[1]
        positions = np.empty((1, height, width, 2), np.float32)
        positions[..., 0] = (x[::-1] if self.flip else x) * (2 / self.source[1]) - 1
        positions[..., 1] = (y * (2 / self.source[0]) - 1)[:, None]
        # cv2.warpAffine takes four times as long and is precise only to 1/32 pixel.
        placed = F.grid_sample(
            torch.from_numpy(planes)[None], torch.from_numpy(positions),
            padding_mode="border", align_corners=False,
        ).numpy().reshape(count, 3, height, width)  # fmt: skip
        placed[:, 0] *= (-1 if self.flip else 1) * self.scale[0] / grid[0]
        placed[:, 1] *= self.scale[1] / grid[1]
        # With a tolerance of half a pixel, as in `v2v.warp.occlusion`.
        offset_x = placed[:, 0] + (np.arange(width, dtype=np.float32) - (width - 1) / 2)
        offset_y = placed[:, 1] + (np.arange(height, dtype=np.float32) - (height - 1) / 2)[:, None]
        placed[:, 2][(np.abs(offset_x) > width / 2) | (np.abs(offset_y) > height / 2)] = 1
        return placed[:, :2], placed[:, 2:]


def _box(
    source: tuple[int, int], size: tuple[int, int], downscale: int,
    *, zoom: float = 1.0, x: float = 0.5, y: float = 0.5,
) -> tuple[int, int, int, int]:  # fmt: skip
    """A box in `source` with the aspect of `size`; `x`, `y` in [0, 1] position it in the slack."""
    rows, columns = source[0] // downscale, source[1] // downscale
    per_pixel = min(rows / size[0], columns / size[1]) / zoom
    # The box has integer coordinates in the downscaled copy.
    height = min(max(round(size[0] * per_pixel), 1), rows)
    width = min(max(round(size[1] * per_pixel), 1), columns)
    left, top = round(x * (columns - width)), round(y * (rows - height))
    return left * downscale, top * downscale, width * downscale, height * downscale


def downscale_of(source: tuple[int, int], size: tuple[int, int], zoom: float = 1.0) -> int:
    """Largest integer factor to shrink by before a zoomed view at `size` has to be upscaled."""
    return max(int(min(source[0] / size[0], source[1] / size[1]) / zoom), 1)


def shrink(pictures: Pictures, downscale: int) -> Pictures:
    """Shrink pictures [T, h, w, ...] by an integer factor; incomplete blocks are cut off."""
    if downscale == 1:
        return pictures
    height, width = pictures.shape[1] // downscale, pictures.shape[2] // downscale
    small = np.empty((len(pictures), height, width, *pictures.shape[3:]), pictures.dtype)
    for source, target in zip(pictures, small, strict=True):
        part = source[: height * downscale, : width * downscale]
        cv2.resize(part, (width, height), dst=target, interpolation=cv2.INTER_AREA)
    return small


# ---------------------------------------------------------------- colour


def colour_matrix(strength: float | Tensor, draws: Tensor) -> Tensor:
    """An affine change of hue, saturation, contrast and brightness, for RGB in [-1, 1].

    Args:
        strength: one number or [B]; 0 is the identity. At 1 saturation and contrast change by up
            to a half, brightness by up to a quarter of the range, hue by up to 34 degrees.
        draws: [4] or [B, 4] numbers in [-1, 1].

    Returns:
        [3, 4] or [B, 3, 4]: `matrix[:, :3] @ rgb + matrix[:, 3]`.
    """

    def expand(numbers: Tensor) -> Tensor:
        return numbers[..., None, None]

    strength = torch.as_tensor(strength, device=draws.device)[..., None]
    turn, saturation, contrast, brightness = (strength * draws).unbind(-1)
    identity = torch.eye(3, device=draws.device, dtype=draws.dtype)
    around = (
        draws.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    )  # rotation about the grey axis
    cosine, sine = expand(torch.cos(0.6 * turn)), expand(torch.sin(0.6 * turn))
    hue = cosine * identity + (1 - cosine) / 3 + sine * around
    grey = draws.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
    vivid = grey + expand(1 + 0.5 * saturation) * (identity - grey)
    # Each of them keeps greys grey, so their order matters little.
    colour = expand(1 + 0.5 * contrast) * (vivid @ hue)
    shift = expand(0.5 * brightness).expand(*colour.shape[:-1], 1)
    return torch.cat([colour, shift], dim=-1).float()


def recolour(picture: Pictures, matrix: Tensor) -> Pictures:
    """Apply a `colour_matrix` [3, 4] to a uint8 picture [H, W, 3]."""
    shift = HALF * (1 + matrix[:, 3:] - matrix[:, :3].sum(1, keepdim=True))
    # For bytes: substitute rgb = byte / HALF - 1 on both sides.
    return cast(Pictures, cv2.transform(picture, torch.cat([matrix[:, :3], shift], 1).numpy()))


# ---------------------------------------------------------------- past frames


def corrupt_past(
    frames: Tensor,
    *,
    noise: float,
    blur: float,
    colour: float,
    generator: torch.Generator,
    valid: Tensor | None = None,
) -> Tensor:
    """Corrupt past frames the way a drifting generator does.

    In training the past frames are cleaner than after minutes of rendering; a generator that has
    only seen clean past frames amplifies its own errors.

    Every clip of the batch gets its own strength of each corruption, from 0 to the given one. Blur
    and colour are constant over its past frames, like drift; noise is independent in each frame,
    half of it fine and half in blotches of 8 pixels.

    Args:
        frames: [B, P, 3, H, W] in [-1, 1].
        noise: largest standard deviation.
        blur: standard deviation of the kernel in pixels of a frame whose shorter side is 512.
        colour: `strength` of `colour_matrix`.
        generator: on any device; the same state gives the same result.
        valid: [B, P] 1 where there is a past frame; others are left unchanged.

    Returns:
        [B, P, 3, H, W] in [-1, 1]; `frames` itself where all strengths are 0.
    """
    assert frames.ndim == 5 and frames.shape[2] == 3, f"expected [B,P,3,H,W], not {frames.shape}"
    if noise == blur == colour == 0:
        return frames
    # In fp32 under autocast too: bf16 has 8 bits of precision and would add noise.
    with torch.autocast(frames.device.type, enabled=False):
        changed = _corrupted(frames.float(), noise, blur, colour, generator).to(frames.dtype)
    if valid is not None:
        changed = torch.where(valid[:, :, None, None, None] > 0, changed, frames)
    return changed


def _corrupted(
    frames: Tensor, noise: float, blur: float, colour: float, generator: torch.Generator
) -> Tensor:
    batch, past, _, height, width = frames.shape
    source = generator.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=source)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=source).to(frames.device)

    # Draw all of these first, so that one setting does not change the draws of another.
    amounts, colours = uniform(3, batch), 2 * uniform(batch, 4) - 1
    changed = frames
    if blur:
        sigma = blur * min(height, width) / 512
        amount = amounts[0].to(frames.device)[:, None, None, None, None]
        changed = torch.lerp(changed, _blurred(changed, sigma), amount)
    if colour:
        # Stay on the device: waiting for values from a GPU would stall its queue.
        matrices = colour_matrix(colour * amounts[1], colours).to(frames.device)
        changed = torch.einsum("bij,bpjhw->bpihw", matrices[:, :, :3], changed)
        changed = changed + matrices[:, None, :, 3, None, None]
    if noise:
        fine = normal(batch, past, 3, height, width)
        coarse = normal(batch * past, 3, -(-height // 8) + 1, -(-width // 8) + 1)
        blotches = F.interpolate(coarse, scale_factor=8.0, mode="bilinear", align_corners=False)
        # Bilinear blending leaves 2/3 of the standard deviation: (2/3) ** 2 of the variance.
        blotches = 1.5 * blotches[..., 4 : 4 + height, 4 : 4 + width].reshape(fine.shape)
        amount = (noise * amounts[2]).to(frames.device)[:, None, None, None, None]
        changed = changed + amount * (0.5**0.5) * (fine + blotches)
    return changed.clamp(-1, 1)


def _blurred(frames: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with replicated borders."""
    radius = max(min(round(3 * sigma), *(side - 1 for side in frames.shape[-2:])), 1)
    offsets = torch.arange(-radius, radius + 1, device=frames.device, dtype=torch.float32)
    kernel = torch.exp(-offsets.square() / (2 * max(sigma, 1e-3) ** 2))
    kernel = kernel / kernel.sum()
    planes = frames.reshape(-1, 1, *frames.shape[-2:])
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[None, None, :, None])
    planes = F.conv2d(planes, kernel[None, None, None, :])
    return planes.reshape(frames.shape)
