"""The sequential generator: one frame from the signals of t-2..t and the two past output frames.

It follows arXiv 1808.06601: the next frame is partly the past frame, moved by a flow that the
network predicts, partly synthesised, and an occlusion map decides between them (equation 4). It
departs from it in seven ways. One encoder serves signals and past frames. Where the signals have
points, flow begins with how these move, and only what is left of it is learned. The warped past
frame may be a condition of the normalisation of the last blocks instead of, or beside, being
blended in. Where the signals say all that moves, the core sees none of the past: it takes no errors
over, and its first frame is as any other. Where it is known, the background is a plate of the
training footage, moved as the camera does, and only what lies before it is synthesised. It starts
from nothing, and knows it does. And it is given appearance references, real frames of the person
whose parts were moved to the pose (`v2v.data.references`): inputs at every scale, and for every
pixel candidates of one softmax with what is synthesised.

Coarse to fine: a core works at the smallest size; each scale above doubles the size. A new scale
adds to what the one below says (flow, occlusion, matte, picture), and adds zero at first: growing
loses nothing that was learned.

Shapes: B clips, C channels of the signals, P past frames (2), K scales; H, W the full size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from v2v.config import Config, Switch
from v2v.models.blocks import (
    ResidualBlock,
    Up,
    conv,
    coordinates,
    double,
    fold,
    half,
    norm,
    smooth,
    zeroed,
)
from v2v.types import PAST, REFERENCE_CHANNELS, Condition, GeneratorOutput, GeneratorState
from v2v.warp import dense_motion, moved, resize_flow, warp

STRIDE = 4  # pixels of a side that the stem folds into channels
CORE_STRIDE = 2 * STRIDE  # the core works here: sizes at the smallest scale are multiples of it
EMBEDDED = 8  # channels that signals with more (one-hot labels) are folded to, pixel by pixel
MOST_CHANNELS = 1024  # of the signals together
STYLE = 64  # length of the style vector
FLOW_UNIT = 8.0  # pixels: a head's output of 1
LEAK = 0.02  # see `_within`
# How references were moved: in parts, each by its own transform, or as a whole by a dense mesh.
Motion = Literal["parts", "dense"]
# Logits of a reference in the very pose, and less at a distance.
TRUST, DISTRUST = 4.0, 4.0
# Logits by which a network may depart from that. Of heads it has seen little footage often, and
# knows it by heart: what it synthesises is nearer there than references are, and elsewhere not.
DEPARTURE: dict[Motion, float] = {"parts": 16.0, "dense": 2.0}
# Logits by which the matte may differ from the references' outline, which is never taken as surer
# than this. Where parts meet, or miss a piece of cloth, the network knows better than a mesh's.
OUTLINE_DEPARTURE: dict[Motion, float] = {"parts": 6.0, "dense": 1.0}
SURE = 0.99
INVALID = 1e-5  # the weight of a reference where it shows nothing, beside 1 where it does


@dataclass(frozen=True)
class Architecture:
    """Widths of a preset. Budgets, at 256x256, are counted by tests/models/test_generator.py."""

    stem: int  # channels at 1/4 of the core's size
    trunk: int  # at 1/8
    blocks: int  # of the trunk
    detail: int  # channels at half of each size, that the picture is made from at the whole
    fine: tuple[int, ...]  # channels at 1/4 of each size above the core's; the last goes on
    fine_blocks: int


PRESETS = {
    "mobile": Architecture(64, 160, 7, 20, (48, 32), 2),
    "base": Architecture(128, 336, 7, 32, (96, 64, 32), 3),
    "large": Architecture(256, 576, 10, 48, (208, 96, 48), 4),
}


# What becomes of the past frame, warped: blended into the picture (equation 4), a condition of the
# normalisation, both; none: past frames are seen as they are, and nothing is warped.
Compose = Literal["none", "blend", "condition", "both"]
# What the core sees of the past: its frames and their signals, the signals alone, or nothing, so
# that all that is left of the past is what is warped.
Past = Literal["frames", "signals", "nothing"]


class GeneratorSettings(Config):
    """Which generator, and its variants. Defaults are in configs/train.yaml."""

    name: str  # sequential, or a baseline: pix2pix, pix2pixhd, spade
    preset: Literal["mobile", "base", "large"]
    scales: (
        Annotated[int, Field(ge=1, le=6)] | None
    )  # None: the core works at 128 px at most, and each scale doubles that
    sequential: bool  # false: frame by frame, the same network without a past
    compose: Literal["auto"] | Compose
    past: Literal["auto"] | Past  # what the core sees of it, beside what is warped
    background_plate: Switch
    prior: Switch  # foreground and background each by a part of its own
    style: Literal["auto", "none", "clip", "encoded"]
    control_points: Switch  # whether flow begins with how the signals' points move
    references: Switch  # whether real frames, warped to the pose, are inputs and candidates
    residual: bool  # whether what is left of the references' motion is learned
    candidates: Annotated[int, Field(ge=1, le=8)]  # warped references for each frame


class GeneratorArguments(Config):
    """What a model's record says of its generator: the arguments of `SequentialGenerator`."""

    name: Literal["sequential"]
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    preset: Literal["mobile", "base", "large"]
    scales: Annotated[int, Field(ge=1, le=6)]
    sequential: bool = True
    compose: Compose = "condition"
    past: Past = "frames"
    background_plate: bool = False
    prior: bool = False
    style: Literal["none", "clip", "encoded"] = "none"
    clips: Annotated[int, Field(ge=1, le=10_000)] = 1
    control_points: bool = False
    references: Annotated[int, Field(ge=0, le=8)] = 0
    motion: Motion = "parts"
    residual: bool = False
    outline: bool = False
    trust: Annotated[float, Field(ge=0, le=16)] = TRUST

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.background_plate and self.prior:
            raise ValueError("plate and prior exclude each other")
        if self.sequential and self.compose == "none" and self.past != "frames":
            raise ValueError("without compose, past must be frames")
        return self


def complete(architecture: dict[str, Any]) -> dict[str, Any]:
    """A record's arguments with those that earlier versions did not write.

    Their models of heads began with an outline and all the trust, those of bodies with half of it.
    """
    dense = architecture.get("motion") == "dense"
    return {"outline": dense, "trust": TRUST if dense else TRUST / 2} | architecture


class Heads(nn.Module):
    """Turns features at 1/4 of a size into flow, picture, occlusion and matte at that size.

    Everything is added to what the scale below says; above the core it starts at zero. The last
    convolution works at full size: a sub-pixel one has weights of its own for every place in a
    square, and those of a young model differ, which shows as a grid.
    """

    def __init__(
        self,
        channels: int,  # of the features
        detail: int,  # channels at half size
        images: int,  # channels of the pictures that fine detail may be copied from
        *,
        flow: bool,  # whether there is a past to warp
        guided: bool,  # whether the warped frame modulates the last block
        outputs: int,  # 3 of the picture, and 1 each for occlusion and matte
        first: bool,  # the core's
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

        `warped` [B, 4, H, W] is the warped frame and whether it exists; `images`
        [B, images, H, W] are pictures to take detail from.
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
        inputs: int,  # channels of all that is seen, at the smallest size
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
    """Features of the scale below and this size's own pictures -> features at 1/4 of this size."""

    def __init__(
        self,
        below: int,  # channels of the features below
        inputs: int,  # channels of what is seen at this size
        channels: int,
        blocks: int,
    ) -> None:
        super().__init__()
        self.up = Up(below, channels)
        self.stem = conv(inputs * STRIDE**2, channels, 1)  # the blocks after it see around
        self.blocks = nn.ModuleList(ResidualBlock(channels) for _ in range(blocks))

    def forward(self, below: Tensor, inputs: Tensor) -> Tensor:
        x = self.up(below) + self.stem(fold(inputs, STRIDE))
        for block in self.blocks:
            x = block(x)
        features: Tensor = x
        return features


class Foreground(nn.Module):
    """The picture of what is in front, from the signals alone, at the core's size.

    Section 3.2 of arXiv 1808.06601: what is in front moves too much to be copied, so its network
    sees no past; the background's does.
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
    """An image to a style vector, by strided convolutions and the mean over what they see."""

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


class SequentialGenerator(nn.Module):
    """Renders frame t from `Condition` and `GeneratorState`; see the head of this module.

    `active` scales are in use, from the core up; the others wait for their turn. Input sizes are
    those of the topmost active scale, sides divisible by `multiple`.

    >>> generator = SequentialGenerator(channels=3, arch=PRESETS["mobile"], scales=1)
    >>> condition = Condition(signals=torch.zeros(1, 3, 64, 64))
    >>> generator(condition, GeneratorState.nothing(condition)).frame.shape
    torch.Size([1, 3, 64, 64])
    """

    wants_target = False  # pix2pixHD's baseline is shown the real frame in training

    def __init__(
        self,
        *,
        channels: int,  # of the signals
        arch: Architecture,
        scales: int,  # the core and those above it
        sequential: bool = True,  # false: no past, frame by frame
        compose: Compose = "condition",
        past: Past = "frames",  # what the core sees of it
        background_plate: bool = False,  # whether conditions carry a background plate
        prior: bool = False,  # whether the foreground has a part of its own that sees no past
        style: Literal["none", "clip", "encoded"] = "none",
        clips: int = 1,  # how many clips a style is learned for
        control_points: bool = False,  # whether conditions carry handles, that flow begins with
        references: int = 0,  # K: warped references that conditions carry
        motion: Motion = "parts",  # how they were moved
        residual: bool = False,  # whether what is left of their motion is learned
        outline: bool = False,  # whether the matte begins with their outline
        trust: float = TRUST,  # what their logits begin with
    ) -> None:
        super().__init__()
        assert not (background_plate and prior), "a plate is the better prior"
        assert past == "frames" or compose != "none" or not sequential, "a past of no pictures"
        self.sequential, self.compose, self.background_plate, self.prior = (
            sequential,
            compose,
            background_plate,
            prior,
        )
        self.scales = self.active = scales
        self.past: Past = past if sequential else "nothing"
        self.warps = sequential and compose != "none"
        self.control_points = control_points and self.warps
        self.blend = self.warps and compose != "condition"
        self.references = references
        self.motion: Motion = motion
        self.outline, self.trust = outline, trust
        # What is left of the motion of references: cloth that swings, a misplaced joint.
        self.residual = zeroed(conv(arch.stem, 2 * references)) if residual else None
        embedded = min(channels, EMBEDDED)
        self.embed = conv(channels, embedded, 1) if channels > EMBEDDED else nn.Identity()
        self.styles = nn.Embedding(clips, STYLE) if style == "clip" else None
        self.encoder = StyleEncoder() if style == "encoded" else None

        inputs = PAST if self.past != "nothing" else 0
        backdrop = 4 * background_plate + REFERENCE_CHANNELS * references
        times = 1 + inputs
        earlier = inputs * (3 * (self.past == "frames") + 1)  # frames, and whether each exists
        self.core = Core(
            times * embedded + earlier + backdrop, arch, STYLE if style != "none" else 0
        )
        guided = self.warps and compose != "blend"
        # What is seen of this size: the signals, the warped frame and whether it exists, the plate,
        # the references.
        images = embedded + 4 * guided + backdrop
        # The picture; what is in front, where that is apart; a logit for each reference; occlusion;
        # the matte before either background.
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

    @property
    def multiple(self) -> int:
        """Sides are divisible by this, at the topmost active scale."""
        return CORE_STRIDE << (self.active - 1)

    def newest(self) -> list[nn.Parameter]:
        """The parameters of the topmost active scale, to be trained alone at first."""
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
        signals, background_plate = (
            condition.signals,
            condition.background_plate if self.background_plate else None,
        )
        references = condition.references if self.references else None
        size = (signals.shape[-2], signals.shape[-1])
        assert not (size[0] % self.multiple or size[1] % self.multiple), (
            f"frames of {size} are not divisible by {self.multiple}"
        )
        assert not self.background_plate or background_plate is not None, (
            "this generator needs a background plate"
        )
        assert not self.references or references is not None, "this generator needs references"
        # Real pictures that are inputs at every scale.
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
            references = _moved(references, self.residual(features).float())
            real[-1] = references.flatten(1, 2).to(signals.dtype)

        # Upwards: each scale corrects what the one below says.
        output: Tensor | None = None  # [B, outputs, h, w] picture, occlusion, matte, unsquashed
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
                # The scale's own features know the motion better than the enlarged ones; they are
                # made from the frame as the flow so far warps it.
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
            assert condition.clip is not None, "this generator wants to know the clip"
            code = self.styles(condition.clip)
        if self.encoder is not None:
            assert condition.style is not None, "this generator wants an image for the style"
            code = self.encoder(condition.style)
        return code

    def _inputs(self, signals: Tensor, state: GeneratorState, real: list[Tensor]) -> Tensor:
        """All that the core sees, at full size."""
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
        """[B, 2, h, w] how the signals' points move, at the smallest size, that of `inputs`."""
        assert condition.control_points is not None, (
            "this generator wants the points of its signals"
        )
        size = (inputs.shape[-2], inputs.shape[-1])
        smaller = size[1] / condition.signals.shape[-1]
        return dense_motion(
            condition.control_points * smaller, state.control_points * smaller, size
        )

    @staticmethod
    def _guide(past: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
        """[B, 4, h, w] the warped frame, and 1 where it exists."""
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
        synthesised, occlusion, matte = _within(output[:, :3]), None, None
        synthesis_only = None
        place = 3 + 3 * self.prior
        if self.prior:
            # Equation 6 of arXiv 1808.06601; its m_B is 1 - matte.
            matte = torch.sigmoid(output[:, -1:])
            synthesised = matte * _within(output[:, 3:6]) + (1 - matte) * synthesised
        if references is not None:
            synthesis_only = synthesised
            synthesised = _chosen(
                synthesised, references.float(), output[:, place:], self.motion, self.trust
            )
            place += self.references
        frame = synthesised
        if self.blend:
            assert warped is not None
            # Equation 4 of arXiv 1808.06601; without a past all is synthesised.
            occlusion = 1 - (1 - torch.sigmoid(output[:, place : place + 1])) * valid
            frame = occlusion * frame + (1 - occlusion) * warped
        if background_plate is not None:
            # Where the plate only guesses the background it may be shown too: a smooth guess is
            # nearer than what a young generator makes of a wall that it has hardly seen.
            inputs = output[:, -1:]
            if references is not None and self.outline:
                most = OUTLINE_DEPARTURE[self.motion]
                outline = references[:, :, 3].amax(1, keepdim=True).clamp(1 - SURE, SURE)
                inputs = most * torch.tanh(inputs / most)
                inputs = inputs + torch.logit(outline.float())
            matte = torch.sigmoid(inputs)
            behind = (1 - matte) * background_plate[:, :3]
            # Both: what is synthesised must be right where it is seen, and nowhere else.
            frame, synthesised = matte * frame + behind, matte * synthesised + behind
            if synthesis_only is not None:
                synthesis_only = matte * synthesis_only + behind
        return GeneratorOutput(
            frame=frame, synthesised=synthesised, synthesis_only=synthesis_only, warped=warped,
            flow=flow, occlusion=occlusion, matte=matte,
        )  # fmt: skip


def _moved(references: Tensor, motion: Tensor) -> Tensor:
    """References [B, K, 5, H, W], moved along K flows [B, 2 K, h, w] in units of a head's."""
    size = (references.shape[-2], references.shape[-1])
    coarse = motion.reshape(-1, 2, *motion.shape[2:]) * (FLOW_UNIT / STRIDE)
    flow = resize_flow(coarse, size)
    found = warp(references.flatten(0, 1), flow, kind="bicubic")
    # Bicubic interpolation overshoots.
    picture, rest = found[:, :3].clamp(-1, 1), found[:, 3:].clamp(0, 1)
    return torch.cat([picture, rest], dim=1).reshape(references.shape)


def _chosen(
    synthesised: Tensor, references: Tensor, logits: Tensor, motion: Motion, trust: float = TRUST
) -> Tensor:
    """A softmax, for each pixel, over what is synthesised and the references [B, K, 5, H, W].

    The last convolution is linear and cannot choose between pictures; this can. A reference has no
    weight where it is not valid.
    """
    count = references.shape[1]
    # What a young network begins with: the nearest reference, where it is near.
    trusted = trust - DISTRUST * references[:, :, 4]
    most = DEPARTURE[motion]
    own = most * torch.tanh(logits[:, :count] / most) + trusted
    own = own + torch.log(references[:, :, 3] + INVALID)
    weights = torch.softmax(torch.cat([torch.zeros_like(own[:, :1]), own], dim=1), dim=1)
    return weights[:, :1] * synthesised + (weights[:, 1:, None] * references[:, :, :3]).sum(1)


def _within(x: Tensor) -> Tensor:
    """Into [-1, 1], with a little slope outside so that a pixel pushed out finds its way back."""
    return torch.clamp(x, -1, 1) + LEAK * (x - torch.clamp(x, -1, 1))


def multiply_adds(generator: nn.Module, condition: Condition, state: GeneratorState) -> int:
    """Multiply-adds of one frame, counted by torch as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        generator(condition, state)
    return int(counter.get_total_flops()) // 2
