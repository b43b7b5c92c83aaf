"""The clip store: reading frames and signals, value ranges, and detection of damage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from v2v.config import PreprocessSettings, load_config
from v2v.data import verified
from v2v.data.store import ClipStore, file_record, frames_to_tensor
from v2v.errors import (
    SignalMissing,
    StoreDamaged,
    StoreNotFound,
    StoreSchemaError,
    UnknownName,
    UsageError,
)
from v2v.preprocess.build import preprocess
from v2v.video.stored import read_range, read_stored
from v2v.video.write import MapWriter, VideoWriter

COUNT = 20


@pytest.fixture(scope="module")
def built(run_ffmpeg, numbered_frames, tmp_path_factory) -> Path:
    """A store of 20 frames with flow and audio."""
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
    """A copy of the store for tests that damage it."""
    return Path(shutil.copytree(built, tmp_path / "clip"))


def edit(folder: Path, **changes: object) -> None:
    """Set keys of clip.json, with `__` between nested keys; None removes a key."""
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


def test_frames_match_the_footage(built, numbered_frames, read_numbers, colour_error):
    store = ClipStore.open(built)
    frames = store.frames()
    assert (len(store), frames.shape, frames.dtype) == (COUNT, (COUNT, 48, 64, 3), np.uint8)
    assert read_numbers(frames) == list(range(COUNT))
    assert colour_error(frames, numbered_frames(COUNT)) < 3
    assert np.array_equal(store.frames(7, 12), frames[7:12])


@pytest.mark.parametrize("first", range(0, COUNT - 3))
def test_a_window_equals_the_same_range_of_the_clip(built, first):
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


def test_a_window_with_selected_signals(built):
    assert ClipStore.open(built).window(0, 2, signals=[]).signals == {}


@pytest.mark.parametrize(("start", "stop"), [(-1, 4), (5, 5), (6, 4), (0, 21), (20, 21), (99, 100)])
def test_frame_ranges_outside_the_clip_are_refused(built, start, stop):
    store = ClipStore.open(built)
    for read in (
        lambda: store.frames(start, stop),
        lambda: store.track("flow", start, stop),
        lambda: store.window(start, stop - start),
    ):
        with pytest.raises(UsageError, match=f"frames {start} to {stop}") as caught:
            read()
        assert "0 to 20" in str(caught.value.hint)


def test_missing_and_unknown_signals_are_refused(built):
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


def test_shots_audio_and_rate(built):
    store = ClipStore.open(built)
    assert store.shots == [(0, COUNT)]
    assert store.audio is not None and store.audio.is_file()
    assert store.rate == 25 and store.signals == ("flow",)


def test_black_maps_to_minus_one_and_white_to_one():
    frames = np.stack([np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 255, np.uint8)])
    tensor = frames_to_tensor(frames, 4, 6)
    assert tensor.shape == (2, 3, 4, 6)
    assert (tensor[0] == -1).all() and (tensor[1] == 1).all()
    assert np.array_equal(frames, (tensor.permute(0, 2, 3, 1) * 127.5 + 127.5).byte().numpy())


# ---------------------------------------------------------------- damage


def test_a_missing_store(tmp_path):
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
def test_an_invalid_record_is_refused(case, folder):
    changes, kind, message = EDITS[case]
    edit(folder, **changes)
    with pytest.raises(kind, match=message) as caught:
        ClipStore.open(folder)
    assert str(folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", ["{", "", "[]", "7", "null", '"clip"', b"\xff\xfe\x00"])
def test_a_malformed_record_is_refused(text, folder):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "clip.json").write_bytes(data)
    with pytest.raises(StoreDamaged, match=r"clip\.json") as caught:
        ClipStore.open(folder)
    assert caught.value.hint


def media_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix in (".mp4", ".mkv", ".m4a"))


@pytest.mark.parametrize("name", ["frames.mp4", "flow.mkv", "audio.m4a"])
def test_missing_truncated_and_changed_files(name, folder):
    assert name in media_files(folder)
    path = folder / name
    whole = path.read_bytes()
    ClipStore.open(folder).verify()

    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    store = ClipStore.open(folder)  # same size: only the hash detects the change
    with pytest.raises(StoreDamaged, match=name) as caught:
        store.verify()
    assert caught.value.hint

    path.write_bytes(whole[:-100])
    with pytest.raises(
        StoreDamaged, match=f"{name} was changed: it has {len(whole) - 100}"
    ) as caught:
        ClipStore.open(folder)
    assert caught.value.hint

    path.unlink()
    with pytest.raises(StoreDamaged, match=f"{name} is listed in clip.json but missing") as caught:
        ClipStore.open(folder)
    assert caught.value.hint
    with pytest.raises(StoreDamaged, match=name):
        store.verify()  # opened before the file was deleted


# ---------------------------------------------------------------- files that contradict the record


def update_file_records(folder: Path) -> None:
    """Update the file records in clip.json to match the changed files, as an attacker would."""
    record = json.loads((folder / "clip.json").read_text("utf-8"))
    rows = {"frames.mp4": record["frames"]["file"]}
    for signal in record["signals"].values():
        rows |= signal["files"]
    for name, row in rows.items():
        row.update(file_record(folder / name).model_dump())
    (folder / "clip.json").write_text(json.dumps(record), "utf-8")


def write_video(path: Path, *, count: int, size: tuple[int, int] = (64, 48)) -> None:
    with VideoWriter(path, width=size[0], height=size[1], rate=Fraction(25)) as writer:
        for _ in range(count):
            writer.write(np.zeros((size[1], size[0], 3), np.uint8))


WRONG_VIDEOS: dict[str, Callable[[Path], object]] = {
    "shorter": lambda path: write_video(path, count=COUNT - 5),
    "longer": lambda path: write_video(path, count=COUNT + 1),
    "another size": lambda path: write_video(path, count=COUNT, size=(96, 48)),
    "a picture": lambda path: (
        cv2.imwrite(str(path.with_suffix(".png")), np.zeros((48, 64, 3)))
        and path.with_suffix(".png").replace(path)
    ),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("#EXTM3U\n#EXTINF:2,\n/etc/passwd\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:900]),
}


@pytest.mark.parametrize("case", WRONG_VIDEOS)
def test_frames_that_contradict_the_record(case, folder):
    WRONG_VIDEOS[case](folder / "frames.mp4")
    update_file_records(folder)
    store = ClipStore.open(folder)
    with pytest.raises(StoreDamaged, match=r"frames\.mp4"):
        store.frames(0, 2)


@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_a_folder_or_symlink_loop_instead_of_frames(kind, folder):
    store, path = ClipStore.open(folder), folder / "frames.mp4"
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path.name)
    for read in (lambda: store.frames(0, 2), lambda: read_range(path, 0, 2)):
        with pytest.raises(StoreDamaged, match=r"frames\.mp4 is (a folder|not a file)"):
            read()


def test_a_range_past_the_last_frame_raises(folder):
    path = folder / "frames.mp4"
    with pytest.raises(StoreDamaged, match="ends after frame 20: expected frames 18 to 22"):
        read_range(path, 18, 22)
    assert len(list(read_stored(path, first=18))) == 2


@pytest.mark.parametrize("count, size", [(COUNT - 1, (64, 144)), (COUNT, (64, 48))])
def test_maps_that_contradict_the_record(count, size, folder):
    writer = MapWriter(
        folder / "flow.mkv", width=size[0], height=size[1], rate=Fraction(25), bits=16
    )
    for _ in range(count):
        writer.write(np.zeros(size[::-1], np.uint16))
    writer.close()
    update_file_records(folder)
    with pytest.raises(StoreDamaged, match=r"flow\.mkv does not match its record"):
        ClipStore.open(folder).track("flow", 0, 2)


def test_a_changed_byte_is_detected(folder):
    path = folder / "flow.mkv"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    store = ClipStore.open(folder)
    store.verify([])  # verifies only frames and audio
    for again in (True, False):
        with pytest.raises(StoreDamaged, match=r"flow\.mkv was changed"):
            store.verify(again=again)


def test_a_large_file_is_hashed_once_until_it_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "SMALL", 1)
    hashed = []
    monkeypatch.setattr(
        "v2v.data.store.file_record", lambda path: hashed.append(path.name) or file_record(path)
    )
    before = sorted(p.name for p in folder.iterdir())
    for _ in range(2):
        ClipStore.open(folder).verify(again=False)
    assert sorted(hashed) == ["audio.m4a", "flow.mkv", "frames.mp4"]
    ClipStore.open(folder).verify()
    assert len(hashed) == 6 and sorted(p.name for p in folder.iterdir()) == before
    path = folder / "frames.mp4"
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StoreDamaged, match=r"frames\.mp4"):
        ClipStore.open(folder).verify(again=False)
