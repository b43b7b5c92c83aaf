"""The clip store: what is listed is whole, what is damaged says so, what is read is in range."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from preprocess.build import preprocess
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore, frames_to_tensor
from v2v.errors import (
    SignalMissing,
    StoreDamaged,
    StoreNotFound,
    StoreSchemaError,
    UnknownName,
    UsageError,
)

COUNT = 20


@pytest.fixture(scope="module")
def built(run_ffmpeg, numbered_frames, tmp_path_factory) -> Path:
    """A store of 20 frames with flow and sound."""
    folder = tmp_path_factory.mktemp("store")
    source = folder / "clip.mp4"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", 25, "-i", "-")
    sound = ("-f", "lavfi", "-i", "sine=duration=0.8", "-c:a", "aac")
    codec = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
    run_ffmpeg(*raw, *sound, *codec, source, stdin=numbered_frames(COUNT).tobytes())
    settings = load_config(PreprocessSettings, "preprocess", overrides=["flow.scale=1.0"])
    preprocess(source, ["flow"], settings, output=folder / "clip")
    return folder / "clip"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(built, tmp_path / "clip"))


def edit(folder: Path, **changes: object) -> None:
    """Set dotted keys (with `__` for the dots) of clip.json; None removes one."""
    path = folder / "clip.json"
    data = json.loads(path.read_text("utf-8"))
    for key, value in changes.items():
        *parents, last = key.split("__")
        inner = data
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    path.write_text(json.dumps(data), "utf-8")


# ---------------------------------------------------------------- reading


def test_frames_are_the_footage(built, numbered_frames, read_numbers, colour_error):
    store = ClipStore.open(built)
    frames = store.frames()
    assert (len(store), frames.shape, frames.dtype) == (COUNT, (COUNT, 48, 64, 3), np.uint8)
    assert read_numbers(frames) == list(range(COUNT))
    assert colour_error(frames, numbered_frames(COUNT)) < 3
    assert np.array_equal(store.frames(7, 12), frames[7:12])


@pytest.mark.parametrize("first", range(0, COUNT - 3))
def test_a_window_is_a_stretch_of_the_whole(built, first):
    store = ClipStore.open(built)
    window, whole = store.window(first, 4), store.window(0, COUNT)
    assert torch.equal(window.frames, whole.frames[first : first + 4])
    assert torch.equal(window.signals["flow"], whole.signals["flow"][first : first + 4])


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (48, 64)), (32, (32, 32)), ((24, 40), (24, 40))]
)
def test_window_shapes_and_ranges(built, size, shape):
    window = ClipStore.open(built).window(3, 5, size=size)
    assert window.start == 3
    assert window.frames.shape == (5, 3, *shape) and window.frames.dtype == torch.float32
    assert -1 <= window.frames.min() < -0.5 and 0.5 < window.frames.max() <= 1
    assert window.signals["flow"].shape == (5, 3, *shape)
    occlusion = window.signals["flow"][:, 2]
    assert occlusion.min() >= 0 and occlusion.max() <= 1
    assert len(window.tracks["flow"]) == 5
    assert "frames[5, 3, " in repr(window) and "flow[5, 3, " in repr(window)


def test_a_window_of_chosen_signals(built):
    assert ClipStore.open(built).window(0, 2, signals=[]).signals == {}


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (5, 5), (6, 4), (0, 21), (20, 21), (99, 100)])
def test_frames_that_do_not_exist(built, start, stop):
    store = ClipStore.open(built)
    for read in (
        lambda: store.frames(start, stop),
        lambda: store.track("flow", start, stop),
        lambda: store.window(start, stop - start),
    ):
        with pytest.raises(UsageError, match=f"frames {start} to {stop}") as caught:
            read()
        assert "0 to 20" in str(caught.value.hint)


def test_a_signal_that_is_not_there_and_one_that_is_none(built):
    store = ClipStore.open(built)
    with pytest.raises(SignalMissing, match="has no pose .it has: flow") as caught:
        store.track("pose")
    assert f"v2v preprocess {built} --signal pose" in str(caught.value.hint)
    with pytest.raises(UnknownName):
        store.track("flwo")


def test_repr_shows_shapes_and_coverage(built):
    text = repr(ClipStore.open(built))
    for part in (
        str(built), "clip.mp4, h264 64x48 at 25 fps", "uint8 [20, 48, 64, 3], 25 fps, 0.80 s",
        "aac", "u, v, occlusion [20, 3, 48, 64] by dis", "95.0% of the frames",
    ):  # fmt: skip
        assert part in text, text


def test_shots_and_sound(built):
    store = ClipStore.open(built)
    assert store.shots == [(0, COUNT)]
    assert store.audio is not None and store.audio.is_file()
    assert store.rate == 25 and store.signals == ("flow",)


def test_black_is_minus_one_and_white_one():
    frames = np.stack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)])
    tensor = frames_to_tensor(frames, 4, 6)
    assert tensor.shape == (2, 3, 4, 6)
    assert (tensor[0] == -1).all() and (tensor[1] == 1).all()
    assert np.array_equal(frames, (tensor.permute(0, 2, 3, 1) * 127.5 + 127.5).byte().numpy())


# ---------------------------------------------------------------- damage


def test_no_store(tmp_path):
    with pytest.raises(StoreNotFound, match="nowhere.*does not exist") as caught:
        ClipStore.open(tmp_path / "nowhere")
    assert "v2v preprocess" in str(caught.value.hint)
    with pytest.raises(StoreNotFound, match="has no clip.json") as caught:
        ClipStore.open(tmp_path)
    assert "v2v preprocess" in str(caught.value.hint)


EDITS = {
    "newer": ({"schema_version": 99}, StoreSchemaError, "newer version.*schema 99"),
    "older": ({"schema_version": 0}, StoreSchemaError, "another version.*schema 0"),
    "schema-word": ({"schema_version": "one"}, StoreSchemaError, "another version"),
    "no-schema": ({"schema_version": None}, StoreDamaged, "clip.json.*schema_version"),
    "no-count": ({"frames__count": None}, StoreDamaged, "clip.json: frames.count"),
    "no-source": ({"source": None}, StoreDamaged, "clip.json: source"),
    "word": ({"frames__count": "many"}, StoreDamaged, "clip.json: frames.count"),
    "half": ({"frames__width": 64.5}, StoreDamaged, "clip.json: frames.width"),
    "list": ({"source": [1]}, StoreDamaged, "clip.json: source"),
    "unknown": ({"frames__colour": "blue"}, StoreDamaged, "clip.json: frames.colour"),
    "signal": ({"signals__flow__coverage": "all"}, StoreDamaged, "signals.flow.coverage"),
    "rate": ({"frames__fps": "fast"}, StoreDamaged, "clip.json: frames.fps"),
    "no-rate": ({"frames__fps": "0"}, StoreDamaged, "clip.json: frames.fps"),
    "no-frames": ({"frames__count": 0}, StoreDamaged, "clip.json: frames.count"),
    "outside": (
        {"audio__name": "../../outside.m4a"}, StoreDamaged,
        "clip.json: audio.name: .*without folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_an_edited_record(case, folder):
    changes, kind, message = EDITS[case]
    edit(folder, **changes)
    with pytest.raises(kind, match=message) as caught:
        ClipStore.open(folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["{", "", "[]", "7", "null", '"clip"', b"\xff\xfe\x00"])
def test_a_record_that_is_not_one(text, folder):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "clip.json").write_bytes(data)
    with pytest.raises(StoreDamaged, match=r"clip\.json") as caught:
        ClipStore.open(folder)
    assert caught.value.hint


def listed(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".m4a"))


@pytest.mark.parametrize("name", ["frames.mp4", "flow.mkv", "audio.m4a"])
def test_missing_truncated_and_changed_files(name, folder):
    assert name in listed(folder)
    path = folder / name
    whole = path.read_bytes()
    ClipStore.open(folder).verify()

    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    store = ClipStore.open(folder)  # of the right size: only the hash can tell
    with pytest.raises(StoreDamaged, match=name) as caught:
        store.verify()
    assert caught.value.hint

    path.write_bytes(whole[:-100])
    with pytest.raises(StoreDamaged, match=f"{name} has {len(whole) - 100} bytes") as caught:
        ClipStore.open(folder)
    assert caught.value.hint

    path.unlink()
    with pytest.raises(StoreDamaged, match=f"{name} is listed in clip.json but missing") as caught:
        ClipStore.open(folder)
    assert caught.value.hint
    with pytest.raises(StoreDamaged, match=name):
        store.verify()  # opened while it was still there
