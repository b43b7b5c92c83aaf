"""Weights of torchvision's networks: read from torchvision's folder, never downloaded."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from v2v.errors import MissingLibrary, UnknownName, WeightsUnavailable
from v2v.files import file_sha256

PERSON_MASK = "-s segmentation.backend=person"
ENUMS = {  # name: torchvision module, enum, and the option that works without these weights
    "raft-large": ("optical_flow", "Raft_Large_Weights", "-s flow.backend=dis"),
    "raft-small": ("optical_flow", "Raft_Small_Weights", "-s flow.backend=dis"),
    "deeplab": ("segmentation", "DeepLabV3_ResNet50_Weights", PERSON_MASK),
    "lraspp": ("segmentation", "LRASPP_MobileNet_V3_Large_Weights", PERSON_MASK),
    "vgg19": ("vgg", "VGG19_Weights", "-s losses.perceptual=pyramid"),
}


@cache
def torchvision_models() -> Any:
    """torchvision.models, even if torchvision was built for another torch than the installed one.

    The import of such a pair (commonly a CPU torch with the registry's CUDA torchvision) fails
    because compiled operators are missing. The networks used here need none of them, so this
    declares the operators' names and imports again; calling an operator still fails.
    """
    try:
        import torchvision.models as models
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise MissingLibrary(f"torchvision cannot be loaded: {error}", hint=None) from error
        import sys

        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
        import torchvision.models as models
    import torchvision.models.optical_flow
    import torchvision.models.segmentation  # noqa: F401

    return models


_KEPT: list[Any] = []  # a torch library's definitions end with the object


def weights_folder() -> Path:
    """The folder of torch's downloaded weights (see `TORCH_HOME`)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str) -> Path:
    """The weight file of a network, one of `ENUMS`.

    The start of the SHA-256 in the name of a torchvision file must match its content.
    Raises `WeightsUnavailable`, which states where the file belongs and how to download it, and
    `UnknownName` for a network that is not listed.
    """
    if name not in ENUMS:
        raise UnknownName.among("network", name, ENUMS)
    family, enum, offline = ENUMS[name]
    url = getattr(getattr(torchvision_models(), family), enum).DEFAULT.url
    path: Path = weights_folder() / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise WeightsUnavailable(
            f"the weights of {name} are missing: expected at {path}",
            hint=f"download them once: curl -L --create-dirs -o {path} {url}   or do without:"
            f" {offline}",
        )
    _check_hash(path)
    return path


def have_weights(name: str) -> bool:
    """Whether the weight file of a network exists; a damaged one counts as missing."""
    try:
        find_weights(name)
    except WeightsUnavailable:
        return False
    return True


def _check_hash(path: Path) -> None:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if match is None:
        return
    digest = file_sha256(path)
    if not digest.startswith(match[1]):
        raise WeightsUnavailable(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {match[1]}",
            hint="delete it and download it again",
        )


def load_state(model: torch.nn.Module, path: Path, *, prefix: str = "") -> None:
    """Load a state dict from a safetensors file, or from a torch file with `weights_only`.

    With a `prefix`, loads only the entries whose names begin with it, without the prefix.

    Raises `WeightsUnavailable` if the file is missing, damaged, or of another network.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        if prefix:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        model.load_state_dict(state)
    except UnpicklingError as error:
        raise WeightsUnavailable(
            f"{path} is refused: it is not a plain state dict", hint="use safetensors"
        ) from error
    except Exception as error:  # damaged or foreign files can raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsUnavailable(
            f"{path} does not hold the weights of {type(model).__name__}: {reason}",
            hint="use a state dict of this network",
        ) from error
