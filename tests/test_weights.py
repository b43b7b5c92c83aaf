"""Weights are found in torchvision's folder, verified, and never executed as code."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from v2v import weights
from v2v.errors import UnknownName, WeightsUnavailable
from v2v.weights import (
    ENUMS,
    find_weights,
    have_weights,
    load_state,
    torchvision_models,
    weights_folder,
)
from v2v.wording import for_python


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty TORCH_HOME; returns its folder for weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    assert weights_folder() == folder
    return folder


def file_name(name: str) -> str:
    family, enum, _ = ENUMS[name]
    url: str = getattr(getattr(torchvision_models(), family), enum).DEFAULT.url
    return url.rsplit("/", 1)[-1]


def model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("name", ENUMS)
def test_a_missing_file_names_path_download_and_alternative(name: str, home: Path) -> None:
    with pytest.raises(WeightsUnavailable) as caught:
        find_weights(name)
    path = home / file_name(name)
    assert name in caught.value.message and str(path) in caught.value.message
    hint = caught.value.hint or ""
    assert f"curl -L --create-dirs -o {path} https://download.pytorch.org/models/" in hint
    assert hint.endswith(for_python(ENUMS[name][2])) and ENUMS[name][2].startswith("-s ")
    assert not have_weights(name)


@pytest.mark.parametrize("name", ENUMS)
def test_a_file_whose_hash_does_not_match_its_name_is_refused(name: str, home: Path) -> None:
    home.mkdir(parents=True)
    path = home / file_name(name)
    path.write_bytes(b"half a download")
    digest = hashlib.sha256(b"half a download").hexdigest()
    with pytest.raises(WeightsUnavailable, match=f"damaged: its SHA-256 begins with {digest[:8]}"):
        find_weights(name)
    assert not have_weights(name)


def test_a_file_whose_hash_matches_is_found(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    enum = type("Enum", (), {"DEFAULT": type("D", (), {"url": f"https://x/net-{digest[:8]}.pth"})})
    family = type("Family", (), {"Raft_Small_Weights": enum})
    models = type("Models", (), {"optical_flow": family})
    monkeypatch.setattr(weights, "torchvision_models", lambda: models)
    home.mkdir(parents=True)
    path = home / f"net-{digest[:8]}.pth"
    path.write_bytes(content)
    assert find_weights("raft-small") == path and have_weights("raft-small")
    path.write_bytes(content + b"!")
    assert not have_weights("raft-small")


def test_an_unknown_network_suggests_a_known_one() -> None:
    with pytest.raises(UnknownName, match="raft") as caught:
        find_weights("raft-smal")
    assert "did you mean 'raft-small'" in (caught.value.hint or "")


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_plain_state_dict_is_loaded(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    state = {name: value + 1 for name, value in model().state_dict().items()}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)  # type: ignore[operator]
    target = model()
    load_state(target, path)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[name])


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "it-ran"
    evil = {"weight": Trap(mark)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save(evil, path)
    with pytest.raises(WeightsUnavailable, match=r"evil\.pth is refused") as caught:
        load_state(model(), path)
    assert "safetensors" in (caught.value.hint or "")
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil))
    assert mark.exists(), "the trap does not work even in an unguarded load"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short", None])
def test_the_error_names_a_file_that_is_not_a_weight_file(
    tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    path = tmp_path / f"odd{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsUnavailable, match=r"odd\.(pth|safetensors)") as caught:
        load_state(model(), path)
    if suffix == ".safetensors":
        assert caught.value.hint != "use safetensors", "it is a safetensors file, but broken"


@pytest.mark.parametrize("state", [[1, 2], {"other": torch.zeros(1)}, torch.zeros(3)])
def test_another_network_s_weights_are_refused(tmp_path: Path, state: object) -> None:
    path = tmp_path / "other.pth"
    torch.save(state, path)
    with pytest.raises(WeightsUnavailable, match=r"other\.pth"):
        load_state(model(), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_part_of_a_file_is_loaded_by_its_prefix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    state = {f"part.{name}": value + 1 for name, value in model().state_dict().items()}
    state["rest.weight"] = torch.zeros(7)
    (save_file if suffix == ".safetensors" else torch.save)(state, path)  # type: ignore[operator]
    target = model()
    load_state(target, path, prefix="part.")
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[f"part.{name}"])
    with pytest.raises(WeightsUnavailable, match="does not hold the weights"):
        load_state(target, path, prefix="other.")
    with pytest.raises(WeightsUnavailable, match="does not hold the weights"):
        load_state(target, path)


# ---------------------------------------------------------------- torchvision


def test_all_networks_used_build() -> None:
    models = torchvision_models()
    for build in ("raft_small", "raft_large"):
        assert callable(getattr(models.optical_flow, build))
    for build in ("deeplabv3_resnet50", "lraspp_mobilenet_v3_large"):
        assert callable(getattr(models.segmentation, build))
    assert callable(models.vgg19)


def test_torchvision_loads_on_first_use_only() -> None:
    """Losses import this module, but training without VGG must not need torchvision."""
    code = "import sys, v2v.weights, v2v.losses; print('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


def test_networks_are_available_if_torchvision_lacks_its_operators() -> None:
    """Its compiled part does not load if torchvision was built for another torch."""
    code = """
import sys
from importlib.machinery import FileFinder
find_spec = FileFinder.find_spec
FileFinder.find_spec = lambda self, name, target=None: (
    None if name.split(".")[-1] == "_C" and "torchvision" in self.path
    else find_spec(self, name, target)
)
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms does not exist" in str(error), error
else:
    sys.exit("torchvision imported without the workaround: this test shows nothing")
from v2v.weights import torchvision_models
import torch
network = torchvision_models().optical_flow.raft_small(weights=None).eval()
with torch.inference_mode():
    flow = network(torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128), 1)[-1]
print(tuple(flow.shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if done.stderr.startswith("torchvision imported without"):
        pytest.skip("this torchvision imports without its compiled operators")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "(1, 2, 128, 128)"
