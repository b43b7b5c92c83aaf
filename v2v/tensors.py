"""Tensors on disk: safetensors that are checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from v2v.errors import CheckpointInvalid

DAMAGED = "delete this checkpoint's folder; the run resumes from the previous one"
RESTORE = "restore the file, or train the model again"


def read_tensors(path: Path, *, missing: bool = False, hint: str = RESTORE) -> dict[str, Tensor]:
    """Read a safetensors file of finite values.

    Args:
        missing: whether NaN is accepted, for missing values.
        hint: what to do about a damaged file.

    Raises `CheckpointInvalid`, also for a pickle under any name.
    """
    if not path.is_file():
        raise CheckpointInvalid(f"{path} is missing", hint=hint)
    with open(path, "rb") as file:
        head = file.read(9)
    # A safetensors file begins with a length in 8 arbitrary bytes and a JSON header.
    if path.suffix != ".safetensors" or head[8:] != b"{":
        raise CheckpointInvalid(
            f"{path} is refused: it is a pickle or a torch archive, which can run code",
            hint="only safetensors are loaded as weights",
        )
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"{path} cannot be read: {first_line(error)}", hint=hint) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not _finite(tensor, missing):
            raise CheckpointInvalid(
                f"{path}: {name} has {'' if missing else 'NaN or '}infinite values",
                hint="restore the file, or train again",
            )
    return tensors


def _finite(tensor: Tensor, missing: bool) -> bool:
    return not bool(tensor.isinf().any() if missing else (~tensor.isfinite()).any())


def load_weights(module: nn.Module, state: dict[str, Tensor], where: Path) -> None:
    """Load a state dict. Raises `CheckpointInvalid` if it does not fit the module."""
    for name, own in module.state_dict().items():
        if name in state and state[name].dtype != own.dtype:
            raise CheckpointInvalid(
                f"{where}: {name} is {state[name].dtype}, expected {own.dtype}", hint=RESTORE
            )
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointInvalid(
            f"{where} has weights that do not match its record: {reason[0].strip()}",
            hint="another version of v2v wrote it, or its files were mixed up: restore them, or"
            " train again",
        ) from error


def load_optimiser(optimiser: Any, state: object, where: Path) -> None:
    """Load the moments of an optimiser but not its settings: the run determines those.

    Raises `CheckpointInvalid` if they do not fit its parameters or are not finite.
    """
    inner = getattr(optimiser, "optimizer", optimiser)  # Fabric's wrapper hides it
    settings = [{k: v for k, v in g.items() if k != "params"} for g in inner.param_groups]
    problem: str | None = None
    try:
        inner.load_state_dict(state)
    except Exception as error:  # torch does not validate the structure, so any error may occur
        problem = first_line(error)
    else:
        for group, own in zip(inner.param_groups, settings, strict=True):
            group.update(own)
        known = {id(p) for group in inner.param_groups for p in group["params"]}
        for parameter, moments in inner.state.items():
            if id(parameter) not in known or set(moments) != {"step", "exp_avg", "exp_avg_sq"}:
                problem = "it contains more than Adam's moments"
                break
            shapes = ((), parameter.shape, parameter.shape)
            for name, shape in zip(("step", "exp_avg", "exp_avg_sq"), shapes, strict=True):
                value = moments[name]
                fits = isinstance(value, Tensor) and value.shape == shape
                if not fits or not _finite(value, missing=False):
                    problem = f"{name} is not finite or has another shape"
    if problem is not None:
        raise CheckpointInvalid(
            f"{where / 'optimisers.pt'} does not fit its networks: {problem}", hint=DAMAGED
        )


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors needs them: contiguous, on the CPU, without shared memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
