"""What the training of a predictor needs to know about its kind of signal."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn

from v2v.prediction.predictor import Predictor, PredictorRecord


class Task(ABC):
    """How to train a predictor of one kind of signal."""

    network: nn.Module
    lengths: tuple[int, ...]  # rollout lengths in frames, from the start to the end of training
    steps: int  # if no budget is given
    rate: float
    weight_decay: float

    @abstractmethod
    def loss(self, random: np.random.Generator, length: int) -> Tensor: ...

    @abstractmethod
    def score(self) -> float:
        """Validation error relative to copying the last frame."""

    @abstractmethod
    def predictor(self, record: PredictorRecord) -> Predictor: ...


def training_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
