"""What a signal is: its points or classes, how it is drawn, flipped, scaled and dropped.

How a signal is taken from video is the business of `preprocess`. A signal is one module here
that defines `SIGNAL`, and one module of the same name in `preprocess` that defines `Extractor`.
An installed package adds its own through the entry points `v2v.signals` and `v2v.extractors`.
"""

from v2v.signals._base import Signal, Track, load_signal, signal_names

__all__ = ["Signal", "Track", "load_signal", "signal_names"]
