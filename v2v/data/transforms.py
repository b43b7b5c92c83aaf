"""What training does to clips so that a few minutes of footage go further.

One `Placement` says which part of the stored frames a window shows, how large and whether
mirrored. It is drawn once a window and applied to everything that has a place in the picture:
frames, points, label maps, flow, boxes, plate. Colour is changed alike over a window.

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
from v2v.signals import Track
from v2v.signals.flow import FlowTrack

Pictures = NDArray[np.uint8]


def _zoom(value: tuple[float, float]) -> tuple[float, float]:
    if not 1 <= value[0] <= value[1] <= 4:
        # Nothing is known outside the stored frame, so a picture never shrinks into it.
        raise ValueError("give two numbers from 1 to 4, the smaller first, such as [1, 1.2]")
    return value


class PastCorruption(Config):
    """What is put on the past frames that the generator is fed, against drift."""

    noise: Unit  # largest standard deviation, of a range of 2
    blur: Annotated[float, Field(ge=0, le=8)]  # standard deviation in pixels at 512
    colour: Unit


class AugmentationSettings(Config):
    """How strongly training windows are varied. All at 0, and scale at [1, 1]: not at all."""

    crop_probability: (
        Unit  # probability that a window is zoomed and shifted; else it is shown whole
    )
    flip: Unit | None  # probability of mirroring; None, until `open_windows` has settled it: never
    scale: Annotated[tuple[float, float], AfterValidator(_zoom)]  # zoom, log-uniform
    shift: Unit  # share of the room that zoom and aspect leave; 0 stays in the middle
    colour: Unit  # brightness, contrast, saturation, hue
    drop: Unit  # probability, for each frame and limb group, that it is missing
    jitter: Annotated[float, Field(ge=0, le=32)]  # standard deviation in pixels at 512
    reference_drop: Unit  # probability, for each candidate and window, that it is missing
    past: PastCorruption


@dataclass(frozen=True)
class Placement:
    """Which part of a clip's frames is shown, and how.

    The box holds whole pixels, so that one `cv2.resize` of a view both crops and scales, and
    filters well when it shrinks. The rest follows the box exactly, rounding and all.
    """

    source: tuple[int, int]  # (height, width) of the stored frames
    size: tuple[int, int]  # (height, width) shown
    box: tuple[int, int, int, int]  # x, y, width, height in stored pixels, multiples of `downscale`
    flip: bool = False  # mirrored left to right, after cropping
    downscale: int = 1  # pictures are taken from a copy that is smaller by this whole factor

    def __post_init__(self) -> None:
        x, y, width, height = self.box
        assert width > 0 and height > 0 and x >= 0 and y >= 0, self.box
        assert x + width <= self.source[1] and y + height <= self.source[0], self
        assert all(side % self.downscale == 0 for side in self.box), self

    @classmethod
    def plain(cls, source: tuple[int, int], size: tuple[int, int], *, downscale: int = 1) -> Self:
        """As much as fits of the middle of the frames: what rendering sees."""
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
        """One drawn at random; takes five numbers from `generator` whatever the settings."""
        placed, flip, zoom, x, y = generator.random(5)
        flipped = bool(flip < (augmentation.flip or 0))
        if placed >= augmentation.crop_probability:
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
        """Pixels shown for each stored pixel, across and down."""
        return self.size[1] / self.box[2], self.size[0] / self.box[3]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[3, 3] from stored pixels to those shown."""
        across, down = self.scale
        shown = np.array(
            [[across, 0, -across * self.box[0]], [0, down, -down * self.box[1]], [0, 0, 1.0]]
        )
        if self.flip:
            shown = np.array([[-1.0, 0, self.size[1]], [0, 1, 0], [0, 0, 1]]) @ shown
        return shown

    def points(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Where stored pixels [..., 2] are shown. Names of sides are not exchanged here."""
        moved = (points - np.array(self.box[:2], np.float32)) * np.array(self.scale, np.float32)
        if self.flip:
            moved[..., 0] = self.size[1] - moved[..., 0]
        return cast(NDArray[np.float32], moved.astype(np.float32))

    def picture(self, picture: Pictures) -> Pictures:
        """One picture [height, width, ...] of the stored size, or shrunk by `downscale` already."""
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
        """A signal, placed as the frames are. Label maps may be shrunk by `downscale` already."""
        if isinstance(track, FlowTrack):
            flow, occlusion = self.flow(track.flow, track.occlusion)
            return FlowTrack(flow, occlusion, self.size[1], self.size[0])
        unit = 1 if (track.height, track.width) == self.source else self.downscale
        x, y, width, height = (side // unit for side in self.box)
        if (x, y, width, height) != (0, 0, track.width, track.height):
            track = track.cropped(x, y, width, height)
        track = track.scaled(self.size[1], self.size[0])
        return track.flipped() if self.flip else track

    def flow(
        self, flow: NDArray[np.float32], occlusion: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Flow on any grid over the stored frames, as flow of the frames shown.

        Args:
            flow: [T, 2, h, w] in pixels of its grid.
            occlusion: [T, 1, h, w] in [0, 1].

        Returns:
            [T, 2, H, W] in pixels shown and [T, 1, H, W]; also occluded where it leaves what is
            shown, for the past frame ends there too.
        """
        count, _, rows, columns = flow.shape
        height, width = self.size
        planes = np.concatenate([flow, occlusion], axis=1).reshape(-1, rows, columns)
        grid = columns / self.source[1], rows / self.source[0]  # grid pixels a stored pixel
        finer = [max(int(g / s), 1) for g, s in zip(grid, self.scale, strict=True)]
        if max(finer) > 1:  # bilinear alone would skip pixels of a much finer grid
            small = max(columns // finer[0], 1), max(rows // finer[1], 1)
            planes = np.stack(
                [cv2.resize(plane, small, interpolation=cv2.INTER_AREA) for plane in planes]
            )
        # Where each pixel shown lies in the stored frame, which spans [-1, 1].
        x = (np.arange(width) + 0.5) / self.scale[0] + self.box[0]
        y = (np.arange(height) + 0.5) / self.scale[1] + self.box[1]
        places = np.empty((1, height, width, 2), np.float32)
        places[..., 0] = (x[::-1] if self.flip else x) * (2 / self.source[1]) - 1
        places[..., 1] = (y * (2 / self.source[0]) - 1)[:, None]
        # Not cv2.warpAffine: it takes four times as long and knows 1/32 of a pixel only.
        placed = F.grid_sample(
            torch.from_numpy(planes)[None], torch.from_numpy(places),
            padding_mode="border", align_corners=False,
        ).numpy().reshape(count, 3, height, width)  # fmt: skip
        placed[:, 0] *= (-1 if self.flip else 1) * self.scale[0] / grid[0]
        placed[:, 1] *= self.scale[1] / grid[1]
        # Half a pixel of grace, as in `v2v.warp.occlusion`.
        left = placed[:, 0] + (np.arange(width, dtype=np.float32) - (width - 1) / 2)
        above = placed[:, 1] + (np.arange(height, dtype=np.float32) - (height - 1) / 2)[:, None]
        placed[:, 2][(np.abs(left) > width / 2) | (np.abs(above) > height / 2)] = 1
        return placed[:, :2], placed[:, 2:]


def _box(
    source: tuple[int, int], size: tuple[int, int], downscale: int,
    *, zoom: float = 1.0, x: float = 0.5, y: float = 0.5,
) -> tuple[int, int, int, int]:  # fmt: skip
    """The part of `source` of the shape of `size`, at a place `x`, `y` in [0, 1] of the room."""
    rows, columns = source[0] // downscale, source[1] // downscale
    per_pixel = min(rows / size[0], columns / size[1]) / zoom
    # Shrinking and growing alike end on whole pixels of the copy that is sampled.
    height = min(max(round(size[0] * per_pixel), 1), rows)
    width = min(max(round(size[1] * per_pixel), 1), columns)
    left, top = round(x * (columns - width)), round(y * (rows - height))
    return left * downscale, top * downscale, width * downscale, height * downscale


def downscale_of(source: tuple[int, int], size: tuple[int, int], zoom: float = 1.0) -> int:
    """The whole factor by which pictures may be shrunk and still be shown at `size`, zoomed."""
    return max(int(min(source[0] / size[0], source[1] / size[1]) / zoom), 1)


def shrink(pictures: Pictures, downscale: int) -> Pictures:
    """Pictures [T, h, w, ...] smaller by a whole factor; what does not fill a block is cut off."""
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
    """A change of hue, saturation, contrast and brightness, for RGB in [-1, 1].

    Args:
        strength: one number or [B]; 0 is the identity, 1 garish: saturation and contrast change by
            up to a half, brightness by up to a quarter of the range, hue by up to 34 degrees.
        draws: [4] or [B, 4] numbers in [-1, 1].

    Returns:
        [3, 4] or [B, 3, 4]: `matrix[:, :3] @ rgb + matrix[:, 3]`.
    """

    def wide(numbers: Tensor) -> Tensor:
        return numbers[..., None, None]

    strength = torch.as_tensor(strength, device=draws.device)[..., None]
    turn, saturation, contrast, brightness = (strength * draws).unbind(-1)
    identity = torch.eye(3, device=draws.device, dtype=draws.dtype)
    around = draws.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5  # the axis of greys
    cosine, sine = wide(torch.cos(0.6 * turn)), wide(torch.sin(0.6 * turn))
    hue = cosine * identity + (1 - cosine) / 3 + sine * around
    grey = draws.new_tensor([0.299, 0.587, 0.114]).expand(3, 3)
    vivid = grey + wide(1 + 0.5 * saturation) * (identity - grey)
    # All of them keep greys grey, so the order matters little and black and white stay neutral.
    colour = wide(1 + 0.5 * contrast) * (vivid @ hue)
    shift = wide(0.5 * brightness).expand(*colour.shape[:-1], 1)
    return torch.cat([colour, shift], dim=-1).float()


def recolour(picture: Pictures, matrix: Tensor) -> Pictures:
    """`colour_matrix` [3, 4] applied to a uint8 picture [H, W, 3]."""
    shift = 127.5 * (1 + matrix[:, 3:] - matrix[:, :3].sum(1, keepdim=True))
    # In bytes: rgb = byte / 127.5 - 1 on both sides.
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
    """Past frames as a drifting generator would have left them.

    In training the past is fresher than it will be after minutes of rendering; a generator that
    has only seen clean pasts amplifies every flaw of its own.

    Every clip of the batch gets its own strength of each kind, from none to the given one. Blur
    and colour are the same over its past frames, as drift is; noise is fresh in each, half of it
    fine and half in blotches of 8 pixels.

    Args:
        frames: [B, P, 3, H, W] in [-1, 1].
        noise: largest standard deviation.
        blur: standard deviation of the kernel in pixels of a frame whose shorter side is 512.
        colour: `strength` of `colour_matrix`.
        generator: on any device; the same state gives the same result.
        known: [B, P] 1 where there is a past frame; others stay as they are.

    Returns:
        [B, P, 3, H, W] in [-1, 1]; `frames` itself where all strengths are 0.
    """
    assert frames.ndim == 5 and frames.shape[2] == 3, f"[B,P,3,H,W] wanted, not {frames.shape}"
    if noise == blur == colour == 0:
        return frames
    # In fp32 even where training is not: bf16 has 8 bits, and would add noise of its own.
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

    # All of these first: one kind's setting does not change what another draws.
    amounts, colours = uniform(3, batch), 2 * uniform(batch, 4) - 1
    changed = frames
    if blur:
        sigma = blur * min(height, width) / 512
        amount = amounts[0].to(frames.device)[:, None, None, None, None]
        changed = torch.lerp(changed, _blurred(changed, sigma), amount)
    if colour:
        # On the device throughout: waiting for numbers from a GPU would stall its queue.
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
    """Gaussian blur, the border repeated."""
    radius = max(min(round(3 * sigma), *(side - 1 for side in frames.shape[-2:])), 1)
    at = torch.arange(-radius, radius + 1, device=frames.device, dtype=torch.float32)
    kernel = torch.exp(-at.square() / (2 * max(sigma, 1e-3) ** 2))
    kernel = kernel / kernel.sum()
    planes = frames.reshape(-1, 1, *frames.shape[-2:])
    planes = F.pad(planes, (radius,) * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[None, None, :, None])
    planes = F.conv2d(planes, kernel[None, None, None, :])
    return planes.reshape(frames.shape)
