"""Fixtures for rendering tests without training: models with random weights, drawn skeletons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2v.checkpoint import ClipUse, Model, ModelRecord, SignalUse, save_model
from v2v.data.references.memory import References
from v2v.models import build_generator
from v2v.models.generator_settings import PRESETS, Architecture
from v2v.saved import FORMAT
from v2v.signals.pose import NAMES

HEIGHT, WIDTH = 64, 48
TINY = Architecture(stem=16, trunk=32, blocks=1, detail=8, fine=(16,), fine_blocks=1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Test processes share the cores; with more threads they would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def tiny_preset() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "mobile", TINY)
        yield


MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """`make_model("b", signal="pose", channels=3, statistics={...})`: a run with a random model."""

    def make(
        name: str = "b",
        *,
        signal: str = "pose",
        channels: int = 3,
        spec: dict[str, Any] | None = None,
        statistics: dict[str, torch.Tensor] | None = None,
        generator: dict[str, Any] | None = None,
        clips: int = 1,
        sha256: str = "0" * 64,
        frames: int = 40,
        stored: tuple[int, int] = (HEIGHT, WIDTH),
        references: dict[int, References] | None = None,
    ) -> Path:
        arguments = {
            "name": "sequential", "channels": channels, "preset": "mobile", "scales": 1,
            **({"compose": "blend", "control_points": True} if signal in ("pose", "face") else {}),
            **(generator or {}),
        }  # fmt: skip
        record = ModelRecord(
            format=FORMAT, tool="v2v test", task={"segmentation": "street"}.get(signal, signal),
            signals=(SignalUse(name=signal, channels=channels, spec=spec or {}),),
            height=HEIGHT, width=WIDTH, generator=arguments, active=None,
            clips=tuple(
                ClipUse(
                    name=f"clip{i}", source=f"clip{i}.mp4", sha256=sha256, fps="25", frames=frames,
                    trained=(0, frames), width=stored[1], height=stored[0], still=False,
                )
                for i in range(clips)
            ),
            training={},
        )  # fmt: skip
        torch.manual_seed(1)
        model = Model(record, build_generator(**arguments), {}, statistics or {}, references or {})
        save_model(tmp_path / "runs" / name / "model", model)
        return tmp_path / "runs" / name

    return make


@pytest.fixture(scope="session")
def skeletons() -> Callable[..., np.ndarray]:
    """`skeletons(count, height, width)`: float32 [count, 75, 3], a person swaying and waving."""

    def make(count: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
        positions = {
            "nose": (0.5, 0.12), "shoulder": (0.38, 0.26), "elbow": (0.3, 0.4),
            "wrist": (0.26, 0.54), "hip": (0.42, 0.54), "knee": (0.41, 0.72),
            "ankle": (0.4, 0.9), "heel": (0.39, 0.93), "foot": (0.43, 0.95),
        }  # fmt: skip
        points = np.full((count, len(NAMES), 3), np.nan, np.float32)
        for index, name in enumerate(NAMES[:33]):
            side, _, part = name.partition("_")
            x, y = positions.get(part or name, positions["wrist" if part else "nose"])
            if part.startswith(("ear", "eye")) or "mouth" in name:
                x, y = 0.48, 0.11
            points[:, index] = (1 - x if "left" in name else x, y, 1)
        sway = 0.05 * np.sin(np.arange(count) / 5)[:, None]
        points[..., 0] += sway
        wave = 0.3 * np.sin(np.arange(count) / 7)[:, None]
        points[:, 15:23, 1] -= 0.15 + wave / 2
        points[..., 0] *= width
        points[..., 1] *= height
        return points

    return make


MakeStore = Callable[..., Path]


@pytest.fixture
def make_store(tmp_path: Path, numbered_frames: Callable[..., np.ndarray]) -> MakeStore:
    """`make_store("a", pose=points)`: a clip store of numbered frames with the given signals.

    Args (of the returned function):
        name: name of its folder in `tmp_path`.
        size: (height, width).
        rate: frames per second.
        frames: uint8 [T, height, width, 3], instead of numbered ones.
        shots: first frame of each shot.
        pose: [T, 75, 3]; face: [T, 478, 3] with `depth` [T, 478]; labels: uint8 [T, H, W] with
            `classes`.
    """
    from v2v.config import PreprocessSettings, load_config
    from v2v.data.store import ClipStore, SignalRecord, file_record, write_record
    from v2v.preprocess.build import preprocess
    from v2v.preprocess.extractor import write_arrays
    from v2v.signals.face import head_pose
    from v2v.signals.segmentation import distinct_colours
    from v2v.video.write import MapWriter, VideoWriter

    settings = load_config(
        PreprocessSettings, "preprocess", values={"preview.enabled": False, "frames.crf": 4}
    )

    def make(
        name: str = "a",
        *,
        size: tuple[int, int] = (HEIGHT, WIDTH),
        rate: int = 25,
        frames: np.ndarray | None = None,
        shots: tuple[int, ...] = (0,),
        pose: np.ndarray | None = None,
        face: np.ndarray | None = None,
        depth: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        classes: tuple[str, ...] = ("road", "sky", "car"),
    ) -> Path:
        given = next(a for a in (pose, face, labels) if a is not None)
        video = tmp_path / f"{name}.mkv"
        with VideoWriter(
            video, width=size[1], height=size[0], rate=Fraction(rate), codec="ffv1"
        ) as writer:
            if frames is None:
                frames = numbered_frames(len(given), width=size[1], height=size[0])
            for frame in frames:
                frame[-1] = sum(name.encode()) % 256  # makes the footage of every store unique
                writer.write(frame)
        folder = tmp_path / name
        preprocess(video, [], settings, output=folder)
        store = ClipStore.open(folder)
        signals = {}

        def add(signal: str, file: str, spec: dict[str, Any]) -> None:
            signals[signal] = SignalRecord(
                spec=spec, backend="test", version="1", settings={}, coverage=1.0,
                files={file: file_record(folder / file)},
            )  # fmt: skip

        if pose is not None:
            filled = np.zeros(pose.shape[:2], np.bool_)
            write_arrays(folder / "pose.npz", {"points": pose, "filled": filled})
            add("pose", "pose.npz", {"shape": "points"})
        if face is not None:
            assert depth is not None
            head = head_pose(face, depth)
            write_arrays(folder / "face.npz", {
                "points": face, "depth": depth, "filled": np.zeros(len(face), np.bool_),
                "rotation": head.rotation, "translation": head.translation, "scale": head.scale,
            })  # fmt: skip
            add("face", "face.npz", {"shape": "points"})
        if labels is not None:
            path = folder / "segmentation.mkv"
            maps = MapWriter(path, width=size[1], height=size[0], rate=Fraction(rate), bits=8)
            for label in labels:
                maps.write(label)
            maps.close()
            palette = [list(colour) for colour in distinct_colours(len(classes))]
            spec = {"classes": list(classes), "palette": palette, "instances": False}
            add("segmentation", "segmentation.mkv", spec)
        stored = store.record.frames.model_copy(update={"shots": shots})
        write_record(folder, store.record.model_copy(update={"signals": signals, "frames": stored}))
        return folder

    return make


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`command("transfer", "--source", ...)`: the result of the command, run in `tmp_path`.

    User errors are in `.exception`, as `main` would print them.
    """
    from typer.testing import CliRunner

    from v2v.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("V2V_DEBUG", "1")  # leave the streams of the test process unchanged
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])
