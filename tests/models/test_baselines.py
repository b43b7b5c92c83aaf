"""The baselines: any frame size, samples independent of their batch, each paper's main idea."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from v2v.errors import UnknownName
from v2v.models.baselines import BASELINES, build_baseline
from v2v.models.baselines.pix2pix import Pix2Pix
from v2v.models.baselines.pix2pixhd import (
    FeatureEncoder,
    Pix2PixHD,
    cluster_features,
    instance_mean,
    pick_features,
)
from v2v.models.baselines.spade import Spade, SpadeStyleEncoder, SpatialModulation, kl_divergence
from v2v.types import Batch, Condition, GeneratorOutput, GeneratorState

C = 5

SMALL: dict[str, Callable[[], nn.Module]] = {
    "pix2pix": lambda: Pix2Pix(channels=C, width=6, width_max=12, depth=6),
    "pix2pixhd": lambda: Pix2PixHD(
        channels=C, width=6, downs=3, blocks=2, enhancers=0, features=3, encoder=3
    ),
    "pix2pixhd with enhancer": lambda: Pix2PixHD(
        channels=C, width=8, downs=3, blocks=2, enhancers=1, features=3, encoder=3
    ),
    "spade": lambda: Spade(channels=C, width=2, hidden=4, latent=8, encoder=4, side=16),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return SMALL[request.param]()


def condition(height: int = 64, width: int = 112, batch: int = 2, seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (batch, 1, 4, 4), generator=generator).float()
    return Condition(
        signals=torch.rand(batch, C, height, width, generator=generator),
        style=torch.rand(batch, 3, height, width, generator=generator) * 2 - 1,
        instances=nn.functional.interpolate(ids, (height, width)).long(),
    )


def render(generator: nn.Module, inputs: Condition) -> GeneratorOutput:
    output = generator(inputs, GeneratorState.empty(inputs))
    assert isinstance(output, GeneratorOutput)
    return output


# ---------------------------------------------------------------- all baselines


@pytest.mark.parametrize("size", [(64, 112), (48, 16), (80, 64), (16, 16), (37, 51)])
@pytest.mark.parametrize("training", [True, False])
def test_the_output_frame_has_the_size_of_the_signals(
    small: nn.Module, size: tuple[int, int], training: bool
) -> None:
    output = render(small.train(training), condition(*size))
    assert output.frame.shape == (2, 3, *size)
    assert output.frame.isfinite().all()
    assert output.frame.min() >= -1 and output.frame.max() <= 1
    assert output.frame.std() > 0


def test_the_gradient_reaches_every_parameter(small: nn.Module) -> None:
    inputs = condition()
    output = render(small.train(), inputs)
    loss = (output.frame - inputs.style).square().mean()
    if output.auxiliary is not None:
        assert output.auxiliary.shape == ()
        loss = loss + output.auxiliary
    loss.backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("training", [True, False])
def test_a_frame_does_not_depend_on_its_batch(small: nn.Module, training: bool) -> None:
    inputs, other = condition(), condition(seed=1)
    mixed = Condition(
        **{n: torch.cat([getattr(inputs, n)[:1], getattr(other, n)[1:]])
           for n in ("signals", "style", "instances")}
    )  # fmt: skip
    weights = {n: v.clone() for n, v in small.state_dict().items()}
    frames = []
    for one in (inputs, mixed):
        small.load_state_dict(weights)  # spectral norm iterates in training
        torch.manual_seed(0)  # dropout, and the sample of the style
        frames.append(render(small.train(training), one).frame)
    torch.testing.assert_close(frames[0][0], frames[1][0], rtol=0, atol=1e-5)
    assert (frames[0][1] - frames[1][1]).abs().max() > 1e-3


def test_evaluation_is_deterministic_and_ignores_the_state(
    small: nn.Module,
) -> None:
    small.eval()
    inputs = condition()
    state = GeneratorState.empty(inputs).push(inputs, inputs.style)  # type: ignore[arg-type]
    assert torch.equal(small(inputs, state).frame, render(small, inputs).frame)


def test_the_frame_depends_on_the_signals(small: nn.Module) -> None:
    small.eval()
    frames = [render(small, Condition(signals=condition(seed=s).signals)).frame for s in (0, 1)]
    assert (frames[0] - frames[1]).abs().mean() > 1e-3


@pytest.mark.parametrize("name", BASELINES)
def test_half_precision(name: str) -> None:
    torch.manual_seed(0)
    generator = SMALL[name]().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = render(generator, condition())
    assert output.frame.isfinite().all()
    output.frame.float().mean().backward()


@pytest.mark.parametrize(("preset", "budget"), [("mobile", 3.0), ("base", 10.0), ("large", 40.0)])
@pytest.mark.parametrize("name", BASELINES)
def test_presets_keep_to_their_budgets(name: str, preset: str, budget: float) -> None:
    """Counted on the meta device: GMACs of a 256x256 frame from 8 signal channels."""
    with torch.device("meta"):
        generator = build_baseline(name, channels=8, preset=preset, scales=2).eval()
        inputs = Condition(signals=torch.zeros(1, 8, 256, 256))
        with FlopCounterMode(display=False) as counter:
            render(generator, inputs)
    macs = counter.get_total_flops() / 2e9
    assert 0.05 * budget < macs <= budget
    if preset == "mobile":
        assert sum(p.numel() for p in generator.parameters()) <= 5e6


def test_the_published_sizes() -> None:
    """Parameter counts of the papers' code, without norms and style encoder."""
    expected = {"pix2pix": 54.4e6, "pix2pixhd": 183e6, "spade": 93e6}
    with torch.device("meta"):
        for name, count in expected.items():
            generator = build_baseline(name, channels=3, preset="paper")
            named = generator.named_parameters()
            parts = [p for n, p in named if not n.startswith(("encoder", "layout"))]
            assert sum(p.numel() for p in parts) == pytest.approx(count, rel=0.03), name


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UnknownName, match="spada") as caught:
        build_baseline("spada", channels=3, preset="mobile")
    assert "spade" in str(caught.value.hint)
    for name in BASELINES:
        with pytest.raises(UnknownName, match="moble"):
            build_baseline(name, channels=3, preset="moble")


def test_only_pix2pixhd_uses_the_target() -> None:
    assert {n for n, kind in BASELINES.items() if kind.wants_target} == {"pix2pixhd"}


# ---------------------------------------------------------------- pix2pix


def test_fine_detail_goes_through_the_outermost_skip() -> None:
    """With the level below zeroed, the outermost skip alone reaches the frame."""
    model = Pix2Pix(channels=C, width=6, width_max=12, depth=4).eval()
    outermost = model.up[-1].conv
    with torch.no_grad():
        outermost.weight[: model.up[-2].conv.out_channels] = 0
    signals = torch.rand(1, C, 32, 32, requires_grad=True)
    frame = render(model, Condition(signals=signals)).frame
    frame[0, :, 16, 16].sum().backward()
    assert signals.grad is not None and signals.grad.any()
    rows, columns = signals.grad[0].abs().sum(0).nonzero().unbind(1)
    # A 4x4 convolution down and one up affect a span of at most six pixels.
    assert rows.max() - rows.min() < 6 and columns.max() - columns.min() < 6


@pytest.mark.parametrize("level", range(5))
def test_every_skip_is_used(level: int) -> None:
    torch.manual_seed(0)
    model = Pix2Pix(channels=C, width=6, width_max=12, depth=5).eval()
    inputs = Condition(signals=condition().signals)
    before = render(model, inputs).frame
    up = model.up[len(model.up) - 1 - level].conv
    own = model.down[level].conv.out_channels
    with torch.no_grad():
        up.weight[-own:] = 0
    assert not torch.equal(render(model, inputs).frame, before)


def test_dropout_is_active_in_training_only() -> None:
    model = SMALL["pix2pix"]()
    inputs = condition()
    model.train()
    assert not torch.equal(render(model, inputs).frame, render(model, inputs).frame)
    model.eval()
    assert torch.equal(render(model, inputs).frame, render(model, inputs).frame)
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.5, 0.5, 0.5, 0, 0, 0]


# ---------------------------------------------------------------- pix2pixHD


def test_instance_mean_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2, 3], [4, 5, 6]]], [[[0.0, 10, 20], [30, 40, 50]]]])
    features = torch.cat([features, -2 * features], dim=1)
    ids = torch.tensor([[[[7, 7, 26001], [7, 26001, 26001]]], [[[7, 0, 7], [0, 0, -1]]]])
    expected = torch.tensor(
        [
            [[7 / 3, 7 / 3, 14 / 3], [7 / 3, 14 / 3, 14 / 3]],
            [[10.0, 80 / 3, 10], [80 / 3, 80 / 3, 50]],
        ]
    )
    found = instance_mean(features, ids)
    torch.testing.assert_close(found, torch.stack([expected, -2 * expected], dim=1))


def test_instance_mean_is_constant_per_instance_and_spreads_its_gradient() -> None:
    inputs = condition()
    assert inputs.instances is not None
    features = torch.randn(2, 3, 64, 112, requires_grad=True)
    found = instance_mean(features, inputs.instances)
    for b in range(2):
        for number in inputs.instances[b].unique():
            here = inputs.instances[b, 0] == number
            assert (found[b][:, here] == found[b][:, here][:, :1]).all()
            torch.testing.assert_close(
                found[b][:, here][:, 0], features[b][:, here].mean(1), rtol=1e-4, atol=1e-5
            )
    found[0, 0, 0, 0].backward()
    assert features.grad is not None
    here = inputs.instances[0, 0] == inputs.instances[0, 0, 0, 0]
    assert torch.equal(features.grad[0, 0] > 0, here)
    torch.testing.assert_close(features.grad[0, 0][here].sum(), torch.ones(()))
    assert not features.grad[1].any()


def test_without_instances_the_frame_is_one_instance() -> None:
    encoder = FeatureEncoder(3, width=4, downs=2)
    image = torch.rand(2, 3, 32, 48)
    whole = encoder(image, None)
    assert whole.shape == (2, 3, 32, 48)
    torch.testing.assert_close(whole, encoder(image, torch.zeros(2, 1, 32, 48, dtype=torch.int64)))


def test_features_come_from_the_real_frame_in_training_only() -> None:
    model = SMALL["pix2pixhd"]()
    inputs = condition()
    other = Condition(inputs.signals, style=-inputs.style, instances=inputs.instances)  # type: ignore[operator]
    bare = Condition(inputs.signals)
    zeros = Condition(inputs.signals, features=torch.zeros(2, 3, 64, 112))
    ones = Condition(inputs.signals, features=torch.ones(2, 3, 64, 112), style=inputs.style)

    def same(a: Condition, b: Condition) -> bool:
        return torch.equal(render(model, a).frame, render(model, b).frame)

    model.train()
    assert not same(inputs, other) and not same(inputs, bare)
    model.eval()
    assert same(inputs, other) and same(inputs, bare) and same(bare, zeros)
    assert not same(ones, bare)
    model.train()
    assert not same(ones, inputs)  # given features override the encoded ones


class MeanColourEncoder(FeatureEncoder):
    """An encoder with a known output: the mean colour of each instance."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, image: Tensor, instances: Tensor | None) -> Tensor:
        assert instances is not None
        return instance_mean(image, instances)


def coloured_batch(
    palettes: dict[int, list[list[float]]], batch: int = 6, length: int = 4
) -> Batch:
    """Rows of 4x4 blocks, one class per row; each block is near a colour of its class."""
    generator = np.random.default_rng(0)
    frames = np.zeros((batch, length, 3, 16, 16), np.float32)
    ids = np.zeros((batch, length, 1, 16, 16), np.int64)
    for b in range(batch):
        for t in range(length):
            for row, kind in enumerate(palettes):
                for block in range(4):
                    place = (b, t, slice(None), slice(4 * row, 4 * row + 4),
                             slice(4 * block, 4 * block + 4))  # fmt: skip
                    colour = palettes[kind][generator.integers(len(palettes[kind]))]
                    frames[place] = (np.array(colour) + generator.normal(0, 0.01, 3))[:, None, None]
                    ids[place] = kind * 1000 + block if kind >= 24 else kind
                    if kind < 24:
                        frames[place] = np.array(palettes[kind][0])[:, None, None]
    shape = torch.from_numpy(frames)
    return Batch(
        frames=shape, signals=shape, clip=torch.zeros(batch, dtype=torch.int64),
        instances=torch.from_numpy(ids),
    )  # fmt: skip


PALETTES = {
    26: [[0.8, 0.0, 0.0], [-0.8, 0.5, 0.0], [0.0, -0.9, 0.9]],
    24: [[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]],
    7: [[0.1, 0.2, 0.3]],
    11: [[-0.3, 0.2, 0.1]],
}


def test_k_means_finds_the_colours_of_each_class() -> None:
    for kind, colours in PALETTES.items():
        found = cluster_features(
            MeanColourEncoder(), [coloured_batch(PALETTES)], clusters=len(colours)
        )
        assert set(found) == set(PALETTES)
        centres = found[kind]
        assert centres.dtype == np.float32 and centres.shape == (len(colours), 3)
        for colour in colours:
            assert np.abs(centres - np.array(colour)).max(1).min() < 0.02
    # A background class has one colour and so one cluster, however many are requested.
    ten = cluster_features(MeanColourEncoder(), iter([coloured_batch(PALETTES)]), clusters=10)
    assert {kind: len(centres) for kind, centres in ten.items()} == {26: 10, 24: 10, 7: 1, 11: 1}


def test_k_means_is_reproducible() -> None:
    batch = coloured_batch(PALETTES)
    first = cluster_features(MeanColourEncoder(), [batch], clusters=4, seed=5)
    cv2.setRNGSeed(99)
    second = cluster_features(MeanColourEncoder(), [batch], clusters=4, seed=5)
    for kind, centres in first.items():
        assert np.array_equal(centres, second[kind])


def test_an_instance_keeps_its_picked_features() -> None:
    clusters = {
        26: np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
        7: np.array([[0.5, 0.5, 0.5]], np.float32),
    }
    ids = torch.tensor([26000, 26001, 26002, 26003, 7, 99]).reshape(1, 1, 2, 3)
    first = pick_features(clusters, ids, seed=0)
    assert first.shape == (1, 3, 2, 3) and first.dtype == torch.float32
    assert first[0, :, 1, 1].tolist() == [0.5, 0.5, 0.5]
    assert not first[0, :, 1, 2].any()  # class 99 has no clusters
    assert ((first[0, :, 0] == 0) | (first[0, :, 0] == 1)).all() and (
        first[0, :, 0].sum(0) == 1
    ).all()
    # Elsewhere in the frame, in a later frame, beside other instances: the same features.
    later = pick_features(clusters, ids.flip(-1)[..., :2], seed=0)
    assert torch.equal(later, first.flip(-1)[..., :2])
    many = torch.arange(26000, 26200).reshape(1, 1, 10, 20)
    picked = pick_features(clusters, many, seed=0)
    assert picked.sum((0, 2, 3)).min() > 40  # all three are picked
    assert not torch.equal(picked, pick_features(clusters, many, seed=1))


def test_picked_features_are_rendered() -> None:
    model = SMALL["pix2pixhd"]().eval()
    inputs = condition()
    assert inputs.instances is not None
    clusters = {kind: np.full((1, 3), kind - 1, np.float32) for kind in range(3)}
    features = pick_features(clusters, inputs.instances, seed=0)
    frame = render(model, Condition(inputs.signals, features=features)).frame
    assert not torch.equal(frame, render(model, Condition(inputs.signals)).frame)


# ---------------------------------------------------------------- SPADE


def test_kl_divergence_by_hand() -> None:
    zeros = torch.zeros(3, 5)
    assert kl_divergence(zeros, zeros) == 0
    torch.testing.assert_close(kl_divergence(zeros + 2, zeros), torch.tensor(5 * 2.0))
    variance = torch.tensor([[4.0, 0.25]])
    expected = (4 - 1 - np.log(4) + 0.25 - 1 - np.log(0.25)) / 2
    assert kl_divergence(zeros[:1, :2], variance.log()).item() == pytest.approx(expected)
    # It agrees with torch's divergence, averaged over the samples.
    mean, log_variance = torch.randn(4, 6), torch.randn(4, 6)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    reference = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1))
    torch.testing.assert_close(kl_divergence(mean, log_variance), reference.sum(1).mean())


def test_modulation_is_equation_1() -> None:
    torch.manual_seed(0)
    modulation = SpatialModulation(4, channels=2, hidden=3)
    x, signals = torch.randn(2, 4, 8, 9) * 3 + 1, torch.rand(2, 2, 8, 9)
    for conv in (modulation.gamma, modulation.beta):
        nn.init.zeros_(conv.weight)
    nn.init.constant_(modulation.gamma.bias, 0.5)  # type: ignore[arg-type]
    nn.init.constant_(modulation.beta.bias, -2)  # type: ignore[arg-type]
    found = modulation(x, signals)
    torch.testing.assert_close(found.mean((2, 3)), torch.full((2, 4), -2.0), rtol=0, atol=1e-4)
    spread = found.var((2, 3), unbiased=False).sqrt()
    torch.testing.assert_close(spread, torch.full((2, 4), 1.5), rtol=1e-3, atol=0)


def test_the_style_is_sampled_in_training_and_is_the_mean_at_evaluation() -> None:
    torch.manual_seed(0)
    model = SMALL["spade"]()
    inputs = condition()
    bare = Condition(inputs.signals)

    model.train()
    first, second = render(model, inputs), render(model, inputs)
    assert not torch.equal(first.frame, second.frame)
    assert first.auxiliary is not None and first.auxiliary > 0

    model.eval()
    styled = render(model, inputs)
    other = render(model, Condition(inputs.signals, style=-inputs.style))  # type: ignore[operator]
    assert (styled.frame - other.frame).abs().max() > 1e-4
    assert styled.auxiliary == 0
    assert torch.equal(render(model, bare).frame, render(model, bare).frame)
    assert render(model, bare).auxiliary == 0


def test_the_style_sample_has_the_encoders_mean_and_variance() -> None:
    torch.manual_seed(0)
    model: Any = Spade(channels=C, width=1, hidden=2, latent=64, encoder=2, side=16).train()
    nn.init.zeros_(model.encoder.out.weight)
    with torch.no_grad():
        model.encoder.out.bias[:64] = 5
        model.encoder.out.bias[64:] = np.log(9)
    code, divergence = model._style(condition(16, 16, batch=64))
    assert code.mean().item() == pytest.approx(5, abs=0.2)
    assert code.std().item() == pytest.approx(3, rel=0.05)
    assert divergence.item() == pytest.approx(64 * (25 + 9 - 1 - np.log(9)) / 2, rel=1e-4)


def test_the_encoder_takes_any_size() -> None:
    encoder = SpadeStyleEncoder(width=4, latent=8, side=32)
    for size in ((64, 112), (20, 16), (200, 100)):
        mean, log_variance = encoder(torch.rand(2, 3, *size))
        assert mean.shape == log_variance.shape == (2, 8)
    with pytest.raises(AssertionError, match="side 48"):
        SpadeStyleEncoder(width=4, latent=8, side=48)


def test_conditions_shape_every_scale() -> None:
    """Distant signals reach a pixel: the coarse blocks see the whole frame."""
    torch.manual_seed(0)
    model: Any = SMALL["spade"]().eval()
    signals = torch.rand(1, C, 64, 64, requires_grad=True)
    render(model, Condition(signals)).frame[0, :, 0, 0].sum().backward()
    assert signals.grad is not None and signals.grad[..., 48:, 48:].any()
    sizes = []
    for block in model.blocks:
        block.norm_0.register_forward_hook(
            lambda _m, inputs, _o: sizes.append(inputs[1].shape[-2:])
        )
    render(model, condition(64, 112))
    sides = [(2, 4), (4, 7), (4, 7), (8, 14), (16, 28), (32, 56), (64, 112)]
    assert [tuple(s) for s in sizes] == sides
