"""Checks of the clips that a dataset opens: signals, classes, presence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.errors import SignalMissing, StoreConflict
from v2v.signals import load_signal
from v2v.signals.traits import LabelSignal, PointSignal


def spec_of(stores: Sequence[ClipStore], name: str, options: Mapping[str, bool]) -> dict[str, Any]:
    """The spec of a signal with `options`; the channels must be the same in all clips.

    Raises `SignalMissing`, `StoreConflict`, `UnknownName`.
    """
    definition = load_signal(name)
    for store in stores:
        if name not in store.record.signals:
            raise SignalMissing(
                f"{store.folder} has no {name} (it has: {', '.join(store.signals) or 'none'})",
                hint=f"add it with: v2v preprocess {store.folder} --signal {name}",
            )
    first, *others = (
        (store, definition.with_options(store.record.signals[name].spec, options))
        for store in stores
    )
    channels = definition.channels(first[1])
    for store, spec in others:
        if definition.channels(spec) != channels:
            raise StoreConflict(
                f"{name} has {definition.channels(spec)} channels in {store.folder}, but"
                f" {channels} in {first[0].folder}",
                hint="extract both with the same backend and classes, using --overwrite",
            )
        if spec.get("classes") != first[1].get("classes"):
            raise StoreConflict(
                f"the classes of {name} differ between {store.folder} and {first[0].folder}",
                hint="extract both with the same backend and classes, using --overwrite",
            )
    return first[1]


def foreground_tables(stores: Sequence[ClipStore]) -> list[NDArray[np.bool_]] | None:
    """Per clip, [256] true for the class ids of the foreground; None if a clip has none."""
    tables = []
    for store in stores:
        labels = store.record.find(LabelSignal)
        if labels is None:
            return None
        tables.append(labels.foreground(store.record.signals[labels.name].spec))
    return tables if all(table.any() for table in tables) else None


def has_points(name: str) -> bool:
    """Whether a signal has keypoints."""
    return isinstance(load_signal(name), PointSignal)


def presence(store: ClipStore, signals: Sequence[str]) -> NDArray[np.bool_]:
    """[T] true where the frame has every point signal."""
    present = np.ones(len(store), np.bool_)
    chunk = 4096  # frames per read: an hour of faces does not fit into memory
    for name in signals:
        if has_points(name):
            for start in range(0, len(store), chunk):
                stop = min(start + chunk, len(store))
                present[start:stop] &= store.track(name, start, stop).present()
    return present
