"""The settings of `v2v train --task predict`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from v2v.config import Config, Positive, Unit
from v2v.prediction.predictor import LEAST
from v2v.training.settings import Budget

Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Size = Annotated[int, Field(ge=1, le=4096)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Lengths = Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1)]
Part = Annotated[float, Field(ge=0, lt=1)]


class PointSettings(Config):
    steps: Count
    past: Annotated[int, Field(ge=LEAST, le=1024)]
    components: Size
    variance: Unit
    hidden: Size
    dropout: Part
    damping: Annotated[float, Field(gt=0, lt=1)]
    lengths: Lengths
    batch: Size
    rate: LearningRate
    weight_decay: Weight
    noise: Weight
    shift: Weight
    speed: Weight


class LabelSettings(Config):
    steps: Count
    size: Annotated[int, Field(ge=32, le=4096)]
    width: Annotated[int, Field(ge=1, le=1024)]
    embedding: Annotated[int, Field(ge=1, le=1024)]
    lengths: Lengths
    batch: Size
    rate: LearningRate
    weight_decay: Weight
    balance: Unit
    flow: Weight
    occlusion: Weight


class PredictSettings(Config):
    hold_out: Annotated[float, Field(ge=0, le=0.9)]
    validation: Annotated[float, Field(gt=0, le=0.5)]
    patience: Count
    evaluate_every: Count
    checkpoint_seconds: Positive
    seed: Annotated[int, Field(ge=0, lt=1 << 62)]
    device: str
    points: PointSettings
    labels: LabelSettings
    budget: Budget


OPERATIONAL = {"budget", "checkpoint_seconds", "device"}  # settings that a resumed run may change
