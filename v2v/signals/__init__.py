"""Signals: their points or classes, and how to draw, flip, scale and drop them.

`preprocess` extracts signals from video. A signal consists of a module here that defines `SIGNAL`
and a module of the same name in `preprocess` that defines `Extractor`. Installed packages add
signals through the entry points `v2v.signals` and `v2v.extractors`.
"""

from v2v.signals._base import Signal, Track, load_signal, signal_names

__all__ = ["Signal", "Track", "load_signal", "signal_names"]
