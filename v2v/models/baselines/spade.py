"""SPADE (Park et al., arXiv 1903.07291): the conditions modulate a latent vector at all scales.

Includes the variational style encoder, which maps an image to a distribution of latent vectors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from v2v.models.baselines.base import Baseline
from v2v.types import Condition, GeneratorOutput, GeneratorState

PRESETS: dict[str, dict[str, Any]] = {
    "mobile": {"width": 8, "hidden": 20, "latent": 64, "encoder": 16, "side": 64},
    "base": {"width": 16, "hidden": 32, "latent": 128, "encoder": 32, "side": 128},
    "large": {"width": 32, "hidden": 64, "latent": 256, "encoder": 32, "side": 256},
    "paper": {"width": 64, "hidden": 128, "latent": 256, "encoder": 64, "side": 256},
}

# Residual blocks (appendix A): channels in units of `width`, and divisors of the full size.
WIDTHS = (16, 16, 16, 8, 4, 2, 1)
SHRINKS = (32, 16, 16, 8, 4, 2, 1)
GRID = 4  # side in pixels of the grid that the latent vector is mapped to


class Spade(Baseline):
    """The generator and the image encoder of appendix A.

    The latent vector is mapped to a 4x4 grid that is resized to the frame's shape, so one network
    renders any size. Instance norm replaces synchronised batch norm, so that a frame does not
    depend on its batch.

    The style comes from `condition.style`. In training it is sampled from the encoder's
    distribution, and `auxiliary` is the KL divergence, which the authors' code weights by 0.05; in
    `eval()` it is the mean. Without an image it is 0, the mean of the prior.
    """

    reads = frozenset({"style"})
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def __init__(
        self,
        *,
        channels: int,  # of the signals
        width: int,  # channels of the last block; the first has 16 times as many
        hidden: int,  # channels between the signals and the modulation
        latent: int,  # length of the latent vector
        encoder: int,  # channels of the style encoder's first layer
        side: int,  # side in pixels to which the style image is resized
    ) -> None:
        super().__init__()
        widths = [factor * width for factor in WIDTHS]
        self.latent = latent
        self.encoder = SpadeStyleEncoder(width=encoder, latent=latent, side=side)
        self.layout = nn.Linear(latent, widths[0] * GRID**2)
        self.blocks = nn.ModuleList(
            Block(before, after, channels=channels, hidden=hidden)
            for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        self.out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, condition: Condition, state: GeneratorState) -> GeneratorOutput:
        signals = condition.signals
        height, width = signals.shape[-2:]
        code, divergence = self._style(condition)

        # Coarse to fine: the conditions modulate each scale.
        x = self.layout(code).reshape(len(signals), -1, GRID, GRID)
        x = F.interpolate(x, _shrunk(signals, SHRINKS[0]), mode="bilinear", align_corners=False)
        for block, shrink in zip(self.blocks, SHRINKS, strict=True):
            size = _shrunk(signals, shrink)
            if x.shape[-2:] != size:
                x = F.interpolate(x, size, mode="nearest")
            # Averaged, because the paper's nearest neighbour would lose thin lines.
            x = block(x, F.adaptive_avg_pool2d(signals, size))
        frame = torch.tanh(self.out(F.leaky_relu(x, 0.2)))
        return GeneratorOutput(frame=frame, auxiliary=divergence)

    def _style(self, condition: Condition) -> tuple[Tensor, Tensor]:
        """The latent vectors [B, latent], and the KL divergence of their distribution []."""
        signals, image = condition.signals, condition.style
        zero = signals.new_zeros(())
        if image is None:
            return signals.new_zeros(len(signals), self.latent), zero
        mean, log_variance = self.encoder(image)
        if not self.training:
            return mean, zero
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return code, kl_divergence(mean, log_variance)


class Block(nn.Module):
    """SPADE residual block: the conditions modulate the norm before each convolution."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        channels: int,  # of the signals
        hidden: int,
    ) -> None:
        super().__init__()
        middle = min(inputs, outputs)
        self.norm_0 = SpatialModulation(inputs, channels=channels, hidden=hidden)
        self.conv_0 = _convolution(inputs, middle)
        self.norm_1 = SpatialModulation(middle, channels=channels, hidden=hidden)
        self.conv_1 = _convolution(middle, outputs)

        # The skip connection is learned only where it changes the number of channels.
        self.around = inputs != outputs
        if self.around:
            self.norm_s = SpatialModulation(inputs, channels=channels, hidden=hidden)
            self.conv_s = _convolution(inputs, outputs, size=1)

    def forward(self, x: Tensor, signals: Tensor) -> Tensor:
        skip = self.conv_s(self.norm_s(x, signals)) if self.around else x
        x = self.conv_0(F.leaky_relu(self.norm_0(x, signals), 0.2))
        x = self.conv_1(F.leaky_relu(self.norm_1(x, signals), 0.2))
        return skip + x  # type: ignore[no-any-return]


class SpatialModulation(nn.Module):
    """Spatially-adaptive normalisation, equation 1: `gamma(s) * norm(x) + beta(s)`."""

    def __init__(
        self,
        width: int,  # channels of the normalised features
        *,
        channels: int,  # of the signals
        hidden: int,
    ) -> None:
        super().__init__()
        self.shared = nn.Conv2d(channels, hidden, 3, padding=1)
        self.gamma = nn.Conv2d(hidden, width, 3, padding=1)
        self.beta = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x: Tensor, signals: Tensor) -> Tensor:
        """[B, width, H, W] and [B, channels, H, W] of the same size."""
        shared = F.relu(self.shared(signals))
        # Gamma is relative to 1, so that an untrained block only normalises.
        return (1 + self.gamma(shared)) * _norm(x) + self.beta(shared)  # type: ignore[no-any-return]


class SpadeStyleEncoder(nn.Module):
    """Maps an image to mean and log variance of its latent vector."""

    def __init__(
        self,
        *,
        width: int,  # channels of the first layer; each layer doubles them, up to 8 times
        latent: int,
        side: int,  # side in pixels to which the image is resized, a power of two
    ) -> None:
        super().__init__()
        layers = int(math.log2(side // GRID))
        assert side == GRID << layers, f"side {side} is not {GRID} times a power of two"
        widths = [width * min(1 << layer, 8) for layer in range(layers)]
        self.side = side
        self.layers = nn.ModuleList(
            _convolution(before, after, stride=2)
            for before, after in zip([3, *widths], widths, strict=False)
        )
        self.out = nn.Linear(widths[-1] * GRID**2, 2 * latent)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, H, W] -> [B, latent] twice."""
        size = (self.side, self.side)
        # Antialiasing does not support half precision on a CPU.
        x = F.interpolate(image.float(), size, mode="bilinear", antialias=True).to(image.dtype)
        for layer in self.layers:
            x = F.leaky_relu(_norm(layer(x)), 0.2)
        mean, log_variance = self.out(x.flatten(1)).float().chunk(2, dim=1)
        return mean, log_variance


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of normal distributions [B, latent] from the standard one: [], their mean.

    `-1/2 sum(1 + log v - m^2 - v)` for each sample (Kingma and Welling, arXiv 1312.6114,
    appendix B).

    >>> kl_divergence(torch.zeros(2, 8), torch.zeros(2, 8))
    tensor(0.)
    """
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean() / 2


def _norm(x: Tensor) -> Tensor:
    # A single pixel has no variance: normalisation would always give 0.
    return x if x.shape[-2] * x.shape[-1] == 1 else F.instance_norm(x)


def _convolution(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=size > 1)
    return spectral_norm(layer)


def _shrunk(x: Tensor, factor: int) -> tuple[int, int]:
    """H and W divided and rounded up."""
    return -(-x.shape[-2] // factor), -(-x.shape[-1] // factor)
