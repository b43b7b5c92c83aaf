"""Perceptual losses: a weight-free pyramid of bands and edges, alone or with the features of
EfficientNet-Lite0 beside it; or VGG19's features.

Both work in two steps, so that the features of the real frame are computed once for all generated
pictures (the frame, its raw synthesis) that are compared with it:

    perceptual = build_perceptual("auto").to(device)
    real_features = perceptual.features(real)
    loss = perceptual(frame, real_features) + perceptual(synthesised, real_features)

Shapes: pictures are [B, 3, H, W], RGB in [-1, 1]. Losses are float32 means over the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from v2v.errors import UnknownName
from v2v.losses.efficientnet import TAPS, EfficientNetFeatures, installed_weights
from v2v.weights import find_weights, load_state, torchvision_models

PerceptualName = Literal["auto", "efficientnet", "pyramid", "vgg"]


class PerceptualLoss(nn.Module, ABC):
    """An image loss in two steps; see the module's docstring."""

    @abstractmethod
    def features(self, real: Tensor) -> list[Tensor]:
        """Features of real frames [B, 3, H, W] for `forward`; without gradient."""

    @abstractmethod
    def forward(self, fake: Tensor, real_features: Sequence[Tensor]) -> Tensor:
        """The loss [] of generated frames [B, 3, H, W] against `features` of real ones."""


def build_perceptual(name: PerceptualName, weights: Path | None = None) -> PerceptualLoss:
    """Build a perceptual loss by name, on the CPU.

    Args:
        name: "efficientnet" (the pyramid and the features), "pyramid", "vgg", or "auto":
            efficientnet if its weights are installed, else the pyramid. Their values differ, so
            their runs are not comparable: record the choice.
        weights: VGG19's weight file; None looks in torch's own folder.

    Raises:
        UnknownName: for any other `name`.
        WeightsUnavailable: for "efficientnet" or "vgg" without its weights, or with a file of
            another network.
    """
    if name not in (known := get_args(PerceptualName)):
        raise UnknownName.among("perceptual loss", name, known)
    if name == "auto":
        name = "pyramid" if installed_weights() is None else "efficientnet"
    if name == "vgg":
        return VGGPerceptual(weights)
    return EfficientNetPerceptual() if name == "efficientnet" else PyramidPerceptual()


# ---------------------------------------------------------------- VGG19


class VGGPerceptual(PerceptualLoss):
    """L1 between the VGG19 features of two pictures.

    `sum_i w_i / N_i |F_i(real) - F_i(fake)|_1` over relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
    with w = 1/32, 1/16, 1/8, 1/4, 1 (pix2pixHD, Wang et al. 2018, arXiv 1711.11585, and vid2vid;
    after Johnson et al. 2016, arXiv 1603.08155). The network is frozen; gradients pass through.

    Args:
        weights: a state dict of torchvision's vgg19, complete or only its `features.` (80 of 548 MB
            in safetensors); None looks for the file that torchvision would download.

    Raises:
        WeightsUnavailable: they are missing (the hint lists alternatives), or of another network.
    """

    TAPS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}  # layer of `features`: its weight
    SMALLEST = 16  # pixels a side: four poolings leave one

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None = None) -> None:
        super().__init__()
        path = find_weights("vgg19") if weights is None else weights
        # Built on the meta device: initialising 144 M random weights takes seconds.
        with torch.device("meta"):
            layers: nn.Sequential = torchvision_models().vgg19(weights=None).features
        layers.to_empty(device="cpu")
        load_state(layers, path, prefix="features.")
        self.layers = nn.Sequential(*list(layers)[: max(self.TAPS) + 1])
        self.layers.eval().requires_grad_(False)
        # ImageNet statistics of pictures in [0, 1], converted to [-1, 1].
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("mean", (mean * 2 - 1).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", (std * 2).reshape(3, 1, 1), persistent=False)

    def features(self, real: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(self._taps(real))

    def forward(self, fake: Tensor, real_features: Sequence[Tensor]) -> Tensor:
        losses = [
            weight * F.l1_loss(ours.float(), theirs.float())
            for weight, ours, theirs in zip(
                self.TAPS.values(), self._taps(fake), real_features, strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _taps(self, image: Tensor) -> Iterator[Tensor]:
        _check_image(image)
        assert min(image.shape[-2:]) >= self.SMALLEST, f"{list(image.shape)} is too small for VGG19"
        image = (image - self.mean) / self.std
        for index, layer in enumerate(self.layers):
            image = layer(image)
            if index in self.TAPS:
                yield image


# ---------------------------------------------------------------- the pyramid


class PyramidPerceptual(PerceptualLoss):
    """The perceptual loss without weights: a Laplacian pyramid, and edges in windows.

    `sum_j E|L_j(fake) - L_j(real)|_1 + 2 mean_j E[|D_j(fake) - D_j(real)| / (D_j(real) + 0.1)]`

    Computed in Y, Cb, Cr (JFIF, Y from -1 to 1): with separate losses, red, green and blue disagree
    at uncertain edges and leave coloured specks.

    L_j are the bands of a Laplacian pyramid and its low-pass residual, all with equal weight (Lap1
    of Bojanowski et al. 2018, arXiv 1707.05776). In plain L1 the coarse bands, which contain most
    of the contrast, dominate the fine ones.

    D_j is the mean absolute difference between neighbours to the right, below and, for Y, along
    both diagonals (to detect chequered pixels), over overlapping windows of 8 x 8 pixels of level
    j: the amount of edges, not their position. For an edge with uncertain position, L1 alone
    is minimised by a blur, the median of the positions. A blur has fewer edges in the window
    wherever it lies, so this term keeps it sharp. It is relative to the real picture's edges, as
    visual contrast is.

    Measured on 4 frames at 64 x 64 (pose, face, street, crowd) by the picture that minimises the
    mean loss to 25 copies shifted by up to 2 pixels: it keeps 54 percent of the edges under L1 and
    87 percent under this loss, at the same PSNR.

    Its receptive field is 64 pixels. It recognises no objects: VGG's deeper layers have no
    counterpart.
    """

    LEVELS = 4
    SMALLEST = 8  # pixels a side of the coarsest level; smaller pictures have fewer levels
    FAINT = 0.1  # edges below this, a few grey levels, are mostly noise and not amplified
    EDGES = 2.0  # weight of the edges
    OPPONENT = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))

    def features(self, real: Tensor) -> list[Tensor]:
        with torch.no_grad():
            bands, edges = self._decompose(real)
        return bands + edges

    def forward(self, fake: Tensor, real_features: Sequence[Tensor]) -> Tensor:
        bands, edges = self._decompose(fake)
        real_bands, real_edges = real_features[: len(bands)], real_features[len(bands) :]
        loss = fake.new_zeros((), dtype=torch.float32)
        for ours, theirs in zip(bands, real_bands, strict=True):
            loss = loss + F.l1_loss(ours, theirs) * len(self.OPPONENT)  # the sum over channels
        for ours, theirs in zip(edges, real_edges, strict=True):
            relative = (ours - theirs).abs() / (theirs + self.FAINT)
            loss = loss + relative.mean() * (self.EDGES / len(edges))
        return loss

    def _decompose(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Bands [B, 3, h, w], fine to coarse, then the low-pass residual; edges [B, 8, h', w']."""
        _check_image(image)
        red, green, blue = image.float().unbind(1)
        image = torch.stack([r * red + g * green + b * blue for r, g, b in self.OPPONENT], dim=1)
        bands: list[Tensor] = []
        edges: list[Tensor] = []
        while len(edges) < self.LEVELS and min(image.shape[-2:]) >= self.SMALLEST:
            edges.append(self._edges(image))
            # 2 x 2 averages instead of the Gaussian of Burt and Adelson 1983: the bands still
            # reconstruct the picture, in a fraction of the time.
            coarser = F.avg_pool2d(image, 2, ceil_mode=True)
            bands.append(
                image
                - F.interpolate(coarser, image.shape[-2:], mode="bilinear", align_corners=False)
            )
            image = coarser
        return [*bands, image], edges

    @staticmethod
    def _edges(image: Tensor) -> Tensor:
        """Mean absolute differences of neighbours, in windows of 8 pixels with stride 4."""
        here, right, below = image[..., :-1, :-1], image[..., :-1, 1:], image[..., 1:, :-1]
        across = image[:, :1, 1:, 1:]  # diagonals of Y only
        differences = torch.cat(
            [right - here, below - here, across - here[:, :1], right[:, :1] - below[:, :1]], dim=1
        )
        windows = F.avg_pool2d(differences.abs(), 4, ceil_mode=True)
        return F.avg_pool2d(windows, 2, stride=1)


# ---------------------------------------------------------------- EfficientNet


class EfficientNetPerceptual(PerceptualLoss):
    """The pyramid, plus the relative L1 distance of EfficientNet-Lite0's features.

    `pyramid + sum_i E|F_i(fake) - F_i(real)| / E|F_i(real)|` over the features at 1/2, 1/4, 1/8 and
    1/16 of the size; relative, so that all four have the same weight. The pyramid matches what
    pixels show; the features know eyes and mouths: they prefer one pair of eyes to a blend of two.

    Raises:
        WeightsUnavailable: as `EfficientNetFeatures` does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = PyramidPerceptual()
        self.network = EfficientNetFeatures()

    def features(self, real: Tensor) -> list[Tensor]:
        _check_image(real)
        with torch.no_grad():
            return [*self.network(real), *self.pyramid.features(real)]

    def forward(self, fake: Tensor, real_features: Sequence[Tensor]) -> Tensor:
        loss: Tensor = self.pyramid(fake, real_features[len(TAPS) :])
        for ours, theirs in zip(self.network(fake), real_features, strict=False):
            away = (ours.float() - theirs.float()).abs().flatten(1).mean(1)
            size = theirs.float().abs().flatten(1).mean(1).clamp_min(1e-6)
            loss = loss + (away / size).mean()
        return loss


def _check_image(image: Tensor) -> None:
    assert image.ndim == 4 and image.shape[1] == 3, (
        f"image must be [B, 3, H, W], is {list(image.shape)}"
    )
