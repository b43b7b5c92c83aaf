"""Rendering: frames stream, finished segments are kept, and a video is complete or absent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from v2v.errors import CheckpointInvalid, DiskFull, NotWritable, UnknownName, UsageError
from v2v.pipelines.info import describe
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.provenance import read_provenance
from v2v.pipelines.rendering import encoding, segments
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.output import Output, output_size
from v2v.pipelines.rendering.rendering import Rendering
from v2v.progress import Silent
from v2v.signals.pose import PoseTrack
from v2v.video.audio import Sound
from v2v.video.probe import probe
from v2v.video.stored import read_stored

HEIGHT, WIDTH = 64, 48
COUNT = 30


@pytest.fixture
def make(
    make_model: Callable[..., Path], skeletons: Callable[..., np.ndarray], numbered_frames: Any
) -> Callable[..., Rendering]:
    """`make(count=30, pictures=True, sound=None)`: a rendering of drawn skeletons."""

    def build(count: int = COUNT, *, pictures: bool = True, **changes: Any) -> Rendering:
        trained = LoadedModel.open(make_model(), device="cpu", precision="32")
        points = skeletons(count)
        frames = numbered_frames(count, width=96, height=64)

        def tracks(start: int, stop: int) -> list[PoseTrack]:
            part = points[start:stop]
            return [PoseTrack(part, np.zeros(part.shape[:2], bool), WIDTH, HEIGHT)]

        conditioning = ConditioningSource(
            pipeline="test", count=count, rate=Fraction(25), tracks=tracks, settings={},
            source="dance.mp4", source_sha256="1" * 64,
            pictures=(lambda first: iter(frames[first:])) if pictures else None, **changes,
        )  # fmt: skip
        return Rendering(trained, conditioning)

    return build


def read(path: Path, pixel_format: str = "rgb24") -> np.ndarray:
    return np.stack(list(read_stored(path, pixel_format=pixel_format)))


# ---------------------------------------------------------------- frames


def test_frames_have_the_model_s_size(make):
    frames = list(make(5))
    assert [f.shape for f in frames] == [(HEIGHT, WIDTH, 3)] * 5
    assert frames[0].dtype == np.uint8
    assert np.abs(np.diff(np.stack(frames).astype(int), axis=0)).max() > 0, (
        "the frames do not change"
    )


@pytest.mark.parametrize("first", [1, 3, 4, 17])
def test_rendering_in_chunks_equals_rendering_at_once(make, first):
    whole = make()
    steps = list(whole.steps())
    part = list(whole.steps(first, steps[first - 1].state))
    assert len(part) == COUNT - first
    for one, other in zip(steps[first:], part, strict=True):
        assert torch.equal(one.frame, other.frame)


def test_frames_are_rendered_on_demand(make, monkeypatch):
    requested: list[int] = []
    whole = make(200)
    tracks = whole.conditioning.tracks

    def watched(start: int, stop: int) -> Any:
        requested.append(stop)
        return tracks(start, stop)

    object.__setattr__(whole.conditioning, "tracks", watched)
    frames = iter(whole)
    next(frames)
    assert max(requested) < 40, "far more frames were prefetched than needed"
    frames.close()


# ---------------------------------------------------------------- the video


def test_the_video_holds_the_rendered_frames(make, tmp_path):
    whole = make()
    outcome = whole.save(tmp_path / "out.mkv", codec="ffv1")
    assert np.array_equal(read(outcome.video), np.stack(list(whole)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mkv", "runs"]


@pytest.mark.parametrize(
    ("codec", "name", "known"),
    [("h264", "a.mp4", "h264"), ("hevc", "a.mov", "hevc"), ("vp9", "a.webm", "vp9")],
)
def test_each_codec_writes_a_readable_video(make, tmp_path, monkeypatch, codec, name, known):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 12)
    whole = make()
    outcome = whole.save(tmp_path / name, codec=codec, crf=10)
    seen = probe(outcome.video)
    assert (seen.codec, seen.frames, seen.rate) == (known, COUNT, 25)
    difference = np.abs(read(outcome.video).astype(int) - np.stack(list(whole)))
    assert difference.mean() < 6


class Stopped(Exception):
    pass


class StopsAt(Silent):
    """A reporter that interrupts the render after `frames` frames."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.left = frames
        self.rendered = 0

    def advance(self, stage: str, amount: int = 1) -> None:
        self.rendered += amount
        self.left -= amount
        if self.left == 0:
            raise Stopped


@pytest.mark.parametrize("stop", [1, 7, 8, 21, 29])
def test_a_killed_render_resumes_to_the_same_video(make, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    path = tmp_path / "out.mkv"
    whole = make()
    with pytest.raises(Stopped):
        whole.save(path, codec="ffv1", compare=True, report=StopsAt(stop))
    assert not path.exists() and not (tmp_path / "out-compare.mkv").exists()
    rest = StopsAt(-1)
    whole.save(path, codec="ffv1", compare=True, report=rest)
    # Encoding lags behind, so the last segment may be missing.
    assert COUNT - stop // 8 * 8 <= rest.rendered <= COUNT - max(stop // 8 - 1, 0) * 8
    straight = make().save(tmp_path / "straight.mkv", codec="ffv1", compare=True)
    assert np.array_equal(read(path), read(straight.video))
    assert np.array_equal(read(tmp_path / "out-compare.mkv"), read(straight.comparison))
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_state_loses_one_segment(make, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    path = tmp_path / "out.mkv"
    with pytest.raises(Stopped):
        make().save(path, codec="ffv1", report=StopsAt(29))
    newest = max((tmp_path / ".out.mkv.render").glob("*.safetensors"))
    newest.write_bytes(b"")
    make().save(path, codec="ffv1")
    assert np.array_equal(read(path), np.stack(list(make())))


def test_is_saved_recognises_its_own_files(make, tmp_path):
    whole, output = make(3), Output(tmp_path / "a.mkv", codec="ffv1", compare=True)
    assert not whole.is_saved(output)
    whole.save(output)
    assert whole.is_saved(output)
    assert not make(4).is_saved(output)
    output.comparison.write_bytes(b"something else")
    assert not whole.is_saved(output)


def test_changed_settings_restart_the_render(make, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    path = tmp_path / "out.mkv"
    with pytest.raises(Stopped):
        make().save(path, codec="ffv1", report=StopsAt(25))
    other = StopsAt(-1)
    make().save(path, codec="ffv1", size=(64, 96), report=other)
    assert other.rendered == COUNT


def test_the_panels_of_a_comparison_show_the_same_frame(make, tmp_path, read_numbers, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    whole = make()
    outcome = whole.save(tmp_path / "out.mkv", codec="ffv1", compare=True)
    panels = read(outcome.comparison)
    assert panels.shape == (COUNT, HEIGHT, 96 + 2 * WIDTH, 3)
    assert read_numbers(panels[:, :, :96]) == list(range(COUNT))
    signals = whole.conditioning.tracks(0, COUNT)[0].draw(HEIGHT, WIDTH)
    assert np.array_equal(panels[:, :, 96 : 96 + WIDTH], signals)
    assert np.array_equal(panels[:, :, 96 + WIDTH :], read(outcome.video))


def test_a_comparison_without_input_has_two_panels(make, tmp_path):
    outcome = make(3, pictures=False).save(tmp_path / "a.mkv", codec="ffv1", compare=True)
    assert read(outcome.comparison).shape[2] == 2 * WIDTH


@pytest.mark.parametrize(("start", "suffix"), [(0.0, ".mp4"), (0.5, ".mp4"), (0.5, ".webm")])
def test_sound_is_copied_in_sync(make, make_video, tmp_path, start, suffix):
    """A beep 1 s into the source's sound is heard 1 s - `start` into the video."""
    beep = "aevalsrc='if(between(t,1,1.1),0.8*sin(2*PI*1000*t),0)':s=48000:d=4"
    sound = make_video("sound.m4a", "-c:a", "aac", frames=beep)
    codec = "vp9" if suffix == ".webm" else "h264"
    whole = make(50, sound=Sound(sound, start))
    outcome = whole.save(tmp_path / f"out{suffix}", codec=codec)
    loud, length = [], 0.0
    with av.open(str(outcome.video)) as container:
        for frame in container.decode(audio=0):
            length = frame.time + frame.samples / frame.sample_rate
            if np.abs(frame.to_ndarray()).max() > 0.3:
                loud.append(frame.time)
    assert loud[0] == pytest.approx(1 - start, abs=0.04)
    assert length == pytest.approx(50 / 25, abs=1 / 25)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_sound_and_frames_are_interleaved(make, make_video, tmp_path, name):
    """At any position in the file, sound and frames reach the same time."""
    sound = make_video("sound.m4a", "-c:a", "aac", frames="sine=duration=9")
    outcome = make(200, sound=Sound(sound, 0.0)).save(tmp_path / name)
    newest = {"video": 0.0, "audio": 0.0}
    with av.open(str(outcome.video)) as container:
        for packet in container.demux():
            if packet.size:
                newest[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(newest["video"] - newest["audio"]) < 1.1
    assert min(newest.values()) > 7.9


def test_every_video_is_marked_as_synthetic(make, tmp_path, ffmpeg, run_ffmpeg):
    whole = make(3)
    for name, codec in (("a.mp4", "h264"), ("a.mov", "h264"), ("a.webm", "vp9"), ("a.mkv", "ffv1")):
        outcome = whole.save(tmp_path / name, codec=codec, compare=True)
        for file in (outcome.video, outcome.comparison):
            mark = read_provenance(file)
            assert mark is not None and mark.synthetic
            assert (mark.model, mark.source, mark.pipeline) == ("b", "dance.mp4", "test")
            assert mark.model_sha256 == whole.trained.sha256
            assert mark.source_sha256 == "1" * 64
    # Other tools can read the mark.
    shown = run_ffmpeg("-i", tmp_path / "a.mp4", "-f", "ffmetadata", "-").decode()
    assert "rendered by a model" in shown
    facts = describe(tmp_path / "a.mp4")
    assert facts["what"] == "rendered video" and facts["frames"] == 3


def test_footage_is_not_reported_as_synthetic(make_video):
    path = make_video("a.mp4", "-c:v", "libx264")
    assert read_provenance(path) is None
    assert "not marked" in describe(path)["synthetic"]


# ---------------------------------------------------------------- errors and interruptions


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("out.mp4", {"codec": "h263"}, "h263"),
        ("out.avi", {}, ".mp4 or .mov"),
        ("out.mp4", {"codec": "ffv1"}, ".mkv"),
        ("out.mp4", {"crf": 60}, "0 (best) to 51"),
        ("out.mp4", {"size": (33, 64)}, "even numbers"),
        ("there.mp4", {}, "overwrite=True"),
    ],
)
def test_invalid_options_are_errors(make, tmp_path, name, options, words):
    (tmp_path / "there.mp4").write_bytes(b"precious")
    with pytest.raises(UsageError) as caught:
        make(3).save(tmp_path / name, **options)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs", "there.mp4"]


def test_overwriting_keeps_the_old_file_until_the_new_one_is_complete(make, tmp_path):
    path = tmp_path / "out.mkv"
    path.write_bytes(b"old")
    with pytest.raises(Stopped):
        make().save(path, codec="ffv1", overwrite=True, report=StopsAt(5))
    assert path.read_bytes() == b"old"
    make().save(path, codec="ffv1", overwrite=True)
    assert len(read(path)) == COUNT


class Killed(BaseException):
    """Simulates SIGKILL: no clean-up runs."""


@pytest.fixture
def torn(make, tmp_path, monkeypatch):
    """A finished render of three segments, killed before its work files are removed."""
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    rendering = make(20)
    with monkeypatch.context() as patch:
        kill_at_removal(patch, 0)
        with pytest.raises(Killed):
            rendering.save(tmp_path / "torn" / "out.mkv", codec="ffv1", compare=True)
    return tmp_path / "torn"


def kill_at_removal(patch: pytest.MonkeyPatch, number: int) -> None:
    """Kill after `number` files of finished work are removed."""
    original, count = segments.remove, [0]

    def remove(path: Path) -> None:
        if path.name != "whole":
            if count[0] == number:
                raise Killed
            count[0] += 1
        original(path)

    patch.setattr(segments, "remove", remove)
    patch.setattr(encoding, "remove", remove)
    patch.setattr("v2v.files.remove", remove)
    patch.setattr(encoding.Encoding, "_keep", kept_without_removing(encoding.Encoding._keep))


def kept_without_removing(keep: Callable[..., None]) -> Callable[..., None]:
    def inner(self: Any, *arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding, "remove", lambda path: path.unlink())
            keep(self, *arguments)

    return inner


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_render_recovers_from_a_kill_during_clean_up(make, torn, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    whole = {name: data for name, data in contents(torn).items() if "/" not in name}
    assert whole.keys() == {"out.mkv", "out-compare.mkv"}
    options = {"codec": "ffv1", "compare": True}
    for number in range(len(contents(torn)) - len(whole) + 1):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(torn, folder)
        rendering = make(20)
        with monkeypatch.context() as patch:
            kill_at_removal(patch, number)
            with contextlib.suppress(Killed):  # the last one has nothing left to remove
                rendering.save(folder / "out.mkv", **options)
        assert {n: d for n, d in contents(folder).items() if "/" not in n} == whole
        # Either only the finished video exists, which is an error, or the render completes.
        try:
            make(20).save(folder / "out.mkv", **options, report=StopsAt(1))
        except UsageError as error:
            assert number and "exists already" in error.message
        assert contents(folder) == whole
        assert sorted(p.name for p in folder.iterdir()) == ["out-compare.mkv", "out.mkv"]


def test_a_killed_clean_up_does_not_block_another_render(make, torn, tmp_path, monkeypatch):
    whole = {name: data for name, data in contents(torn).items() if "/" not in name}
    work = torn / ".out.mkv.render"
    (work / "00000.segment").unlink()
    make(20).save(torn / "out.mkv", codec="ffv1", compare=True, overwrite=True)
    assert contents(torn) == whole


def test_both_videos_appear_after_a_kill_between_them(make, torn, monkeypatch):
    whole = {name: data for name, data in contents(torn).items() if "/" not in name}
    (torn / "out-compare.mkv").unlink()
    make(20).save(torn / "out.mkv", codec="ffv1", compare=True, report=StopsAt(1))
    assert contents(torn) == whole


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "nested": lambda data: b"[" * 100_000,
}


DAMAGED = [  # file, damage, frames that need not be rendered again
    ("plan.json", "cut", 0), ("plan.json", "nested", 0), ("00000.segment", "one bit", 0),
    ("00000-compare.segment", "one bit", 0), ("00000.seal", "cut", 0),
    ("00001.segment", "one bit", 8), ("00001.seal", "nested", 8),
    ("00001.safetensors", "one bit", 8), ("00001.safetensors", "empty", 8),
]  # fmt: skip


def test_a_damaged_file_of_an_interrupted_render_is_rendered_again(make, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    monkeypatch.setattr(encoding, "MAX_LAG", 0)
    options = {"codec": "ffv1", "compare": True}
    whole = make(18)
    whole.save(tmp_path / "whole" / "a.mkv", **options)
    with pytest.raises(Stopped):
        whole.save(tmp_path / "stopped" / "a.mkv", **options, report=StopsAt(17))
    for name, damage, kept in DAMAGED:
        folder = tmp_path / f"{name}-{damage}"
        shutil.copytree(tmp_path / "stopped", folder)
        file = folder / ".a.mkv.render" / name
        file.write_bytes(DAMAGE[damage](file.read_bytes()))
        rest = StopsAt(-1)
        whole.save(folder / "a.mkv", **options, report=rest)
        assert rest.rendered == 18 - kept, (name, damage)
        assert contents(folder) == contents(tmp_path / "whole"), (name, damage)


def test_two_processes_do_not_render_the_same_file(make, tmp_path):
    from filelock import FileLock

    work = tmp_path / ".out.mp4.render"
    work.mkdir()
    with FileLock(work / ".lock"), pytest.raises(NotWritable, match="another process"):
        make(3).save(tmp_path / "out.mp4")


def test_a_full_disk_loses_no_finished_segments(make, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    write = encoding.VideoWriter.write
    written = 0

    def filling(self: Any, frame: np.ndarray) -> None:
        nonlocal written
        written += 1
        if written == 20:
            raise OSError(28, os.strerror(28))
        write(self, frame)

    monkeypatch.setattr(encoding.VideoWriter, "write", filling)
    with pytest.raises((DiskFull, OSError)):
        make().save(tmp_path / "out.mkv", codec="ffv1")
    assert not (tmp_path / "out.mkv").exists()
    rest = StopsAt(-1)
    make().save(tmp_path / "out.mkv", codec="ffv1", report=rest)
    assert rest.rendered == COUNT - 16
    assert np.array_equal(read(tmp_path / "out.mkv"), np.stack(list(make())))


def test_output_sizes():
    assert output_size(None, 64, 48) == (48, 64)
    assert output_size(96, 64, 48) == (96, 128)
    assert output_size((100, 50), 64, 48) == (100, 50)


def test_an_unknown_model_lists_the_available_ones(make_model, tmp_path, monkeypatch):
    make_model("mine")
    monkeypatch.chdir(tmp_path)
    assert LoadedModel.open("mine").name == "mine"
    with pytest.raises(CheckpointInvalid) as caught:
        LoadedModel.open("yours")
    assert "no model yours" in caught.value.message and "mine" in (caught.value.hint or "")
    (tmp_path / "runs" / "empty").mkdir()
    with pytest.raises(CheckpointInvalid, match="contains no model"):
        LoadedModel.open("empty")
    weights = tmp_path / "runs" / "mine" / "model" / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointInvalid):
        LoadedModel.open("mine")


def test_an_unavailable_device_is_an_error(make_model):
    with pytest.raises(UsageError, match="no device"):
        LoadedModel.open(make_model(), device="tpu")


def test_a_training_clip_is_selected_by_name(make_model):
    trained = LoadedModel.open(make_model(clips=2))
    assert [trained.clip_number(n) for n in (None, "clip0", "clip1")] == [0, 0, 1]
    with pytest.raises(UnknownName, match="clip9"):
        trained.clip_number("clip9")


def test_a_preview_shows_input_over_signals(make, tmp_path):
    from PIL import Image

    path = make().preview(tmp_path / "still.png", frames=4)
    picture = np.asarray(Image.open(path))
    assert picture.shape == (2 * HEIGHT, 4 * WIDTH, 3)
    assert picture[HEIGHT:].any() and picture[:HEIGHT].any()


def test_the_plan_of_a_render_is_json(make, tmp_path, monkeypatch):
    monkeypatch.setattr(segments.SegmentedVideo, "SEGMENT", 8)
    with pytest.raises(Stopped):
        make().save(tmp_path / "o.mkv", codec="ffv1", report=StopsAt(20))
    plan = json.loads((tmp_path / ".o.mkv.render" / "plan.json").read_text())
    assert plan["frames"] == COUNT and plan["codec"] == "ffv1"
