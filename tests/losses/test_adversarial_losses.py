"""Adversarial losses compared with hand-computed values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from v2v.errors import UnknownName
from v2v.losses import (
    AdversarialKind,
    discriminator_loss,
    feature_matching,
    generator_loss,
)

KINDS: tuple[AdversarialKind, ...] = ("hinge", "least_squares")


def flat(*values: float, size: int = 3) -> list[Tensor]:
    """One constant logit map for each value, each scale of another size."""
    return [torch.full((2, 1, size + i, size), v) for i, v in enumerate(values)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- known values


@pytest.mark.parametrize(
    ("kind", "real", "fake", "expected"),
    [
        ("hinge", 1.0, -1.0, 0.0),
        ("hinge", 3.0, -3.0, 0.0),  # no gain beyond the margin
        ("hinge", 0.0, 0.0, 1.0),
        ("hinge", 0.5, -0.25, (0.5 + 0.75) / 2),
        ("hinge", -1.0, 1.0, 2.0),
        ("least_squares", 1.0, 0.0, 0.0),
        ("least_squares", 0.0, 0.0, 0.5),
        ("least_squares", 3.0, -2.0, (4 + 4) / 2),
    ],
)
def test_discriminator_loss_values(
    kind: AdversarialKind, real: float, fake: float, expected: float
) -> None:
    assert discriminator_loss(flat(real), flat(fake), kind).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "fake", "expected"),
    [("hinge", 2.0, -2.0), ("hinge", -3.0, 3.0), ("least_squares", 1.0, 0.0),
     ("least_squares", -1.0, 4.0)],
)  # fmt: skip
def test_generator_loss_values(kind: AdversarialKind, fake: float, expected: float) -> None:
    assert generator_loss(flat(fake), kind).item() == pytest.approx(expected)


def test_scales_have_equal_weight_whatever_their_size() -> None:
    assert generator_loss(flat(1.0, 4.0, size=2), "hinge").item() == pytest.approx(-2.5)
    real, fake = flat(0.0, 1.0), flat(-1.0, 1.0)  # by scale: (1 + 0) / 2 and (0 + 2) / 2
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["Hinge", "lsgan", "", None, True])
def test_an_unknown_kind_fails(kind: object) -> None:
    for call in (
        lambda: generator_loss(flat(0.0), kind),  # type: ignore[arg-type]
        lambda: discriminator_loss(flat(0.0), flat(0.0), kind),  # type: ignore[arg-type]
    ):
        if isinstance(kind, str):
            with pytest.raises(UnknownName, match="adversarial loss") as caught:
                call()
            assert "hinge, least_squares" in (caught.value.hint or "")
        else:
            with pytest.raises(Exception):  # noqa: B017
                call()


def test_missing_or_unequal_scales_fail_an_assertion() -> None:
    with pytest.raises(AssertionError):
        generator_loss([], "hinge")
    with pytest.raises(AssertionError):
        discriminator_loss(flat(0.0, 0.0), flat(0.0), "hinge")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_right_sign(kind: AdversarialKind) -> None:
    real, fake = flat(0.2)[0].requires_grad_(), flat(0.3)[0].requires_grad_()
    discriminator_loss([real], [fake], kind).backward()
    assert real.grad is not None and fake.grad is not None
    assert (real.grad < 0).all() and (fake.grad > 0).all(), "descent must raise real, lower fake"
    fooled = flat(0.3)[0].requires_grad_()
    generator_loss([fooled], kind).backward()
    assert fooled.grad is not None and (fooled.grad < 0).all(), "descent must raise fake"


# ---------------------------------------------------------------- feature matching


def test_feature_matching_is_the_mean_of_the_layers_means() -> None:
    zero = [[torch.zeros(2, 4, 8, 8), torch.zeros(2, 16, 4, 4)], [torch.zeros(2, 4, 2, 2)]]
    other = [[zero[0][0] + 1, zero[0][1] - 3], [zero[1][0] + 5]]
    # Scale 1: (1 + 3) / 2, scale 2: 5.
    assert feature_matching(zero, other).item() == pytest.approx((2 + 5) / 2)
    assert feature_matching(other, other).item() == 0


def test_feature_matching_has_gradients_for_fake_only() -> None:
    real, fake = noise(2, 3, 4, 4).requires_grad_(), noise(2, 3, 4, 4, seed=1).requires_grad_()
    feature_matching([[real]], [[fake]]).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert torch.equal(fake.grad.sign(), (fake - real).detach().sign())


def test_unpaired_features_fail_an_assertion() -> None:
    layer = torch.zeros(1, 1, 2, 2)
    with pytest.raises(AssertionError):
        feature_matching([[layer]], [[layer, layer]])
    with pytest.raises(AssertionError):
        feature_matching([[layer]], [])


# ---------------------------------------------------------------- R1


# ---------------------------------------------------------------- all losses


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{f"d {k}": lambda r, f, k=k: discriminator_loss([r, r[..., :2]], [f, f], k) for k in KINDS},
    **{f"g {k}": lambda r, f, k=k: generator_loss([f, f[..., :2]], k) for k in KINDS},
    "feature matching": lambda r, f: feature_matching([[r, r[..., :2]]], [[f, f[..., :2]]]),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_does_not_depend_on_batch_split_or_order(name: str) -> None:
    real, fake = noise(4, 3, 5, 6), noise(4, 3, 5, 6, seed=1)
    whole = LOSSES[name](real, fake)
    halves = [LOSSES[name](real[i : i + 2], fake[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(LOSSES[name](real[order], fake[order]), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_gives_a_float32_loss(name: str) -> None:
    real, fake = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    loss = LOSSES[name](real.bfloat16(), fake.bfloat16())
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, LOSSES[name](real, fake), rtol=1e-2, atol=1e-3)
