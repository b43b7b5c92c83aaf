"""Pipelines are found by their declarations: built-in ones and those of installed packages."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from v2v.api import train_settings
from v2v.cli.rendering import CAMERA_PATHS
from v2v.defaults import CODECS, SUFFIXES
from v2v.errors import MissingLibrary, UnknownName, UsageError
from v2v.pipelines import camera_path
from v2v.pipelines.builtin import BUILT_IN, STRENGTHS, TRANSFER
from v2v.pipelines.motion_transfer import MotionTransfer
from v2v.pipelines.registry import command_names, load_spec, spec_for, tasks
from v2v.pipelines.retarget.face import Strengths
from v2v.pipelines.retarget.pose import RETARGETS
from v2v.video import write

DOCUMENT = Path(__file__).parents[2] / "CONTRIBUTING.md"
OWN = ["transfer", "reenact", "synthesize", "predict-frames"]


def test_built_in_pipelines():
    assert command_names()[:4] == OWN == [spec.command for spec in BUILT_IN]
    assert list(tasks())[:3] == ["pose", "face", "street"]
    found = spec_for(("face",))
    assert found is not None and found.command == "reenact"
    assert spec_for(("pose", "face")) is None
    with pytest.raises(UnknownName, match="unknown pipeline 'transfr'"):
        load_spec("transfr")


@pytest.mark.parametrize("spec", BUILT_IN, ids=OWN)
def test_a_declaration_matches_its_class(spec):
    """The input and the prepared options are what the class takes."""
    kind = spec.pipeline()
    assert callable(kind.from_pretrained)
    taken = list(inspect.signature(kind.__call__).parameters)
    values = {option.name: option.default for option in spec.options}
    values |= dict.fromkeys(spec.common)
    prepared = spec.prepare(dict(values)) if spec.prepare else values
    assert set(prepared) <= set(taken[2:]), f"{kind.__name__} takes {taken[2:]}"


def test_declared_choices_are_those_of_the_library():
    (retarget,) = TRANSFER.options
    assert set(retarget.choices) == set(RETARGETS)
    assert set(CAMERA_PATHS) == set(camera_path.CAMERA_PATHS)
    assert set(CODECS) == set(write.CODECS)
    assert all(suffix in write.CODECS[name].suffixes for name, suffix in SUFFIXES.items())
    assert set(STRENGTHS) == set(inspect.signature(Strengths).parameters)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("v2v trans", {"transfer"}),
        ("v2v transfer --codec ", set(CODECS)),
        ("v2v transfer --camera-path s", {"still", "source"}),
        ("v2v train --task ", {"pose", "face", "street", "predict"}),
        ("v2v preprocess --crop ", {"none", "person", "face"}),
    ],
)
def test_shells_complete_commands_and_choices(line, expected):
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "from v2v.cli import app; app(prog_name='v2v')"],
        capture_output=True, text=True,
        env=os.environ | {
            "_V2V_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1),
        },
    )  # fmt: skip
    assert set(done.stdout.split()) == expected, done.stderr


# ---------------------------------------------------------------- an installed package


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install("toy", toy="module:SPEC", code=...)`: a package with entry points."""

    def make(package: str, code: str, **entries: str) -> None:
        site = tmp_path / f"site-{package}"
        info = site / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{package}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = "\n".join(f"{name} = {place}" for name, place in entries.items())
        (info / "entry_points.txt").write_text(f"[v2v.pipelines]\n{lines}\n")
        monkeypatch.syspath_prepend(site)

    return make


def example() -> str:
    found = re.search(
        r"`my_mirror\.py`:\n\n```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL
    )
    assert found is not None
    return found[1]


def test_the_example_is_a_command(install, make_store, make_model, skeletons, command, tmp_path):
    install("my_mirror", example(), mirror="my_mirror:SPEC")
    make_model()
    store = make_store(pose=skeletons(12))
    assert "Mirrored motion" in command("--help").stdout
    shown = command("mirror", "--help").stdout
    for option in ("--source", "--target-model", "--mirror", "--start", "--compare", "--codec"):
        assert option in shown
    assert "--camera-path" not in shown and "--clip" not in shown
    options = ("--source", store, "--target-model", "b", "--device", "cpu")
    done = command("mirror", *options, "--json", "--end", "0.2", "--compare")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["frames"] == 5
    assert (tmp_path / "a-b-compare.mp4").exists()
    facts = json.loads(command("info", "a-b.mp4", "--json").stdout)
    assert facts["pipeline"] == "mirrored motion"
    assert isinstance(command("mirror", *options, "--mirror", "ys").exception, UnknownName)
    assert isinstance(command("mirror", *options).exception, UsageError), "the video exists"


TASK = """
from v2v.pipelines.registry import PipelineSpec
SPEC = PipelineSpec(
    command="draw", load="nowhere:Draw", help="Edges to pictures.", signals=("edges",),
    task="edges", training={"data.signals": ["edges"], "augment.drop": 0.0},
)
"""


def test_a_package_adds_a_task(install):
    install("v2v_draw", TASK, draw="v2v_draw:SPEC")
    settings = train_settings("edges", settings={"data.size": 64})
    assert (settings.task, settings.data.signals) == ("edges", ("edges",))
    assert settings.augment.drop == 0.0 and settings.data.size == 64
    assert train_settings("edges", overrides=["augment.drop=0.25"]).augment.drop == 0.25
    found = spec_for(("edges",))
    assert found is not None and found.usage == "v2v draw --source VIDEO"


def test_a_model_is_referred_to_the_pipeline_of_its_signal(install, make_model):
    install("v2v_draw", TASK, draw="v2v_draw:SPEC")
    run = make_model(signal="edges", channels=1)
    with pytest.raises(UsageError) as caught:
        MotionTransfer.from_pretrained(run)
    assert caught.value.hint == "use: v2v draw --source VIDEO --target-model b"


@pytest.mark.parametrize(
    "code", ["import nothing_of_this_name", "SPEC = 5", "raise RuntimeError('no')"]
)
def test_a_broken_package_only_breaks_its_command(install, command, code):
    install("broken", code, shine="broken:SPEC")
    done = command("--help")
    assert done.exit_code == 0 and "shine" in done.stdout and "transfer" in done.stdout
    error = command("shine").exception
    assert isinstance(error, MissingLibrary) and "remove broken" in (error.hint or "")
    assert list(tasks())[:3] == ["pose", "face", "street"]
