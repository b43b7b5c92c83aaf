"""pix2pixHD (Wang et al., arXiv 1711.11585): coarse to fine, with features per instance.

Instance boundaries are a channel of the signals. The appearance of an instance is a feature vector:
in training the encoder computes it from the real frame; afterwards it is picked from clusters of
the features of the training footage.

    clusters = cluster_features(generator.encoder, batches)         # stored with the model
    features = pick_features(clusters, instances, seed=0)           # Condition.features
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from v2v.models.baselines.base import Baseline
from v2v.types import Batch, Condition, GeneratorOutput, GeneratorState

PRESETS: dict[str, dict[str, Any]] = {
    "mobile": {"width": 12, "downs": 4, "blocks": 4, "enhancers": 0, "features": 3, "encoder": 4},
    "base": {"width": 24, "downs": 4, "blocks": 9, "enhancers": 0, "features": 3, "encoder": 8},
    "large": {"width": 48, "downs": 4, "blocks": 9, "enhancers": 0, "features": 3, "encoder": 16},
    "paper": {"width": 64, "downs": 4, "blocks": 9, "enhancers": 1, "features": 3, "encoder": 16},
}

# Instance ids of Cityscapes: class * 1000 + number for countable classes, else the class.
IDS_PER_CLASS = 1000

CLUSTERS = "clusters."  # artifacts are called this and the number of their class
Clusters = dict[int, NDArray[np.float32]]  # class -> [k, F] centres, k at most the requested number


class Pix2PixHD(Baseline):
    """Global generator and local enhancer of section 3.1, instance features of section 3.4.

    In training `condition.style` must be the target frame, from which the encoder computes the
    features (`wants_target`). In `eval()` it is ignored: features come from `condition.features`,
    or are 0.
    """

    reads = frozenset({"instances"})
    wants_target: ClassVar[bool] = True
    samples: ClassVar[int] = 64
    presets: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    def __init__(
        self,
        *,
        channels: int,  # of the signals
        width: int,  # channels of the first layer; each downsampling doubles them
        downs: int,
        blocks: int,  # residual blocks of the global generator
        enhancers: int,  # local enhancers, each at twice the size with half the channels
        features: int,  # F, features per instance; 0 = none
        encoder: int,  # channels of the feature encoder's first layer
    ) -> None:
        super().__init__()
        inputs = channels + features
        self.features = features
        self.encoder = FeatureEncoder(features, width=encoder) if features else None
        self.core = Global(inputs, width=width, downs=downs, blocks=blocks)
        self.enhancers = nn.ModuleList()
        for _ in range(enhancers):
            assert width % 2 == 0, f"width {width} cannot be halved"
            width //= 2
            self.enhancers.append(Enhancer(inputs, width=width))
        self.out = _conv7(width, 3)

    def forward(self, condition: Condition, state: GeneratorState) -> GeneratorOutput:
        inputs = condition.signals
        if self.features:
            inputs = torch.cat([inputs, self._features(condition)], dim=1)

        # A pyramid by average pooling; the core starts at the smallest size, the last.
        pyramid = [inputs]
        for _ in self.enhancers:
            pyramid.append(F.avg_pool2d(pyramid[-1], 2, ceil_mode=True))
        x = self.core(pyramid[-1])
        for enhancer, here in zip(self.enhancers, reversed(pyramid[:-1]), strict=True):
            x = enhancer(here, x)
        return GeneratorOutput(frame=torch.tanh(self.out(x)))

    def collect(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Clusters of the instance features of the training footage, `clusters.CLASS` [k, F]."""
        if self.encoder is None:
            return {}
        found = cluster_features(self.encoder, batches)
        return {f"{CLUSTERS}{kind}": torch.from_numpy(rows) for kind, rows in found.items()}

    def check_artifact(self, name: str, value: Tensor) -> str | None:
        kind = name.removeprefix(CLUSTERS)
        if kind == name or not kind.isdecimal() or value.ndim != 2 or not len(value):
            return f"is {list(value.shape)}, expected a class number and rows of features"
        return None if bool(value.isfinite().all()) else "has values that are not finite"

    def complete(
        self,
        condition: Condition,
        artifacts: Mapping[str, Tensor],
        choices: Mapping[int, int] | None = None,
    ) -> Condition:
        """The condition with features for each instance: the chosen cluster of its class.

        A class without a choice gets a random cluster, which an instance keeps over the video.
        """
        clusters = _clusters(artifacts)
        if not clusters:
            return condition
        instances = condition.instances
        if instances is None:
            instances = torch.zeros_like(condition.signals[:, :1], dtype=torch.int64)
        for kind, number in (choices or {}).items():
            if kind in clusters:
                clusters[kind] = clusters[kind][[number]]
        return replace(condition, features=pick_features(clusters, instances, seed=0))

    def choices(self, artifacts: Mapping[str, Tensor]) -> dict[int, int]:
        return {kind: len(rows) for kind, rows in _clusters(artifacts).items()}

    def _features(self, condition: Condition) -> Tensor:
        """[B, F, H, W] as given, or encoded from the target frame, or 0."""
        signals = condition.signals
        if condition.features is not None:
            return condition.features.to(signals.dtype)
        if self.training and condition.style is not None:
            assert self.encoder is not None
            return self.encoder(condition.style, condition.instances)  # type: ignore[no-any-return]
        return signals.new_zeros(len(signals), self.features, *signals.shape[-2:])


def _clusters(artifacts: Mapping[str, Tensor]) -> Clusters:
    return {
        int(name.removeprefix(CLUSTERS)): value.numpy()
        for name, value in artifacts.items()
        if name.startswith(CLUSTERS)
    }


class Global(nn.Module):
    """Downsampling, residual blocks, upsampling: [B, inputs, H, W] to [B, width, H, W]."""

    def __init__(self, inputs: int, *, width: int, downs: int, blocks: int) -> None:
        super().__init__()
        widths = [width << level for level in range(downs + 1)]
        self.stem = _conv7(inputs, width)
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.blocks = nn.ModuleList(Residual(widths[-1]) for _ in range(blocks))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 3, stride=2, padding=1)
            for a, b in reversed(list(zip(widths, widths[1:], strict=False)))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = _norm_relu(self.stem(x))
        sizes = []
        for down in self.down:
            sizes.append(x.shape[-2:])
            x = _norm_relu(down(x))
        for block in self.blocks:
            x = block(x)
        for up in self.up:
            # Odd and even sides halve to the same size, so the output size must be given.
            x = _norm_relu(up(x, output_size=sizes.pop()))
        return x


class Enhancer(nn.Module):
    """Local enhancer: adds features of this size, halved, to those of the scale below."""

    def __init__(self, inputs: int, *, width: int, blocks: int = 3) -> None:
        super().__init__()
        self.stem = _conv7(inputs, width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(2 * width) for _ in range(blocks))
        self.up = nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor, below: Tensor) -> Tensor:
        """[B, inputs, H, W] and [B, 2 * width, H/2, W/2] -> [B, width, H, W]"""
        size = x.shape[-2:]
        x = _norm_relu(self.down(_norm_relu(self.stem(x)))) + below
        for block in self.blocks:
            x = block(x)
        return _norm_relu(self.up(x, output_size=size))


class FeatureEncoder(nn.Module):
    """Maps an image to `features` numbers, constant over each instance (section 3.4)."""

    def __init__(self, features: int, *, width: int, downs: int = 4) -> None:
        super().__init__()
        self.body = Global(3, width=width, downs=downs, blocks=0)
        self.out = _conv7(width, features)

    def forward(self, image: Tensor, instances: Tensor | None) -> Tensor:
        """[B, 3, H, W] and ids [B, 1, H, W] -> [B, F, H, W] in [-1, 1].

        Without instances the whole picture is one.
        """
        features = torch.tanh(self.out(self.body(image)))
        if instances is None:
            return features.mean(dim=(2, 3), keepdim=True).expand_as(features)
        return instance_mean(features, instances)


class Residual(nn.Module):
    """Two 3x3 convolutions with a skip connection (arXiv 1603.08155)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_0 = Reflected(width, width, 3)
        self.conv_1 = Reflected(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + _norm(self.conv_1(_norm_relu(self.conv_0(x))))


class Reflected(nn.Conv2d):
    """Convolution of odd size with reflection padding."""

    def forward(self, x: Tensor) -> Tensor:
        padding = self.kernel_size[0] // 2
        # Sides below the padding cannot be reflected.
        mode = "reflect" if min(x.shape[-2:]) > padding else "replicate"
        return super().forward(F.pad(x, (padding,) * 4, mode=mode))


def instance_mean(features: Tensor, instances: Tensor) -> Tensor:
    """Instance-wise average pooling: each pixel becomes the mean of its instance, per sample.

    Args:
        features: [B, F, H, W].
        instances: [B, 1, H, W] int64, any ids.

    Returns:
        [B, F, H, W].

    >>> features = torch.tensor([1.0, 3.0, 8.0]).reshape(1, 1, 1, 3)
    >>> instance_mean(features, torch.tensor([7, 7, 26001]).reshape(1, 1, 1, 3)).flatten()
    tensor([2., 2., 8.])
    """
    means, _, _, rows = _instances(features, instances)
    return means[rows].movedim(-1, 1).to(features.dtype)


@torch.no_grad()
def cluster_features(
    encoder: FeatureEncoder,
    batches: Iterable[Batch],
    *,
    clusters: int = 10,
    seed: int = 0,
) -> Clusters:
    """K-means over the instance features of each class (section 3.4; the paper's K is 10).

    An instance's class is its id divided by 1000, or the id itself if it is smaller (Cityscapes).
    Classes with fewer instances than clusters get one cluster for each instance.

    Args:
        batches: frames and instances of the training clips; those without instances count as one
            instance of class 0.
        seed: of OpenCV's generator, which is global.
    """
    found: dict[int, list[NDArray[np.float32]]] = {}
    for batch in batches:
        images = batch.frames.flatten(0, 1)
        shape = (len(images), 1, *images.shape[-2:])
        instances = (
            torch.zeros(shape, dtype=torch.int64, device=images.device)
            if batch.instances is None
            else batch.instances.flatten(0, 1)
        )
        means, ids, sizes, _ = _instances(encoder(images, instances), instances)
        present = sizes > 0
        for mean, number in zip(means[present].cpu().numpy(), ids[present].tolist(), strict=True):
            found.setdefault(_class(number), []).append(mean)

    cv2.setRNGSeed(seed)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 100, 1e-5)
    centres: Clusters = {}
    for class_id, rows in sorted(found.items()):
        samples = np.stack(rows).astype(np.float32)
        # More clusters than distinct features would give empty clusters.
        count = min(clusters, len(np.unique(samples, axis=0)))
        best = np.empty((0,), np.int32)
        _, _, class_centres = cv2.kmeans(samples, count, best, stop, 10, cv2.KMEANS_PP_CENTERS)
        centres[class_id] = np.asarray(class_centres, np.float32)
    return centres


def pick_features(
    clusters: Mapping[int, NDArray[np.float32]], instances: Tensor, *, seed: int
) -> Tensor:
    """Random features for each instance, from the clusters of its class.

    The choice depends only on the seed and the id: an instance keeps its features as long as it
    keeps its id. Classes without clusters get 0.

    Args:
        clusters: from `cluster_features`.
        instances: [B, 1, H, W] int64.

    Returns:
        [B, F, H, W] float32, for `Condition.features`.
    """
    assert clusters, "no clusters to pick from"
    ids, which = torch.unique(instances[:, 0], return_inverse=True)
    length = next(iter(clusters.values())).shape[1]
    vectors = np.zeros((len(ids), length), np.float32)
    for vector, number in zip(vectors, ids.tolist(), strict=True):
        centres = clusters.get(_class(number))
        if centres is not None:
            vector[:] = centres[np.random.default_rng([seed, number]).integers(len(centres))]
    return torch.from_numpy(vectors).to(instances.device)[which].movedim(-1, 1)


def _instances(features: Tensor, instances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means over instances, one row per id and sample, R = B * ids.

    Returns:
        Means [R, F], ids [R], sizes in pixels [R] (0 where a sample lacks an id), and the row that
        each pixel belongs to [B, H, W].
    """
    assert instances.shape == (len(features), 1, *features.shape[-2:]), (
        f"instances {list(instances.shape)} do not fit features {list(features.shape)}"
    )
    ids, which = torch.unique(instances[:, 0], return_inverse=True)
    # The same id in two samples denotes two instances.
    rows = which + torch.arange(len(features), device=which.device)[:, None, None] * len(ids)
    # Summed in fp32, because bf16 cannot count beyond 256.
    values = features.movedim(1, -1).flatten(0, 2).float()
    count = len(features) * len(ids)
    sums = values.new_zeros(count, values.shape[1]).index_add(0, rows.flatten(), values)
    sizes = torch.bincount(rows.flatten(), minlength=count)
    return sums / sizes.clamp_min(1)[:, None], ids.repeat(len(features)), sizes, rows


def _class(number: int) -> int:
    return number // IDS_PER_CLASS if number >= IDS_PER_CLASS else number


def _conv7(inputs: int, outputs: int) -> nn.Module:
    return Reflected(inputs, outputs, 7)


def _norm_relu(x: Tensor) -> Tensor:
    return F.relu(_norm(x))


def _norm(x: Tensor) -> Tensor:
    # A single pixel has no variance: normalisation would always give 0.
    return x if x.shape[-2] * x.shape[-1] == 1 else F.instance_norm(x)
