"""The subnetworks of the sequential generator.

Shapes: B clips; H, W pixels of the size that a subnetwork works at.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.models.blocks import ResidualBlock, Up, conv, coordinates, fold, norm, smooth, zeroed
from v2v.models.generator_settings import FLOW_UNIT, STRIDE, STYLE, Architecture
from v2v.warp import resize_flow


class Heads(nn.Module):
    """Turns features at 1/4 of a size into flow, picture, occlusion and matte at that size.

    All outputs are residuals of the scale below; above the core they are initialised to zero. The
    last convolution works at full size: a sub-pixel convolution has separate weights for every
    position in a block, which differ early in training and show as a grid.
    """

    def __init__(
        self,
        channels: int,  # of the features
        detail: int,  # channels at half size
        images: int,  # channels of the pictures that detail can be copied from
        *,
        flow: bool,  # whether there is a past to warp
        guided: bool,  # whether the warped frame modulates the last block
        outputs: int,  # 3 for the picture, 1 each for occlusion and matte
        first: bool,  # whether these are the heads of the core
    ) -> None:
        super().__init__()
        self.flow = zeroed(conv(channels, 2)) if flow else None
        self.guided = guided
        self.block = ResidualBlock(channels, guide=4 * STRIDE**2 if guided else 0)
        self.norm = norm(channels)
        self.up = Up(channels, detail, 3)
        last = conv(detail + images, outputs)
        self.last = last if first else zeroed(last)

    def motion(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        assert self.flow is not None
        coarse = self.flow(features).float() * (FLOW_UNIT / STRIDE)
        return resize_flow(coarse, size)

    def forward(self, features: Tensor, warped: Tensor, images: Tensor) -> Tensor:
        """[B, outputs, H, W] from features [B, channels, H/4, W/4].

        `warped` [B, 4, H, W] is the warped frame and its validity; `images` [B, images, H, W] are
        pictures to copy detail from.
        """
        guide = fold(warped, STRIDE) if self.guided else None
        x = F.leaky_relu(self.norm(self.block(features, guide=guide)), 0.2)
        x = smooth(F.leaky_relu(self.up(x), 0.2))
        last: Tensor = self.last(torch.cat([x, images.to(x.dtype)], dim=1))
        return last


class Core(nn.Module):
    """Signals and past frames at the smallest size -> features at 1/4 of it."""

    def __init__(
        self,
        inputs: int,  # channels of all inputs, at the smallest size
        arch: Architecture,
        style: int,  # length of the style vector; 0: none
    ) -> None:
        super().__init__()
        self.stem = conv(inputs * STRIDE**2 + 2, arch.stem)
        self.down = conv(arch.stem, arch.trunk, stride=2)
        self.trunk = nn.ModuleList(
            ResidualBlock(arch.trunk, style=style) for _ in range(arch.blocks)
        )
        self.norm = norm(arch.trunk)
        self.up = Up(arch.trunk, arch.stem)

    def forward(self, inputs: Tensor, style: Tensor | None) -> Tensor:
        folded = fold(inputs, STRIDE)
        stem = self.stem(torch.cat([folded, coordinates(folded)], dim=1))
        x = self.down(F.leaky_relu(stem, 0.2))
        for block in self.trunk:
            x = block(x, style=style)
        features: Tensor = stem + self.up(F.leaky_relu(self.norm(x), 0.2))
        return features


class Scale(nn.Module):
    """Features of the scale below and pictures at this size -> features at 1/4 of this size."""

    def __init__(
        self,
        below: int,  # channels of the features below
        inputs: int,  # channels of the pictures at this size
        channels: int,
        blocks: int,
    ) -> None:
        super().__init__()
        self.up = Up(below, channels)
        self.stem = conv(inputs * STRIDE**2, channels, 1)  # the following blocks add context
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))

    def forward(self, below: Tensor, inputs: Tensor) -> Tensor:
        x = self.up(below) + self.stem(fold(inputs, STRIDE))
        for block in self.blocks:
            x = block(x)
        features: Tensor = x
        return features


class Foreground(nn.Module):
    """The picture of the foreground, from the signals alone, at the core's size.

    Section 3.2 of arXiv 1808.06601: the foreground moves too much to be copied, so its network has
    no past input; the background's has.
    """

    def __init__(self, inputs: int, arch: Architecture) -> None:
        super().__init__()
        wide = arch.trunk // 2
        self.stem = conv(inputs * STRIDE**2 + 2, arch.stem)
        self.down = conv(arch.stem, wide, stride=2)
        self.blocks = nn.ModuleList(ResidualBlock(wide) for _ in range(3))
        self.up = Up(wide, arch.stem)
        self.norm = norm(arch.stem)
        self.finer = Up(arch.stem, arch.detail)
        self.last = conv(arch.detail, 3)

    def forward(self, signals: Tensor) -> Tensor:
        folded = fold(signals, STRIDE)
        stem = self.stem(torch.cat([folded, coordinates(folded)], dim=1))
        x = self.down(F.leaky_relu(stem, 0.2))
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.norm(stem + self.up(x)), 0.2)
        last: Tensor = self.last(smooth(F.leaky_relu(self.finer(x), 0.2)))
        return last


class StyleEncoder(nn.Module):
    """Maps an image to a style vector by strided convolutions and global average pooling."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            conv(
                3 * 16 if i == 0 else width * 2 ** (i - 1), width * 2**i, stride=1 if i == 0 else 2
            )
            for i in range(3)
        )
        self.out = nn.Linear(width * 4, STYLE)

    def forward(self, image: Tensor) -> Tensor:
        x = fold(image, 4)
        for layer in self.convs:
            x = F.leaky_relu(layer(x), 0.2)
        code: Tensor = self.out(x.mean(dim=(2, 3)))
        return code
