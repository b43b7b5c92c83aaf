"""Discriminators: multi-scale patch networks on frames, motion and crops.

Shapes: B clips, T frames, C signal channels, H height, W width, N samples of one clip (frames,
triplets of frames, or crops), K boxes. Frames are RGB in [-1, 1], flow is backward in pixels, boxes
are in continuous pixels (the picture spans [0, W] x [0, H]).

A training step evaluates every half once:

1. Discriminator step: `discriminators(signals, real, fake.detach(), ...)`. Both halves pass each
   network as one batch, so that DDP sees one forward for one backward.
2. Generator step: under `frozen(discriminators)`, `discriminators(signals, None, fake, ...)`
   evaluates only the fake half; `with_real` adds the real half of step 1 for feature matching. No
   discriminator weight gets a gradient, and spectral norm does not iterate again.

Step 1 comes first because it provides the real half. Its features are those before the
discriminators' update, which feature matching, a moving target anyway, tolerates. Under DDP step 2
uses the unwrapped module: the wrapper would wait for gradients that never arrive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from v2v.config import Config, Positive
from v2v.errors import UnknownName
from v2v.warp import compose

FRAMES = 3  # per temporal discriminator: K of arXiv 1808.06601, section 3.1
STRIDES = (1, 3, 9)  # between these frames
TEMPORAL = {f"temporal_{stride}": stride for stride in STRIDES}

_SMALLEST = 3  # pixels, the smallest input of the last two layers (4x4, padded by 1)


class DiscriminatorSettings(Config):
    width: Annotated[
        int, Field(ge=4, le=256)
    ]  # channels of the first layer; each layer doubles them
    width_max: Annotated[int, Field(ge=4, le=1024)]
    layers: Annotated[int, Field(ge=1, le=6)]  # of stride 2; with 3, patches have 70 pixels
    scales: Annotated[int, Field(ge=1, le=4)]  # each at half the size of the previous one
    temporal_scales: Annotated[int, Field(ge=1, le=4)]
    crop: Annotated[int, Field(ge=24, le=512)]  # side in pixels of face and hand crops
    spectral_norm: bool
    instance_norm: bool
    flow_unit: Positive  # fraction of the width that a flow of 1 stands for


class PatchOutput(NamedTuple):
    """Output of one discriminator for one half, real or fake. Scales from fine to coarse."""

    logits: tuple[Tensor, ...]  # per scale [B, N, h, w], high = real
    features: tuple[tuple[Tensor, ...], ...]  # per scale and layer [B, N, C, h, w]

    def detach(self) -> PatchOutput:
        return PatchOutput(
            logits=tuple(x.detach() for x in self.logits),
            features=tuple(tuple(x.detach() for x in layers) for layers in self.features),
        )


# Named tuples, because DDP and Fabric find the tensors in them but refuse frozen dataclasses.
class DiscriminatorOutput(NamedTuple):
    """Output of one discriminator for the frames of a step.

    Samples of weight 0 are crops without a box: their logits and features are 0 and have no
    gradient, and means must be weighted.
    """

    fake: PatchOutput
    weight: Tensor  # [B, N] 1 for valid samples, else 0
    real: PatchOutput | None = None  # None if only the fake half was evaluated


class Discriminators(nn.Module):
    """All discriminators of a training run in one module.

    - `image` sees a frame and its signals, at several scales.
    - `temporal_1`, `temporal_3`, `temporal_9` see three frames at that stride and the two flows
      between them, so they need windows of 3, 7 and 19 frames; shorter windows skip them.
    - Others, named in `crops`, see crops of given boxes (face, hands, eyes) with their signals.

    Patch discriminators as in arXiv 1611.07004 at several scales as in arXiv 1711.11585; video
    discriminators as in arXiv 1808.06601.
    """

    def __init__(
        self,
        settings: DiscriminatorSettings,
        *,
        channels: int,  # C, of the signals together
        weights: Mapping[str, float],  # by name; discriminators of weight 0 are not built
        crops: Mapping[str, Sequence[int]] | None = None,  # name -> indices of its boxes, below K
    ) -> None:
        super().__init__()
        crops = crops or {}
        wanted = [name for name, weight in weights.items() if weight > 0]
        for name in wanted:
            if name not in {"image", *TEMPORAL, *crops}:
                raise UnknownName.among("discriminator", name, ["image", *TEMPORAL, *crops])
        self.settings = settings
        self.crops = {name: list(crops[name]) for name in wanted if name in crops}
        self.strides = {name: TEMPORAL[name] for name in wanted if name in TEMPORAL}

        discriminators: dict[str, nn.Module] = {}
        for name in wanted:
            if name in self.strides:
                inputs = FRAMES * 3 + (FRAMES - 1) * 2
                discriminators[name] = MultiScale(settings, inputs, scales=settings.temporal_scales)
            else:
                scales = settings.scales if name == "image" else 1
                discriminators[name] = MultiScale(settings, channels + 3, scales=scales)
        self.discriminators = nn.ModuleDict(discriminators)

    @property
    def context(self) -> int:
        """Number of frames before the newest that temporal discriminators need."""
        return max(((FRAMES - 1) * stride for stride in self.strides.values()), default=0)

    def forward(
        self,
        signals: Tensor,
        real: Tensor | None,
        fake: Tensor,
        *,
        flow: Tensor | None,
        boxes: Tensor | None,
        newest: int,
    ) -> dict[str, DiscriminatorOutput]:
        """Evaluate the newest frames of a window; the earlier ones are context only.

        A triplet is evaluated if its last frame is among the newest; image and crop discriminators
        evaluate only the newest frames. Both halves use the same reference flow.

        Args:
            signals: [B, T, C, H, W].
            real: [B, T, 3, H, W], or None to evaluate only the fake half.
            fake: [B, T, 3, H, W]; detached in the discriminator step.
            flow: [B, T, 2, H, W] from frame t to t - 1; that of the first frame is ignored. None:
                temporal discriminators see zero flow.
            boxes: [B, T, K, 4] x0, y0, x1, y1 in pixels, NaN if missing. None: all are missing.
            newest: number of frames at the end of the window to evaluate, 1 to T.

        Returns:
            Outputs by discriminator. Temporal discriminators whose stride is too long are left out;
            under DDP their weights then have no gradient (`find_unused_parameters=True`).
        """
        batch, length, _, height, width = fake.shape
        halves = [fake] if real is None else [real, fake]
        assert all(half.shape == fake.shape for half in halves), [h.shape for h in halves]
        assert signals.shape[:2] == fake.shape[:2], f"signals {signals.shape}, fake {fake.shape}"
        assert 1 <= newest <= length, f"{newest} newest of {length} frames"
        first = length - newest
        evaluated = range(first, length)

        # One batch of both halves: [real; fake] on the first axis.
        frames = torch.cat(halves)
        copies = len(halves)
        all_valid = fake.new_ones(batch, newest)

        discriminator_outputs = {}
        for name, discriminator in self.discriminators.items():
            if name in self.strides:
                stride = self.strides[name]
                last = [t for t in evaluated if t >= (FRAMES - 1) * stride]
                if not last:
                    continue
                triplets = [frames[:, [t - 2 * stride, t - stride, t]].flatten(1, 2) for t in last]
                motion = self._motion(flow, last, stride, like=fake)
                inputs = torch.cat([torch.stack(triplets, 1), _repeat(motion, copies)], dim=2)
                weight = all_valid[:, : len(last)]
            elif name in self.crops:
                chosen = _select_boxes(boxes, evaluated, self.crops[name], like=fake)
                present = _present(chosen)
                full_picture = chosen.new_tensor([0.0, 0.0, width, height])
                # A missing box becomes the whole picture with weight 0, so that the graph is the
                # same in every process, whatever its batch contains.
                regions = torch.where(present[..., None], chosen, full_picture)
                inputs = torch.cat(
                    [
                        _repeat(self._crop(signals[:, first:], regions), copies),
                        self._crop(frames[:, first:], _repeat(regions, copies)),
                    ],
                    dim=2,
                )
                weight = present.flatten(1).to(fake.dtype)
            else:
                pictures = frames[:, first:]
                inputs = torch.cat([_repeat(signals[:, first:], copies), pictures], dim=2)
                weight = all_valid

            logits, features = discriminator(inputs.flatten(0, 1))
            mask = _repeat(weight, copies) if name in self.crops else None
            logits = [_unfold(x, copies * batch, mask).squeeze(2) for x in logits]
            features = [[_unfold(x, copies * batch, mask) for x in scale] for scale in features]
            discriminator_outputs[name] = DiscriminatorOutput(
                real=None if real is None else _half(logits, features, slice(None, batch)),
                fake=_half(logits, features, slice(batch * (copies - 1), None)),
                weight=weight,
            )
        return discriminator_outputs

    @torch.no_grad()
    def _motion(self, flow: Tensor | None, last: list[int], stride: int, *, like: Tensor) -> Tensor:
        """The two flows of each triplet that ends at one of `last`, [B, N, 4, H, W].

        In units of `flow_unit` times the width, so that a motion has the same value at every size.
        """
        batch, _, _, height, width = like.shape
        if flow is None:
            return like.new_zeros(batch, len(last), 4, height, width)
        ends = sorted({t - stride for t in last} | set(last))
        total = flow[:, ends].flatten(0, 1)  # [B * E, 2, H, W] from frame t to t - 1
        for back in range(1, stride):
            step = flow[:, [t - back for t in ends]].flatten(0, 1)
            total = compose(total, step)
        total = total.reshape(batch, len(ends), 2, height, width)
        total = total / (self.settings.flow_unit * width)
        at = {t: i for i, t in enumerate(ends)}
        pairs = [total[:, [at[t - stride], at[t]]].flatten(1, 2) for t in last]
        return torch.stack(pairs, dim=1).to(like.dtype)

    def _crop(self, pictures: Tensor, boxes: Tensor) -> Tensor:
        """[B, n, C, H, W] and [B, n, k, 4] -> [B, n * k, C, side, side]."""
        count, kept = pictures.shape[:2], boxes.shape[2]
        crops = crop(pictures.flatten(0, 1), boxes.flatten(0, 1), self.settings.crop)
        return crops.reshape(count[0], count[1] * kept, *crops.shape[2:])


class MultiScale(nn.Module):
    """Patch discriminators with separate weights on an image pyramid (arXiv 1711.11585)."""

    def __init__(self, settings: DiscriminatorSettings, channels: int, *, scales: int) -> None:
        super().__init__()
        self.layers = settings.layers
        self.scales = nn.ModuleList(Patches(settings, channels) for _ in range(scales))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """[N, C, H, W] -> per scale the logits and the features.

        Scales whose picture is smaller than the network accepts are left out: a run that grows in
        space starts with the fine scales.
        """
        smallest = _SMALLEST << self.layers
        assert min(x.shape[-2:]) >= smallest, (
            f"{self.layers} layers need {smallest} pixels a side, got {list(x.shape[-2:])}"
        )
        logits, features = [], []
        for scale, discriminator in enumerate(self.scales):
            if scale:
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            if min(x.shape[-2:]) < smallest:
                break
            found = discriminator(x)
            features.append(found[:-1])
            logits.append(found[-1])
        return logits, features


class Patches(nn.Module):
    """PatchGAN (arXiv 1611.07004, section 3.2.2): a fully convolutional classifier of patches.

    Patches are 70 pixels wide with 3 layers of stride 2. Without batch norm, samples are
    independent of each other.
    """

    def __init__(self, settings: DiscriminatorSettings, channels: int) -> None:
        super().__init__()
        widths = [
            min(settings.width << layer, max(settings.width, settings.width_max))
            for layer in range(settings.layers + 1)
        ]
        strides = [2] * settings.layers + [1]
        self.layers = nn.ModuleList()
        before = channels
        for index, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            # Normalising the first layer would hide flicker and exposure.
            normed = settings.instance_norm and index > 0
            layer = [_convolution(before, width, stride, settings)]
            layer += [nn.InstanceNorm2d(width, affine=True)] if normed else []
            self.layers.append(nn.Sequential(*layer, nn.LeakyReLU(0.2)))
            before = width
        self.layers.append(_convolution(before, 1, 1, settings))

    def forward(self, x: Tensor) -> list[Tensor]:
        """[N, C, H, W] -> the features of every layer, then the logits [N, 1, h, w]."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found


def _convolution(
    inputs: int, outputs: int, stride: int, settings: DiscriminatorSettings
) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1)
    # Scaled by the fan-in: the papers' N(0, 0.02) makes gradients of narrow networks vanish.
    nn.init.kaiming_normal_(layer.weight, a=0.2)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return spectral_norm(layer) if settings.spectral_norm else layer


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A context in which `module` gets no weight gradients and keeps the vectors of spectral norm.

    Gradients still flow through it to its inputs, even if the backward pass runs after the context.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    training = [m for m in module.modules() if m.training]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        module.eval()
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def with_real(
    fake: Mapping[str, DiscriminatorOutput], earlier: Mapping[str, DiscriminatorOutput]
) -> dict[str, DiscriminatorOutput]:
    """Outputs for the fake half, with the real halves of an earlier step, detached."""
    halves = {name: earlier[name].real for name in fake}
    return {
        name: output._replace(real=None if (half := halves[name]) is None else half.detach())
        for name, output in fake.items()
    }


def crop(pictures: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Crop boxes to squares with bilinear interpolation; differentiable in the pictures.

    A box of `side` whole pixels is a slice, up to rounding in float32. Outside the picture the
    border is replicated.

    Args:
        pictures: [N, C, H, W].
        boxes: [N, K, 4] x0, y0, x1, y1, edges in continuous pixels.

    Returns:
        [N, K, C, side, side].

    >>> picture = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> crop(picture, torch.tensor([[[1.0, 0.0, 3.0, 2.0]]]), 2)
    tensor([[[[[1., 2.],
               [5., 6.]]]]])
    """
    assert boxes.ndim == 3 and boxes.shape[2] == 4, f"boxes must be [N, K, 4], are {boxes.shape}"
    height, width = pictures.shape[-2:]
    boxes = boxes.float()
    centres = (torch.arange(side, device=boxes.device) + 0.5) / side
    x = boxes[..., 0, None] + (boxes[..., 2] - boxes[..., 0])[..., None] * centres  # [N, K, side]
    y = boxes[..., 1, None] + (boxes[..., 3] - boxes[..., 1])[..., None] * centres
    grid = torch.stack(
        [
            (2 * x / width - 1)[:, :, None, :].expand(-1, -1, side, -1),
            (2 * y / height - 1)[:, :, :, None].expand(-1, -1, -1, side),
        ],
        dim=-1,
    )
    # All boxes of a picture in one grid, so that the picture is not copied for each box.
    crops = F.grid_sample(
        pictures.float(),
        grid.flatten(1, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    crops = crops.reshape(*pictures.shape[:2], boxes.shape[1], side, side)
    return crops.transpose(1, 2).to(pictures.dtype)


def _select_boxes(
    boxes: Tensor | None, evaluated: range, which: list[int], *, like: Tensor
) -> Tensor:
    """[B, n, k, 4] the boxes of one discriminator; all NaN if there are none."""
    if boxes is None:
        return like.new_full((like.shape[0], len(evaluated), len(which), 4), float("nan"))
    return boxes[:, evaluated.start :][:, :, which]


def _present(boxes: Tensor) -> Tensor:
    """[...] True for boxes that exist and are not empty."""
    not_empty = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
    return boxes.isfinite().all(-1) & not_empty


def _repeat(x: Tensor, copies: int) -> Tensor:
    return x if copies == 1 else torch.cat([x] * copies)


def _unfold(x: Tensor, batch: int, mask: Tensor | None) -> Tensor:
    """[B * N, C, h, w] -> [B, N, C, h, w], 0 where masked."""
    x = x.reshape(batch, -1, *x.shape[1:])
    return x if mask is None else x * mask[:, :, None, None, None].to(x.dtype)


def _half(logits: list[Tensor], features: list[list[Tensor]], part: slice) -> PatchOutput:
    return PatchOutput(
        logits=tuple(x[part] for x in logits),
        features=tuple(tuple(x[part] for x in scale) for scale in features),
    )
