"""Signals: their points or classes, and how to draw, flip, scale and drop them.

`preprocess` extracts signals from video. A signal consists of a module here that defines `SIGNAL`
and a module of the same name in `preprocess` that defines `Extractor`. Installed packages add
signals through the entry points `v2v.signals` and `v2v.extractors`. Traits (`v2v.signals.traits`)
declare what a signal offers beyond a condition, e.g. label maps or flow.
"""

from v2v.signals.base import Signal, Track
from v2v.signals.registry import TraitT, find, load_signal, signal_names

__all__ = ["Signal", "Track", "TraitT", "find", "load_signal", "signal_names"]
