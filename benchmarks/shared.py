"""Shared by the benchmarks: drawn footage, settings, machine description, pictures."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.errors import V2VError
from v2v.evaluation.clips import Measured, measured_clips
from v2v.evaluation.methods import rendering
from v2v.evaluation.metrics import all_metrics
from v2v.pipelines.model import LoadedModel
from v2v.preprocess.build import preprocess
from v2v.progress import Reporter, Silent
from v2v.runtime import cores
from v2v.samples.clips import write_sample
from v2v.training.settings import TrainSettings

Picture = NDArray[np.uint8]

KINDS = {"pose": "person", "face": "face", "street": "street"}


def draw_store(
    folder: Path, task: str, *, seconds: float, seed: int = 0, report: Reporter | None = None
) -> Path:
    """A store of drawn footage with all signals that training for `task` needs; made once."""
    store = folder / "clip"
    signals = ["segmentation", "flow", *([task] if task != "street" else [])]
    if (store / CLIP_FILE).is_file() and {*signals} <= {*ClipStore.open(store).signals}:
        return store
    report = report or Silent()
    # The held-out frames show another dance: a harder test than the end of the same dance.
    finale = seconds * settings_of(task, 64).data.hold_out
    clip = write_sample(
        KINDS[task], folder, seconds=seconds, seed=seed, finale=finale, report=report
    )
    settings = load_config(PreprocessSettings, "preprocess")
    made = preprocess(clip, signals, settings, output=store, report=report)
    for error in made.failed.values():
        raise error
    return store


def settings_of(
    task: str, size: int, overrides: Sequence[str] = (), **values: object
) -> TrainSettings:
    """Settings of a task with `overrides` as for -s and `values` by key (__ for a dot)."""
    named = {key.replace("__", "."): value for key, value in values.items()}
    return load_config(
        TrainSettings, "train", f"train-{task}", overrides=list(overrides),
        values={"task": task, "data.size": size, **named},
    )  # fmt: skip


def column_title(measure: str) -> str:
    """Title and unit of a measure."""
    known = all_metrics()[measure]
    return f"{known.title} ({known.unit})" if known.unit else known.title


def run_command(run: Callable[[], None]) -> None:
    """Run a resumable benchmark; print a `V2VError` or a stop by Ctrl-C without a traceback."""
    try:
        run()
    except V2VError as error:
        sys.exit(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def machine(jobs: int = 1) -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    several = f", {jobs} runs at a time" if jobs > 1 else ""
    return f"CPU ({platform.machine()}), {cores()} cores{several}, torch {torch.__version__}"


# ---------------------------------------------------------------- pictures

HEIGHT = 224  # of a panel, in pixels
CAPTION = 18


def render_moments(
    run: Path, data: Path, moments: Sequence[int], frames: int
) -> tuple[list[Picture], Measured]:
    """Free-running frames of a run at the given indices of the held-out frames."""
    trained = LoadedModel.open(run)
    (clip,), _ = measured_clips(trained, [data], frames=frames, drift=0, report=Silent())
    wanted, found = set(moments), {}
    for t, picture in enumerate(rendering(trained, clip)):
        if t in wanted:
            found[t] = picture
        if t >= max(moments):
            break
    return [found[t] for t in moments], clip


def panel(picture: Picture, text: str) -> Picture:
    """A resized frame below its caption."""
    height, width = picture.shape[:2]
    size = (max(round(width * HEIGHT / height), 1), HEIGHT)
    large = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    caption = np.full((CAPTION, size[0], 3), 255, np.uint8)
    cv2.putText(caption, text, (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([caption, large]).astype(np.uint8)


def ranked_moments(scores: dict[str, list[float | None]], count: int) -> list[int]:
    """The first `count` frame indices of a report's scores, worst SSIM first."""
    scores = scores["ssim"][:count]
    return sorted(range(len(scores)), key=lambda t: -1.0 if scores[t] is None else scores[t])
