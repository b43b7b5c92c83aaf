"""What the generator answers for, in pictures whose losses can be said beforehand."""

from __future__ import annotations

import torch
from training_settings import SMALL

from v2v.config import load_config
from v2v.training.objective import Objective, Rendered
from v2v.training.settings import TrainSettings
from v2v.types import Batch

LEFT, MIDDLE = slice(0, 8), slice(8, 12)  # columns of the person, and of background beside it
HIDDEN = slice(4, 12)  # columns where the plate is unknown: behind the person, and beside


def matte_loss(matte: torch.Tensor) -> float:
    settings = load_config(TrainSettings, "train", "train-pose", values=SMALL)
    frames = torch.zeros(1, 1, 3, 16, 16)
    foreground, plate = torch.zeros(1, 1, 1, 16, 16), torch.ones(1, 4, 16, 16)
    foreground[..., LEFT] = 1
    plate[:, 3, :, HIDDEN] = 0
    clip = torch.zeros(1, dtype=torch.int64)
    chunk = Batch(frames=frames, signals=frames, clip=clip, foreground=foreground, plate=plate)
    _, parts = Objective(settings.losses).for_generator(
        Rendered(frame=frames, matte=matte), chunk,
        before_real=None, before_fake=None, judgements={},
    )  # fmt: skip
    return float(parts["matte"])


def test_the_matte_is_free_where_the_plate_only_guesses() -> None:
    matte = torch.zeros(1, 1, 1, 16, 16)
    matte[..., LEFT] = 1
    assert matte_loss(matte) == 0
    matte[..., MIDDLE] = 1
    assert matte_loss(matte) == 0
    matte[..., 12:] = 1
    assert matte_loss(matte) > 0


def test_the_person_covers_the_plate_known_or_not() -> None:
    matte = torch.zeros(1, 1, 1, 16, 16)
    matte[..., LEFT] = 1
    matte[..., 4:8] = 0
    assert matte_loss(matte) > 0
