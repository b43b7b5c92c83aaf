"""Networks: the sequential generator, the baselines it is measured against, the discriminators.

A generator is a module called with a `Condition` and a `GeneratorState`, which returns a
`GeneratorOutput`. An installed package adds its own through the entry point `v2v.generators`: a
class that is built from keyword arguments (`channels`, `preset`, `scales`).
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from torch import nn

from v2v.errors import UnknownName

BASELINES = ("pix2pix", "pix2pixhd", "spade")


def generator_names() -> tuple[str, ...]:
    """All known generators: our own, then those of installed packages."""
    found = {entry.name for entry in entry_points(group="v2v.generators")}
    return ("sequential", *BASELINES, *sorted(found))


def check_generator(architecture: dict[str, Any]) -> None:
    """Compare a record's arguments of one of our own generators with what they may be.

    Raises pydantic's `ValidationError`: wrong types, unknown arguments, sizes that no memory holds.
    """
    if architecture.get("name") == "sequential":
        from v2v.models.generator import GeneratorArguments

        GeneratorArguments.model_validate(architecture, strict=True)
    elif architecture.get("name") in BASELINES:
        from v2v.models.baselines import BaselineArguments

        BaselineArguments.model_validate(architecture, strict=True)


def build_generator(name: str, **architecture: Any) -> nn.Module:
    """The generator of that name from what a model's record says of it.

    Args:
        architecture: `channels`, `preset` and `scales`; the sequential generator takes more, see
            `SequentialGenerator`.

    Raises `UnknownName`, which lists the valid ones.
    """
    if name == "sequential":
        from v2v.models.generator import PRESETS, SequentialGenerator, complete

        preset = architecture.pop("preset")
        return SequentialGenerator(arch=PRESETS[preset], **complete(architecture))
    if name in BASELINES:
        from v2v.models.baselines import build_baseline

        return build_baseline(name, **architecture)
    for entry in entry_points(group="v2v.generators"):
        if entry.name == name:
            module: nn.Module = entry.load()(**architecture)
            return module
    raise UnknownName.among("generator", name, generator_names())
