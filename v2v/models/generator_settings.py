"""What a sequential generator is made of: presets, settings of a run, arguments of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from v2v.config import Config, Switch

STRIDE = 4  # pixels of a side that the stem folds into channels
CORE_STRIDE = 2 * STRIDE  # of the core: sizes at the smallest scale are multiples of it
EMBEDDED = 8  # channels to which wider signals (one-hot labels) are embedded, pixel by pixel
MOST_CHANNELS = 1024  # of all signals together
STYLE = 64  # length of the style vector
FLOW_UNIT = 8.0  # pixels of flow for a head's output of 1
LEAK = 0.02  # see `compositing.leaky_clamp`

# How references are warped: in parts, each by its own transform, or as a whole by a dense mesh.
Motion = Literal["parts", "dense"]

# Initial logit of a reference in exactly the rendered pose, and its decrease with pose distance.
TRUST, DISTRUST = 4.0, 4.0

# Largest change in logits that the network makes to the initial weight of a reference. Pixel losses
# prefer a blur to a sharp reference that is a pixel off: a network that may depart further paints
# its own blurred faces over real ones (docs/RESULTS.md).
DEPARTURE = 2.0

# The same for the matte, relative to the outline of the references. Parts may depart further than a
# mesh, because their outline is wrong at joints and where it misses a piece of cloth.
OUTLINE_DEPARTURE: dict[Motion, float] = {"parts": 2.0, "dense": 1.0}
SURE = 0.99  # upper bound of the certainty of the references' outline
INVALID = 1e-5  # relative weight of a reference where it is not valid


@dataclass(frozen=True)
class Architecture:
    """Widths of a preset. Budgets, at 256x256, are counted by tests/models/test_generator.py."""

    stem: int  # channels at 1/4 of the core's size
    trunk: int  # at 1/8
    blocks: int  # of the trunk
    detail: int  # channels at half of each size, before the last convolution
    fine: tuple[int, ...]  # channels at 1/4 of each size above the core's; the last repeats
    fine_blocks: int


PRESETS = {
    "tiny": Architecture(32, 88, 6, 10, (20, 12), 1),
    "mobile": Architecture(64, 160, 7, 20, (48, 32), 2),
    "base": Architecture(128, 336, 7, 32, (96, 64, 32), 3),
    "large": Architecture(256, 576, 10, 48, (208, 96, 48), 4),
}

# Use of the warped previous frame: blended into the picture (equation 4), as a condition of the
# normalisation, or both. none: the core sees past frames unwarped.
Compose = Literal["none", "blend", "condition", "both"]

# Past inputs of the core: frames and their signals, signals only, or nothing. With nothing, only
# the warped previous frame carries information from the past.
Past = Literal["frames", "signals", "nothing"]


class GeneratorSettings(Config):
    """Which generator, and its variants. Defaults are in configs/train.yaml."""

    name: str  # sequential, or a baseline: pix2pix, pix2pixhd, spade
    preset: Literal["tiny", "mobile", "base", "large"]
    scales: (
        Annotated[int, Field(ge=1, le=6)] | None
    )  # None: the core works at 128 px at most, and each scale doubles that
    sequential: bool  # false: the same network frame by frame, without a past
    compose: Literal["auto"] | Compose
    past: Literal["auto"] | Past  # past inputs of the core, in addition to the warped frame
    background_plate: Switch
    prior: Switch  # separate subnetworks for foreground and background
    style: Literal["auto", "none", "clip", "encoded"]
    control_points: Switch  # whether the initial flow is the dense motion of the control points
    references: Switch  # whether real frames, warped to the pose, are inputs and candidates
    residual: bool  # whether the residual motion of references is learned
    candidates: Annotated[int, Field(ge=1, le=8)]  # warped references for each frame


class GeneratorArguments(Config):
    """The arguments of `SequentialGenerator` in the record of a model."""

    name: Literal["sequential"]
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    preset: Literal["tiny", "mobile", "base", "large"]
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
    departure: Annotated[float, Field(gt=0, le=32)] = DEPARTURE
    outline_departure: Annotated[float, Field(gt=0, le=32)] = OUTLINE_DEPARTURE["parts"]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.background_plate and self.prior:
            raise ValueError("background_plate and prior exclude each other")
        if self.sequential and self.compose == "none" and self.past != "frames":
            raise ValueError("compose=none needs past=frames")
        return self


def complete(architecture: dict[str, Any]) -> dict[str, Any]:
    """The arguments in a record, with the values that earlier versions used but did not record.

    Their models of faces started from the references' outline with full trust, those of bodies
    without the outline and with half the trust; bodies departed further from both.
    """
    dense = architecture.get("motion") == "dense"
    return {
        "outline": dense, "trust": TRUST if dense else TRUST / 2,
        "departure": 2.0 if dense else 16.0, "outline_departure": 1.0 if dense else 6.0,
    } | architecture  # fmt: skip
