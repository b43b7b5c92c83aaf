"""Defaults shown to users are those that the library uses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from v2v import defaults
from v2v.api import train_settings
from v2v.cli.shared import yaml_default
from v2v.models.cost import multiply_adds
from v2v.models.generator import SequentialGenerator
from v2v.models.generator_settings import PRESETS
from v2v.training.fabric import with_budget
from v2v.types import Condition, GeneratorState

README = Path(__file__).parents[1] / "README.md"


def test_the_budget_has_one_default():
    settings = train_settings("pose")
    assert settings.budget.minutes is None and settings.budget.steps is None
    assert with_budget(settings).budget.minutes == defaults.MINUTES
    assert with_budget(train_settings("pose", steps=5)).budget.minutes is None


def test_help_shows_the_defaults_of_the_configs():
    settings = train_settings("pose")
    assert yaml_default("train", "data.size") == settings.data.size
    assert yaml_default("train", "loop.devices") == settings.loop.devices
    help_of = subprocess.run(
        [sys.executable, "-m", "v2v", "train", "--help"], capture_output=True, text=True,
        check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    assert f"Minutes to train for. [default: {defaults.MINUTES:g}]" in help_of
    assert f"[default: {settings.data.size}]" in help_of


@pytest.mark.parametrize("preset", PRESETS)
def test_the_readme_states_the_size_of_each_preset(preset: str) -> None:
    """A person at 256x256 with the default settings: references and background plate."""
    row = re.search(rf"\| `{preset}` \| ([\d.]+) M \| ([\d.]+) G \|", README.read_text("utf-8"))
    assert row is not None
    with torch.device("meta"):
        generator = SequentialGenerator(
            channels=3, arch=PRESETS[preset], scales=2, compose="condition", control_points=True,
            references=1, background_plate=True,
        )  # fmt: skip
        inputs = Condition(
            signals=torch.zeros(1, 3, 256, 256),
            background_plate=torch.zeros(1, 4, 256, 256),
            control_points=torch.zeros(1, 157, 3),
            references=torch.zeros(1, 1, 5, 256, 256),
        )  # fmt: skip
        macs = multiply_adds(generator, inputs, GeneratorState.empty(inputs))
    parameters = sum(p.numel() for p in generator.parameters())
    for shown, truth in ((row[1], parameters / 1e6), (row[2], macs / 1e9)):
        assert shown == (f"{truth:.1f}" if truth < 10 else f"{truth:.0f}"), truth
