"""The settings of `v2v train`. Defaults are in configs/train.yaml and configs/train-TASK.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from v2v.config import Config, Positive, Unit
from v2v.data.transforms import AugmentationSettings
from v2v.errors import ConfigError
from v2v.models.augment import DiscriminatorAugmentSettings
from v2v.models.discriminators import DiscriminatorSettings
from v2v.models.generator_settings import GeneratorSettings
from v2v.signals import load_signal
from v2v.training.schedule import ScheduleSettings

Weight = Annotated[float, Field(ge=0, le=1e6)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Minutes = Annotated[float, Field(gt=0, le=1e7)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
LearningRate = Annotated[float, Field(gt=0, le=1)]


class DataSettings(Config):
    # Signals that drive the model, in the order of its input channels.
    signals: Annotated[tuple[str, ...], Field(min_length=1)]
    # Signal -> its options, of `Signal.options`; those that are not given are off.
    signal_options: dict[str, dict[str, bool]]
    size: Annotated[int, Field(ge=32, le=4096)]  # shorter side of the final frames
    hold_out: Annotated[float, Field(ge=0, le=0.9)]  # fraction of each clip, at its end
    max_stride: Annotated[
        int, Field(ge=1, le=64)
    ]  # largest random frame stride: faster motion than in the footage
    cache_mb: Annotated[
        int, Field(ge=0, le=16_000_000)
    ]  # decoded frames kept in memory, per process
    workers: Annotated[int, Field(ge=0, le=256)] | None  # loader processes; None: chosen by device

    @model_validator(mode="after")
    def _options_exist(self) -> DataSettings:
        for name, options in self.signal_options.items():
            on = load_signal(name).with_options({}, options)
            if on and name not in self.signals:
                raise ConfigError(
                    f"data.signal_options has {' and '.join(on)} of {name}, but the model renders"
                    f" from {' and '.join(self.signals)}",
                    hint=f"add {name} to data.signals, or leave out its options",
                )
        return self

    @model_serializer(mode="wrap")
    def _as_recorded(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit options that are off: runs made before an option existed then match."""
        values: dict[str, Any] = plain(self)
        on = {
            name: chosen
            for name, options in self.signal_options.items()
            if (chosen := {option: True for option, value in options.items() if value})
        }
        rest = {name: value for name, value in values.items() if name != "signal_options"}
        return rest | ({"signal_options": on} if on else {})


class AdversarialWeights(Config):
    """Weight of each discriminator; 0 disables it."""

    image: Weight
    temporal_1: Weight
    temporal_3: Weight
    temporal_9: Weight
    face: Weight
    hands: Weight


class LossSettings(Config):
    adversarial: Literal["hinge", "least_squares"]
    discriminators: AdversarialWeights
    feature_matching: Weight
    perceptual: Literal["auto", "vgg", "pyramid"]
    perceptual_weight: Weight
    l1: Weight
    synthesised: Weight  # image losses on the synthesised frame, before the past is blended in
    synthesis_only: Weight  # image losses on the synthesised frame without references
    flow: Weight  # predicted against reference flow
    warp_real: Weight  # real frames warped by the predicted flow
    warp_generated: Weight  # generated frames warped by the reference flow
    occlusion: Weight
    matte: Weight
    auxiliary: Weight  # the generator's own loss (SPADE's KL divergence)


class OptimiserSettings(Config):
    generator_rate: LearningRate
    discriminator_rate: LearningRate
    betas: tuple[Below1, Below1]
    warm_up: Annotated[int, Field(ge=0, le=1_000_000)]  # updates until the full learning rate
    cool_down: Unit  # final fraction of the budget, in which the rates fall to a tenth
    clip: Positive | None  # maximum gradient norm
    ema: Unit  # decay of the moving average of the generator's weights, per update


def _text(value: Any) -> Any:
    """YAML and the command line parse a bare 32 as a number."""
    return str(value) if type(value) is int else value


class LoopSettings(Config):
    seed: Annotated[int, Field(ge=0, lt=1 << 62)]
    bptt_steps: Annotated[int, Field(ge=1, le=8)]  # frames that gradients flow through
    updates: Literal["chunk", "window"]  # update after each chunk or once per window
    accumulate: Annotated[
        int, Field(ge=1, le=4096)
    ]  # parts that a batch is split into to save memory
    recompute: bool  # recompute activations in the backward pass: less memory, more time
    precision: Annotated[Literal["auto", "32", "bf16"], BeforeValidator(_text)]
    compile: bool
    channels_last: bool
    threads: (
        Annotated[int, Field(ge=1, le=1024)] | None
    )  # per process on a CPU; None: all cores but one
    device: str  # auto, cpu, cuda, mps
    devices: Annotated[int, Field(ge=1, le=1024)]


class OutputSettings(Config):
    log_every: Count  # updates
    checkpoint_minutes: Minutes
    preview_minutes: Minutes
    preview_seconds: Annotated[float, Field(gt=0, le=3600)]  # of held-out footage
    keep: Annotated[int, Field(ge=1, le=10_000)]  # checkpoints


class Budget(Config):
    """The training budget, in steps or in minutes."""

    steps: Count | None
    minutes: Minutes | None

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("steps and minutes are both given; give only one of them")
        return self


class TrainSettings(Config):
    task: str  # of a pipeline: `v2v.pipelines.registry.tasks`
    data: DataSettings
    augment: AugmentationSettings
    generator: GeneratorSettings
    discriminator: DiscriminatorSettings
    discriminator_augment: DiscriminatorAugmentSettings
    losses: LossSettings
    optimiser: OptimiserSettings
    schedule: ScheduleSettings
    loop: LoopSettings
    output: OutputSettings
    budget: Budget

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "augment.placed": "augment.crop_probability",
        "critic_augment": "discriminator_augment",
        "generator.handles": "generator.control_points",
        "generator.plate": "generator.background_plate",
        "loop.chunk": "loop.bptt_steps",
        "losses.critics": "losses.discriminators",
        "schedule.alone": "schedule.freeze_share",
        "schedule.finer": "schedule.scale_time_ratio",
        "schedule.single": "schedule.single_frame_share",
    }


# Settings that a resumed run may change: how it runs, not what it trains.
OPERATIONAL = (
    "budget", "output", "data.workers", "data.cache_mb", "loop.device", "loop.compile",
    "loop.devices", "loop.threads",
)  # fmt: skip
