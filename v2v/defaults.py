"""Defaults that the library uses and `--help` shows; the latter must not load the library.

Settings with keys have their defaults in `configs/` instead.
"""

from __future__ import annotations

MINUTES = 60.0  # of training, if neither steps nor minutes are given
CODEC = "h264"
CRF = 18.0  # quality of rendered video
CODECS = ("h264", "hevc", "vp9", "ffv1")
SUFFIXES = {"ffv1": ".mkv", "vp9": ".webm"}  # others: .mp4
PREDICTED_FRAMES = 30
EVALUATED_FRAMES = 600  # per clip, at most
DRIFT_FRAMES = 300
