"""Evaluation from a model to a report: frame selection, fair comparisons, clear refusals."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from v2v.data.store import ClipStore
from v2v.errors import (
    MediaNotFound,
    NothingFound,
    SignalMissing,
    StoreConflict,
    UnknownName,
    UsageError,
)
from v2v.evaluation.clips import ping_pong
from v2v.evaluation.evaluate import evaluate
from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.results import Evaluation
from v2v.video.write import VideoWriter

COUNT, TRAINED = 40, 28
Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # without weights


@pytest.fixture
def store(make_store: Make, skeletons: Callable[..., np.ndarray]) -> Path:
    return make_store("a", pose=skeletons(COUNT))


@pytest.fixture
def model(make_model: Make, store: Path) -> Path:
    return trained_on(make_model, store)


def trained_on(
    make_model: Make, store: Path, name: str = "b", trained: int = TRAINED, **more: Any
) -> Path:
    """A model whose record states that it was trained on the first frames of a store."""
    record = ClipStore.open(store).record
    run = make_model(name, sha256=record.source.sha256, frames=record.frames.count, **more)
    path = run / "model" / "model.json"
    data = json.loads(path.read_text())
    data["clips"][0] |= {"trained": [0, trained], "name": store.name}
    path.write_text(json.dumps(data))
    (run / "run.json").write_text(json.dumps({"format": 1, "tool": "test", "data": [str(store)]}))
    return run


def measured(model: Path, *data: Path, **more: Any) -> Evaluation:
    """Evaluate without MediaPipe: these frames show numbers, not people."""
    settings: dict[str, Any] = {"against": ("copy", "frozen"), "drift": 0, "detectors": {}}
    return evaluate(model, data, **(settings | more))


def video(path: Path, frames: np.ndarray, rate: int = 25) -> Path:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, rate=Fraction(rate), crf=2) as writer:
        for frame in frames:
            writer.write(frame)
    return path


# ---------------------------------------------------------------- report


def test_the_report_covers_the_held_out_frames(model: Path) -> None:
    found = measured(model, against=("copy", "frozen", "nearest"), drift=30)
    assert found.folder == model / "evaluation"
    record = json.loads((found.folder / "report.json").read_text())
    assert record["data"][0]["part"] == "held out"
    assert record["data"][0]["frames"] == [TRAINED, COUNT]
    assert record["data"][0]["free_running"] == 30
    assert list(record["rows"]) == ["real", "b", "copy", "frozen", "nearest"]
    for name in ("psnr", "ssim", "tof", "flicker", "warping_error", "frame_difference"):
        values = record["rows"]["b"]["measures"][name]
        assert values["low"] <= values["mean"] <= values["high"], name
        assert len(record["courses"][0]["b"][name]) == 30
        assert len(record["courses"][0]["copy"][name]) == COUNT - TRAINED
    assert record["rows"]["b"]["measures"]["psnr"]["drift"] == pytest.approx(1, abs=0.5)
    assert record["rows"]["frozen"]["measures"]["frame_difference"]["mean"] == 0
    # The real video's own value, the floor, is always included.
    assert record["rows"]["real"]["measures"]["warping_error"]["mean"] > 0


def test_drift_is_measured_on_request(model: Path) -> None:
    """If each frame is rendered once, drift compares different content, which a note explains."""
    none, some = measured(model), measured(model, drift=30)
    assert all(found.drift is None for found in none.summaries["b"].values())
    assert some.summaries["b"]["psnr"].drift is not None
    assert "drift" not in " ".join(none.notes)
    once = measured(model, drift=1)
    assert once.summaries["b"]["psnr"].drift is not None
    assert "different content" in " ".join(once.notes)


def test_leftovers_of_a_killed_evaluation_are_removed(model: Path) -> None:
    for name in (".work", ".evaluate-x1"):
        (model / "evaluation" / name).mkdir(parents=True)
        (model / "evaluation" / name / "truth.mkv").write_bytes(b"lossless")
    found = measured(model)
    assert sorted(p.name for p in found.folder.iterdir()) == ["report.html", "report.json"]


def test_the_page_is_self_contained(model: Path) -> None:
    found = measured(model, drift=30)
    page = (found.folder / "report.html").read_text()
    assert sorted(path.name for path in found.folder.iterdir()) == ["report.html", "report.json"]
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert any(source.startswith("data:video/mp4") for source in sources)
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    assert page.count("data:image/svg+xml") >= 6


def test_the_same_inputs_give_the_same_report(model: Path, tmp_path: Path) -> None:
    one, other = (measured(model, output=tmp_path / name, drift=30) for name in ("x", "y"))
    for name in ("report.json", "report.html"):
        assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()


def test_measures_without_weights_are_unavailable(model: Path) -> None:
    found = measured(model)
    for name in ("lpips", "tlp", "fid", "fvd"):
        assert name not in found.summaries["b"]
        assert found.unavailable[name]
        assert "download" in found.unavailable[name] or "install" in found.unavailable[name]
    assert "161 pixels" in found.unavailable["ms_ssim"]
    page = (found.folder / "report.html").read_text()
    assert "unavailable" in page and "curl" in page
    assert set(all_metrics()) == set(found.summaries["b"]) | set(found.unavailable)


def test_the_real_video_ranks_first_and_the_frozen_one_has_a_fault(
    model: Path, store: Path, tmp_path: Path
) -> None:
    real = ClipStore.open(store).frames(TRAINED, COUNT)
    soft = np.stack([cv2.GaussianBlur(f, (0, 0), 3) for f in real])
    found = measured(
        model, against=(
            "frozen", f"theirs={video(tmp_path / 'theirs.mp4', real)}",
            f"soft={video(tmp_path / 'soft.mp4', soft)}",
        ),
    )  # fmt: skip
    order = [place.method for place in found.order]
    assert order[0] == "theirs"
    assert {place.method for place in found.order if place.faults} >= {"frozen", "soft"}
    assert found.summaries["theirs"]["psnr"].mean > 35


# ---------------------------------------------------------------- frame selection


def test_ping_pong_plays_forwards_and_backwards() -> None:
    assert ping_pong(4, 9).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2]
    assert ping_pong(5, 3).tolist() == [0, 1, 2]
    assert ping_pong(1, 3).tolist() == [0, 0, 0]


def test_signals_and_pictures_follow_the_order(
    model: Path, store: Path, read_numbers: Callable[..., list[int]]
) -> None:
    (clip,) = measured(model, drift=30).clips
    assert read_numbers(np.stack(list(clip.pictures()))) == clip.order.tolist()
    whole = ClipStore.open(store).track("pose")
    points = clip.track("pose", 8, 14).points
    expected = clip.placement.points(whole.points[clip.order[8:14], :, :2])
    np.testing.assert_array_equal(points[..., :2], expected)


def test_cuts_are_found_in_both_directions(
    make_model: Make, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> None:
    store = make_store("a", pose=skeletons(COUNT), shots=(0, 33))
    (clip,) = measured(trained_on(make_model, store), drift=30).clips
    assert clip.cuts == tuple(
        t for t in range(1, 30) if {clip.order[t - 1], clip.order[t]} == {32, 33}
    )


def test_a_clip_outside_training_is_measured_whole(
    model: Path, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> None:
    other = make_store("other", pose=skeletons(20, 96, 96), size=(96, 96), rate=10)
    found = measured(model, other)
    assert (found.clips[0].start, found.clips[0].count) == (0, 20)
    notes = " ".join(found.notes)
    assert "not trained on it" in notes and "is lost" in notes and "10 fps" in notes


def test_several_clips(
    model: Path, store: Path, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> None:
    other = make_store("other", pose=skeletons(20))
    found = measured(model, store, other)
    psnr = found.summaries["b"]["psnr"]
    assert psnr.frames == (COUNT - TRAINED) + 20 and len(psnr.clips) == 2
    assert psnr.clips_low == min(psnr.clips) and psnr.clips_high == max(psnr.clips)
    assert "over clips" in (found.folder / "report.html").read_text()


def test_the_number_of_frames_is_limited(model: Path) -> None:
    assert measured(model, frames=5).clips[0].count == 5


# ---------------------------------------------------------------- leakage from training frames


def moving(phases: np.ndarray) -> np.ndarray:
    """uint8 [T, 64, 48, 3]: a box on an ellipse in front of a wall, at each phase in radians."""
    frames = np.full((len(phases), 64, 48, 3), 90, np.uint8)
    for frame, phase in zip(frames, phases, strict=True):
        x, y = round(18 + 14 * np.cos(phase)), round(24 + 18 * np.sin(phase))
        frame[y : y + 14, x : x + 12] = (220, 120, 60)
    return frames


@pytest.fixture
def measure_frames(
    make_model: Make, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> Callable[..., Evaluation]:
    def measure(frames: np.ndarray, trained: int) -> Evaluation:
        store = make_store("a", pose=skeletons(len(frames)), frames=frames)
        return measured(trained_on(make_model, store, trained=trained))

    return measure


def leaks(found: Evaluation) -> tuple[int, int, str]:
    """Counts of moving and static duplicates in the first clip, and the notes about them."""
    record = json.loads((found.folder / "report.json").read_text())
    counts = record["data"][0]["in_training"]
    notes = [note for note in found.notes if "training" in note]
    page = (found.folder / "report.html").read_text()
    assert all(note in record["notes"] and html.escape(note) in page for note in notes)
    assert set(notes) == set(found.notes[: len(notes)]), "warnings must come first"
    return counts["moving"], counts["still"], " ".join(notes)


def test_a_repeated_motion_is_reported(measure_frames: Callable[..., Evaluation]) -> None:
    found = measure_frames(moving(np.arange(60) * 2 * np.pi / 20), 40)
    count, static, notes = leaks(found)
    assert (count, static) == (20, 0)
    assert "a: 20 of the 20 measured frames are nearly identical to training frames" in notes
    assert "data.hold_out" in notes and "--data" in notes


def test_only_repeated_frames_are_counted(measure_frames: Callable[..., Evaluation]) -> None:
    frames = moving(np.arange(60) * 2 * np.pi / 20)
    frames[52:, :, :6] = (20, 200, 40)  # another object comes into view
    assert leaks(measure_frames(frames, 40))[:2] == (12, 0)


def test_a_motion_without_repetition_is_not_reported(
    measure_frames: Callable[..., Evaluation],
) -> None:
    frames = moving(np.linspace(0, 1.9 * np.pi, 60))
    assert leaks(measure_frames(frames, 40)) == (0, 0, "")


def test_static_frames_are_counted_separately(measure_frames: Callable[..., Evaluation]) -> None:
    count, static, notes = leaks(measure_frames(moving(np.ones(60)), 40))
    assert (count, static) == (0, 20)
    assert "nothing moves in 20 of the 20 measured frames" in notes
    assert "identical to training frames" not in notes


def test_a_pause_at_the_border_is_not_reported(measure_frames: Callable[..., Evaluation]) -> None:
    """Frames within half a second are similar in any footage."""
    phases = np.concatenate([np.linspace(0, 3, 38), np.full(4, 3.2), np.linspace(3.4, 6, 18)])
    assert leaks(measure_frames(moving(phases), 40))[:2] == (0, 0)


def test_other_footage_that_shows_the_training_clip(
    make_model: Make, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> None:
    """The same dance with another hash is found by its frames."""
    frames = moving(np.linspace(0, 1.9 * np.pi, 60))
    store = make_store("a", pose=skeletons(60), frames=frames)
    copy = make_store("b", pose=skeletons(30), frames=frames[:30])
    count, static, notes = leaks(measured(trained_on(make_model, store, trained=40), copy))
    assert (count, static) == (30, 0)
    assert "b: 30 of the 30" in notes


def test_training_frames_are_read_in_chunks(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("v2v.evaluation.leakage.PIECE", 8)
    monkeypatch.setattr("v2v.evaluation.leakage.SEARCHED", 5)
    read: list[tuple[int, int]] = []
    frames = ClipStore.frames

    def recorded(self: ClipStore, start: int = 0, stop: int | None = None) -> np.ndarray:
        if sys._getframe(1).f_code.co_name == "_training_frames":
            read.append((start, stop or 0))
        return frames(self, start, stop)

    monkeypatch.setattr(ClipStore, "frames", recorded)
    assert leaks(measured(model)) == (0, 0, "")
    assert read == [(0, 8), (8, 16), (16, 24), (24, 28)] * 3  # 12 measured frames, 5 at a time


def test_a_missing_training_clip_is_named(
    make_model: Make, make_store: Make, skeletons: Callable[..., np.ndarray]
) -> None:
    found = measured(make_model("b"), make_store("other", pose=skeletons(20)))
    assert "clip0: its clip store cannot be found" in " ".join(found.notes)


# ---------------------------------------------------------------- refusals


def test_a_model_without_held_out_frames_is_refused(make_model: Make, store: Path) -> None:
    run = trained_on(make_model, store, trained=COUNT)
    with pytest.raises(UsageError, match="too few held-out frames") as caught:
        measured(run)
    assert caught.value.hint is not None and '"data.hold_out": 0.15' in caught.value.hint


def test_a_missing_training_clip_is_refused(make_model: Make) -> None:
    with pytest.raises(UsageError, match="cannot find") as caught:
        measured(make_model("b"))
    assert caught.value.hint is not None and "data=" in caught.value.hint


def test_missing_data_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaNotFound, match="no such file"):
        measured(model, tmp_path / "nothing")


def test_the_same_footage_with_other_frames_is_refused(make_model: Make, store: Path) -> None:
    """Its held-out frames are unknown: the store could contain training frames only."""
    run = trained_on(make_model, store)
    path = run / "model" / "model.json"
    data = json.loads(path.read_text())
    data["clips"][0]["frames"] = 400
    path.write_text(json.dumps(data))
    with pytest.raises(StoreConflict, match="held-out frames are unknown"):
        measured(run, store)


def test_data_without_a_detectable_signal_is_refused(model: Path, make_store: Make) -> None:
    labels = np.zeros((12, 64, 48), np.uint8)
    with pytest.raises(NothingFound):  # pose extraction finds nobody
        measured(model, make_store("streets", labels=labels))


def test_data_with_other_classes_is_refused(make_model: Make, make_store: Make) -> None:
    labels = np.zeros((12, 64, 48), np.uint8)
    store = make_store("streets", labels=labels)
    run = make_model(
        "s", signal="segmentation", channels=4, spec={"classes": ["road", "sky", "person"]}
    )
    with pytest.raises(SignalMissing, match="does not match s"):
        measured(run, store)


@pytest.mark.parametrize(
    ("against", "match"),
    [
        ("coyp", "unknown against='coyp'"),
        ("frame", "no frame-by-frame run next to"),
        ("b=x.mp4", "already in use"),
    ],
)
def test_invalid_baselines_are_refused(model: Path, against: str, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        measured(model, against=(against,))
    assert not (model / "evaluation" / "report.json").exists()


def test_unknown_baselines_get_a_suggestion(model: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        measured(model, against=("coyp",))
    assert caught.value.hint is not None and "copy" in caught.value.hint


def test_a_run_trained_on_the_measured_frames_is_refused(
    make_model: Make, model: Path, store: Path
) -> None:
    cheat = trained_on(make_model, store, name="cheat", trained=COUNT)
    with pytest.raises(UsageError, match="trained on 12 of the measured frames"):
        measured(model, against=(f"cheat={cheat}",))


def test_the_frame_by_frame_run_is_found(make_model: Make, model: Path, store: Path) -> None:
    trained_on(make_model, store, name="frame", generator={"sequential": False})
    found = measured(model, against=("frame",))
    assert "frame by frame" in found.methods[-1].what
    assert found.summaries["frame"]["psnr"].mean is not None


# ---------------------------------------------------------------- external videos


def test_a_video_of_other_length_size_and_rate_is_aligned_with_notes(
    model: Path, store: Path, tmp_path: Path
) -> None:
    real = ClipStore.open(store).frames(TRAINED, COUNT)
    large = np.stack([cv2.resize(f, (96, 128)) for f in real[:10]]).repeat(2, axis=0)
    path = video(tmp_path / "theirs.mp4", large, rate=50)
    found = measured(model, against=(f"theirs={path}",))
    notes = " ".join(found.notes)
    assert "50 fps, resampled to 25 fps" in notes
    assert "96x128, compared at the model's size 48x64" in notes
    assert "has 10 of the 12 frames" in notes
    assert found.clips[0].count == 10  # for all methods
    assert found.summaries["b"]["psnr"].frames == found.summaries["theirs"]["psnr"].frames == 10
    assert found.summaries["theirs"]["psnr"].mean > 25


def test_a_video_of_the_whole_clip_is_cut_to_the_measured_frames(
    model: Path, store: Path, tmp_path: Path
) -> None:
    path = video(tmp_path / "theirs.mp4", ClipStore.open(store).frames())
    found = measured(model, against=(f"theirs={path}",))
    assert f"its frames from {TRAINED} on" in " ".join(found.notes)
    assert found.summaries["theirs"]["psnr"].mean > 30


def test_a_video_that_is_too_short_is_refused(model: Path, store: Path, tmp_path: Path) -> None:
    path = video(tmp_path / "theirs.mp4", ClipStore.open(store).frames(0, 1))
    with pytest.raises(UsageError, match="has 1 frame"):
        measured(model, against=(f"theirs={path}",))


# ---------------------------------------------------------------- detectors and the command


def test_detectors_measure_the_driven_signals(model: Path) -> None:
    """A detector that is off by one pixel on every video except the real one."""
    calls: list[int] = []

    class Detector:
        def __init__(self) -> None:
            calls.append(0)
            self.number = len(calls)

        def __call__(self, picture: np.ndarray) -> np.ndarray:
            points = np.ones((33, 3), np.float32)
            points[:, 0] = np.arange(33) + (self.number > 1)
            points[:, 1] = np.where(np.arange(33) < 20, 10, 30)
            return points

        def close(self) -> None:
            calls[self.number - 1] = 1

    found = measured(model, detectors={"pose": Detector})
    assert all(calls) and len(calls) == 5  # the real frames and four methods
    torso = float(np.hypot(20, 12))
    assert found.summaries["b"]["pose_error"].mean == pytest.approx(1 / torso, rel=1e-3)
    assert found.summaries["b"]["pose_missed"].mean == 0
    assert "face_error" in found.unavailable


def test_the_command_prints_measures_and_the_report_path(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import typer
    from typer.testing import CliRunner

    from v2v.cli.evaluation import evaluate as command

    monkeypatch.setenv("V2V_DEBUG", "1")  # do not redirect the test process's streams
    monkeypatch.setattr("v2v.evaluation.equipment.detectors_for", lambda *_: {})
    app = typer.Typer()
    app.command()(command)
    done = CliRunner().invoke(app, ["--model", str(model), "--against", "frozen", "--drift", "0"])
    assert done.exit_code == 0, done.output
    assert "PSNR (dB)" in done.output and "report.html" in done.output


# ---------------------------------------------------------------- region


def test_only_the_region_is_measured(model: Path, tmp_path: Path) -> None:
    whole = measured(model)
    part = measured(model, region="0,0,32,24", output=tmp_path / "part")
    assert part.summaries["b"]["psnr"].mean != whole.summaries["b"]["psnr"].mean
    assert any("--region 0,0,32,24" in note for note in part.notes)
    assert "region" in part.unavailable["vmaf"]
    height, width = part.clips[0].placement.source
    mask = np.zeros((height, width, 3), np.uint8)
    mask[:24, :32] = 255
    cv2.imwrite(str(tmp_path / "mask.png"), mask)
    same = measured(model, region=str(tmp_path / "mask.png"), output=tmp_path / "same")
    assert same.summaries["b"]["psnr"].mean == part.summaries["b"]["psnr"].mean


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("0,0,9999,10", "not inside the"),
        ("10,10,10,20", "not inside the"),
        ("no.png", "neither four numbers nor a picture"),
        ("1,2,3", "neither four numbers nor a picture"),
    ],
)
def test_an_invalid_region_is_refused(model: Path, region: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measured(model, region=region)
