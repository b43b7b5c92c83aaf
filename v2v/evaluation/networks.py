"""Measures by pretrained networks: LPIPS, FID, FVD. Without weights they are unavailable.

Weights are searched in torch's cache (`TORCH_HOME`) and never downloaded automatically.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from v2v.errors import MissingLibrary, WeightsUnavailable
from v2v.files import file_sha256
from v2v.pixels import to_bytes
from v2v.weights import load_state, torchvision_models, weights_folder

VIDEO_CLIP = 16  # frames per clip of the video network
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # torchvision's R3D-18
SIDE = 112  # pixels, R3D-18's training resolution


@dataclass(frozen=True)
class File:
    """A downloadable weights file. `name` contains the start of its SHA-256."""

    network: str
    name: str
    url: str

    def find(self) -> Path:
        """The verified local path. Raises `WeightsUnavailable` with the download command."""
        path = weights_folder() / self.name
        if not path.is_file():
            raise WeightsUnavailable(
                f"the weights of {self.network} are not on this machine; expected at {path}",
                hint=f"download them once: curl -L --create-dirs -o {path} {self.url}",
            )
        digest = file_sha256(path)
        expected = self.name.rsplit("-", 1)[-1].split(".")[0]
        if not digest.startswith(expected):
            raise WeightsUnavailable(
                f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {expected}",
                hint="delete it and download it again",
            )
        return path


PYTORCH = "https://download.pytorch.org/models/"
ALEXNET = File("AlexNet", "alexnet-owt-7be5be79.pth", f"{PYTORCH}alexnet-owt-7be5be79.pth")
R3D = File("R3D-18", "r3d_18-b3b3357e.pth", f"{PYTORCH}r3d_18-b3b3357e.pth")
INCEPTION = File(
    "Inception (FID's)", "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)  # fmt: skip


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018, arXiv 1801.03924), version 0.1, AlexNet.

    AlexNet, not VGG: the models' perceptual loss uses VGG, which would bias the measure.
    Raises `WeightsUnavailable`.
    """

    def __init__(self, device: str = "cpu") -> None:
        ALEXNET.find()
        torchvision_models()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        # torchmetrics ships the linear layers; torchvision loads AlexNet from torch's cache.
        self.network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, one: Tensor, other: Tensor) -> Tensor:
        """[T] distances of frames [T, 3, H, W] in [-1, 1]."""
        values: Tensor = self.network(one.to(self.device), other.to(self.device))
        return values.reshape(len(one)).cpu()


class Inception:
    """Features of single frames for FID (Heusel et al. 2017), in torch-fidelity's port.

    Raises `WeightsUnavailable`, `MissingLibrary`.
    """

    def __init__(self, device: str = "cpu") -> None:
        if find_spec("torch_fidelity") is None:
            raise MissingLibrary(
                "FID needs the Inception network of torch-fidelity, which is not installed",
                hint="pip install torch-fidelity",
            )
        path = INCEPTION.find()
        torchvision_models()
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.network: Any = NoTrainInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
        )
        self.network.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> NDArray[np.float64]:
        """[T, 2048] features of frames [T, 3, H, W] in [-1, 1]."""
        features: Tensor = self.network(to_bytes(frames).to(self.device))
        return features.reshape(len(frames), -1).double().cpu().numpy()


class VideoResNet:
    """Features of 16-frame clips by torchvision's R3D-18 (Tran et al. 2018).

    Raises `WeightsUnavailable`.
    """

    def __init__(self, device: str = "cpu") -> None:
        path = R3D.find()
        models = torchvision_models()
        import torchvision.models.video  # noqa: F401

        network = models.video.r3d_18(weights=None)
        load_state(network, path)
        network.fc = torch.nn.Identity()
        self.network = network.to(device).eval()
        self.device = device

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> NDArray[np.float64]:
        """[1, 512] features of 16 frames [16, 3, H, W] in [-1, 1]; [0, 512] for fewer frames."""
        if len(frames) < VIDEO_CLIP:
            return np.empty((0, 512))
        resized = torch.nn.functional.interpolate(
            frames, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        mean, deviation = (torch.tensor(v).reshape(1, 3, 1, 1) for v in KINETICS)
        video = (((resized + 1) / 2 - mean) / deviation).permute(1, 0, 2, 3)[None]
        features: Tensor = self.network(video.to(self.device))
        return features.double().cpu().numpy()


@dataclass
class Gaussian:
    """Running mean and covariance of features, in constant memory."""

    count: int = 0
    total: Any = field(default=0.0, repr=False)
    outer: Any = field(default=0.0, repr=False)

    def add(self, features: NDArray[np.float64]) -> None:
        """Add features [n, d]."""
        self.count += len(features)
        self.total = self.total + features.sum(axis=0)
        self.outer = self.outer + features.T @ features

    @property
    def mean(self) -> NDArray[np.float64]:
        return np.asarray(self.total / self.count)

    @property
    def covariance(self) -> NDArray[np.float64]:
        centred = self.outer - self.count * np.outer(self.mean, self.mean)
        return np.asarray(centred / (self.count - 1))


def frechet(one: Gaussian, other: Gaussian) -> float:
    """Fréchet distance of two Gaussians (Dowson and Landau 1982); NaN for fewer than 2 samples."""
    if min(one.count, other.count) < 2:
        return float("nan")
    # The trace of a matrix square root is the sum of the square roots of the eigenvalues.
    eigenvalues = np.linalg.eigvals(one.covariance @ other.covariance)
    root = np.sqrt(np.maximum(eigenvalues.real, 0)).sum()
    between = float(((one.mean - other.mean) ** 2).sum())
    spread = float(np.trace(one.covariance) + np.trace(other.covariance) - 2 * root)
    return between + max(spread, 0.0)
