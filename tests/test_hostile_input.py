"""Fuzz the command line with damaged stores, models, runs and configs: one clear error each.

The trials run in this process with tiny networks. The trial number seeds each trial.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from v2v import cli
from v2v.errors import V2VError
from v2v.progress import Silent

pytestmark = pytest.mark.slow

FAST = [
    "--size", "64", "-s", "generator.scales=1", "-s", "schedule.lengths=[1,2]",
    "-s", "discriminator.width=4", "-s", "discriminator.layers=1", "-s", "discriminator.scales=1",
    "-s", "loop.threads=1", "-s", "loop.precision=32", "-s", "output.preview_seconds=0.1",
]  # fmt: skip
TRIALS = 16  # per test
VALUES: list[Any] = [
    -1, 0, 1, 2**31, 2**63, 10**12, 10**30, 0.5, 1e308, float("nan"), float("inf"), None, True, "",
    "x", [], {}, [1], "../../etc/passwd", "1e99999999",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _tiny_preset() -> Iterator[None]:
    from v2v.models.generator_settings import PRESETS, Architecture

    tiny = Architecture(stem=8, trunk=16, blocks=1, detail=8, fine=(8,), fine_blocks=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "mobile", tiny)
        # The commands run in this process, where pytest captures standard error.
        patch.setattr("v2v.runtime._silence_native_logs", lambda: None)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/a`, a one-second dance clip, and `runs/b`, trained on it for two steps."""
    from v2v.config import PreprocessSettings, load_config
    from v2v.preprocess.build import preprocess
    from v2v.samples.clips import write_sample

    folder = tmp_path_factory.mktemp("base")
    video = write_sample("person", folder / "samples", seconds=1.0, report=Silent())
    settings = load_config(
        PreprocessSettings, "preprocess", values={"frames.size": 96, "preview.enabled": False}
    )
    preprocess(video, ["pose"], settings, output=folder / "data" / "a")
    shutil.rmtree(folder / "samples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code, message = v2v("train", "--data", "data/a", "--name", "b", "--steps", "2", *FAST)
    assert code == 0, message
    return folder


def v2v(*arguments: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and error. Other exceptions propagate."""
    try:
        cli.app(list(arguments), standalone_mode=False)
    except V2VError as error:
        return error.exit_code, error.message
    except SystemExit as system_exit:
        return int(system_exit.code or 0), "exited"
    return 0, ""


def node_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from node_paths(inner, (*path, key))


def corrupt_json(path: Path, rng: random.Random) -> str:
    text = path.read_text("utf-8").splitlines()[0] if path.suffix == ".jsonl" else path.read_text()
    if rng.random() < 0.15:
        how = rng.choice(["[" * 100_000, "", "[]", "null", text[: len(text) // 2], text + text])
        path.write_text(how + "\n")
        return how[:20]
    data = json.loads(text)
    *parents, last = keys = rng.choice(list(node_paths(data)))
    inner = data
    for key in parents:
        inner = inner[key]
    inner[last] = rng.choice(VALUES)
    path.write_text(json.dumps(data) + "\n")
    return f"{path.name}: {keys} = {inner[last]!r}"


def corrupt_bytes(path: Path, rng: random.Random) -> str:
    raw = bytearray(path.read_bytes())
    how = rng.choice(["flip", "cut", "empty", "zero", "head", "noise"])
    start = rng.randrange(len(raw))
    if how == "flip":
        raw[start] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del raw[start:]
    elif how == "empty":
        raw.clear()
    elif how == "head":
        raw[:8] = struct.pack("<Q", 1 << 40)
    else:
        size = min(64, len(raw) - start)
        raw[start : start + size] = bytes(size) if how == "zero" else rng.randbytes(size)
    path.write_bytes(raw)
    return f"{path.name}: {how} at {start}"


def corrupt_points(path: Path, rng: random.Random) -> str:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    points = arrays["points"]
    case = rng.choice(["short", "flat", "inf", "text", "objects", "gone", "nobody"])
    changed: dict[str, Any] = {
        "short": points[:3], "flat": points.reshape(-1), "inf": np.full_like(points, np.inf),
        "text": points.astype("U4"), "objects": np.full(3, None, object),
        "nobody": np.full_like(points, np.nan),
    }  # fmt: skip
    if case == "gone":
        del arrays["points"]
    else:
        arrays["points"] = changed[case]
    np.savez(path, **arrays)
    return f"{path.name}: {case}"


def update_file_records(store: Path) -> None:
    """Update the file records in clip.json to match the damaged files."""
    from v2v.data.store import file_record

    record = json.loads((store / "clip.json").read_text())
    rows = {"frames.mp4": record["frames"]["file"]}
    for signal in record["signals"].values():
        rows |= signal["files"]
    for name, row in rows.items():
        row.update(file_record(store / name).model_dump())
    (store / "clip.json").write_text(json.dumps(record))


@pytest.fixture
def workdir(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["v2v"])
    inner = tmp_path / "in" / "side"
    shutil.copytree(base, inner)
    monkeypatch.chdir(inner)
    return inner


RENDER = ("transfer", "--source", "data/a", "--target-model", "b", "-o", "o.mp4", "--end", "0.15")


def check_outputs(workdir: Path, code: int) -> None:
    """Check that no file lies outside `workdir` and that only a success leaves output."""
    outside = [p for p in workdir.parent.parent.rglob("*") if workdir not in (p, *p.parents)]
    assert outside == [workdir.parent]
    assert (code == 0) >= (workdir / "o.mp4").exists()
    assert not list(workdir.glob(".o.mp4*"))


@pytest.mark.parametrize("number", range(TRIALS))
def test_damaged_stores(number: int, workdir: Path) -> None:
    rng = random.Random(f"stores {number}")
    store = workdir / "data" / "a"
    corrupt, name = rng.choice(
        [(corrupt_json, "clip.json"), (corrupt_bytes, "frames.mp4"), (corrupt_bytes, "pose.npz"),
         (corrupt_points, "pose.npz")]
    )  # fmt: skip
    damage = corrupt(store / name, rng)
    damaged = name != "clip.json"
    if damaged and rng.random() < 0.6:
        update_file_records(store)
        damaged = False
    train = ("train", "--data", "data/a", "--name", "n", "--steps", "1", *FAST)
    code, message = v2v(*rng.choice([RENDER, train, ("info", "data/a", "--verify")]))
    assert code in ((1, 2) if damaged else (0, 1, 2)), damage
    assert code == 0 or message
    check_outputs(workdir, code)


@pytest.mark.parametrize("number", range(TRIALS))
def test_damaged_models(number: int, workdir: Path) -> None:
    rng = random.Random(f"models {number}")
    model = workdir / "runs" / "b" / "model"
    damage = rng.choice(["json", "json", "bytes", "values"])
    if damage == "json":
        damage = corrupt_json(model / "model.json", rng)
    elif damage == "bytes":
        name = rng.choice(["generator", "statistics"])
        damage = corrupt_bytes(model / f"{name}.safetensors", rng)
    else:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(model / "generator.safetensors")
        name = rng.choice(sorted(tensors))
        tensors[name] = np.full_like(tensors[name], rng.choice([np.nan, np.inf]))
        save_file(tensors, model / "generator.safetensors")
        code, message = v2v(*RENDER)
        assert code == 1 and "NaN or infinite" in message
    code, message = v2v(*rng.choice([RENDER, RENDER, ("info", "runs/b", "--verify")]))
    assert code in (0, 1, 2) and (code == 0 or message), damage
    check_outputs(workdir, code)


@pytest.mark.parametrize("number", range(TRIALS))
def test_damaged_runs(number: int, workdir: Path) -> None:
    rng = random.Random(f"runs {number}")
    folder = workdir / "runs" / "b"
    newest = max((folder / "checkpoints").iterdir())
    path = rng.choice(
        [newest / "checkpoint.json", newest / "weights.safetensors", newest / "optimisers.pt",
         folder / "run.json", folder / "config.yaml", folder / "log.jsonl"]
    )  # fmt: skip
    corrupt = corrupt_json if path.suffix in (".json", ".jsonl") else corrupt_bytes
    damage = corrupt(path, rng)
    code, message = v2v("train", "--data", "data/a", "--name", "b", "--steps", "3", *FAST)
    assert code in (0, 1, 2) and (code == 0 or message), damage
    check_outputs(workdir, code)


@pytest.mark.parametrize("number", range(TRIALS))
def test_invalid_settings(number: int, workdir: Path) -> None:
    rng = random.Random(f"settings {number}")
    from v2v.config import load_config
    from v2v.training.settings import TrainSettings

    defaults = load_config(TrainSettings, "train", "train-pose").model_dump(mode="json")
    keys = [
        ".".join(map(str, p))
        for p in node_paths(defaults)
        if not any(isinstance(k, int) for k in p)
    ]
    key = rng.choice([k for k in keys if k not in ("budget", "task")])
    value = rng.choice(
        ["-1", "0", "1e30", "nan", "inf", "1e400", "99999999999", "x", "", "[]", "null", "{a: 1}",
         "${oc.env:HOME}", "[1000000]", "true"]
    )  # fmt: skip
    code, message = v2v(
        "train", "--data", "data/a", "--name", "n", "--steps", "1", *FAST, "-s", f"{key}={value}"
    )
    assert code in (0, 1, 2) and (code == 0 or message), f"{key}={value}"
    check_outputs(workdir, code)
