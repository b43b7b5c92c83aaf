"""Networks: the sequential generator, the baselines and the discriminators.

A generator is a subclass of `Generator`, which says what the rest of the code may ask of it.
Installed packages add generators through the entry point `v2v.generators`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pkgutil import resolve_name
from typing import Any

from v2v.errors import ConfigError, UnknownName
from v2v.models.protocol import Generator, TrainingData

__all__ = [
    "Generator", "TrainingData", "build_generator", "check_generator", "generator_names",
    "generator_type",
]  # fmt: skip

ENTRY_POINTS = "v2v.generators"
BUILT_IN = {
    "sequential": "v2v.models.generator:SequentialGenerator",
    "pix2pix": "v2v.models.baselines.pix2pix:Pix2Pix",
    "pix2pixhd": "v2v.models.baselines.pix2pixhd:Pix2PixHD",
    "spade": "v2v.models.baselines.spade:Spade",
}


def generator_names() -> tuple[str, ...]:
    """All generators: the built-in ones, then those of installed packages."""
    found = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return (*BUILT_IN, *sorted(found - set(BUILT_IN)))


def generator_type(name: str) -> type[Generator]:
    """The class of a generator. Raises `UnknownName`, which lists the valid names.

    Raises `ConfigError` if a package registers something else.
    """
    if name in BUILT_IN:
        kind: Any = resolve_name(BUILT_IN[name])
    else:
        found = [entry for entry in entry_points(group=ENTRY_POINTS) if entry.name == name]
        if not found:
            raise UnknownName.among("generator", name, generator_names())
        kind = found[0].load()
    if not (isinstance(kind, type) and issubclass(kind, Generator)):
        raise ConfigError(
            f"the generator {name} is {kind!r}, expected a subclass of v2v.models.Generator",
            hint="update or remove the package that provides it",
        )
    return kind


def check_generator(architecture: dict[str, Any]) -> None:
    """Validate the recorded arguments of a generator; those of missing packages are accepted.

    Raises pydantic's `ValidationError` for wrong types, unknown arguments and sizes out of range.
    """
    name = architecture.get("name")
    if isinstance(name, str) and name in generator_names():
        generator_type(name).check(architecture)


def build_generator(name: str, **architecture: Any) -> Generator:
    """Build a generator by name from the arguments in a model's record.

    Args:
        architecture: `channels`, `preset` and `scales`; the sequential generator takes more, see
            `SequentialGenerator`.

    Raises `UnknownName`, which lists the valid names.
    """
    return generator_type(name).build(**architecture)
