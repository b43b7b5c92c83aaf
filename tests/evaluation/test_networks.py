"""Measures by pretrained networks: values, and no values without the real weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from v2v.errors import MissingLibrary, V2VError, WeightsUnavailable
from v2v.evaluation import networks
from v2v.evaluation.networks import (
    ALEXNET,
    File,
    Gaussian,
    Inception,
    Lpips,
    VideoResNet,
    frechet,
)


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def gathered(samples: np.ndarray) -> Gaussian:
    found = Gaussian()
    for part in np.array_split(samples, 3):
        found.add(part)
    return found


def test_frechet_distance_of_known_gaussians() -> None:
    """The distance is the sum of (a - b)^2 + (s - t)^2 over both dimensions."""
    random = np.random.default_rng(0)
    samples = random.normal(size=(4000, 2))
    samples = (samples - samples.mean(axis=0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(samples.T))
    ).T  # mean 0 and covariance 1, exactly
    other = samples * [2.0, 0.5] + [3.0, -1.0]
    assert frechet(gathered(samples), gathered(samples)) == pytest.approx(0, abs=1e-9)
    expected = 9 + 1 + (2 - 1) ** 2 + (0.5 - 1) ** 2
    assert frechet(gathered(samples), gathered(other)) == pytest.approx(expected)
    assert math.isnan(frechet(gathered(samples), Gaussian()))


@pytest.mark.parametrize(
    ("make", "file"), [(Lpips, "alexnet-owt"), (VideoResNet, "r3d_18")], ids=["lpips", "fvd"]
)
def test_missing_weights_report_path_and_command(
    make: Callable[[], object], file: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsUnavailable, match=file) as caught:
        make()
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint is not None and "curl" in caught.value.hint


def test_fid_needs_its_own_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(V2VError) as caught:
        Inception()
    assert isinstance(caught.value, MissingLibrary | WeightsUnavailable)
    assert caught.value.hint is not None


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hub" / "checkpoints" / ALEXNET.name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a download")
    with pytest.raises(WeightsUnavailable, match="damaged"):
        Lpips()


def placed(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, model: torch.nn.Module, stem: str
) -> File:
    """Store random weights under the name of the real ones, for tests only."""
    path = folder / "hub" / "checkpoints" / "random.pth"
    path.parent.mkdir(parents=True)
    torch.save(model.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    whole = path.with_name(f"{stem}-{digest}.pth")
    path.rename(whole)
    file = File(name, whole.name, "https://example.org")
    monkeypatch.setattr(networks, name, file)
    return file


def test_video_features_need_a_full_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from v2v.weights import torchvision_models

    models = torchvision_models()
    import torchvision.models.video  # noqa: F401

    torch.manual_seed(0)
    placed(monkeypatch, tmp_path, "R3D", models.video.r3d_18(weights=None), "r3d_18")
    network = VideoResNet()
    frames = torch.rand(16, 3, 40, 56) * 2 - 1
    assert network(frames).shape == (1, 512)
    assert network(frames[:15]).shape == (0, 512)
    np.testing.assert_array_equal(network(frames), network(frames))


def test_lpips_of_identical_frames_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from v2v.weights import torchvision_models

    models = torchvision_models()
    torch.manual_seed(0)
    alexnet = models.alexnet(weights=None)
    placed(monkeypatch, tmp_path, "ALEXNET", alexnet, "alexnet-owt")
    # torchvision would load the real file by name; return the same random network instead.
    import torchmetrics.functional.image.lpips as module

    monkeypatch.setattr(
        module, "_get_tv_model_features", lambda net, pretrained=False: alexnet.features
    )
    network = Lpips()
    frames = torch.rand(3, 3, 64, 64) * 2 - 1
    other = frames.clone()
    other[1] = -other[1]
    values = network(frames, other)
    assert values.shape == (3,) and values[0] == values[2] == 0 and values[1] > 0
