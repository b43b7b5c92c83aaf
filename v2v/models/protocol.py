"""What a generator is: the base class of the built-in ones and of those in installed packages.

Training, previews and rendering ask a generator what it needs and never check its class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from torch import Tensor, nn

from v2v.models.generator_settings import GeneratorSettings
from v2v.types import Batch, Condition, GeneratorOutput, GeneratorState

SMALLEST_MULTIPLE = 8  # pixels that the sides of all frames are divisible by


@dataclass(frozen=True)
class TrainingData:
    """What the clips of a run offer, known before its generator is built."""

    folders: tuple[Path, ...]  # the clip stores
    background_plate: bool  # whether every clip has one
    foreground: bool  # whether every clip has a foreground mask
    control_points: int  # of all signals
    references: int  # K, warped references per frame
    warped_by: Literal["parts", "dense"]  # how they are warped


class Generator(nn.Module):
    """A network that renders one frame from a `Condition` and a `GeneratorState`.

    A subclass implements `forward`; the defaults are those of a generator that sees the signals
    only. Everything that one frame passes to the next is in the state. A loss term of its own goes
    into `GeneratorOutput.auxiliary`, which training weights by `losses.auxiliary`.

    Attributes:
        reads: the fields of a `Condition` that it uses besides `signals` and `clip`, out of
            background_plate, style, instances, control_points, references.
        needs: those of them that it cannot render without.
        wants_target: whether `style` is the frame to render, in training.
        grows: whether it has scales, the lowest `active` of which are in use.
        active: None for a generator that does not grow.
        samples: number of training frames that `collect` receives.
    """

    reads: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    wants_target: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    active: int | None = None
    samples: ClassVar[int] = 0

    def forward(self, condition: Condition, state: GeneratorState) -> GeneratorOutput:
        raise NotImplementedError

    # ------------------------------------------------------------ before it is built

    @classmethod
    def build(
        cls, *, channels: int, preset: str, scales: int | None = None, **arguments: Any
    ) -> Self:
        """Build it from the arguments in a model's record.

        Args:
            channels: of the signals.
            preset: name of a size.
            scales: number of scales, 1 unless it grows; None in some records of baselines.
            arguments: those of `arguments`.
        """
        return cls(channels=channels, preset=preset, scales=scales, **arguments)

    @classmethod
    def check(cls, arguments: dict[str, Any]) -> None:
        """Validate recorded arguments, `name` included. Raises `ValueError`."""

    @classmethod
    def arguments(cls, settings: GeneratorSettings, data: TrainingData) -> dict[str, Any]:
        """More arguments for `build`, which a model's record keeps. Raises `ConfigError`."""
        return {}

    @classmethod
    def reads_with(cls, settings: GeneratorSettings) -> frozenset[str]:
        """What it would use under these settings if the clips offer it; see `reads`."""
        return cls.reads

    @classmethod
    def multiple_at(cls, scales: int) -> int:
        """The divisor of both sides of a frame, in pixels, with `scales` active scales."""
        return SMALLEST_MULTIPLE

    @property
    def multiple(self) -> int:
        """The divisor of both sides of a frame, in pixels."""
        return self.multiple_at(self.active or 1)

    # ------------------------------------------------------------ growing

    def newest(self) -> list[nn.Parameter]:
        """The parameters of the topmost active scale, which is first trained alone."""
        return list(self.parameters())

    # ------------------------------------------------------------ artifacts

    def collect(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """What the model stores beside the weights, from `samples` frames of its training clips.

        Names begin with a letter. Called without gradients whenever a model is written.
        """
        return {}

    def check_artifact(self, name: str, value: Tensor) -> str | None:
        """What is wrong with a stored artifact; None if it is valid."""
        return "is not known to the generator"

    def complete(
        self,
        condition: Condition,
        artifacts: Mapping[str, Tensor],
        choices: Mapping[int, int] | None = None,
    ) -> Condition:
        """The condition with what rendering takes from the artifacts.

        Args:
            choices: class id -> number of the appearance that the user chose; see `choices`.
        """
        return condition

    def choices(self, artifacts: Mapping[str, Tensor]) -> dict[int, int]:
        """Class id -> number of appearances that a user can choose from."""
        return {}
