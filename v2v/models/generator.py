"""The sequential generator: one frame from the signals of t-2..t and the two past output frames.

It follows arXiv 1808.06601: the output blends the previous frame, warped by a predicted flow, with
a synthesised picture by an occlusion map (equation 4). It departs from it in seven ways:

- One encoder serves signals and past frames.
- If the signals have control points, the initial flow is their dense motion; the network learns
  the residual.
- The warped previous frame may condition the normalisation of the last blocks, instead of or in
  addition to being blended in.
- If the signals determine the motion, the core does not see the past, so errors do not accumulate
  and the first frame is like any other.
- Where the background is known, it is a plate from the training footage that moves with the
  camera; only the foreground is synthesised.
- Generation starts without a past; a validity flag marks missing past frames.
- Appearance references, real frames of the person whose parts were warped to the pose
  (`v2v.data.references`), are inputs at every scale and enter a per-pixel softmax with the
  synthesised picture.

Coarse to fine: a core works at the smallest size; each scale above doubles the size. A new scale
adds a residual to the output of the scale below (flow, occlusion, matte, picture) that is
initialised to zero, so growing preserves what was learned.

Shapes: B clips, C channels of the signals, P past frames (2), K scales; H, W the full size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from v2v.models import sequential_plan
from v2v.models.blocks import conv, double, half, zeroed
from v2v.models.compositing import bounded, leaky_clamp, moved_references, weighted_candidates
from v2v.models.generator_settings import (
    CORE_STRIDE,
    DEPARTURE,
    EMBEDDED,
    OUTLINE_DEPARTURE,
    PRESETS,
    STYLE,
    SURE,
    TRUST,
    Architecture,
    Compose,
    GeneratorArguments,
    GeneratorSettings,
    Motion,
    Past,
    complete,
)
from v2v.models.protocol import Generator, TrainingData
from v2v.models.subnetworks import Core, Foreground, Heads, Scale, StyleEncoder
from v2v.types import PAST, REFERENCE_CHANNELS, Condition, GeneratorOutput, GeneratorState
from v2v.warp import dense_motion, moved


class SequentialGenerator(Generator):
    """Renders frame t from `Condition` and `GeneratorState`; see the module's docstring.

    The lowest `active` scales are in use; the others join as training grows. Inputs have the size
    of the topmost active scale, with sides divisible by `multiple`.

    >>> generator = SequentialGenerator(channels=3, arch=PRESETS["mobile"], scales=1)
    >>> condition = Condition(signals=torch.zeros(1, 3, 64, 64))
    >>> generator(condition, GeneratorState.empty(condition)).frame.shape
    torch.Size([1, 3, 64, 64])
    """

    grows: ClassVar[bool] = True
    active: int

    def __init__(
        self,
        *,
        channels: int,  # of the signals
        arch: Architecture,
        scales: int,  # the core and those above it
        sequential: bool = True,  # false: frame by frame, without a past
        compose: Compose = "condition",
        past: Past = "frames",  # past inputs of the core
        background_plate: bool = False,  # whether conditions carry a background plate
        prior: bool = False,  # whether the foreground has its own subnetwork without a past
        style: Literal["none", "clip", "encoded"] = "none",
        clips: int = 1,  # number of clips with a learned style
        control_points: bool = False,  # whether the initial flow is their dense motion
        references: int = 0,  # K, warped references in a condition
        motion: Motion = "parts",  # how they are warped
        residual: bool = False,  # whether their residual motion is learned
        outline: bool = False,  # whether the matte starts from their outline
        trust: float = TRUST,  # their initial logits
        departure: float = DEPARTURE,  # largest change of these logits
        outline_departure: float = OUTLINE_DEPARTURE["parts"],  # largest change of the outline's
    ) -> None:
        super().__init__()
        assert not (background_plate and prior), "background_plate and prior exclude each other"
        assert past == "frames" or compose != "none" or not sequential, (
            "compose=none needs past=frames"
        )
        self.sequential, self.compose, self.prior = sequential, compose, prior
        self.background_plate = background_plate
        self.scales = self.active = scales
        self.past: Past = past if sequential else "nothing"
        self.warps = sequential and compose != "none"
        self.control_points = control_points and self.warps
        self.blend = self.warps and compose != "condition"
        self.references = references
        self.motion: Motion = motion
        self.outline, self.trust = outline, trust
        self.departure, self.outline_departure = departure, outline_departure
        # The residual motion of references: swinging cloth, a misplaced joint.
        self.residual = zeroed(conv(arch.stem, 2 * references)) if residual else None
        embedded = min(channels, EMBEDDED)
        self.embed = conv(channels, embedded, 1) if channels > EMBEDDED else nn.Identity()
        self.styles = nn.Embedding(clips, STYLE) if style == "clip" else None
        self.encoder = StyleEncoder() if style == "encoded" else None

        count = PAST if self.past != "nothing" else 0
        backdrop = 4 * background_plate + REFERENCE_CHANNELS * references
        times = 1 + count
        earlier = count * (3 * (self.past == "frames") + 1)  # frames, and the validity of each
        self.core = Core(
            times * embedded + earlier + backdrop, arch, STYLE if style != "none" else 0
        )
        guided = self.warps and compose != "blend"
        # Pictures at each size: signals, warped frame and its validity, plate, references.
        images = embedded + 4 * guided + backdrop
        # The picture; the foreground, if separate; a logit for each reference; occlusion; matte.
        outputs = 3 + 3 * prior + references + self.blend + (background_plate or prior)
        self.front = Foreground(times * embedded, arch) if prior else None
        self.conditions = times * embedded
        widths = [arch.stem, *(arch.fine[min(k, len(arch.fine) - 1)] for k in range(scales - 1))]
        self.finer = nn.ModuleList(
            Scale(below, images + outputs, width, arch.fine_blocks)
            for below, width in zip(widths, widths[1:], strict=False)
        )
        self.heads = nn.ModuleList(
            Heads(
                width, arch.detail, images,
                flow=self.warps, guided=guided, first=k == 0,
                outputs=outputs - (3 * prior if k == 0 else 0),
            )
            for k, width in enumerate(widths)
        )  # fmt: skip

        used = {
            "background_plate": background_plate, "style": style == "encoded",
            "control_points": self.control_points, "references": references > 0,
        }  # fmt: skip
        self.reads = self.needs = frozenset(name for name, uses in used.items() if uses)

    @classmethod
    def build(
        cls, *, channels: int, preset: str, scales: int | None = None, **arguments: Any
    ) -> Self:
        assert scales is not None
        arch = PRESETS[preset]
        return cls(channels=channels, arch=arch, scales=scales, **complete(arguments))

    @classmethod
    def check(cls, arguments: dict[str, Any]) -> None:
        GeneratorArguments.model_validate(arguments, strict=True)

    @classmethod
    def arguments(cls, settings: GeneratorSettings, data: TrainingData) -> dict[str, Any]:
        return sequential_plan.arguments(settings, data)

    @classmethod
    def reads_with(cls, settings: GeneratorSettings) -> frozenset[str]:
        return sequential_plan.reads(settings)

    @classmethod
    def multiple_at(cls, scales: int) -> int:
        return CORE_STRIDE << (scales - 1)

    def newest(self) -> list[nn.Parameter]:
        """The parameters of the topmost active scale, which is first trained alone."""
        parts: list[nn.Module] = [self.heads[self.active - 1]]
        if self.active > 1:
            parts.append(self.finer[self.active - 2])
        return [p for part in parts for p in part.parameters()]

    def used(self) -> list[nn.Parameter]:
        """The parameters of all active scales."""
        waiting = {
            id(p)
            for part in (*self.finer[self.active - 1 :], *self.heads[self.active :])
            for p in part.parameters()
        }
        return [p for p in self.parameters() if id(p) not in waiting]

    def forward(self, condition: Condition, state: GeneratorState) -> GeneratorOutput:
        signals = condition.signals
        background_plate = condition.background_plate if self.background_plate else None
        references = condition.references if self.references else None
        size = (signals.shape[-2], signals.shape[-1])
        assert not (size[0] % self.multiple or size[1] % self.multiple), (
            f"frames of {size} are not divisible by {self.multiple}"
        )
        assert not self.background_plate or background_plate is not None, (
            "this generator needs a background plate"
        )
        assert not self.references or references is not None, "this generator needs references"
        # Real pictures, inputs at every scale.
        real = [] if background_plate is None else [background_plate]
        if references is not None:
            real.append(references.flatten(1, 2).to(signals.dtype))
        signals = self.embed(signals)
        valid = state.valid[:, -1, None, None, None].to(signals.dtype)

        # The core, at the smallest size.
        smaller = self.active - 1
        style = self._style(condition)
        coarse_inputs = half(self._inputs(signals, state, real), smaller)
        features = self.core(coarse_inputs, style)
        if references is not None and self.residual is not None:
            references = moved_references(references, self.residual(features).float())
            real[-1] = references.flatten(1, 2).to(signals.dtype)

        # Each scale adds a residual to the output of the scale below.
        output: Tensor | None = None  # [B, outputs, h, w] picture, occlusion, matte; raw values
        flow = self._initial_flow(condition, state, coarse_inputs) if self.control_points else None
        warped: Tensor | None = None
        for k in range(self.active):
            heads = self._heads(k)
            times = smaller - k
            here = (size[0] >> times, size[1] >> times)
            images = [half(picture, times) for picture in (signals, *real)]
            if output is not None:
                output = double(output)
            if self.warps:
                # The features of this scale predict motion better than upsampled ones. They are
                # computed from the frame warped by the flow of the scale below.
                past = half(state.frames[:, -1], times)
                flow = 2 * double(flow) if flow is not None and k > 0 else flow
            if k > 0:
                assert output is not None
                inputs = [*images, output]
                if heads.guided:
                    assert flow is not None
                    inputs.append(self._guide(past, flow, valid))
                features = self.finer[k - 1](features, torch.cat(inputs, dim=1))
            guide = signals.new_zeros(())
            if self.warps:
                motion = heads.motion(features, here)
                flow = motion if flow is None else flow + motion
                guide = self._guide(past, flow, valid)
                warped = guide[:, :3]
                if heads.guided:
                    images.append(guide)
            residual = heads(features, guide, torch.cat(images, dim=1)).float()
            if k == 0 and self.front is not None:
                front = self.front(coarse_inputs[:, : self.conditions]).float()
                residual = torch.cat([residual[:, :3], front, residual[:, 3:]], dim=1)
            output = residual if output is None else output + residual

        assert output is not None
        return self._compose(output, flow, warped, valid, background_plate, references)

    def _heads(self, scale: int) -> Heads:
        heads = self.heads[scale]
        assert isinstance(heads, Heads)
        return heads

    def _style(self, condition: Condition) -> Tensor | None:
        code: Tensor | None = None
        if self.styles is not None:
            assert condition.clip is not None, "this generator needs the clip"
            code = self.styles(condition.clip)
        if self.encoder is not None:
            assert condition.style is not None, "this generator needs a style image"
            code = self.encoder(condition.style)
        return code

    def _inputs(self, signals: Tensor, state: GeneratorState, real: list[Tensor]) -> Tensor:
        """All inputs of the core, at full size."""
        inputs = [signals]
        if self.past != "nothing":
            batch, past, _, height, width = state.frames.shape
            exists = state.valid[:, :, None, None, None].to(signals.dtype)
            before = self.embed(state.signals.flatten(0, 1)).unflatten(0, (batch, past)) * exists
            inputs.append(before.flatten(1, 2))
            if self.past == "frames":
                inputs.append(state.frames.flatten(1, 2))
            inputs.append(exists.expand(-1, -1, 1, height, width).flatten(1, 2))
        inputs += real
        return torch.cat([s.to(signals.dtype) for s in inputs], dim=1)

    @staticmethod
    def _initial_flow(condition: Condition, state: GeneratorState, inputs: Tensor) -> Tensor:
        """[B, 2, h, w] dense motion of the control points, at the smallest size, as `inputs`."""
        assert condition.control_points is not None, "this generator needs control points"
        size = (inputs.shape[-2], inputs.shape[-1])
        smaller = size[1] / condition.signals.shape[-1]
        return dense_motion(
            condition.control_points * smaller, state.control_points * smaller, size
        )

    @staticmethod
    def _guide(past: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
        """[B, 4, h, w] the warped frame, and 1 if it exists."""
        warped = moved(past, flow) * valid
        return torch.cat([warped, valid.expand_as(warped[:, :1]).to(warped.dtype)], dim=1)

    def _compose(
        self,
        output: Tensor,
        flow: Tensor | None,
        warped: Tensor | None,
        valid: Tensor,
        background_plate: Tensor | None,
        references: Tensor | None,
    ) -> GeneratorOutput:
        synthesised, occlusion, matte = leaky_clamp(output[:, :3]), None, None
        synthesis_only = None
        place = 3 + 3 * self.prior
        if self.prior:
            # Equation 6 of arXiv 1808.06601; its m_B is 1 - matte.
            matte = torch.sigmoid(output[:, -1:])
            synthesised = matte * leaky_clamp(output[:, 3:6]) + (1 - matte) * synthesised
        if references is not None:
            synthesis_only = synthesised
            synthesised = weighted_candidates(
                synthesised, references.float(), output[:, place:], self.trust, self.departure
            )
            place += self.references
        frame = synthesised
        if self.blend:
            assert warped is not None
            # Equation 4 of arXiv 1808.06601; without a past everything is synthesised.
            occlusion = 1 - (1 - torch.sigmoid(output[:, place : place + 1])) * valid
            frame = occlusion * frame + (1 - occlusion) * warped
        if background_plate is not None:
            # The matte also applies where the plate is only a guess: a smooth guess is better than
            # the synthesis of a rarely seen wall early in training.
            logits = output[:, -1:]
            if references is not None and self.outline:
                outline = references[:, :, 3].amax(1, keepdim=True).clamp(1 - SURE, SURE)
                logits = bounded(logits, self.outline_departure) + torch.logit(outline.float())
            matte = torch.sigmoid(logits)
            behind = (1 - matte) * background_plate[:, :3]
            # Composed too, so that the synthesised picture is trained only where it is visible.
            frame, synthesised = matte * frame + behind, matte * synthesised + behind
            if synthesis_only is not None:
                synthesis_only = matte * synthesis_only + behind
        return GeneratorOutput(
            frame=frame, synthesised=synthesised, synthesis_only=synthesis_only, warped=warped,
            flow=flow, occlusion=occlusion, matte=matte,
        )  # fmt: skip
