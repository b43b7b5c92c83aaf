"""Drawn footage for benchmarks that are given none: anyone may run them and show the pictures."""

from __future__ import annotations

from pathlib import Path

from preprocess.build import preprocess
from samples.clips import write_sample
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import CLIP_FILE
from v2v.progress import Reporter, Silent

KINDS = {"pose": "person", "face": "face", "street": "street"}


def drawn(
    folder: Path, task: str, *, seconds: float, seed: int = 0, report: Reporter | None = None
) -> Path:
    """A store of drawn footage with all signals that training of `task` takes; made once."""
    store = folder / "clip"
    if not (store / CLIP_FILE).is_file():
        report = report or Silent()
        signals = ["segmentation", "flow", *([task] if task != "street" else [])]
        clip = write_sample(KINDS[task], folder, seconds=seconds, seed=seed, report=report)
        settings = load_config(PreprocessSettings, "preprocess")
        preprocess(clip, signals, settings, output=store, report=report)
    return store
