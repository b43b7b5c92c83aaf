"""The baselines: any size, no look at the rest of the batch, and what each paper is about."""

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


def render(generator: nn.Module, given: Condition) -> GeneratorOutput:
    output = generator(given, GeneratorState.empty(given))
    assert isinstance(output, GeneratorOutput)
    return output


# ---------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("size", [(64, 112), (48, 16), (80, 64), (16, 16), (37, 51)])
@pytest.mark.parametrize("training", [True, False])
def test_any_size_becomes_a_frame_of_that_size(
    small: nn.Module, size: tuple[int, int], training: bool
) -> None:
    output = render(small.train(training), condition(*size))
    assert output.frame.shape == (2, 3, *size)
    assert output.frame.isfinite().all()
    assert output.frame.min() >= -1 and output.frame.max() <= 1
    assert output.frame.std() > 0


def test_the_gradient_reaches_every_parameter(small: nn.Module) -> None:
    given = condition()
    output = render(small.train(), given)
    loss = (output.frame - given.style).square().mean()
    if output.auxiliary is not None:
        assert output.auxiliary.shape == ()
        loss = loss + output.auxiliary
    loss.backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("training", [True, False])
def test_a_frame_does_not_depend_on_its_batch(small: nn.Module, training: bool) -> None:
    given, other = condition(), condition(seed=1)
    mixed = Condition(
        **{n: torch.cat([getattr(given, n)[:1], getattr(other, n)[1:]])
           for n in ("signals", "style", "instances")}
    )  # fmt: skip
    weights = {n: v.clone() for n, v in small.state_dict().items()}
    frames = []
    for one in (given, mixed):
        small.load_state_dict(weights)  # spectral norm iterates in training
        torch.manual_seed(0)  # dropout, and the sample of the style
        frames.append(render(small.train(training), one).frame)
    torch.testing.assert_close(frames[0][0], frames[1][0], rtol=0, atol=1e-5)
    assert (frames[0][1] - frames[1][1]).abs().max() > 1e-3


def test_at_test_a_frame_is_the_same_again_and_the_state_is_not_looked_at(
    small: nn.Module,
) -> None:
    small.eval()
    given = condition()
    state = GeneratorState.empty(given).push(given, given.style)  # type: ignore[arg-type]
    assert torch.equal(small(given, state).frame, render(small, given).frame)


def test_the_signals_decide_what_is_drawn(small: nn.Module) -> None:
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
    """Counted without computing: GMACs of a 256x256 frame from 8 channels of signals."""
    with torch.device("meta"):
        generator = build_baseline(name, channels=8, preset=preset, scales=2).eval()
        given = Condition(signals=torch.zeros(1, 8, 256, 256))
        with FlopCounterMode(display=False) as counter:
            render(generator, given)
    macs = counter.get_total_flops() / 2e9
    assert 0.05 * budget < macs <= budget
    if preset == "mobile":
        assert sum(p.numel() for p in generator.parameters()) <= 5e6


def test_the_published_sizes() -> None:
    """Parameters as the papers' code has them, but for norms and style."""
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


def test_which_want_the_target() -> None:
    assert {n for n, kind in BASELINES.items() if kind.wants_target} == {"pix2pixhd"}


# ---------------------------------------------------------------- pix2pix


def test_fine_detail_goes_through_the_outermost_skip() -> None:
    """With the level below silenced, what the frame shows came through the skip alone."""
    model = Pix2Pix(channels=C, width=6, width_max=12, depth=4).eval()
    outermost = model.up[-1].conv
    with torch.no_grad():
        outermost.weight[: model.up[-2].conv.out_channels] = 0
    signals = torch.rand(1, C, 32, 32, requires_grad=True)
    frame = render(model, Condition(signals=signals)).frame
    frame[0, :, 16, 16].sum().backward()
    assert signals.grad is not None and signals.grad.any()
    rows, columns = signals.grad[0].abs().sum(0).nonzero().unbind(1)
    # Down by 4x4 and up by 4x4 see six pixels around.
    assert rows.max() - rows.min() < 6 and columns.max() - columns.min() < 6


@pytest.mark.parametrize("level", range(5))
def test_every_skip_is_used(level: int) -> None:
    torch.manual_seed(0)
    model = Pix2Pix(channels=C, width=6, width_max=12, depth=5).eval()
    given = Condition(signals=condition().signals)
    before = render(model, given).frame
    up = model.up[len(model.up) - 1 - level].conv
    own = model.down[level].conv.out_channels
    with torch.no_grad():
        up.weight[-own:] = 0
    assert not torch.equal(render(model, given).frame, before)


def test_dropout_is_the_noise_of_training_and_not_of_video() -> None:
    model = SMALL["pix2pix"]()
    given = condition()
    model.train()
    assert not torch.equal(render(model, given).frame, render(model, given).frame)
    model.eval()
    assert torch.equal(render(model, given).frame, render(model, given).frame)
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


def test_instance_mean_is_constant_inside_and_shares_its_gradient() -> None:
    given = condition()
    assert given.instances is not None
    features = torch.randn(2, 3, 64, 112, requires_grad=True)
    found = instance_mean(features, given.instances)
    for b in range(2):
        for number in given.instances[b].unique():
            here = given.instances[b, 0] == number
            assert (found[b][:, here] == found[b][:, here][:, :1]).all()
            torch.testing.assert_close(
                found[b][:, here][:, 0], features[b][:, here].mean(1), rtol=1e-4, atol=1e-5
            )
    found[0, 0, 0, 0].backward()
    assert features.grad is not None
    here = given.instances[0, 0] == given.instances[0, 0, 0, 0]
    assert torch.equal(features.grad[0, 0] > 0, here)
    torch.testing.assert_close(features.grad[0, 0][here].sum(), torch.ones(()))
    assert not features.grad[1].any()


def test_without_instances_the_picture_is_one() -> None:
    encoder = FeatureEncoder(3, width=4, downs=2)
    image = torch.rand(2, 3, 32, 48)
    whole = encoder(image, None)
    assert whole.shape == (2, 3, 32, 48)
    torch.testing.assert_close(whole, encoder(image, torch.zeros(2, 1, 32, 48, dtype=torch.int64)))


def test_features_come_from_the_real_frame_in_training_only() -> None:
    model = SMALL["pix2pixhd"]()
    given = condition()
    other = Condition(given.signals, style=-given.style, instances=given.instances)  # type: ignore[operator]
    bare = Condition(given.signals)
    zeros = Condition(given.signals, features=torch.zeros(2, 3, 64, 112))
    ones = Condition(given.signals, features=torch.ones(2, 3, 64, 112), style=given.style)

    def same(a: Condition, b: Condition) -> bool:
        return torch.equal(render(model, a).frame, render(model, b).frame)

    model.train()
    assert not same(given, other) and not same(given, bare)
    model.eval()
    assert same(given, other) and same(given, bare) and same(bare, zeros)
    assert not same(ones, bare)
    model.train()
    assert not same(ones, given)  # features that are given count more


class Colours(FeatureEncoder):
    """An encoder whose answer is known: the mean colour."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, image: Tensor, instances: Tensor | None) -> Tensor:
        assert instances is not None
        return instance_mean(image, instances)


def colourful(looks: dict[int, list[list[float]]], batch: int = 6, length: int = 4) -> Batch:
    """Each pixel row of blocks an instance, near one of its class's colours."""
    generator = np.random.default_rng(0)
    frames = np.zeros((batch, length, 3, 16, 16), np.float32)
    ids = np.zeros((batch, length, 1, 16, 16), np.int64)
    for b in range(batch):
        for t in range(length):
            for row, kind in enumerate(looks):
                for block in range(4):
                    place = (b, t, slice(None), slice(4 * row, 4 * row + 4),
                             slice(4 * block, 4 * block + 4))  # fmt: skip
                    colour = looks[kind][generator.integers(len(looks[kind]))]
                    frames[place] = (np.array(colour) + generator.normal(0, 0.01, 3))[:, None, None]
                    ids[place] = kind * 1000 + block if kind >= 24 else kind
                    if kind < 24:
                        frames[place] = np.array(looks[kind][0])[:, None, None]
    shape = torch.from_numpy(frames)
    return Batch(
        frames=shape, signals=shape, clip=torch.zeros(batch, dtype=torch.int64),
        instances=torch.from_numpy(ids),
    )  # fmt: skip


LOOKS = {
    26: [[0.8, 0.0, 0.0], [-0.8, 0.5, 0.0], [0.0, -0.9, 0.9]],
    24: [[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]],
    7: [[0.1, 0.2, 0.3]],
    11: [[-0.3, 0.2, 0.1]],
}


def test_k_means_finds_the_looks_of_each_class() -> None:
    for kind, colours in LOOKS.items():
        found = cluster_features(Colours(), [colourful(LOOKS)], clusters=len(colours))
        assert set(found) == set(LOOKS)
        centres = found[kind]
        assert centres.dtype == np.float32 and centres.shape == (len(colours), 3)
        for colour in colours:
            assert np.abs(centres - np.array(colour)).max(1).min() < 0.02
    # The background has one look, and so one cluster, however many were asked for.
    ten = cluster_features(Colours(), iter([colourful(LOOKS)]), clusters=10)
    assert {kind: len(centres) for kind, centres in ten.items()} == {26: 10, 24: 10, 7: 1, 11: 1}


def test_k_means_is_the_same_again() -> None:
    batch = colourful(LOOKS)
    first = cluster_features(Colours(), [batch], clusters=4, seed=5)
    cv2.setRNGSeed(99)
    second = cluster_features(Colours(), [batch], clusters=4, seed=5)
    for kind, centres in first.items():
        assert np.array_equal(centres, second[kind])


def test_an_instance_keeps_the_look_that_was_picked() -> None:
    clusters = {
        26: np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32),
        7: np.array([[0.5, 0.5, 0.5]], np.float32),
    }
    ids = torch.tensor([26000, 26001, 26002, 26003, 7, 99]).reshape(1, 1, 2, 3)
    first = pick_features(clusters, ids, seed=0)
    assert first.shape == (1, 3, 2, 3) and first.dtype == torch.float32
    assert first[0, :, 1, 1].tolist() == [0.5, 0.5, 0.5]
    assert not first[0, :, 1, 2].any()  # of class 99 nothing is known
    assert ((first[0, :, 0] == 0) | (first[0, :, 0] == 1)).all() and (
        first[0, :, 0].sum(0) == 1
    ).all()
    # Elsewhere in the picture, in a later frame, beside others: the same look.
    later = pick_features(clusters, ids.flip(-1)[..., :2], seed=0)
    assert torch.equal(later, first.flip(-1)[..., :2])
    many = torch.arange(26000, 26200).reshape(1, 1, 10, 20)
    picked = pick_features(clusters, many, seed=0)
    assert picked.sum((0, 2, 3)).min() > 40  # all three are picked
    assert not torch.equal(picked, pick_features(clusters, many, seed=1))


def test_picked_features_are_rendered() -> None:
    model = SMALL["pix2pixhd"]().eval()
    given = condition()
    assert given.instances is not None
    clusters = {kind: np.full((1, 3), kind - 1, np.float32) for kind in range(3)}
    features = pick_features(clusters, given.instances, seed=0)
    frame = render(model, Condition(given.signals, features=features)).frame
    assert not torch.equal(frame, render(model, Condition(given.signals)).frame)


# ---------------------------------------------------------------- SPADE


def test_kl_divergence_by_hand() -> None:
    zeros = torch.zeros(3, 5)
    assert kl_divergence(zeros, zeros) == 0
    torch.testing.assert_close(kl_divergence(zeros + 2, zeros), torch.tensor(5 * 2.0))
    variance = torch.tensor([[4.0, 0.25]])
    expected = (4 - 1 - np.log(4) + 0.25 - 1 - np.log(0.25)) / 2
    assert kl_divergence(zeros[:1, :2], variance.log()).item() == pytest.approx(expected)
    # Against torch's own, and the mean over the samples.
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


def test_the_style_is_sampled_in_training_and_the_mean_at_test() -> None:
    torch.manual_seed(0)
    model = SMALL["spade"]()
    given = condition()
    bare = Condition(given.signals)

    model.train()
    first, second = render(model, given), render(model, given)
    assert not torch.equal(first.frame, second.frame)
    assert first.auxiliary is not None and first.auxiliary > 0

    model.eval()
    styled = render(model, given)
    other = render(model, Condition(given.signals, style=-given.style))  # type: ignore[operator]
    assert (styled.frame - other.frame).abs().max() > 1e-4
    assert styled.auxiliary == 0
    assert torch.equal(render(model, bare).frame, render(model, bare).frame)
    assert render(model, bare).auxiliary == 0


def test_the_sample_has_the_spread_that_the_encoder_says() -> None:
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
    """A signal far away from a pixel reaches it: the coarse blocks see the whole picture."""
    torch.manual_seed(0)
    model: Any = SMALL["spade"]().eval()
    signals = torch.rand(1, C, 64, 64, requires_grad=True)
    render(model, Condition(signals)).frame[0, :, 0, 0].sum().backward()
    assert signals.grad is not None and signals.grad[..., 48:, 48:].any()
    seen = []
    for block in model.blocks:
        block.norm_0.register_forward_hook(lambda _m, given, _o: seen.append(given[1].shape[-2:]))
    render(model, condition(64, 112))
    sides = [(2, 4), (4, 7), (4, 7), (8, 14), (16, 28), (32, 56), (64, 112)]
    assert [tuple(s) for s in seen] == sides
