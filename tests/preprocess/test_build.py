"""Tests building stores: resuming, adding signals, rejecting conflicts; on a drawn person."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore, read_record, write_record
from v2v.errors import (
    DiskFull,
    LabelsMismatch,
    MediaNotFound,
    NothingFound,
    NotWritable,
    SignalMissing,
    StoreConflict,
    StoreDamaged,
    StoreLocked,
    UnknownName,
    V2VError,
)
from v2v.homography import carry
from v2v.preprocess.build import preprocess
from v2v.samples import person
from v2v.samples.clips import write_sample
from v2v.signals.camera import CameraTrack
from v2v.video.stored import read_stored
from v2v.video.write import VideoWriter

RATE = Fraction(30)
FRAMES = 40
PART = 16  # frames, so that a short clip has several parts


def settings(*overrides: str, **values: object) -> PreprocessSettings:
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return load_config(PreprocessSettings, "preprocess", overrides=list(overrides), values=dotted)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("extractor", "job", "worker", "frames"):
        monkeypatch.setattr(f"v2v.preprocess.{module}.PART", PART)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "dance.mp4"
    with VideoWriter(path, width=192, height=320, rate=RATE) as video:
        for frame in person.frames(count=FRAMES, height=320, width=192):
            video.write(frame)
    return path


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Footage of a grey wall without people."""
    path = tmp_path_factory.mktemp("blank") / "wall.mp4"
    with VideoWriter(path, width=64, height=64, rate=RATE) as video:
        for _ in range(20):
            video.write(np.full((64, 64, 3), 90, np.uint8))
    return path


def test_repairs_of_the_footage_are_reported(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGBA", (32, 32), (200, 90, 10, 128)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".DS_Store").touch()  # hidden files are ignored
    for _ in range(2):
        done = preprocess(tmp_path / "images", ["flow"], settings(), output=tmp_path / "store")
        assert any("composited over black" in warning for warning in done.warnings)
    shown = next(read_stored(tmp_path / "store" / "frames.mp4"))
    assert np.abs(shown.mean(axis=(0, 1)) - (100, 45, 5)).max() < 4


def test_rejected_label_map_leaves_no_partial_file(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            Image.new("L", (32, 32), 7).save(tmp_path / kind / f"{number}.png")
    (tmp_path / "labels" / "3.png").write_bytes(b"")
    chosen = settings(
        segmentation__labels=str(tmp_path / "labels"), segmentation__backend="labels",
        segmentation__void=[0],
    )  # fmt: skip
    done = preprocess(tmp_path / "images", ["segmentation"], chosen, output=tmp_path / "store")
    assert "3.png cannot be read as an image" in done.failed["segmentation"].message
    assert not list((tmp_path / "store").rglob("*.partial"))


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


RUN = """
import sys
import v2v.preprocess.extractor
v2v.preprocess.extractor.PART = {part}
from pathlib import Path
from v2v.preprocess.build import preprocess
from v2v.config import PreprocessSettings, load_config
preprocess(Path(sys.argv[1]), {signals}, load_config(PreprocessSettings, "preprocess"),
           output=Path(sys.argv[2]))
"""


def start(footage: Path, output: Path, signals: list[str]) -> subprocess.Popen[bytes]:
    code = RUN.format(part=PART, signals=signals)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(footage), str(output)], stderr=subprocess.DEVNULL
    )


def test_store_contains_what_was_requested(footage: Path, tmp_path: Path) -> None:
    outcome = preprocess(footage, ["pose", "flow"], settings(), output=tmp_path / "s")
    assert outcome.made == ["pose", "flow"] and not outcome.failed
    store = ClipStore.open(tmp_path / "s")
    store.verify()
    assert len(store) == FRAMES and store.shots == [(0, FRAMES)]
    assert store.record.signals["pose"].coverage == 1.0
    window = store.window(3, 8, size=(160, 96))
    assert window.frames.shape == (8, 3, 160, 96)
    assert window.signals["pose"].shape == window.signals["flow"].shape == (8, 3, 160, 96)
    assert len(list(read_stored(tmp_path / "s" / "preview.mp4"))) == FRAMES
    assert not (tmp_path / "s" / ".work").exists()


def test_signals_added_later_equal_those_extracted_at_once(footage: Path, tmp_path: Path) -> None:
    names = ["segmentation", "flow", "pose"]
    preprocess(footage, names, settings(), output=tmp_path / "once")
    for name in ("flow", "pose", "segmentation"):
        preprocess(footage, [name], settings(), output=tmp_path / "later")
    once, later = contents(tmp_path / "once"), contents(tmp_path / "later")
    assert once.keys() == later.keys()
    assert [name for name in once if once[name] != later[name]] == []


def test_resuming_after_kills_gives_the_same_bytes(footage: Path, tmp_path: Path) -> None:
    signals = ["pose", "flow"]
    straight = start(footage, tmp_path / "straight", signals)
    output, kills = tmp_path / "killed", 0
    for parts in (1, 3, 5):  # kill once this many parts are written
        run = start(footage, output, signals)
        while run.poll() is None:
            done = [p for p in output.glob(".work/*/0*") if "partial" not in p.name]
            if len(done) >= parts:
                run.send_signal(signal.SIGKILL)
                kills += 1
                run.wait()
            time.sleep(0.005)
    assert kills >= 2, "the runs ended before they could be killed"
    assert start(footage, output, signals).wait() == 0
    assert straight.wait() == 0
    whole, resumed = contents(tmp_path / "straight"), contents(output)
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if whole[name] != resumed[name]] == []


class Killed(BaseException):
    """Simulates SIGKILL: no handler cleans up."""


@pytest.fixture(scope="module")
def handheld(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn person in front of a wall; the crop window sways by whole pixels."""
    path = tmp_path_factory.mktemp("handheld") / "sway.mp4"
    random = np.random.default_rng(0)
    wall = random.integers(0, 256, (44, 32, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with VideoWriter(path, width=192, height=320, rate=RATE, crf=10) as video:
        for t, frame in enumerate(person.frames(count=FRAMES, height=352, width=256)):
            shown = frame.copy()
            shown[:, :40], shown[:, -56:] = wall[:, :40], wall[:, -56:]
            x, y = 32 + sway(t), 16
            video.write(np.ascontiguousarray(shown[y : y + 320, x : x + 192]))
    return path


def sway(t: int) -> int:
    return round(12 * np.sin(t / 6))


def test_camera_resumes_after_kills_with_the_same_bytes(
    handheld: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requesting only the camera also extracts the mask that it needs."""
    outcome = preprocess(handheld, ["camera"], settings(), output=tmp_path / "straight")
    assert outcome.made == ["segmentation", "camera"]
    from v2v.preprocess.camera import Extractor

    step = Extractor.step
    for place in (20, 35):  # in the second and the third of three parts
        with monkeypatch.context() as patch:

            def stopped(self: Any, index: int, *rest: Any, stop: int = place) -> Any:
                if index == stop:
                    raise Killed
                return step(self, index, *rest)

            patch.setattr(Extractor, "step", stopped)
            with pytest.raises(Killed):
                preprocess(handheld, ["camera"], settings(), output=tmp_path / "killed")
    preprocess(handheld, ["camera"], settings(), output=tmp_path / "killed")
    straight, resumed = (contents(tmp_path / name) for name in ("straight", "killed"))
    assert straight["camera.npz"] == resumed["camera.npz"]
    track = ClipStore.open(tmp_path / "straight").track("camera")
    assert isinstance(track, CameraTrack) and track.present().all()
    shift = -np.array([sway(t) - sway(0) for t in range(FRAMES)])
    centre = carry(track.homography, np.array([[96.0, 160.0]]))[:, 0]
    assert np.abs(centre - (96, 160) - np.stack([shift, 0 * shift], axis=1)).max() < 1.0
    record = read_record(tmp_path / "straight").signals["camera"]
    assert 11 < record.measured["motion_px"] < 15 and not record.warnings


def test_still_camera_is_exactly_the_identity(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    wall = random.integers(0, 256, (40, 24, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    path = tmp_path / "still.mp4"
    with VideoWriter(path, width=192, height=320, rate=RATE, crf=24) as video:
        for frame in person.frames(count=FRAMES, height=320, width=192):
            shown = frame.copy()
            shown[:, :40], shown[:, -40:] = wall[:, :40], wall[:, -40:]
            video.write(shown)
    preprocess(path, ["camera"], settings(), output=tmp_path / "s")
    track = ClipStore.open(tmp_path / "s").track("camera")
    assert isinstance(track, CameraTrack)
    assert np.array_equal(track.homography, np.tile(np.eye(3), (FRAMES, 1, 1)))


def test_camera_from_another_mask_is_a_conflict(handheld: Path, tmp_path: Path) -> None:
    store = tmp_path / "s"
    preprocess(handheld, ["segmentation", "camera"], settings(), output=store)
    changed = settings(segmentation__threshold=0.7)
    preprocess(handheld, ["segmentation"], changed, output=store, overwrite=True)
    with pytest.raises(StoreConflict, match="camera with other settings: mask"):
        preprocess(store, ["camera"], settings())


def test_camera_fails_without_a_person(blank: Path, tmp_path: Path) -> None:
    outcome = preprocess(blank, ["camera", "flow"], settings(), output=tmp_path / "s")
    assert outcome.made == ["flow"]
    assert isinstance(outcome.failed["segmentation"], NothingFound)
    assert isinstance(outcome.failed["camera"], SignalMissing)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "cut": lambda data: data[: len(data) // 2],
    "nested": lambda data: b"[" * 100_000,
}


def test_damaged_files_of_a_stopped_run_are_rebuilt(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever kept file is damaged, the store equals that of an undisturbed run."""
    monkeypatch.setattr("v2v.preprocess.extractor.PART", 8)
    monkeypatch.setattr("v2v.preprocess.job.PART", 8)
    monkeypatch.setattr("v2v.preprocess.worker.PART", 8)
    monkeypatch.setattr("v2v.preprocess.frames.PART", 8)
    names = ["flow"]
    preprocess(blank, names, settings(), output=tmp_path / "straight")
    straight = contents(tmp_path / "straight")
    with monkeypatch.context() as patch:
        patch.setattr("v2v.preprocess.job.Job._finish_frames", killed)
        with pytest.raises(Killed):
            preprocess(blank, names, settings(), output=tmp_path / "stopped")
    pieces = sorted(
        str(p.relative_to(tmp_path / "stopped"))
        for p in (tmp_path / "stopped" / ".work").rglob("*")
        if p.is_file() and "00002" not in str(p)
    )
    assert len(pieces) >= 2 + 2 * 3 + 2 * 2, pieces
    for number, piece in enumerate(pieces):
        folder = tmp_path / f"damaged-{number}"
        shutil.copytree(tmp_path / "stopped", folder)
        damage = list(DAMAGE.values())[number % len(DAMAGE)]
        (folder / piece).write_bytes(damage((folder / piece).read_bytes()))
        preprocess(blank, names, settings(), output=folder)
        assert contents(folder) == straight, piece
        assert not (folder / ".work").exists()


def killed(*_: object) -> None:
    raise Killed


def test_preview_is_rebuilt_after_a_kill_before_it(
    blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["flow"]
    preprocess(blank, names, settings(), output=tmp_path / "straight")
    folder = tmp_path / "killed"
    preprocess(blank, [], settings(), output=folder)
    with monkeypatch.context() as patch:
        patch.setattr("v2v.preprocess.job.write_preview", killed)
        with pytest.raises(Killed):
            preprocess(folder, names, settings())
    (folder / ".preview.mp4.partial").write_bytes(b"half")
    assert preprocess(folder, names, settings()).kept == names
    assert contents(folder) == contents(tmp_path / "straight")


def test_finished_work_is_not_repeated(footage: Path, tmp_path: Path) -> None:
    preprocess(footage, ["flow"], settings(), output=tmp_path / "s")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*.m*")}
    outcome = preprocess(footage, ["flow"], settings(), output=tmp_path / "s")
    assert outcome.kept == ["flow"] and outcome.made == []
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*.m*")} == before


def test_second_process_is_rejected(footage: Path, tmp_path: Path) -> None:
    first = start(footage, tmp_path / "s", ["pose"])
    try:
        while not (tmp_path / "s" / ".work").exists():
            assert first.poll() is None
            time.sleep(0.01)
        with pytest.raises(StoreLocked, match="another process"):
            preprocess(footage, ["pose"], settings(), output=tmp_path / "s")
    finally:
        assert first.wait() == 0


def test_changed_footage_or_settings_are_rejected(
    footage: Path, blank: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    small = settings(frames__size=128)
    preprocess(footage, ["flow"], small, output=folder)
    with pytest.raises(StoreConflict, match="other footage"):
        preprocess(blank, ["flow"], settings(), output=folder)
    with pytest.raises(StoreConflict, match="size 128 instead of 256"):
        preprocess(footage, ["flow"], settings(frames__size=256), output=folder)
    with pytest.raises(StoreConflict, match="dis_preset medium instead of fast"):
        preprocess(footage, ["flow"], settings("flow.dis_preset=fast"), output=folder)
    assert ClipStore.open(folder).record.frames.width == 128
    # With default frame settings, the store keeps its own.
    assert preprocess(footage, ["flow"], settings(), output=folder).kept == ["flow"]
    changed = preprocess(
        footage, ["flow"], settings(frames__size=96), output=folder, overwrite=True
    )
    assert changed.record.frames.width == 96 and changed.made == ["flow"]


def test_signals_are_added_to_a_store_without_its_footage(footage: Path, tmp_path: Path) -> None:
    copy = shutil.copy(footage, tmp_path / "gone.mp4")
    preprocess(Path(copy), ["flow"], settings(), output=tmp_path / "s")
    Path(copy).unlink()
    with pytest.raises(SignalMissing, match="v2v preprocess"):
        try:
            ClipStore.open(tmp_path / "s").track("pose")
        except SignalMissing as error:
            raise SignalMissing(f"{error.message} {error.hint}") from error
    assert preprocess(tmp_path / "s", ["pose"], settings()).made == ["pose"]
    assert set(ClipStore.open(tmp_path / "s").signals) == {"pose", "flow"}


def test_missing_person_fails_only_its_signals(blank: Path, tmp_path: Path) -> None:
    outcome = preprocess(blank, ["pose", "face", "flow"], settings(), output=tmp_path / "s")
    assert outcome.made == ["flow"]
    assert set(outcome.failed) == {"pose", "face"}
    error = outcome.failed["pose"]
    assert isinstance(error, NothingFound) and "20 frames" in error.message and error.hint


def test_cut_splits_shots_and_flow(footage: Path, tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    frames = list(person.frames(count=12, height=320, width=192))
    with VideoWriter(path, width=192, height=320, rate=RATE) as video:
        for frame in frames + [255 - f for f in frames]:
            video.write(frame)
    preprocess(path, ["flow"], settings(), output=tmp_path / "s")
    store = ClipStore.open(tmp_path / "s")
    assert store.shots == [(0, 12), (12, 24)]
    track = store.track("flow")
    occlusion = track.occlusion.mean(axis=(1, 2, 3))  # type: ignore[attr-defined]
    assert occlusion[0] == occlusion[12] == 1 and occlusion[[1, 11, 13]].max() < 0.7


def test_imported_labels_stay_aligned(tmp_path: Path) -> None:
    street = write_sample("street", tmp_path, seconds=0.4)
    chosen = settings(
        frames__size=[128, 96], segmentation__backend="labels",
        segmentation__labels=str(street / "instances"),
    )  # fmt: skip
    preprocess(street / "images", ["segmentation"], chosen, output=tmp_path / "s")
    store = ClipStore.open(tmp_path / "s")
    assert len(store.record.signals["segmentation"].spec["classes"]) == 35
    track = store.track("segmentation")
    x, y, w, h = store.record.frames.box
    for i, labels in enumerate(track.labels):  # type: ignore[attr-defined]
        truth = np.asarray(Image.open(street / "labels" / f"{i:06}.png"))[y : y + h, x : x + w]
        rows = ((np.arange(96) + 0.5) * h / 96).astype(int)
        columns = ((np.arange(128) + 0.5) * w / 128).astype(int)
        assert (labels == truth[rows[:, None], columns]).all()
    assert track.instances is not None and track.instances.max() >= 24000  # type: ignore[attr-defined]


def test_too_few_labels_are_rejected(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.zeros((320, 192), np.uint8)).save(tmp_path / "labels" / "0.png")
    chosen = settings(segmentation__backend="labels", segmentation__labels=str(tmp_path / "labels"))
    outcome = preprocess(footage, ["segmentation", "flow"], chosen, output=tmp_path / "s")
    assert isinstance(outcome.failed["segmentation"], LabelsMismatch)
    assert "1 label maps" in outcome.failed["segmentation"].message
    assert outcome.made == ["flow"]


@pytest.mark.parametrize(
    ("given", "error"),
    [("missing.mp4", MediaNotFound), ("notes.txt", V2VError)],
)
def test_bad_input_leaves_no_files(tmp_path: Path, given: str, error: type[V2VError]) -> None:
    (tmp_path / "notes.txt").write_text("not a video")
    with pytest.raises(error):
        preprocess(tmp_path / given, ["flow"], settings(), output=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_unknown_signal_error_lists_the_valid_ones(footage: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        preprocess(footage, ["posee"], settings(), output=tmp_path / "s")
    assert "did you mean 'pose'" in str(caught.value.hint)
    assert "segmentation" in str(caught.value.hint)


def test_unwritable_output_is_rejected(footage: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NotWritable):
        preprocess(footage, ["flow"], settings(), output=tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    with pytest.raises(StoreConflict, match="not a clip store"):
        preprocess(footage, ["flow"], settings(), output=tmp_path / "photos")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["a.txt"]


def test_full_disk_is_reported_and_finished_parts_are_kept(footage: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(DiskFull, match="disk is full"):
            preprocess(footage, ["flow"], settings(), output=disk / "s")
        assert list((disk / "s" / ".work" / "frames").glob("0*.mp4")), "no part was kept"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        preprocess(footage, ["flow"], settings(), output=disk / "s")
        preprocess(footage, ["flow"], settings(), output=tmp_path / "straight")
        assert contents(disk / "s") == contents(tmp_path / "straight")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_damaged_store_is_rejected(footage: Path, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    preprocess(footage, ["flow"], settings(), output=folder)
    record = read_record(folder)
    text = (folder / "clip.json").read_text()
    data = json.loads(text)
    data["frames"]["count"] = "many"
    (folder / "clip.json").write_text(json.dumps(data))
    with pytest.raises(StoreDamaged, match="frames.count"):
        preprocess(footage, ["flow"], settings(), output=folder)
    write_record(folder, record)
    assert (folder / "clip.json").read_text() == text
    (folder / "flow.mkv").write_bytes(b"short")
    with pytest.raises(StoreDamaged, match=r"flow\.mkv"):
        preprocess(footage, ["flow"], settings(), output=folder)
    made = preprocess(footage, ["flow"], settings(), output=folder, overwrite=True)
    assert made.made == ["flow"]
