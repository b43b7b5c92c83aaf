"""The generator loss on images whose losses are known in advance."""

from __future__ import annotations

import pytest
import torch
from training_settings import SMALL

from v2v.config import load_config
from v2v.training.objective import Objective, Rendered
from v2v.training.settings import TrainSettings
from v2v.types import Batch

LEFT, MIDDLE = slice(0, 8), slice(8, 12)  # columns of the person, and of the background beside it
HIDDEN = slice(4, 12)  # columns where the plate is unknown: behind the person and beside it


def matte_loss(matte: torch.Tensor) -> float:
    settings = load_config(TrainSettings, "train", "train-pose", values=SMALL)
    frames = torch.zeros(1, 1, 3, 16, 16)
    foreground, background_plate = torch.zeros(1, 1, 1, 16, 16), torch.ones(1, 1, 4, 16, 16)
    foreground[..., LEFT] = 1
    background_plate[:, :, 3, :, HIDDEN] = 0
    clip = torch.zeros(1, dtype=torch.int64)
    chunk = Batch(
        frames=frames,
        signals=frames,
        clip=clip,
        foreground=foreground,
        background_plate=background_plate,
    )
    _, parts = Objective(settings.losses).for_generator(
        Rendered(frame=frames, matte=matte), chunk,
        before_real=None, before_fake=None, discriminator_outputs={},
    )  # fmt: skip
    return float(parts["matte"])


def test_the_matte_is_free_where_the_plate_is_unknown() -> None:
    matte = torch.zeros(1, 1, 1, 16, 16)
    matte[..., LEFT] = 1
    assert matte_loss(matte) == 0
    matte[..., MIDDLE] = 1
    assert matte_loss(matte) == 0
    matte[..., 12:] = 1
    assert matte_loss(matte) > 0


def test_the_person_must_cover_the_plate_even_where_it_is_unknown() -> None:
    matte = torch.zeros(1, 1, 1, 16, 16)
    matte[..., LEFT] = 1
    matte[..., 4:8] = 0
    assert matte_loss(matte) > 0


def occlusion(m: float, matte: torch.Tensor | None = None) -> float:
    """The loss if the past is right on the left half and the synthesis wrong everywhere."""
    settings = load_config(TrainSettings, "train", "train-pose", values=SMALL)
    frames = torch.zeros(1, 1, 3, 16, 16)
    past = torch.zeros(1, 3, 16, 16)
    past[..., 8:] = 1.0
    clip = torch.zeros(1, dtype=torch.int64)
    background_plate = None if matte is None else torch.zeros(1, 1, 4, 16, 16)
    chunk = Batch(frames=frames, signals=frames, clip=clip, background_plate=background_plate)
    rendered = Rendered(
        frame=frames, synthesised=frames + 0.1, warped=past[:, None],
        flow=torch.zeros(1, 1, 2, 16, 16), occlusion=torch.full((1, 1, 1, 16, 16), m), matte=matte,
    )  # fmt: skip
    _, parts = Objective(settings.losses).for_generator(
        rendered, chunk, before_real=frames[:, 0], before_fake=past, discriminator_outputs={}
    )
    return float(parts["occlusion"])


def test_the_past_is_copied_where_it_is_closer_than_the_synthesis() -> None:
    left, right = torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 1, 16, 16)
    left[..., :6], right[..., 10:] = 1, 1
    assert occlusion(0.1, left) < 0.2 < 2 < occlusion(0.9, left)
    assert occlusion(0.9, right) < 0.2 < 2 < occlusion(0.1, right)


def test_occlusion_does_not_matter_where_the_plate_shows() -> None:
    nothing = torch.zeros(1, 1, 1, 16, 16)
    assert occlusion(0.1, nothing) == occlusion(0.9, nothing) == 0


def test_the_synthesised_frame_has_a_loss_of_its_own_under_references() -> None:
    settings = load_config(TrainSettings, "train", "train-pose", values=SMALL)
    frames = torch.zeros(1, 1, 3, 16, 16)
    chunk = Batch(frames=frames, signals=frames, clip=torch.zeros(1, dtype=torch.int64))

    def loss(picture: torch.Tensor | None) -> float:
        total, _ = Objective(settings.losses).for_generator(
            Rendered(frame=frames, synthesised=frames, synthesis_only=picture), chunk,
            before_real=None, before_fake=None, discriminator_outputs={},
        )  # fmt: skip
        return float(total)

    assert loss(None) == pytest.approx(loss(frames), abs=1e-4)
    assert loss(frames + 0.5) > loss(frames) + 0.1
