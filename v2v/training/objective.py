"""The training objective: weighted losses of the generator and the discriminators.

The weights are applied here; the losses themselves are pure functions in `v2v.losses`. Features of
real frames, of the discriminators and of the perceptual network, are computed once per step; see
`v2v.models.discriminators` on the order of the two steps.

Shapes: B clips, k frames of a chunk, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from v2v import losses
from v2v.models.discriminators import DiscriminatorOutput
from v2v.training.settings import LossSettings
from v2v.types import Batch
from v2v.warp import warp

CROPS = ("face", "hands")


@dataclass(frozen=True)
class Rendered:
    """The generator's output for a chunk; see `GeneratorOutput`. Tensors are [B, k, ...]."""

    frame: Tensor
    synthesised: Tensor | None = None
    synthesis_only: Tensor | None = None
    warped: Tensor | None = None
    flow: Tensor | None = None
    occlusion: Tensor | None = None
    matte: Tensor | None = None
    auxiliary: Tensor | None = None  # scalar, []


class Objective(nn.Module):
    """The weighted loss of a chunk, and each of its terms by name for the log."""

    def __init__(self, settings: LossSettings) -> None:
        super().__init__()
        self.settings = settings
        self.discriminators = {
            k: v for k, v in settings.discriminators.model_dump().items() if v > 0
        }
        self.perceptual = losses.build_perceptual(settings.perceptual)

    def for_discriminators(
        self, discriminator_outputs: Mapping[str, DiscriminatorOutput]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the discriminator losses, and each by name.

        It is unweighted: the weights apply to the generator's loss only.
        """
        parts = {}
        for name, output in discriminator_outputs.items():
            assert output.real is not None, f"{name} has no output for the real frames"
            parts[f"discriminator/{name}"] = losses.discriminator_loss(
                output.real.logits, output.fake.logits, self.settings.adversarial
            )
        return torch.stack(list(parts.values())).sum(), parts

    def for_generator(
        self,
        rendered: Rendered,
        chunk: Batch,
        *,
        before_real: Tensor | None,
        before_fake: Tensor | None,
        discriminator_outputs: Mapping[str, DiscriminatorOutput],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted generator loss of one chunk, and each of its terms by name.

        Args:
            rendered: the generator's output, with gradient.
            chunk: the same frames of the batch.
            before_real, before_fake: [B, 3, H, W] the frame before the chunk; None if the window
                begins with the chunk.
            discriminator_outputs: for the fake frames, and for the real ones beside them.
        """
        s = self.settings
        weighted: dict[str, tuple[float, Tensor]] = {}

        for name, output in discriminator_outputs.items():
            weight = self.discriminators[name]
            adversarial = losses.generator_loss(output.fake.logits, s.adversarial)
            weighted[f"adversarial/{name}"] = (weight, adversarial)
            if s.feature_matching and output.real is not None:
                matching = losses.feature_matching(output.real.features, output.fake.features)
                weighted[f"matching/{name}"] = (weight * s.feature_matching, matching)

        self._images(weighted, rendered, chunk.frames)
        if rendered.flow is not None:
            self._motion(weighted, rendered, chunk, before_real, before_fake)
        if rendered.matte is not None and chunk.foreground is not None:
            foreground, valid_mask = chunk.foreground.flatten(0, 1), None
            if chunk.background_plate is not None:
                # Where the plate is unknown, only the image losses decide whether it is visible.
                plate_mask = (
                    chunk.background_plate[:, :, 3:].expand_as(chunk.foreground).flatten(0, 1)
                )
                valid_mask = torch.maximum(plate_mask, foreground)
            weighted["matte"] = (
                s.matte, losses.matte_loss(rendered.matte.flatten(0, 1), foreground, valid_mask)
            )  # fmt: skip
        if rendered.auxiliary is not None:
            weighted["auxiliary"] = (s.auxiliary, rendered.auxiliary)

        used = {name: pair for name, pair in weighted.items() if pair[0] > 0}
        total = torch.stack([weight * loss for weight, loss in used.values()]).sum()
        return total, {name: loss for name, (_, loss) in used.items()}

    def _images(
        self, weighted: dict[str, tuple[float, Tensor]], rendered: Rendered, real: Tensor
    ) -> None:
        """Add the image losses: L1 and perceptual."""
        s = self.settings
        real = real.flatten(0, 1)
        real_features = self.perceptual.features(real) if s.perceptual_weight else None
        images = {"": (1.0, rendered.frame)}
        if rendered.synthesised is not None and rendered.occlusion is not None:
            # Regions covered by the past would get no gradient, but are needed when it ends.
            images["synthesised/"] = (s.synthesised, rendered.synthesised)
        if rendered.synthesis_only is not None:
            # References cover the synthesised frame, which would then get little gradient.
            images["synthesis_only/"] = (s.synthesis_only, rendered.synthesis_only)
        for prefix, (share, image) in images.items():
            if not share:
                continue
            image = image.flatten(0, 1)
            if s.l1:
                weighted[f"{prefix}l1"] = (share * s.l1, (image.float() - real).abs().mean())
            if real_features is not None:
                weighted[f"{prefix}perceptual"] = (
                    share * s.perceptual_weight, self.perceptual(image, real_features)
                )  # fmt: skip

    def _motion(
        self,
        weighted: dict[str, tuple[float, Tensor]],
        rendered: Rendered,
        chunk: Batch,
        before_real: Tensor | None,
        before_fake: Tensor | None,
    ) -> None:
        """Add the flow, warp and occlusion losses of frames that have a previous frame."""
        s = self.settings
        if before_real is None:  # the first frame of a window has no past
            if chunk.length < 2:
                return
            before_real, before_fake = chunk.frames[:, 0], rendered.frame[:, 0].detach()
            chunk = chunk.between(1, chunk.length)
            cut = {
                name: value[:, 1:]
                for name, value in vars(rendered).items()
                if value is not None and value.ndim == 5
            }
            rendered = Rendered(**cut)
        assert before_fake is not None and rendered.flow is not None
        real = chunk.frames.flatten(0, 1)
        real_before = _previous_frames(before_real, chunk.frames)
        fake_before = _previous_frames(before_fake, rendered.frame).detach()
        flow = rendered.flow.flatten(0, 1)

        reference = visible = None
        if chunk.flow is not None and chunk.occlusion is not None:
            reference, visible = chunk.flow.flatten(0, 1), 1 - chunk.occlusion.flatten(0, 1)
            weighted["flow"] = (s.flow, losses.flow_loss(flow, reference, visible))
            # The reference flow is wrong where it does not explain the real frames.
            explained = losses.confidence(real, warp(real_before, reference)) * visible
            weighted["warp_generated"] = (
                s.warp_generated,
                losses.warp_loss(fake_before, reference, rendered.frame.flatten(0, 1), explained),
            )
        weighted["warp_real"] = (s.warp_real, losses.warp_loss(real_before, flow, real, visible))
        if rendered.occlusion is not None:
            # The warped frame is generated: where it is wrong, the pixels must be synthesised.
            assert rendered.synthesised is not None and rendered.warped is not None
            copied, shown = rendered.warped.detach().flatten(0, 1), None
            if rendered.matte is not None and chunk.background_plate is not None:
                # Compare the composite: where the plate shows, neither frame contributes.
                shown = rendered.matte.detach().flatten(0, 1)
                background_plate = (
                    chunk.background_plate[:, :, :3].expand_as(chunk.frames).flatten(0, 1)
                )
                copied = shown * copied + (1 - shown) * background_plate
            share = losses.synthesised_share(real, rendered.synthesised.flatten(0, 1), copied)
            weighted["occlusion"] = (
                s.occlusion, losses.occlusion_loss(rendered.occlusion.flatten(0, 1), share, shown)
            )  # fmt: skip


def _previous_frames(before: Tensor, frames: Tensor) -> Tensor:
    """The frame before each of `frames` [B, k, 3, H, W], as [B * k, 3, H, W]."""
    return torch.cat([before[:, None], frames[:, :-1]], dim=1).flatten(0, 1)
