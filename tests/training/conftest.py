"""A small drawn clip store, and settings that train on it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_fixtures import one_thread, tiny_preset  # noqa: F401
from training_settings import SMALL

from v2v.config import PreprocessSettings, load_config
from v2v.progress import Silent
from v2v.training.settings import TrainSettings


@pytest.fixture(scope="session")
def dance(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip store of a drawn dancer: 40 frames of 96 pixels, with pose, person mask and flow."""
    from v2v.preprocess.build import preprocess
    from v2v.samples.clips import write_sample

    folder = tmp_path_factory.mktemp("dance")
    video = write_sample("person", folder, seconds=1.6, report=Silent())
    settings = load_config(
        PreprocessSettings, "preprocess", values={"frames.size": 96, "preview.enabled": False}
    )
    store = folder / "data" / "person"
    preprocess(video, ["pose", "segmentation", "flow"], settings, output=store)
    return store


@pytest.fixture(scope="session")
def small_settings() -> Callable[..., TrainSettings]:
    """`small_settings(steps=6, task="pose", **{"dotted.key": value})`"""

    def make(steps: int = 6, task: str = "pose", **values: Any) -> TrainSettings:
        values = {**SMALL, "budget.steps": steps, "task": task, **values}
        return load_config(TrainSettings, "train", f"train-{task}", values=values)

    return make
