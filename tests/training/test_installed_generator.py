"""A generator of an installed package is trained and rendered like a built-in one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from v2v.checkpoint import load_model
from v2v.errors import CheckpointInvalid, ConfigError, UnknownName
from v2v.models import Generator, build_generator, generator_names, generator_type
from v2v.pipelines.motion_transfer import MotionTransfer
from v2v.progress import Silent
from v2v.training.loop import train
from v2v.training.settings import TrainSettings

CODE = '''
import torch
from dataclasses import replace
from torch import nn
from v2v.models import Generator
from v2v.types import GeneratorOutput


class Tinted(Generator):
    """One convolution of the signals, plus the mean colour of the training clips."""

    samples = 6

    def __init__(self, *, channels, preset, scales, gain):
        super().__init__()
        assert scales == 1
        self.gain, self.seen = gain, 0
        self.conv = nn.Conv2d(channels, 3, 3, padding=1)

    @classmethod
    def arguments(cls, settings, data):
        return {"gain": 2.0 if data.control_points else 1.0}

    @classmethod
    def multiple_at(cls, scales):
        return 16

    def forward(self, condition, state):
        frame = self.gain * self.conv(condition.signals)
        if condition.features is not None:
            frame = 0 * frame + condition.features
        return GeneratorOutput(frame=frame, auxiliary=self.conv.weight.square().mean())

    def collect(self, batches):
        frames = torch.cat([batch.frames[:, 0] for batch in batches])
        assert len(frames) == self.samples
        return {"tint": frames.mean(dim=(0, 2, 3))}

    def check_artifact(self, name, value):
        return None if name == "tint" and value.shape == (3,) else "is no colour"

    def complete(self, condition, artifacts, choices=None):
        size = condition.signals.shape[-2:]
        tint = artifacts["tint"].to(condition.signals)[None, :, None, None]
        return replace(condition, features=tint.expand(len(condition.signals), -1, *size))


no_generator = dict
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with the generator `tinted`, and one that is no generator."""
    site = tmp_path / "site"
    (site / "my_generator").mkdir(parents=True)
    (site / "my_generator" / "__init__.py").write_text(CODE)
    info = site / "my_generator-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-generator\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[v2v.generators]\ntinted = my_generator:Tinted\nwrong = my_generator:no_generator\n"
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("my_generator", None)


@pytest.mark.usefixtures("package")
def test_it_is_found_by_name() -> None:
    assert {"sequential", "pix2pixhd", "tinted"} <= set(generator_names())
    assert issubclass(generator_type("tinted"), Generator)
    built = build_generator("tinted", channels=3, preset="mobile", scales=1, gain=1.0)
    assert built.multiple == 16 and built.active is None and not built.needs
    with pytest.raises(ConfigError, match="expected a subclass"):
        generator_type("wrong")
    with pytest.raises(UnknownName, match="tinded"):
        generator_type("tinded")


@pytest.mark.usefixtures("package")
def test_it_is_trained_and_rendered(
    dance: Path, small_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    settings = small_settings(
        2, **{"generator.name": "tinted", "schedule.lengths": [1, 2], "loop.seed": 1}
    )
    result = train(settings, [dance], tmp_path / "run", Silent())
    assert result.steps == 2 and result.losses["auxiliary"] > 0
    assert result.preview is not None and result.preview.stat().st_size > 0

    model = load_model(tmp_path / "run")
    assert model.record.generator["gain"] == 1.0  # without reads, no control points
    tint = model.statistics["tint"]
    assert tint.shape == (3,) and tint.abs().max() <= 1

    frames = np.stack(list(MotionTransfer.from_pretrained(tmp_path / "run", device="cpu")(dance)))
    colour = torch.from_numpy(frames).float().mean(dim=(0, 1, 2)) / 127.5 - 1
    torch.testing.assert_close(colour, tint, atol=0.01, rtol=0)


@pytest.mark.usefixtures("package")
def test_its_artifacts_are_checked(
    dance: Path, small_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    settings = small_settings(1, **{"generator.name": "tinted", "schedule.lengths": [1]})
    train(settings, [dance], tmp_path / "run", Silent())
    path = tmp_path / "run" / "model" / "statistics.safetensors"
    save_file({**load_file(path), "shade": torch.zeros(3)}, path)
    with pytest.raises(CheckpointInvalid, match="shade is no colour"):
        load_model(tmp_path / "run")
