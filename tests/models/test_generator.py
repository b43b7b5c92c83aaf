"""The sequential generator: compute budgets, past frames, growing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from v2v.models import build_generator, check_generator
from v2v.models.blocks import double, fold, half
from v2v.models.compositing import weighted_candidates
from v2v.models.cost import multiply_adds
from v2v.models.generator import SequentialGenerator
from v2v.models.generator_settings import (
    DEPARTURE,
    OUTLINE_DEPARTURE,
    PRESETS,
    SURE,
    TRUST,
    Architecture,
)
from v2v.models.subnetworks import Heads
from v2v.types import Condition, GeneratorState
from v2v.warp import dense_motion, moved

TINY = Architecture(stem=16, trunk=32, blocks=2, detail=8, fine=(16,), fine_blocks=1)


def tiny(**traits: Any) -> SequentialGenerator:
    torch.manual_seed(0)
    return SequentialGenerator(
        **{"channels": 3, "arch": TINY, "scales": 1, "compose": "both", **traits}
    )


def condition(
    size: tuple[int, int] = (32, 48), *, batch: int = 2, background_plate: bool = False
) -> Condition:
    return Condition(
        signals=torch.rand(batch, 3, *size) * 2 - 1,
        clip=torch.zeros(batch, dtype=torch.int64),
        background_plate=torch.rand(batch, 4, *size) if background_plate else None,
        style=torch.rand(batch, 3, *size),
    )


def state(like: Condition, *, valid: bool = True) -> GeneratorState:
    """A state of two smooth past frames, or an empty one."""
    found = GeneratorState.empty(like)
    if valid:
        for _ in range(2):
            coarse = torch.rand(like.signals.shape[0], 3, 4, 6)
            frame = torch.nn.functional.interpolate(coarse, like.signals.shape[2:], mode="bilinear")
            found = found.push(like, frame * 2 - 1)
    return found


def perturbed(generator: SequentialGenerator, amount: float = 0.05) -> SequentialGenerator:
    """Add noise to every weight, so that zero-initialised layers take part."""
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter += amount * torch.randn_like(parameter)
    return generator


# ---------------------------------------------------------------- budgets

BUDGETS = {"tiny": (1e9, 2e6), "mobile": (3e9, 5e6), "base": (10e9, 40e6), "large": (40e9, 100e6)}


@pytest.mark.parametrize("channels", [3, 36])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("trait", ["background_plate", "prior"])
def test_presets_keep_their_budgets_at_256(preset: str, channels: int, trait: str) -> None:
    """Signals of 3 channels (pose, face) or 36 (street labels and boundaries), all traits on."""
    references = 2 if channels == 3 else 0  # street scenes have no body parts
    with torch.device("meta"):
        generator = SequentialGenerator(
            channels=channels, arch=PRESETS[preset], scales=2, compose="both", control_points=True,
            references=references, **{trait: True},
        )  # fmt: skip
        inputs = Condition(
            signals=torch.zeros(1, channels, 256, 256),
            background_plate=torch.zeros(1, 4, 256, 256),
            control_points=torch.zeros(1, 157, 3),
            references=torch.zeros(1, references, 5, 256, 256),
        )  # fmt: skip
        macs = multiply_adds(generator, inputs, GeneratorState.empty(inputs))
    limit, parameters = BUDGETS[preset]
    assert 0.5 * limit < macs <= limit, f"{macs / 1e9:.2f} GMACs"
    assert sum(p.numel() for p in generator.parameters()) <= parameters


def test_multiply_adds_of_one_convolution() -> None:
    """One 3x3 convolution of 4 to 8 channels over 16x16: 3 * 3 * 4 * 8 * 256."""

    class OneConvolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 8, 3, padding=1)

        def forward(self, c: Condition, _: GeneratorState) -> Tensor:
            out: Tensor = self.conv(c.signals)
            return out

    inputs = Condition(signals=torch.zeros(1, 4, 16, 16))
    assert multiply_adds(OneConvolution(), inputs, GeneratorState.empty(inputs)) == 9 * 4 * 8 * 256


# ---------------------------------------------------------------- output layer


def test_the_last_layer_produces_no_grid_pattern() -> None:
    """Its weights are shared by all positions, so constant features give a constant image."""
    torch.manual_seed(0)
    heads = Heads(16, 8, 3, flow=False, guided=False, outputs=4, first=True)
    with torch.no_grad():
        heads.last.weight.copy_(torch.randn_like(heads.last.weight))
        even = heads(torch.full((1, 16, 16, 16), 0.3), torch.zeros(()), torch.ones(1, 3, 64, 64))
    inner = even[..., 24:40, 24:40]  # beyond the reach of the padding
    assert inner.std(dim=(0, 2, 3)).max() < 1e-5
    assert inner.abs().max() > 0.1, "the output is zero"


# ---------------------------------------------------------------- past frames


def test_an_empty_state_differs_from_a_black_past() -> None:
    generator, inputs = perturbed(tiny()), condition()
    empty = GeneratorState.empty(inputs)
    black = empty.push(inputs, torch.zeros(2, 3, 32, 48)).push(inputs, torch.zeros(2, 3, 32, 48))
    assert not torch.allclose(generator(inputs, empty).frame, generator(inputs, black).frame)


def test_without_a_past_no_pixel_is_copied() -> None:
    output = perturbed(tiny())(inputs := condition(), state(inputs, valid=False))
    assert torch.equal(output.occlusion, torch.ones_like(output.occlusion))
    assert torch.equal(output.frame, output.synthesised)
    assert torch.equal(output.warped, torch.zeros_like(output.warped))


def test_an_untrained_flow_is_zero_and_keeps_the_past_frame() -> None:
    """Flow heads are initialised with zeros, and zero flow is the identity."""
    output = tiny()(inputs := condition(), past := state(inputs))
    assert torch.equal(output.flow, torch.zeros_like(output.flow))
    torch.testing.assert_close(output.warped, past.frames[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [1, 2])
def test_the_initial_flow_is_the_dense_motion_of_the_control_points(scales: int) -> None:
    generator = tiny(control_points=True, scales=scales)
    inputs = replace(condition(), control_points=torch.tensor([[[20.0, 16.0, 60.0]]] * 2))
    past = replace(
        state(inputs), control_points=inputs.control_points + torch.tensor([4.0, -2.0, 0.0])
    )
    flow = generator(inputs, past).flow
    expected = dense_motion(inputs.control_points, past.control_points, (32, 48))
    assert expected[:, 0].min() > 3
    torch.testing.assert_close(flow, expected, atol=0.02, rtol=0)
    without_past = generator(inputs, GeneratorState.empty(inputs)).flow
    assert torch.equal(without_past, torch.zeros_like(flow))


def test_the_frame_is_composed_as_in_vid2vid() -> None:
    """Equation 4 of arXiv 1808.06601."""
    output = perturbed(tiny(compose="blend"))(inputs := condition(), past := state(inputs))
    warped = moved(past.frames[:, -1], output.flow)
    torch.testing.assert_close(output.warped, warped)
    m = output.occlusion
    torch.testing.assert_close(output.frame, m * output.synthesised + (1 - m) * warped)


def test_blend_and_condition_use_the_warped_frame_in_one_way_only() -> None:
    """Blending has no modulation weights; conditioning has no occlusion mask."""
    assert not any("gamma_beta" in name for name, _ in tiny(compose="blend").named_parameters())
    output = perturbed(tiny(compose="condition"))(inputs := condition(), state(inputs))
    assert output.occlusion is None
    assert torch.equal(output.frame, output.synthesised)


def test_without_composition_the_past_is_an_unwarped_input() -> None:
    generator, inputs = perturbed(tiny(compose="none")), condition()
    output, first = (
        generator(inputs, state(inputs)),
        generator(inputs, GeneratorState.empty(inputs)),
    )
    assert output.flow is None and output.warped is None and output.occlusion is None
    assert not torch.equal(output.frame, first.frame)
    assert not any("flow" in name for name, _ in generator.named_parameters())


def test_past_signals_synthesises_without_past_frames() -> None:
    generator, inputs = perturbed(tiny(compose="blend", past="signals")), condition()
    past = state(inputs)
    one, other = generator(inputs, past), generator(inputs, past.with_frames(-past.frames))
    assert torch.equal(one.synthesised, other.synthesised)
    torch.testing.assert_close(one.warped, -other.warped)
    assert not torch.equal(one.frame, other.frame)
    with pytest.raises(AssertionError, match="compose=none needs past=frames"):
        tiny(compose="none", past="signals")


def test_past_nothing_synthesises_first_and_later_frames_alike() -> None:
    generator, inputs = perturbed(tiny(compose="blend", past="nothing")), condition()
    past = state(inputs)
    later, first = generator(inputs, past), generator(inputs, GeneratorState.empty(inputs))
    assert torch.equal(later.synthesised, first.synthesised)
    assert torch.equal(first.frame, first.synthesised)
    assert not torch.equal(later.frame, later.synthesised)
    other = replace(past, signals=-past.signals)
    assert torch.equal(later.frame, generator(inputs, other).frame)


def test_frame_by_frame_ignores_the_past() -> None:
    generator, inputs = perturbed(tiny(sequential=False)), condition()
    with_past = generator(inputs, state(inputs))
    assert torch.equal(with_past.frame, generator(inputs, GeneratorState.empty(inputs)).frame)
    assert with_past.flow is None


def test_past_signals_are_inputs() -> None:
    generator, inputs = perturbed(tiny()), condition()
    past = state(inputs)
    other = replace(past, signals=-past.signals)
    assert not torch.allclose(generator(inputs, past).frame, generator(inputs, other).frame)


def test_samples_are_independent() -> None:
    generator, inputs = perturbed(tiny()), condition()
    past = state(inputs)
    alone = generator(inputs.map(lambda x: x[:1]), past.map(lambda x: x[:1]))
    torch.testing.assert_close(generator(inputs, past).frame[:1], alone.frame)


# ---------------------------------------------------------------- background plate


def test_the_matte_mixes_warped_frame_and_background_plate() -> None:
    generator = perturbed(tiny(background_plate=True))
    inputs = condition(background_plate=True)
    output = generator(inputs, state(inputs))
    a = output.matte
    past = a * output.warped + (1 - a) * inputs.background_plate[:, :3]
    blended = output.occlusion * output.synthesised + (1 - output.occlusion) * past
    torch.testing.assert_close(output.frame, blended)


# ---------------------------------------------------------------- foreground prior


def test_the_foreground_ignores_past_frames() -> None:
    """Where the matte is 1, the output is the foreground branch, which sees signals only."""
    generator = perturbed(tiny(prior=True))
    with torch.no_grad():
        generator.heads[0].last.bias[-4:] += 1e4  # the matte's four subpixels: all foreground
    inputs = condition()
    past = state(inputs)
    inverted = past.with_frames(-past.frames)
    first, second = generator(inputs, past), generator(inputs, inverted)
    assert torch.equal(first.matte, torch.ones_like(first.matte))
    assert torch.equal(first.synthesised, second.synthesised)
    other = replace(past, signals=-past.signals)
    assert not torch.allclose(first.synthesised, generator(inputs, other).synthesised)


def test_background_plate_and_prior_exclude_each_other() -> None:
    with pytest.raises(AssertionError, match="exclude each other"):
        tiny(background_plate=True, prior=True)


# ---------------------------------------------------------------- style


def test_each_clip_has_its_own_style() -> None:
    generator, inputs = perturbed(tiny(style="clip", clips=2)), condition()
    other = Condition(inputs.signals, clip=torch.ones(2, dtype=torch.int64))
    empty = GeneratorState.empty(inputs)
    assert not torch.allclose(generator(inputs, empty).frame, generator(other, empty).frame)


def test_a_style_is_encoded_from_an_image() -> None:
    generator, inputs = perturbed(tiny(style="encoded")), condition()
    other = Condition(inputs.signals, style=-inputs.style)
    empty = GeneratorState.empty(inputs)
    assert not torch.allclose(generator(inputs, empty).frame, generator(other, empty).frame)


# ---------------------------------------------------------------- growing


def test_doubling_then_halving_is_the_identity() -> None:
    image = torch.rand(2, 5, 12, 7, dtype=torch.float64)
    torch.testing.assert_close(half(double(image)), image)


def test_doubling_is_smooth() -> None:
    """Away from the border a ramp stays a ramp, without block edges."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    steps = double(ramp)[0, 0, :, 4:-4].diff(dim=-1)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.5))


def test_growing_preserves_the_output() -> None:
    """The halved output of a grown generator equals the small generator's: frame and flow."""
    generator = tiny(scales=2)
    for part in (generator.core, generator.heads[0]):  # the parts that the first stage trains
        with torch.no_grad():
            for parameter in part.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    generator = generator.double()
    large = condition((64, 96)).map(lambda x: x.double() if x.is_floating_point() else x)
    past = state(large).map(lambda x: x.double())
    small = large.map(lambda x: half(x) if x.ndim == 4 else x)
    small_past = GeneratorState(
        half(past.frames.flatten(0, 1)).unflatten(0, (2, 2)),
        half(past.signals.flatten(0, 1)).unflatten(0, (2, 2)),
        past.valid,
        past.control_points,
    )
    grown = generator(large, past)
    generator.active = 1
    before = generator(small, small_past)
    inside = (before.synthesised.abs() < 0.9).all(1, keepdim=True).expand_as(before.synthesised)
    assert inside.double().mean() > 0.5, "too many pixels saturate for this test"
    difference = (half(grown.synthesised) - before.synthesised).abs()
    assert difference[inside].quantile(0.98) < 1e-3
    torch.testing.assert_close(half(grown.flow) / 2, before.flow)


def test_newest_and_used_parameters_of_a_scale() -> None:
    generator = tiny(scales=3)
    generator.active = 2
    newest = {id(p) for p in generator.newest()}
    used = {id(p) for p in generator.used()}
    unused = {id(p) for p in [*generator.finer[1].parameters(), *generator.heads[2].parameters()]}
    assert newest < used and not used & unused
    assert newest == {
        id(p) for p in [*generator.finer[0].parameters(), *generator.heads[1].parameters()]
    }
    assert generator.multiple == 16


@pytest.mark.parametrize(
    "traits",
    [
        {}, {"compose": "none"}, {"compose": "condition"}, {"compose": "blend"}, {"past": False},
        {"background_plate": True}, {"prior": True}, {"sequential": False}, {"style": "encoded"},
    ],
)  # fmt: skip
def test_every_weight_gets_a_gradient(traits: dict[str, Any]) -> None:
    generator = perturbed(tiny(scales=2, **traits))
    inputs = condition((32, 48), background_plate=bool(traits.get("background_plate")))
    output = generator(inputs, state(inputs))
    (output.frame.square().mean() + (output.synthesised**2).mean()).backward()
    without_gradient = [
        n for n, p in generator.named_parameters() if p.grad is None or not p.grad.any()
    ]
    assert not without_gradient, without_gradient


def test_indivisible_sizes_fail_an_assertion() -> None:
    inputs = condition((36, 48))
    with pytest.raises(AssertionError, match="divisible by 8"):
        tiny()(inputs, GeneratorState.empty(inputs))


# ---------------------------------------------------------------- references


def reference_candidates(batch: int = 1, count: int = 2, size: int = 32) -> torch.Tensor:
    """[B, K, 5, H, W]: candidate k has the colour k / K everywhere and is valid everywhere."""
    found = torch.zeros(batch, count, 5, size, size)
    found[:, :, :3] = (torch.arange(count) / count)[None, :, None, None, None]
    found[:, :, 3] = 1
    return found


def test_each_pixel_selects_among_the_references():
    references, synthesised = reference_candidates(), torch.full((1, 3, 32, 32), -1.0)
    logits = torch.full((1, 2, 32, 32), -30.0)
    logits[:, 1, :, 16:] = 30
    found = weighted_candidates(synthesised, references, logits, TRUST, 16.0)
    assert found[..., :16] == pytest.approx(-1, abs=1e-3)
    assert found[..., 16:] == pytest.approx(0.5, abs=1e-3)


def test_the_network_cannot_suppress_a_reference_in_the_rendered_pose():
    """Not even with extreme logits for synthesis, whose blur pixel losses reward."""
    references, synthesised = reference_candidates(count=1), torch.full((1, 3, 32, 32), -1.0)
    logits = torch.full((1, 1, 32, 32), -1e4)
    found = weighted_candidates(synthesised, references, logits, TRUST, DEPARTURE)
    minimum = torch.sigmoid(torch.tensor(TRUST - DEPARTURE)).item()
    assert found == pytest.approx(minimum - 1, abs=1e-4)


def test_invalid_reference_pixels_are_synthesised():
    references, synthesised = reference_candidates(), torch.full((1, 3, 32, 32), -1.0)
    references[:, :, 3] = 0
    logits = torch.zeros(1, 2, 32, 32)
    found = weighted_candidates(synthesised, references, logits, TRUST, DEPARTURE)
    assert found == pytest.approx(-1, abs=5e-3)


@pytest.mark.parametrize("motion", ["parts", "dense"])
def test_the_initial_matte_is_the_outline_of_the_references(motion):
    """Even extreme logits move it by at most the outline departure."""
    generator = SequentialGenerator(
        channels=3, arch=PRESETS["mobile"], scales=1, references=2, motion=motion,
        background_plate=True,
        outline=True,
        outline_departure=OUTLINE_DEPARTURE[motion],
    )  # fmt: skip
    references = reference_candidates()
    references[:, :, 3, :, 16:] = 0
    references[:, :, 3, :, :16] = 1
    condition = Condition(
        signals=torch.zeros(1, 3, 32, 32),
        references=references,
        background_plate=torch.zeros(1, 4, 32, 32),
    )

    def render_matte() -> Tensor:
        with torch.no_grad():
            matte = generator(condition, GeneratorState.empty(condition)).matte
        assert matte is not None
        return matte

    matte = render_matte()
    assert matte[..., :16].min() > 0.9 and matte[..., 16:].max() < 0.1
    with torch.no_grad():
        generator.heads[0].last.bias[-1] -= 1e4
    minimum = torch.sigmoid(torch.logit(torch.tensor(SURE)) - OUTLINE_DEPARTURE[motion])
    assert render_matte()[..., :16] == pytest.approx(minimum.item(), abs=1e-4)


def test_earlier_models_keep_their_trust_and_outline():
    """Their records contain neither trust nor outline."""
    common = {
        "channels": 3,
        "preset": "mobile",
        "scales": 1,
        "references": 1,
        "background_plate": True,
    }
    body = build_generator("sequential", **common, motion="parts")
    head = build_generator("sequential", **common, motion="dense")
    assert (body.outline, body.trust, head.outline, head.trust) == (False, 2.0, True, 4.0)
    assert (body.departure, body.outline_departure) == (16.0, 6.0)
    assert (head.departure, head.outline_departure) == (2.0, 1.0)
    check_generator({"name": "sequential", **common, "motion": "parts"})


def test_synthesis_only_excludes_the_references():
    generator = SequentialGenerator(channels=3, arch=PRESETS["mobile"], scales=1, references=2)
    bright = reference_candidates()
    bright[:, :, :3] = 0.9
    condition = Condition(signals=torch.zeros(1, 3, 32, 32), references=bright)
    output = generator(condition, GeneratorState.empty(condition))
    assert output.synthesis_only is not None and output.synthesised is not None
    # An untrained network trusts its references.
    assert (output.synthesised - 0.9).abs().mean() < 0.3 * (
        output.synthesis_only - 0.9
    ).abs().mean()


def test_references_reach_the_frame_at_every_scale():
    generator = SequentialGenerator(channels=3, arch=PRESETS["mobile"], scales=2, references=2)
    condition = Condition(
        signals=torch.zeros(1, 3, 64, 64), references=reference_candidates(size=64)
    )
    for active in (1, 2):
        generator.active = active
        output = generator(condition, GeneratorState.empty(condition))
        assert output.frame.shape == (1, 3, 64, 64)
        other = replace(condition, references=torch.zeros(1, 2, 5, 64, 64))
        assert not torch.equal(output.frame, generator(other, GeneratorState.empty(other)).frame)
    with pytest.raises(AssertionError, match="references"):
        generator(replace(condition, references=None), GeneratorState.empty(condition))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_folding_is_pixel_unshuffle(layout: torch.memory_format) -> None:
    image = torch.rand(2, 5, 24, 32).to(memory_format=layout).requires_grad_()
    truth = torch.nn.functional.pixel_unshuffle(image, 4)
    found = fold(image, 4)
    assert torch.equal(found, truth)
    weights = torch.rand_like(truth)
    gradients = [torch.autograd.grad((x * weights).sum(), image)[0] for x in (truth, found)]
    assert torch.equal(*gradients)
