"""The critics: what each sees, what reaches it, and that nothing is judged twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from v2v.errors import UnknownName
from v2v.models.discriminators import (
    DiscriminatorOutput,
    Discriminators,
    DiscriminatorSettings,
    Patches,
    PatchOutput,
    crop,
    frozen,
    with_real,
)
from v2v.warp import warp

B, C, H, W = 2, 4, 48, 64
ALL = {"image": 1, "temporal_1": 1, "temporal_3": 1, "temporal_9": 1, "face": 2, "hands": 2}
CROPS = {"face": (0,), "hands": (1, 2)}


def settings(**changes: Any) -> DiscriminatorSettings:
    values: dict[str, Any] = {
        "width": 8, "width_max": 16, "layers": 2, "scales": 2, "temporal_scales": 1, "crop": 32,
        "spectral_norm": True, "instance_norm": False, "flow_unit": 0.05,
    }  # fmt: skip
    return DiscriminatorSettings(**(values | changes))


def discriminators(weights: dict[str, float] | None = None, **changes: Any) -> Discriminators:
    torch.manual_seed(0)
    weights = ALL if weights is None else weights
    return Discriminators(settings(**changes), channels=C, weights=weights, crops=CROPS)


def scene(length: int = 7, batch: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    box = torch.tensor([8.0, 4, 40, 36]).repeat(batch, length, 3, 1)
    return {
        "signals": torch.rand(batch, length, C, H, W, generator=generator),
        "real": torch.rand(batch, length, 3, H, W, generator=generator) * 2 - 1,
        "fake": torch.rand(batch, length, 3, H, W, generator=generator) * 2 - 1,
        "flow": torch.randn(batch, length, 2, H, W, generator=generator),
        "boxes": box + torch.arange(3.0)[:, None] * 2,
    }


def discriminate(
    module: torch.nn.Module, given: dict[str, Any], newest: int = 2
) -> dict[str, DiscriminatorOutput]:
    given = dict(given)
    first = [given.pop(name) for name in ("signals", "real", "fake")]
    found: dict[str, DiscriminatorOutput] = module(*first, **given, newest=newest)
    return found


def tensors(patches: PatchOutput) -> list[Tensor]:
    return [*patches.logits, *(x for scale in patches.features for x in scale)]


def hinge(discriminator_outputs: dict[str, DiscriminatorOutput]) -> Tensor:
    total = torch.zeros(())
    for output in discriminator_outputs.values():
        assert output.real is not None
        pairs = zip(output.real.logits, output.fake.logits, strict=True)
        for real, fake in pairs:
            loss = F.relu(1 - real) + F.relu(1 + fake)
            total = total + (loss.mean((2, 3)) * output.weight).sum()
    return total


# ---------------------------------------------------------------- which critics there are


def test_critics_of_weight_0_are_not_built() -> None:
    built = discriminators({"image": 1, "temporal_1": 0, "temporal_3": 0.5, "face": 0, "hands": 2})
    assert set(built.discriminators) == {"image", "temporal_3", "hands"}
    assert not list(discriminators({"image": 0}).parameters())


def test_a_critic_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownName, match="temporal_2") as caught:
        discriminators({"temporal_2": 1})
    assert "temporal_3" in str(caught.value.hint)
    with pytest.raises(UnknownName, match="face"):
        Discriminators(settings(), channels=C, weights={"face": 1})  # this task has no boxes
    Discriminators(settings(), channels=C, weights={"face": 0, "image": 1})


@pytest.mark.parametrize(
    ("length", "newest", "triplets"),
    [
        (1, 1, {}),
        (3, 1, {"temporal_1": 1}),
        (3, 3, {"temporal_1": 1}),
        (4, 3, {"temporal_1": 2}),
        (6, 2, {"temporal_1": 2}),
        (7, 2, {"temporal_1": 2, "temporal_3": 1}),
        (8, 1, {"temporal_1": 1, "temporal_3": 1}),
        (20, 4, {"temporal_1": 4, "temporal_3": 4, "temporal_9": 2}),
    ],
)
def test_temporal_critics_need_3_7_and_19_frames(
    length: int, newest: int, triplets: dict[str, int]
) -> None:
    found = discriminate(discriminators(), scene(length), newest)
    assert {n: j.weight.shape[1] for n, j in found.items() if "temporal" in n} == triplets
    assert found["image"].weight.shape == found["face"].weight.shape == (B, newest)
    assert found["hands"].weight.shape == (B, 2 * newest)


def test_logits_and_features_keep_the_batch_first() -> None:
    found = discriminate(discriminators(), scene(7), 2)
    for name, samples, scales in (("image", 2, 2), ("temporal_1", 2, 1), ("hands", 4, 1)):
        for patches in (found[name].real, found[name].fake):
            assert patches is not None and len(patches.logits) == scales
            assert all(x.ndim == 4 and x.shape[:2] == (B, samples) for x in patches.logits)
            for scale in patches.features:
                assert [x.shape[2] for x in scale] == [8, 16, 16]
                assert all(x.shape[:2] == (B, samples) for x in scale)


def test_scales_too_coarse_for_a_small_picture_are_left_out() -> None:
    small = {n: x[..., :16, :16] for n, x in scene(1).items() if n != "boxes"} | {"boxes": None}
    found = discriminate(discriminators({"image": 1}), small, 1)
    assert len(found["image"].fake.logits) == 1
    with pytest.raises(AssertionError, match="2 layers need 12 pixels a side"):
        tiny = {n: x if x is None else x[..., :8, :8] for n, x in small.items()}
        discriminate(discriminators({"image": 1}), tiny, 1)


# ---------------------------------------------------------------- what they see


def test_patches_of_three_layers_are_70_pixels_wide() -> None:
    """By the support of one logit's gradient, of positive weights so that nothing cancels."""
    network = Patches(settings(layers=3, width=4, spectral_norm=False), channels=1)
    for parameter in network.parameters():
        parameter.data.fill_(0.01)
    picture = torch.ones(1, 1, 128, 160, requires_grad=True)
    logits = network(picture)[-1]
    assert logits.shape == (1, 1, 14, 18)
    logits[0, 0, 7, 9].backward()
    assert picture.grad is not None
    rows, columns = picture.grad[0, 0].nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def test_context_is_not_judged_and_only_judged_frames_get_gradient() -> None:
    given = scene(8)
    for names, frames in (
        (["image"], [6, 7]),
        (["face", "hands"], [6, 7]),
        (["temporal_1"], [4, 5, 6, 7]),
        (["temporal_3"], [0, 1, 3, 4, 6, 7]),
    ):
        fake = given["fake"].clone().requires_grad_()
        found = discriminate(discriminators(dict.fromkeys(names, 1.0)), given | {"fake": fake}, 2)
        assert set(found) == set(names)
        torch.stack(
            [x.abs().sum() for j in found.values() for x in tensors(j.fake)]
        ).sum().backward()
        assert fake.grad is not None
        assert fake.grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == frames


def test_the_temporal_critic_sees_order() -> None:
    given = scene(3)
    model = discriminators({"temporal_1": 1}).eval()
    forward = discriminate(model, given, 1)["temporal_1"].fake.logits[0]
    backward = discriminate(model, given | {"fake": given["fake"].flip(1)}, 1)[
        "temporal_1"
    ].fake.logits[0]
    assert (forward - backward).abs().max() > 1e-3


def test_the_temporal_critic_sees_motion_and_the_image_critic_signals() -> None:
    given = scene(3)
    model = discriminators({"temporal_1": 1, "image": 1}).eval()
    before = discriminate(model, given, 1)
    for name, changed, other in (
        ("temporal_1", "flow", "image"),
        ("image", "signals", "temporal_1"),
    ):
        after = discriminate(model, given | {changed: given[changed] + 1}, 1)
        assert not torch.equal(after[name].fake.logits[0], before[name].fake.logits[0])
        assert torch.equal(after[other].fake.logits[0], before[other].fake.logits[0])


@pytest.mark.parametrize("stride", [1, 3, 9])
def test_flows_of_a_stride_are_composed(stride: int) -> None:
    """A steady pan by (0.5, -0.25) a frame is one of stride times that, in units of the width."""
    flow = torch.tensor([0.5, -0.25])[:, None, None].expand(1, 20, 2, H, W)
    model = discriminators({"image": 1}, flow_unit=0.1)
    motion = model._motion(flow, [18, 19], stride, like=torch.zeros(1, 20, 3, H, W))
    assert motion.shape == (1, 2, 4, H, W)
    expected = torch.tensor([0.5, -0.25, 0.5, -0.25]) * stride / (0.1 * W)
    torch.testing.assert_close(motion, expected[:, None, None].expand_as(motion))


def test_each_flow_stands_with_its_frames() -> None:
    """Flow t of a window counts t: of the triplet 1, 4, 7 the flows are 2+3+4 and 5+6+7."""
    flow = torch.zeros(1, 9, 2, H, W)
    flow[:, :, 0] = torch.arange(9.0)[:, None, None] / 100
    flow[:, 0] = float("nan")  # of the first frame there is none
    model = discriminators({"image": 1}, flow_unit=1 / W)
    motion = model._motion(flow, [7, 8], 3, like=torch.zeros(1, 9, 3, H, W))
    u = motion[0, :, [0, 2], 0, 0] * 100
    torch.testing.assert_close(u, torch.tensor([[9.0, 18.0], [12.0, 21.0]]))
    assert not motion[:, :, [1, 3]].any()


def test_a_composed_flow_warps_as_its_parts_do() -> None:
    """A swirl, a pan and a zoom, whose order matters."""
    y, x = torch.meshgrid(torch.arange(H) - H / 2, torch.arange(W) - W / 2, indexing="ij")
    flow = torch.zeros(1, 7, 2, H, W)
    flow[:, 4] = torch.stack([-0.15 * y, 0.15 * x])
    flow[:, 5] = torch.tensor([4.0, -3.0])[:, None, None]
    flow[:, 6] = torch.stack([0.2 * x, 0.2 * y])
    model = discriminators({"image": 1}, flow_unit=1 / W)
    motion = model._motion(flow, [6], 3, like=torch.zeros(1, 7, 3, H, W))
    picture = torch.stack([torch.sin(x / 8 + y / 16), torch.cos(y / 8)])[None]
    step_by_step = picture
    for t in (4, 5, 6):  # from frame 3 to frame 6, oldest first
        step_by_step = warp(step_by_step, flow[:, t])
    at_once = warp(picture, motion[:, 0, 2:])
    assert (step_by_step - at_once)[..., 12:-12, 12:-12].abs().max() < 0.02
    assert (picture - at_once)[..., 12:-12, 12:-12].abs().max() > 0.2


@pytest.mark.parametrize("name", ["image", "face"])
def test_each_frame_is_judged_with_its_own_signals(name: str) -> None:
    given = scene(4)
    model = discriminators({name: 1}).eval()
    before = discriminate(model, given, 2)[name].fake.logits[0]
    for frame, touched in ((0, []), (1, []), (2, [0]), (3, [1])):
        signals = given["signals"].clone()
        signals[:, frame] += 1
        after = discriminate(model, given | {"signals": signals}, 2)[name].fake.logits[0]
        assert (after != before).flatten(2).any(2).any(0).nonzero().flatten().tolist() == touched


def test_without_flow_the_frames_are_judged_alone() -> None:
    given = scene(3)
    model = discriminators({"temporal_1": 1}).eval()
    without = discriminate(model, given | {"flow": None}, 1)["temporal_1"].fake.logits[0]
    still = discriminate(model, given | {"flow": given["flow"] * 0}, 1)["temporal_1"].fake.logits[0]
    assert torch.equal(without, still)


# ---------------------------------------------------------------- crops


def test_a_box_of_whole_pixels_is_a_slice() -> None:
    pictures = torch.randn(2, 5, 32, 64)
    boxes = torch.tensor([[[3.0, 7, 19, 23], [40, 0, 56, 16]], [[48, 16, 64, 32], [0, 1, 16, 17]]])
    crops = crop(pictures, boxes, 16)
    assert crops.shape == (2, 2, 5, 16, 16)
    for n in range(2):
        for k in range(2):
            x0, y0, x1, y1 = boxes[n, k].int().tolist()
            torch.testing.assert_close(crops[n, k], pictures[n, :, y0:y1, x0:x1], rtol=0, atol=1e-5)


def test_a_crop_is_scaled_per_axis_and_goes_on_at_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    pictures = torch.stack([x, y])[None]
    crops = crop(pictures, torch.tensor([[[10.0, 4, 50, 12], [60, 28, 70, 38]]]), 10)
    torch.testing.assert_close(crops[0, 0, 0, 0], 12 + 4 * torch.arange(10.0))
    torch.testing.assert_close(crops[0, 0, 1, :, 0], 4.4 + 0.8 * torch.arange(10.0))
    assert (crops[0, 1, 0, 0, 4:] == 63.5).all()


def test_the_gradient_of_a_crop_stays_in_its_box() -> None:
    picture = torch.rand(1, 1, 32, 32, requires_grad=True)
    crop(picture, torch.tensor([[[8.0, 4, 24, 12]]]), 16).sum().backward()
    assert picture.grad is not None
    # Between two rows a bilinear sample reaches half a pixel out of the box.
    inside = torch.zeros(32, 32)
    inside[3:13, 7:25] = 1
    assert (picture.grad[0, 0] * (1 - inside)).abs().max() == 0
    assert (picture.grad[0, 0, 5:11, 9:23] > 0).all()


@pytest.mark.parametrize("missing", [float("nan"), 0.0])
def test_missing_boxes_have_no_weight_and_no_gradient(missing: float) -> None:
    given = scene(2)
    boxes = given["boxes"].clone()
    boxes[0, :, 0] = missing  # no face in the first sample; a box of no size is none
    fake = given["fake"].clone().requires_grad_()
    real = given["real"].clone().requires_grad_()
    model = discriminators({"face": 1})
    found = discriminate(model, given | {"boxes": boxes, "fake": fake, "real": real}, 2)["face"]
    assert found.weight.tolist() == [[0, 0], [1, 1]]
    assert found.real is not None
    everything = tensors(found.fake) + tensors(found.real)
    assert all(x.isfinite().all() and not x[0].any() and x[1].any() for x in everything)
    torch.stack([(1 + x).square().sum() for x in everything]).sum().backward()
    for half in (fake, real):
        assert half.grad is not None and half.grad.isfinite().all()
        assert not half.grad[0].any() and half.grad[1].any()


@pytest.mark.parametrize("none", [True, False])
def test_no_box_at_all_keeps_the_graph(none: bool) -> None:
    given = scene(2)
    boxes = None if none else torch.full_like(given["boxes"], float("nan"))
    model = discriminators({"face": 1, "hands": 1})
    hinge(found := discriminate(model, given | {"boxes": boxes}, 1)).backward()
    assert not any(j.weight.any() for j in found.values())
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_hands_are_the_boxes_that_they_say() -> None:
    given = scene(2)
    model = discriminators({"hands": 1}).eval()
    before = discriminate(model, given, 1)["hands"].fake.logits[0]
    for box, touched in ((0, []), (1, [0]), (2, [1])):
        boxes = given["boxes"].clone()
        boxes[:, -1, box] += 7
        after = discriminate(model, given | {"boxes": boxes}, 1)["hands"].fake.logits[0]
        changed = (after != before).flatten(2).any(2).any(0).nonzero().flatten().tolist()
        assert changed == touched


# ---------------------------------------------------------------- the two steps


def test_fake_alone_is_judged_as_beside_real() -> None:
    given = scene(19)
    model = discriminators().eval()
    both, alone = discriminate(model, given, 2), discriminate(model, given | {"real": None}, 2)
    assert set(both) == set(alone) == set(ALL)
    for name in both:
        assert alone[name].real is None
        assert torch.equal(alone[name].weight, both[name].weight)
        for a, b in zip(tensors(alone[name].fake), tensors(both[name].fake), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_real_and_fake_do_not_see_each_other() -> None:
    given = scene(7)
    model = discriminators(instance_norm=True).eval()
    first = discriminate(model, given)
    second = discriminate(model, given | {"fake": given["fake"] * 0.5})
    for name, output in first.items():
        ours, theirs = output.real, second[name].real
        assert ours is not None and theirs is not None
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_samples_do_not_see_each_other(normed: bool, training: bool) -> None:
    given = scene(7)
    other = {n: torch.cat([x[:1], x[1:].flip(-1)]) for n, x in given.items() if n != "boxes"}
    judged = [
        discriminate(discriminators(instance_norm=normed).train(training), given | changed)
        for changed in ({}, other)
    ]
    for name in judged[0]:
        first, second = (tensors(j[name].fake) for j in judged)
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
            assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize("normed", [True, False])
def test_every_weight_is_trained(normed: bool) -> None:
    model = discriminators(instance_norm=normed)
    given = scene(19)
    # Not hinge's: where neither half is sure, its gradients on the last bias cancel.
    logits = [x for j in discriminate(model, given).values() for x in j.fake.logits]
    torch.stack([(1 - x).square().sum() for x in logits]).sum().backward()
    for name, parameter in model.named_parameters():
        if "bias" in name and normed:
            continue  # a norm takes the bias away
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_generator_s_step_leaves_the_critics_as_they_are() -> None:
    model = discriminators()
    given = scene(7)
    kept = discriminate(model, given)
    hinge(kept).backward()
    weights = [
        p.grad.clone() for p in model.discriminators["image"].parameters() if p.grad is not None
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    fake = given["fake"].clone().requires_grad_()
    with frozen(model):
        found = with_real(discriminate(model, given | {"fake": fake, "real": None}), kept)
    total = torch.zeros(())
    for output in found.values():
        assert output.real is not None
        assert not any(x.requires_grad for x in tensors(output.real))
        total = total - output.fake.logits[0].mean()
        total = total + F.l1_loss(output.fake.features[0][0], output.real.features[0][0])
    total.backward()

    assert fake.grad is not None and fake.grad[:, -2:].any()
    after = [p.grad for p in model.discriminators["image"].parameters()]
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True) if b is not None)
    # Spectral norm's vectors, too: it iterates in the critics' step alone.
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_frozen_gives_back_what_was_frozen_before() -> None:
    model = discriminators({"image": 1, "face": 1})
    model.discriminators["face"].requires_grad_(False).eval()
    with pytest.raises(KeyError), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert all(p.requires_grad for p in model.discriminators["image"].parameters())
    assert not any(p.requires_grad for p in model.discriminators["face"].parameters())
    assert model.discriminators["image"].training and not model.discriminators["face"].training


def test_spectral_norm_bounds_every_layer() -> None:
    model = discriminators({"image": 1}, layers=3)
    for _ in range(30):
        discriminate(model, scene(1), 1)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == 2 * 5
    for layer in layers:
        norm = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2)
        torch.testing.assert_close(norm, torch.ones(()), rtol=0.05, atol=0)


def test_half_precision() -> None:
    model, given = discriminators(), scene(19)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discriminate(model, given)
        hinge(found).backward()
        with frozen(model):
            discriminate(model, given | {"real": None, "fake": given["fake"].bfloat16()})
    assert all(x.isfinite().all() for j in found.values() for x in tensors(j.fake))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_critic_learns_to_tell() -> None:
    """Two kinds of pictures, bright and dark: the hinge loss goes to nothing."""
    model = discriminators({"image": 1, "temporal_1": 1})
    given = scene(3)
    given |= {"real": given["real"] / 4 + 0.5, "fake": given["fake"] / 4 - 0.5}
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(25):
        loss = hinge(discriminate(model, given, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_under_ddp_with_boxes_here_and_not_there(tmp_path: Path) -> None:
    """Two critics' steps and a generator's step between them, through DDP's own bookkeeping."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        bare = discriminators({"image": 1, "temporal_1": 1, "face": 1})
        model = torch.nn.parallel.DistributedDataParallel(bare)
        given = scene(3)
        for boxes in (given["boxes"], None, given["boxes"]):
            hinge(discriminate(model, given | {"boxes": boxes})).backward()
            fake = given["fake"].clone().requires_grad_()
            with frozen(model):
                found = discriminate(bare, given | {"boxes": boxes, "fake": fake, "real": None})
            sum(j.fake.logits[0].mean() for j in found.values()).backward()  # type: ignore[union-attr]
        assert all(p.grad is not None for p in bare.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 0}, {"scales": 9}, {"flow_unit": 0}, {"crop": 8}, {"colour": 1}],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        settings(**wrong)
