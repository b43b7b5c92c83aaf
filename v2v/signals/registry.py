"""Signals by name: the built-in ones and those of installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any, TypeVar

from v2v.errors import UnknownName
from v2v.signals.base import Signal

ENTRY_POINTS = "v2v.signals"
# Modules beside the signals that define none.
SHARED = frozenset({"arrays", "base", "landmarks", "parts", "registry", "traits"})

TraitT = TypeVar("TraitT", bound=Signal)


@cache
def _entry_points() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


@cache
def signal_names() -> tuple[str, ...]:
    """All known signals: built-in ones, then those of installed packages."""
    import v2v.signals as package

    modules = (module.name for module in iter_modules(package.__path__))
    own = [name for name in modules if not name.startswith("_") and name not in SHARED]
    order = {"pose": 0, "face": 1, "segmentation": 2, "flow": 3, "camera": 4}
    own.sort(key=lambda name: (order.get(name, 9), name))
    return tuple(own) + tuple(sorted(set(_entry_points()) - set(own)))


def load_signal(name: str) -> Signal:
    """The signal called `name`. Raises `UnknownName`, which lists the valid names."""
    if name not in signal_names():
        raise UnknownName.among("signal", name, (*signal_names(), "all"))
    module = import_own_or_installed("v2v.signals", name, _entry_points())
    signal: Signal = module.SIGNAL
    return signal


def find(trait: type[TraitT], names: Iterable[str]) -> TraitT | None:
    """The first of the signals `names` that has a trait of `v2v.signals.traits`, or None.

    Signals whose package is not installed are skipped.
    """
    known = signal_names()
    signals = (load_signal(name) for name in names if name in known)
    return next((signal for signal in signals if isinstance(signal, trait)), None)


def import_own_or_installed(package: str, name: str, entries: dict[str, Any]) -> Any:
    """The built-in module called `name`, or else that of an installed package."""
    if find_spec(f"{package}.{name}") is not None:
        return import_module(f"{package}.{name}")
    return entries[name].load()
