"""Weights of torchvision's networks: found where torchvision keeps them, never fetched unasked."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from v2v.errors import MissingLibrary, UnknownName, WeightsUnavailable

PERSON_MASK = "-s segmentation.backend=person"
ENUMS = {  # our name: module and enum of torchvision, and what to say on the command line without
    "raft-large": ("optical_flow", "Raft_Large_Weights", "-s flow.backend=dis"),
    "raft-small": ("optical_flow", "Raft_Small_Weights", "-s flow.backend=dis"),
    "deeplab": ("segmentation", "DeepLabV3_ResNet50_Weights", PERSON_MASK),
    "lraspp": ("segmentation", "LRASPP_MobileNet_V3_Large_Weights", PERSON_MASK),
    "vgg19": ("vgg", "VGG19_Weights", "-s losses.perceptual=pyramid"),
}


@cache
def torchvision_models() -> Any:
    """torchvision.models, also where torchvision was built for another torch than is installed.

    Such a pair (a CPU torch beside the registry's CUDA torchvision is a common one) fails to
    import for want of compiled operators. The networks used here need none of them, so their
    names are declared and the import goes through; calling one still fails.
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
    """Where torch keeps downloaded weights (`TORCH_HOME`)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(name: str) -> Path:
    """The weight file of a network, one of `ENUMS`.

    A file from torchvision carries the start of its SHA-256 in its name, which must fit.
    Raises `WeightsUnavailable`, which says where the file belongs and how to fetch it, and
    `UnknownName` for a network that is not listed.
    """
    if name not in ENUMS:
        raise UnknownName.among("network", name, ENUMS)
    family, enum, offline = ENUMS[name]
    url = getattr(getattr(torchvision_models(), family), enum).DEFAULT.url
    path: Path = weights_folder() / url.rsplit("/", 1)[-1]
    if not path.is_file():
        raise WeightsUnavailable(
            f"the weights of {name} are not on this machine; they belong at {path}",
            hint=f"fetch them once: curl -L --create-dirs -o {path} {url}   or go on without:"
            f" {offline}",
        )
    _check_hash(path)
    return path


def have_weights(name: str) -> bool:
    """Whether the weight file of a network is here and whole; a damaged one counts as missing."""
    try:
        find_weights(name)
    except WeightsUnavailable:
        return False
    return True


def _check_hash(path: Path) -> None:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if match is None:
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(match[1]):
        raise WeightsUnavailable(
            f"{path} is damaged: its SHA-256 begins with {digest[:8]}, not {match[1]}",
            hint="delete it and fetch it again",
        )


def load_state(model: torch.nn.Module, path: Path, *, prefix: str = "") -> None:
    """Load a state dict (safetensors, or a torch file read without pickle's powers).

    With a `prefix`, `model` is the part of a network whose names in the file begin with it, and
    the rest of the file is passed over.

    Raises `WeightsUnavailable` where the file is not there, damaged, or another network's.
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
    except Exception as error:  # files that are damaged or something else provoke all kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsUnavailable(
            f"{path} does not hold the weights of {type(model).__name__}: {reason}",
            hint="give the state dict that belongs to the network",
        ) from error
