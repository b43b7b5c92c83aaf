"""Augmentation: one transform per sample for its frames, signals, flow and landmarks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from v2v.models.augment import DiscriminatorAugmentation, DiscriminatorAugmentSettings, draw

B, T, H, W = 6, 4, 24, 32


def settings(**changes: float) -> DiscriminatorAugmentSettings:
    values: dict[str, Any] = {
        "probability": 1, "brightness": 0.5, "saturation": 1, "contrast": 0.5,
        "translation": 0.125, "cutout": 0.5,
    }  # fmt: skip
    return DiscriminatorAugmentSettings(**(values | changes))


def only(**kept: float) -> DiscriminatorAugmentSettings:
    zeros = dict.fromkeys(("brightness", "saturation", "contrast", "translation", "cutout"), 0.0)
    return settings(**(zeros | kept))


def sampled(
    chosen: DiscriminatorAugmentSettings, seed: int = 0, batch: int = B
) -> DiscriminatorAugmentation:
    generator = torch.Generator().manual_seed(seed)
    return draw(chosen, batch=batch, size=(H, W), generator=generator)


def frames(seed: int = 0) -> Tensor:
    return torch.rand(B, T, 3, H, W, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    "chosen", [settings(probability=0), only()], ids=["never", "zero strength"]
)
def test_zero_probability_or_strength_is_the_identity(chosen: DiscriminatorAugmentSettings) -> None:
    x, boxes = frames(), torch.rand(B, T, 3, 4)
    augmentation = sampled(chosen)
    assert augmentation.frames(x) is x
    assert augmentation.signals(x) is x
    assert augmentation.flow(x[:, :, :2]).data_ptr() == x.data_ptr()
    assert augmentation.boxes(boxes) is boxes


def test_at_full_strength_every_sample_gets_its_own_transform() -> None:
    x = frames()[:1].expand(B, -1, -1, -1, -1)
    changed = sampled(settings()).frames(x)
    assert changed.shape == x.shape
    for i in range(B):
        assert not torch.equal(changed[i], x[i])
        assert not any(torch.equal(changed[i], changed[j]) for j in range(i))


def test_all_frames_of_a_sample_and_real_and_fake_get_the_same_transform() -> None:
    """Still clips stay still; the transform of a frame does not depend on the other frames."""
    x = frames()
    augmentation = sampled(settings())
    whole = augmentation.frames(x)
    still = augmentation.frames(x[:, :1].expand(-1, T, -1, -1, -1))
    for t in range(T):
        assert torch.equal(still[:, t], whole[:, 0])
        assert torch.equal(augmentation.frames(x[:, t : t + 1])[:, 0], whole[:, t])
    # Real and fake: equal colours map to equal colours, even when the frames' means differ.
    other = x.clone()
    other[..., W // 2 :] = 1
    colour = sampled(only(brightness=0.5, saturation=1, contrast=0.5))
    same = (..., slice(None, W // 2))
    assert torch.equal(colour.frames(x)[same], colour.frames(other)[same])


def test_the_same_seed_draws_the_same_transforms() -> None:
    generator = torch.Generator().manual_seed(3)
    first = draw(settings(), batch=B, size=(H, W), generator=generator)
    state = generator.get_state()
    second = draw(settings(), batch=B, size=(H, W), generator=generator)
    assert first == sampled(settings(), seed=3) != second
    # Settings do not change how many random numbers are consumed.
    generator.manual_seed(3)
    draw(settings(probability=0, cutout=0), batch=B, size=(H, W), generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_signals_are_shifted_and_cut_with_their_frames_and_keep_their_values() -> None:
    x = frames()
    moved = sampled(only(translation=0.25, cutout=0.4))
    assert torch.equal(moved.signals(x), moved.frames(x))
    coloured = sampled(only(brightness=1, saturation=1, contrast=0.5))
    assert coloured.signals(x) is x and not torch.equal(coloured.frames(x), x)
    assert coloured.signals(torch.rand(B, T, 20, H, W)).shape == (B, T, 20, H, W)


def test_landmarks_shift_with_the_pixels_they_mark() -> None:
    """A dot on black, its box and its point shift together in every sample."""
    x = torch.zeros(B, T, 1, H, W)
    points = torch.empty(B, T, 1, 2)
    for b in range(B):
        for t in range(T):
            row, column = 8 + b, 12 + t
            x[b, t, 0, row, column] = 1
            points[b, t, 0] = torch.tensor([column + 0.5, row + 0.5])
    augmentation = sampled(only(translation=0.25))
    assert len(set(augmentation.shifts)) > 3
    moved = augmentation.signals(x)
    boxes = torch.cat([points - 0.5, points + 0.5], dim=-1)
    for found in (augmentation.boxes(points), augmentation.boxes(boxes)[..., :2] + 0.5):
        for b in range(B):
            for t in range(T):
                ((row, column),) = moved[b, t, 0].nonzero().tolist()
                assert found[b, t, 0].tolist() == [column + 0.5, row + 0.5]


def test_missing_boxes_stay_missing() -> None:
    boxes = torch.full((B, T, 2, 4), float("nan"))
    assert sampled(only(translation=0.25)).boxes(boxes).isnan().all()


def test_flow_shifts_with_the_frame_and_keeps_its_values() -> None:
    flow = torch.randn(B, T, 2, H, W)
    augmentation = sampled(settings())
    moved = augmentation.flow(flow)
    for b, (dx, dy) in enumerate(augmentation.shifts):
        expected = torch.zeros_like(flow[b])
        for y in range(max(dy, 0), min(H + dy, H)):
            for x in range(max(dx, 0), min(W + dx, W)):
                expected[..., y, x] = flow[b, ..., y - dy, x - dx]
        assert torch.equal(moved[b], expected)


def test_range_of_shifts_and_holes() -> None:
    augmentation = sampled(settings(translation=0.25, cutout=0.5), batch=400)
    across, down = zip(*augmentation.shifts, strict=True)
    assert max(across) == W // 4 and min(across) == -W // 4
    assert max(down) == H // 4 and min(down) == -H // 4
    holes = [hole for hole in augmentation.holes if hole is not None]
    assert len(holes) == 400
    assert max(x1 - x0 for x0, _, x1, _ in holes) == W // 2
    assert max(y1 - y0 for _, y0, _, y1 in holes) == H // 2
    assert all(0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H for x0, y0, x1, y1 in holes)


def test_a_hole_is_grey_in_all_frames() -> None:
    cut = sampled(only(cutout=0.5)).frames(torch.ones(B, T, 3, H, W))
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(cut[:, :1, :1].expand_as(cut), cut)


@pytest.mark.parametrize(("probability", "fraction"), [(0.25, 0.25), (0.75, 0.75)])
def test_probability_is_the_fraction_of_changed_samples(
    probability: float, fraction: float
) -> None:
    augmentation = sampled(settings(probability=probability), batch=1000)
    recoloured = sum(colour != (0.0, 1.0, 1.0) for colour in augmentation.colours)
    cut = sum(hole is not None for hole in augmentation.holes)
    assert recoloured / 1000 == pytest.approx(fraction, abs=0.05)
    assert cut / 1000 == pytest.approx(fraction, abs=0.05)


def test_colour_changes_match_their_formulas() -> None:
    x = frames()
    identity = ((0, 0),) * B
    no_holes = (None,) * B
    brighter = DiscriminatorAugmentation(((0.2, 1.0, 1.0),) * B, identity, no_holes)
    torch.testing.assert_close(brighter.frames(x), x + 0.2)
    grey = DiscriminatorAugmentation(((0.0, 0.0, 1.0),) * B, identity, no_holes).frames(x)
    torch.testing.assert_close(grey, x.mean(2, keepdim=True).expand_as(x))
    stronger = DiscriminatorAugmentation(((0.0, 1.0, 1.5),) * B, identity, no_holes)
    torch.testing.assert_close(stronger.frames(x), 1.5 * x)


def test_the_gradient_reaches_only_the_pixels_still_visible() -> None:
    x = frames().requires_grad_()
    augmentation = sampled(settings())
    augmentation.frames(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    visible = augmentation.signals(torch.ones(B, T, 1, H, W))
    for b, (dx, dy) in enumerate(augmentation.shifts):
        # Pixels that were cut or shifted out of the frame get no gradient.
        back = torch.nn.functional.pad(visible[b], (-dx, dx, -dy, dy))
        contrast = augmentation.colours[b][2]
        torch.testing.assert_close(x.grad[b], (contrast * back).expand(-1, 3, -1, -1))


def test_wrong_batch_sizes_and_settings_are_refused() -> None:
    with pytest.raises(AssertionError, match="of 6 samples"):
        sampled(settings()).frames(frames()[:2])
    with pytest.raises(ValueError, match="contrast"):
        settings(contrast=1)
