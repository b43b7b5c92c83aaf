"""pix2pix (Isola et al., arXiv 1611.07004): a U-Net from conditions to a frame.

It is trained with the 70x70 PatchGAN (`Discriminators` with 3 layers and 1 scale) and an L1 loss.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.models.baselines.base import Baseline
from v2v.types import Condition, GeneratorOutput, GeneratorState

PRESETS: dict[str, dict[str, Any]] = {
    "mobile": {"width": 20, "width_max": 160, "depth": 7},
    "base": {"width": 40, "width_max": 320, "depth": 8},
    "large": {"width": 64, "width_max": 512, "depth": 8},
    "paper": {"width": 64, "width_max": 512, "depth": 8},
}


class Pix2Pix(Baseline):
    """The U-Net of appendix 6.1.1, with skip connections between levels of equal size.

    The only noise in the paper is dropout, also at test time, with little effect. In a video it
    would cause flicker, so `eval()` disables it. Instance norm replaces batch norm, which is the
    same at the paper's batch size of 1.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def __init__(
        self,
        *,
        channels: int,  # of the signals
        width: int,  # channels of the first level; each level doubles them
        width_max: int,
        depth: int,  # levels, each half the size of the previous one; 8 cover 256 pixels
        dropout: float = 0.5,  # in the three innermost levels of the decoder
    ) -> None:
        super().__init__()
        widths = [min(width << level, width_max) for level in range(depth)]

        # Encoder: no norm on the outermost level, which carries colour, and the innermost, which
        # can be a single pixel.
        self.down = nn.ModuleList()
        before = channels
        for level, outputs in enumerate(widths):
            normed = 0 < level < depth - 1
            self.down.append(EncoderBlock(before, outputs, normed=normed, activated=level > 0))
            before = outputs

        # Decoder, from the innermost level: each takes the level below and the skip connection.
        self.up = nn.ModuleList()
        for level in reversed(range(depth)):
            inputs = widths[level] * (1 if level == depth - 1 else 2)
            outputs = widths[level - 1] if level > 0 else 3
            has_dropout = level >= max(depth - 3, 1)
            self.up.append(
                DecoderBlock(inputs, outputs, normed=level > 0, dropout=dropout * has_dropout)
            )

    def forward(self, condition: Condition, state: GeneratorState) -> GeneratorOutput:
        x = condition.signals
        skips: list[Tensor] = []
        sizes = []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = down(x)
            skips.append(x)

        for up in self.up:
            level = len(skips) - 1
            skip = skips.pop()
            x = up(skip if level == len(sizes) - 1 else torch.cat([x, skip], dim=1))
            # The encoder rounded odd sides up.
            x = x[..., : sizes[level][0], : sizes[level][1]]
        return GeneratorOutput(frame=torch.tanh(x))


class EncoderBlock(nn.Module):
    """LeakyReLU, 4x4 convolution of stride 2, norm."""

    def __init__(self, inputs: int, outputs: int, *, normed: bool, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        # The norm would cancel a bias.
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=not normed)
        self.norm = _Norm(outputs) if normed else nn.Identity()
        nn.init.normal_(self.conv.weight, 0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.activated:
            x = F.leaky_relu(x, 0.2)
        # Odd sides are padded by one pixel, so that any size can be halved repeatedly.
        x = F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), mode="replicate")
        x = self.conv(x)
        return self.norm(x)  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """ReLU, 4x4 transposed convolution of stride 2, norm, dropout."""

    def __init__(self, inputs: int, outputs: int, *, normed: bool, dropout: float) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=not normed)
        self.norm = _Norm(outputs) if normed else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.conv.weight, 0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.relu(x)))
        return self.dropout(x)  # type: ignore[no-any-return]


class _Norm(nn.InstanceNorm2d):
    """Instance norm that leaves a single pixel unchanged: it would always become 0."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-2] * x.shape[-1] == 1 else super().forward(x)
