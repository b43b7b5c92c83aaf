"""The discriminators: the inputs of each, their gradients, and the order of the training steps."""

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
    module: torch.nn.Module, inputs: dict[str, Any], newest: int = 2
) -> dict[str, DiscriminatorOutput]:
    inputs = dict(inputs)
    first = [inputs.pop(name) for name in ("signals", "real", "fake")]
    found: dict[str, DiscriminatorOutput] = module(*first, **inputs, newest=newest)
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


# ---------------------------------------------------------------- which discriminators are built


def test_discriminators_of_weight_0_are_not_built() -> None:
    built = discriminators({"image": 1, "temporal_1": 0, "temporal_3": 0.5, "face": 0, "hands": 2})
    assert set(built.discriminators) == {"image", "temporal_3", "hands"}
    assert not list(discriminators({"image": 0}).parameters())


def test_unknown_discriminators_are_refused_by_name() -> None:
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
def test_temporal_discriminators_need_3_7_and_19_frames(
    length: int, newest: int, triplets: dict[str, int]
) -> None:
    found = discriminate(discriminators(), scene(length), newest)
    assert {n: o.weight.shape[1] for n, o in found.items() if "temporal" in n} == triplets
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


def test_scales_too_coarse_for_a_small_frame_are_left_out() -> None:
    small = {n: x[..., :16, :16] for n, x in scene(1).items() if n != "boxes"} | {"boxes": None}
    found = discriminate(discriminators({"image": 1}), small, 1)
    assert len(found["image"].fake.logits) == 1
    with pytest.raises(AssertionError, match="2 layers need 12 pixels a side"):
        tiny = {n: x if x is None else x[..., :8, :8] for n, x in small.items()}
        discriminate(discriminators({"image": 1}), tiny, 1)


# ---------------------------------------------------------------- inputs


def test_three_layers_have_a_receptive_field_of_70_pixels() -> None:
    """Measured as the support of one logit's gradient; positive weights avoid cancellation."""
    network = Patches(settings(layers=3, width=4, spectral_norm=False), channels=1)
    for parameter in network.parameters():
        parameter.data.fill_(0.01)
    image = torch.ones(1, 1, 128, 160, requires_grad=True)
    logits = network(image)[-1]
    assert logits.shape == (1, 1, 14, 18)
    logits[0, 0, 7, 9].backward()
    assert image.grad is not None
    rows, columns = image.grad[0, 0].nonzero().unbind(1)
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def test_only_the_newest_frames_and_their_triplets_get_gradient() -> None:
    inputs = scene(8)
    for names, frames in (
        (["image"], [6, 7]),
        (["face", "hands"], [6, 7]),
        (["temporal_1"], [4, 5, 6, 7]),
        (["temporal_3"], [0, 1, 3, 4, 6, 7]),
    ):
        fake = inputs["fake"].clone().requires_grad_()
        found = discriminate(discriminators(dict.fromkeys(names, 1.0)), inputs | {"fake": fake}, 2)
        assert set(found) == set(names)
        torch.stack(
            [x.abs().sum() for o in found.values() for x in tensors(o.fake)]
        ).sum().backward()
        assert fake.grad is not None
        assert fake.grad.abs().sum((0, 2, 3, 4)).nonzero().flatten().tolist() == frames


def test_the_temporal_discriminator_depends_on_frame_order() -> None:
    inputs = scene(3)
    model = discriminators({"temporal_1": 1}).eval()
    forward = discriminate(model, inputs, 1)["temporal_1"].fake.logits[0]
    backward = discriminate(model, inputs | {"fake": inputs["fake"].flip(1)}, 1)[
        "temporal_1"
    ].fake.logits[0]
    assert (forward - backward).abs().max() > 1e-3


def test_the_temporal_discriminator_sees_flow_and_the_image_discriminator_signals() -> None:
    inputs = scene(3)
    model = discriminators({"temporal_1": 1, "image": 1}).eval()
    before = discriminate(model, inputs, 1)
    for name, changed, other in (
        ("temporal_1", "flow", "image"),
        ("image", "signals", "temporal_1"),
    ):
        after = discriminate(model, inputs | {changed: inputs[changed] + 1}, 1)
        assert not torch.equal(after[name].fake.logits[0], before[name].fake.logits[0])
        assert torch.equal(after[other].fake.logits[0], before[other].fake.logits[0])


@pytest.mark.parametrize("stride", [1, 3, 9])
def test_flows_of_a_stride_are_composed(stride: int) -> None:
    """A pan of (0.5, -0.25) pixels per frame composes to stride times that, in units of width."""
    flow = torch.tensor([0.5, -0.25])[:, None, None].expand(1, 20, 2, H, W)
    model = discriminators({"image": 1}, flow_unit=0.1)
    motion = model._motion(flow, [18, 19], stride, like=torch.zeros(1, 20, 3, H, W))
    assert motion.shape == (1, 2, 4, H, W)
    expected = torch.tensor([0.5, -0.25, 0.5, -0.25]) * stride / (0.1 * W)
    torch.testing.assert_close(motion, expected[:, None, None].expand_as(motion))


def test_each_flow_belongs_to_its_frames() -> None:
    """Flow t of the window has the value t: triplet 1, 4, 7 gets the flows 2+3+4 and 5+6+7."""
    flow = torch.zeros(1, 9, 2, H, W)
    flow[:, :, 0] = torch.arange(9.0)[:, None, None] / 100
    flow[:, 0] = float("nan")  # the first frame has no flow
    model = discriminators({"image": 1}, flow_unit=1 / W)
    motion = model._motion(flow, [7, 8], 3, like=torch.zeros(1, 9, 3, H, W))
    u = motion[0, :, [0, 2], 0, 0] * 100
    torch.testing.assert_close(u, torch.tensor([[9.0, 18.0], [12.0, 21.0]]))
    assert not motion[:, :, [1, 3]].any()


def test_a_composed_flow_warps_like_its_parts_in_sequence() -> None:
    """A rotation, a pan and a zoom, whose order matters."""
    y, x = torch.meshgrid(torch.arange(H) - H / 2, torch.arange(W) - W / 2, indexing="ij")
    flow = torch.zeros(1, 7, 2, H, W)
    flow[:, 4] = torch.stack([-0.15 * y, 0.15 * x])
    flow[:, 5] = torch.tensor([4.0, -3.0])[:, None, None]
    flow[:, 6] = torch.stack([0.2 * x, 0.2 * y])
    model = discriminators({"image": 1}, flow_unit=1 / W)
    motion = model._motion(flow, [6], 3, like=torch.zeros(1, 7, 3, H, W))
    image = torch.stack([torch.sin(x / 8 + y / 16), torch.cos(y / 8)])[None]
    step_by_step = image
    for t in (4, 5, 6):  # from frame 3 to frame 6, oldest first
        step_by_step = warp(step_by_step, flow[:, t])
    at_once = warp(image, motion[:, 0, 2:])
    assert (step_by_step - at_once)[..., 12:-12, 12:-12].abs().max() < 0.02
    assert (image - at_once)[..., 12:-12, 12:-12].abs().max() > 0.2


@pytest.mark.parametrize("name", ["image", "face"])
def test_each_frame_is_scored_with_its_own_signals(name: str) -> None:
    inputs = scene(4)
    model = discriminators({name: 1}).eval()
    before = discriminate(model, inputs, 2)[name].fake.logits[0]
    for frame, touched in ((0, []), (1, []), (2, [0]), (3, [1])):
        signals = inputs["signals"].clone()
        signals[:, frame] += 1
        after = discriminate(model, inputs | {"signals": signals}, 2)[name].fake.logits[0]
        assert (after != before).flatten(2).any(2).any(0).nonzero().flatten().tolist() == touched


def test_missing_flow_equals_zero_flow() -> None:
    inputs = scene(3)
    model = discriminators({"temporal_1": 1}).eval()
    without = discriminate(model, inputs | {"flow": None}, 1)["temporal_1"].fake.logits[0]
    still = discriminate(model, inputs | {"flow": inputs["flow"] * 0}, 1)["temporal_1"].fake.logits[
        0
    ]
    assert torch.equal(without, still)


# ---------------------------------------------------------------- crops


def test_a_box_at_integer_pixels_is_a_slice() -> None:
    images = torch.randn(2, 5, 32, 64)
    boxes = torch.tensor([[[3.0, 7, 19, 23], [40, 0, 56, 16]], [[48, 16, 64, 32], [0, 1, 16, 17]]])
    crops = crop(images, boxes, 16)
    assert crops.shape == (2, 2, 5, 16, 16)
    for n in range(2):
        for k in range(2):
            x0, y0, x1, y1 = boxes[n, k].int().tolist()
            torch.testing.assert_close(crops[n, k], images[n, :, y0:y1, x0:x1], rtol=0, atol=1e-5)


def test_a_crop_is_scaled_per_axis_and_replicates_the_border() -> None:
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    images = torch.stack([x, y])[None]
    crops = crop(images, torch.tensor([[[10.0, 4, 50, 12], [60, 28, 70, 38]]]), 10)
    torch.testing.assert_close(crops[0, 0, 0, 0], 12 + 4 * torch.arange(10.0))
    torch.testing.assert_close(crops[0, 0, 1, :, 0], 4.4 + 0.8 * torch.arange(10.0))
    assert (crops[0, 1, 0, 0, 4:] == 63.5).all()


def test_the_gradient_of_a_crop_stays_in_its_box() -> None:
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    crop(image, torch.tensor([[[8.0, 4, 24, 12]]]), 16).sum().backward()
    assert image.grad is not None
    # Bilinear sampling reaches half a pixel outside the box.
    inside = torch.zeros(32, 32)
    inside[3:13, 7:25] = 1
    assert (image.grad[0, 0] * (1 - inside)).abs().max() == 0
    assert (image.grad[0, 0, 5:11, 9:23] > 0).all()


@pytest.mark.parametrize("missing", [float("nan"), 0.0])
def test_missing_boxes_have_no_weight_and_no_gradient(missing: float) -> None:
    inputs = scene(2)
    boxes = inputs["boxes"].clone()
    boxes[0, :, 0] = missing  # no face in the first sample; an empty box counts as missing
    fake = inputs["fake"].clone().requires_grad_()
    real = inputs["real"].clone().requires_grad_()
    model = discriminators({"face": 1})
    found = discriminate(model, inputs | {"boxes": boxes, "fake": fake, "real": real}, 2)["face"]
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
    inputs = scene(2)
    boxes = None if none else torch.full_like(inputs["boxes"], float("nan"))
    model = discriminators({"face": 1, "hands": 1})
    hinge(found := discriminate(model, inputs | {"boxes": boxes}, 1)).backward()
    assert not any(o.weight.any() for o in found.values())
    for parameter in model.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_hands_use_boxes_1_and_2() -> None:
    inputs = scene(2)
    model = discriminators({"hands": 1}).eval()
    before = discriminate(model, inputs, 1)["hands"].fake.logits[0]
    for box, touched in ((0, []), (1, [0]), (2, [1])):
        boxes = inputs["boxes"].clone()
        boxes[:, -1, box] += 7
        after = discriminate(model, inputs | {"boxes": boxes}, 1)["hands"].fake.logits[0]
        changed = (after != before).flatten(2).any(2).any(0).nonzero().flatten().tolist()
        assert changed == touched


# ---------------------------------------------------------------- training steps


def test_fake_without_real_gets_the_same_output() -> None:
    inputs = scene(19)
    model = discriminators().eval()
    both, alone = discriminate(model, inputs, 2), discriminate(model, inputs | {"real": None}, 2)
    assert set(both) == set(alone) == set(ALL)
    for name in both:
        assert alone[name].real is None
        assert torch.equal(alone[name].weight, both[name].weight)
        for a, b in zip(tensors(alone[name].fake), tensors(both[name].fake), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_real_and_fake_are_independent() -> None:
    inputs = scene(7)
    model = discriminators(instance_norm=True).eval()
    first = discriminate(model, inputs)
    second = discriminate(model, inputs | {"fake": inputs["fake"] * 0.5})
    for name, output in first.items():
        ours, theirs = output.real, second[name].real
        assert ours is not None and theirs is not None
        for a, b in zip(tensors(ours), tensors(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_samples_are_independent(normed: bool, training: bool) -> None:
    inputs = scene(7)
    other = {n: torch.cat([x[:1], x[1:].flip(-1)]) for n, x in inputs.items() if n != "boxes"}
    outputs = [
        discriminate(discriminators(instance_norm=normed).train(training), inputs | changed)
        for changed in ({}, other)
    ]
    for name in outputs[0]:
        first, second = (tensors(o[name].fake) for o in outputs)
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-5)
            assert not torch.equal(a[1], b[1])


@pytest.mark.parametrize("normed", [True, False])
def test_every_weight_is_trained(normed: bool) -> None:
    model = discriminators(instance_norm=normed)
    inputs = scene(19)
    # No hinge loss here: within its margin the real and fake gradients on the last bias cancel.
    logits = [x for o in discriminate(model, inputs).values() for x in o.fake.logits]
    torch.stack([(1 - x).square().sum() for x in logits]).sum().backward()
    for name, parameter in model.named_parameters():
        if "bias" in name and normed:
            continue  # instance norm removes the bias
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_generator_step_leaves_the_discriminators_unchanged() -> None:
    model = discriminators()
    inputs = scene(7)
    kept = discriminate(model, inputs)
    hinge(kept).backward()
    weights = [
        p.grad.clone() for p in model.discriminators["image"].parameters() if p.grad is not None
    ]
    before = {name: value.clone() for name, value in model.state_dict().items()}

    fake = inputs["fake"].clone().requires_grad_()
    with frozen(model):
        found = with_real(discriminate(model, inputs | {"fake": fake, "real": None}), kept)
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
    # Spectral norm's vectors too: they are updated in the discriminator step only.
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_frozen_restores_the_previous_requires_grad_and_mode() -> None:
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
    model, inputs = discriminators(), scene(19)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = discriminate(model, inputs)
        hinge(found).backward()
        with frozen(model):
            discriminate(model, inputs | {"real": None, "fake": inputs["fake"].bfloat16()})
    assert all(x.isfinite().all() for o in found.values() for x in tensors(o.fake))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_discriminator_separates_bright_from_dark() -> None:
    """Real frames are bright and fake ones dark: the hinge loss falls below 10 %."""
    model = discriminators({"image": 1, "temporal_1": 1})
    inputs = scene(3)
    inputs |= {"real": inputs["real"] / 4 + 0.5, "fake": inputs["fake"] / 4 - 0.5}
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(25):
        loss = hinge(discriminate(model, inputs, 1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_ddp_accepts_steps_with_and_without_boxes(tmp_path: Path) -> None:
    """Discriminator and generator steps alternate under DDP without breaking its gradient sync."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        bare = discriminators({"image": 1, "temporal_1": 1, "face": 1})
        model = torch.nn.parallel.DistributedDataParallel(bare)
        inputs = scene(3)
        for boxes in (inputs["boxes"], None, inputs["boxes"]):
            hinge(discriminate(model, inputs | {"boxes": boxes})).backward()
            fake = inputs["fake"].clone().requires_grad_()
            with frozen(model):
                found = discriminate(bare, inputs | {"boxes": boxes, "fake": fake, "real": None})
            sum(o.fake.logits[0].mean() for o in found.values()).backward()  # type: ignore[union-attr]
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
