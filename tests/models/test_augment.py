"""Augmentation: one change for all that belongs together, and points that stay where they were."""

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
    nothing = dict.fromkeys(("brightness", "saturation", "contrast", "translation", "cutout"), 0.0)
    return settings(**(nothing | kept))


def drawn(
    given: DiscriminatorAugmentSettings, seed: int = 0, batch: int = B
) -> DiscriminatorAugmentation:
    generator = torch.Generator().manual_seed(seed)
    return draw(given, batch=batch, size=(H, W), generator=generator)


def frames(seed: int = 0) -> Tensor:
    return torch.rand(B, T, 3, H, W, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("given", [settings(probability=0), only()], ids=["never", "by nothing"])
def test_nothing_is_the_identity(given: DiscriminatorAugmentSettings) -> None:
    x, boxes = frames(), torch.rand(B, T, 3, 4)
    augmentation = drawn(given)
    assert augmentation.frames(x) is x
    assert augmentation.signals(x) is x
    assert augmentation.flow(x[:, :, :2]).data_ptr() == x.data_ptr()
    assert augmentation.boxes(boxes) is boxes


def test_at_full_strength_every_sample_changes_in_its_own_way() -> None:
    x = frames()[:1].expand(B, -1, -1, -1, -1)
    changed = drawn(settings()).frames(x)
    assert changed.shape == x.shape
    for i in range(B):
        assert not torch.equal(changed[i], x[i])
        assert not any(torch.equal(changed[i], changed[j]) for j in range(i))


def test_all_frames_of_a_sample_and_real_and_fake_change_alike() -> None:
    """What stands still stays still; the change of a frame does not depend on the others."""
    x = frames()
    augmentation = drawn(settings())
    whole = augmentation.frames(x)
    still = augmentation.frames(x[:, :1].expand(-1, T, -1, -1, -1))
    for t in range(T):
        assert torch.equal(still[:, t], whole[:, 0])
        assert torch.equal(augmentation.frames(x[:, t : t + 1])[:, 0], whole[:, t])
    # Real and fake: also where their means differ, the same colour becomes the same colour.
    other = x.clone()
    other[..., W // 2 :] = 1
    colour = drawn(only(brightness=0.5, saturation=1, contrast=0.5))
    same = (..., slice(None, W // 2))
    assert torch.equal(colour.frames(x)[same], colour.frames(other)[same])


def test_the_same_generator_draws_the_same() -> None:
    generator = torch.Generator().manual_seed(3)
    first = draw(settings(), batch=B, size=(H, W), generator=generator)
    state = generator.get_state()
    second = draw(settings(), batch=B, size=(H, W), generator=generator)
    assert first == drawn(settings(), seed=3) != second
    # Settings do not shift what is drawn after them.
    generator.manual_seed(3)
    draw(settings(probability=0, cutout=0), batch=B, size=(H, W), generator=generator)
    assert torch.equal(generator.get_state(), state)


def test_signals_are_moved_and_cut_with_their_frames_and_keep_their_colours() -> None:
    x = frames()
    moved = drawn(only(translation=0.25, cutout=0.4))
    assert torch.equal(moved.signals(x), moved.frames(x))
    coloured = drawn(only(brightness=1, saturation=1, contrast=0.5))
    assert coloured.signals(x) is x and not torch.equal(coloured.frames(x), x)
    assert coloured.signals(torch.rand(B, T, 20, H, W)).shape == (B, T, 20, H, W)


def test_landmarks_follow_what_they_mark() -> None:
    """A dot on black, its box and its point, moved together for every sample."""
    x = torch.zeros(B, T, 1, H, W)
    points = torch.empty(B, T, 1, 2)
    for b in range(B):
        for t in range(T):
            row, column = 8 + b, 12 + t
            x[b, t, 0, row, column] = 1
            points[b, t, 0] = torch.tensor([column + 0.5, row + 0.5])
    augmentation = drawn(only(translation=0.25))
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
    assert drawn(only(translation=0.25)).boxes(boxes).isnan().all()


def test_flow_moves_with_the_picture_and_keeps_its_values() -> None:
    flow = torch.randn(B, T, 2, H, W)
    augmentation = drawn(settings())
    moved = augmentation.flow(flow)
    for b, (dx, dy) in enumerate(augmentation.shifts):
        expected = torch.zeros_like(flow[b])
        for y in range(max(dy, 0), min(H + dy, H)):
            for x in range(max(dx, 0), min(W + dx, W)):
                expected[..., y, x] = flow[b, ..., y - dy, x - dx]
        assert torch.equal(moved[b], expected)


def test_reach_of_shifts_and_holes() -> None:
    augmentation = drawn(settings(translation=0.25, cutout=0.5), batch=400)
    across, down = zip(*augmentation.shifts, strict=True)
    assert max(across) == W // 4 and min(across) == -W // 4
    assert max(down) == H // 4 and min(down) == -H // 4
    holes = [hole for hole in augmentation.holes if hole is not None]
    assert len(holes) == 400
    assert max(x1 - x0 for x0, _, x1, _ in holes) == W // 2
    assert max(y1 - y0 for _, y0, _, y1 in holes) == H // 2
    assert all(0 <= x0 < x1 <= W and 0 <= y0 < y1 <= H for x0, y0, x1, y1 in holes)


def test_a_hole_is_grey_in_all_frames() -> None:
    cut = drawn(only(cutout=0.5)).frames(torch.ones(B, T, 3, H, W))
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(cut[:, :1, :1].expand_as(cut), cut)


@pytest.mark.parametrize(("probability", "share"), [(0.25, 0.25), (0.75, 0.75)])
def test_probability_is_how_often(probability: float, share: float) -> None:
    augmentation = drawn(settings(probability=probability), batch=1000)
    recoloured = sum(colour != (0.0, 1.0, 1.0) for colour in augmentation.colours)
    cut = sum(hole is not None for hole in augmentation.holes)
    assert recoloured / 1000 == pytest.approx(share, abs=0.05)
    assert cut / 1000 == pytest.approx(share, abs=0.05)


def test_colour_is_what_it_says() -> None:
    x = frames()
    identity = ((0, 0),) * B
    nothing = (None,) * B
    brighter = DiscriminatorAugmentation(((0.2, 1.0, 1.0),) * B, identity, nothing)
    torch.testing.assert_close(brighter.frames(x), x + 0.2)
    grey = DiscriminatorAugmentation(((0.0, 0.0, 1.0),) * B, identity, nothing).frames(x)
    torch.testing.assert_close(grey, x.mean(2, keepdim=True).expand_as(x))
    harder = DiscriminatorAugmentation(((0.0, 1.0, 1.5),) * B, identity, nothing)
    torch.testing.assert_close(harder.frames(x), 1.5 * x)


def test_the_gradient_flows_to_what_is_still_seen() -> None:
    x = frames().requires_grad_()
    augmentation = drawn(settings())
    augmentation.frames(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    seen = augmentation.signals(torch.ones(B, T, 1, H, W))
    for b, (dx, dy) in enumerate(augmentation.shifts):
        # Where a pixel went to and was cut, or left the picture, nothing comes back.
        back = torch.nn.functional.pad(seen[b], (-dx, dx, -dy, dy))
        contrast = augmentation.colours[b][2]
        torch.testing.assert_close(x.grad[b], (contrast * back).expand(-1, 3, -1, -1))


def test_what_does_not_fit_the_draw_is_refused() -> None:
    with pytest.raises(AssertionError, match="of 6 samples"):
        drawn(settings()).frames(frames()[:2])
    with pytest.raises(ValueError, match="contrast"):
        settings(contrast=1)
