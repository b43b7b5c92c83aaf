"""Networks: the sequential generator, the baselines and the discriminators.

A generator is a module that is called with a `Condition` and a `GeneratorState` and returns a
`GeneratorOutput`. Installed packages add generators through the entry point `v2v.generators`: a
class that is built from keyword arguments (`channels`, `preset`, `scales`).
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from torch import nn

from v2v.errors import UnknownName

BASELINES = ("pix2pix", "pix2pixhd", "spade")


def generator_names() -> tuple[str, ...]:
    """All generators: the built-in ones, then those of installed packages."""
    found = {entry.name for entry in entry_points(group="v2v.generators")}
    return ("sequential", *BASELINES, *sorted(found))


def check_generator(architecture: dict[str, Any]) -> None:
    """Validate the recorded arguments of a built-in generator.

    Raises pydantic's `ValidationError` for wrong types, unknown arguments and sizes out of range.
    """
    if architecture.get("name") == "sequential":
        from v2v.models.generator_settings import GeneratorArguments

        GeneratorArguments.model_validate(architecture, strict=True)
    elif architecture.get("name") in BASELINES:
        from v2v.models.baselines import BaselineArguments

        BaselineArguments.model_validate(architecture, strict=True)


def build_generator(name: str, **architecture: Any) -> nn.Module:
    """Build a generator by name from the arguments in a model's record.

    Args:
        architecture: `channels`, `preset` and `scales`; the sequential generator takes more, see
            `SequentialGenerator`.

    Raises `UnknownName`, which lists the valid names.
    """
    if name == "sequential":
        from v2v.models.generator import SequentialGenerator
        from v2v.models.generator_settings import PRESETS, complete

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
