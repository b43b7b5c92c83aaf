"""Building blocks of the generator.

Shapes: B clips, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP = 16  # channels per normalisation group, or slightly more if they do not divide evenly


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (arXiv 1803.08494), without an affine transform.

    Unlike batch normalisation it keeps the frames of a batch independent, and unlike instance
    normalisation it keeps the mean of a channel, which carries colour.
    """
    groups = next(n for n in range(max(channels // GROUP, 1), 0, -1) if channels % n == 0)
    return nn.GroupNorm(groups, channels, affine=False)


def conv(inputs: int, outputs: int, size: int = 3, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2)


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """`layer`, initialised to zero output."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Modulation(nn.Module):
    """Spatially-adaptive (de)normalisation: x -> norm(x) * (1 + gamma) + beta.

    Equation 1 of arXiv 1903.07291. Gamma and beta are predicted from the warped previous frame, as
    in world-consistent vid2vid (arXiv 2007.08509). Initialised to plain normalisation.
    """

    def __init__(
        self,
        channels: int,  # of the modulated features
        guide: int,  # channels of the guide
        hidden: int,  # channels between the two
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.read = conv(guide, hidden)
        self.gamma_beta = zeroed(conv(hidden, 2 * channels, 1))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        gamma, beta = self.gamma_beta(F.leaky_relu(self.read(guide), 0.2)).chunk(2, dim=1)
        modulated: Tensor = self.norm(x) * (1 + gamma) + beta
        return modulated


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))): pre-activation (arXiv 1603.05027).

    The last convolution starts at zero, so a new block is the identity.
    """

    def __init__(
        self,
        channels: int,
        *,
        guide: int = 0,  # channels of a map that modulates the first norm; 0: none
        style: int = 0,  # length of a vector that scales and shifts after the second norm; 0: none
    ) -> None:
        super().__init__()
        self.first = Modulation(channels, guide, 32) if guide else norm(channels)
        self.conv1 = conv(channels, channels)
        self.norm2 = norm(channels)
        self.style = zeroed(nn.Linear(style, 2 * channels)) if style else None
        self.conv2 = zeroed(conv(channels, channels))

    def forward(
        self, x: Tensor, *, guide: Tensor | None = None, style: Tensor | None = None
    ) -> Tensor:
        h = self.first(x) if guide is None else self.first(x, guide)
        h = self.norm2(self.conv1(F.leaky_relu(h, 0.2)))
        if self.style is not None:
            assert style is not None, "this block needs a style vector"
            scale, shift = self.style(style)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        out: Tensor = x + self.conv2(F.leaky_relu(h, 0.2))
        return out


def subpixel(inputs: int, outputs: int, size: int = 3) -> nn.Conv2d:
    """A convolution whose output is shuffled to twice the size (arXiv 1609.05158).

    The four output pixels of an input pixel are initialised equal (arXiv 1707.02937). Otherwise the
    output starts as a checkerboard, which minutes of training do not remove.
    """
    layer = conv(inputs, 4 * outputs, size)
    with torch.no_grad():
        repeated = layer.weight[::4].repeat_interleave(4, dim=0)
        layer.weight.copy_(repeated)
        assert layer.bias is not None
        layer.bias.copy_(layer.bias[::4].repeat_interleave(4))
    return layer


class Up(nn.Module):
    """Upsampling by 2 with a sub-pixel convolution."""

    def __init__(self, inputs: int, outputs: int, size: int = 1) -> None:
        super().__init__()
        self.conv = subpixel(inputs, outputs, size)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def half(image: Tensor, times: int = 1) -> Tensor:
    """[B, C, H, W] halved in size `times` times by averaging."""
    return F.avg_pool2d(image, 2**times) if times else image


def fold(image: Tensor, factor: int) -> Tensor:
    """[B, C factor^2, H / factor, W / factor] with the pixels of each square as channels.

    The result of `F.pixel_unshuffle`, in a third of the time on a CPU.
    """
    batch, channels, height, width = image.shape
    split = image.reshape(batch, channels, height // factor, factor, width // factor, factor)
    ordered = split.permute(0, 1, 3, 5, 2, 4)
    return ordered.reshape(batch, channels * factor**2, height // factor, width // factor)


def smooth(image: Tensor) -> Tensor:
    """[B, C, H, W] at twice the size, by bilinear interpolation."""
    return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)


def double(image: Tensor) -> Tensor:
    """[B, C, H, W] at twice the size, smooth, and such that `half` gives `image` back exactly.

    Bilinear upsampling blurs: halving the result would not return the picture, and a model that has
    grown would lose sharpness with every frame it feeds back. The difference is added to each 2x2
    square as a constant.
    """
    enlarged = smooth(image)
    difference = image - half(enlarged)
    return enlarged + F.interpolate(difference, scale_factor=2.0, mode="nearest")


def coordinates(like: Tensor) -> Tensor:
    """[B, 2, H, W] pixel coordinates x and y in [-1, 1]."""
    batch, _, height, width = like.shape
    x = torch.linspace(-1, 1, width, device=like.device, dtype=like.dtype)
    y = torch.linspace(-1, 1, height, device=like.device, dtype=like.dtype)
    planes = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return planes.expand(batch, -1, -1, -1)
