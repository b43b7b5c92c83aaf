"""All pipelines, from footage and a model to frames: invariants and error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_retarget_face import about, filmed, person, speaking

from v2v.data.store import ClipStore, write_record
from v2v.errors import (
    CheckpointInvalid,
    ConfigError,
    LabelsMismatch,
    MediaNotFound,
    NotAVideo,
    NothingFound,
    NotWritable,
    TooFewFrames,
    UnknownName,
    UsageError,
    V2VError,
)
from v2v.pipelines.face_reenactment import FaceReenactment
from v2v.pipelines.frame_prediction import FramePrediction
from v2v.pipelines.label_to_video import LabelToVideo
from v2v.pipelines.motion_transfer import MotionTransfer
from v2v.pipelines.retarget.face import Strengths
from v2v.pipelines.source import open_source
from v2v.progress import Silent
from v2v.signals.pose import MIRROR
from v2v.signals.segmentation import VOID
from v2v.video.stored import read_stored

COUNT = 40
HEIGHT, WIDTH = 64, 48
MakeModel = Callable[..., Path]
MakeStore = Callable[..., Path]
Skeletons = Callable[..., np.ndarray]


def model_of(make_model: MakeModel, store: Path, signal: str, name: str = "b") -> Path:
    """A model of the first 34 frames of a store."""
    opened = ClipStore.open(store)
    track: Any = opened.track(signal, 0, 34)
    statistics = {"0.frames": torch.arange(34)}
    for kind in ("points", "depth"):
        if hasattr(track, kind):
            value = np.ascontiguousarray(getattr(track, kind), np.float32)
            statistics[f"0.{signal}.{kind}"] = torch.from_numpy(value)
    record = opened.record
    return make_model(
        name, signal=signal, sha256=record.source.sha256, frames=record.frames.count,
        stored=(record.frames.height, record.frames.width), statistics=statistics,
    )  # fmt: skip


def drawn(rendering: Any, first: int = 0, stop: int | None = None) -> Any:
    return rendering.conditioning.tracks(first, len(rendering) if stop is None else stop)[0]


def furthest(a: np.ndarray, b: np.ndarray) -> float:
    assert np.array_equal(np.isnan(a), np.isnan(b))
    return float(np.nanmax(np.abs(a[..., :2] - b[..., :2])))


# ---------------------------------------------------------------- motion transfer


@pytest.mark.parametrize("mode", ["none", "global", "limbs"])
def test_motion_transfer_reproduces_the_training_clip(make_store, make_model, skeletons, mode):
    """The error is below one pixel of the model, also beyond the trained part of the clip."""
    points = skeletons(COUNT, 128, 96)
    store = make_store(pose=points, size=(128, 96))
    transfer = MotionTransfer.from_pretrained(model_of(make_model, store, "pose"), device="cpu")
    rendering = transfer(store, retarget=mode)
    assert (rendering.height, rendering.width, len(rendering)) == (HEIGHT, WIDTH, COUNT)
    truth = points * (0.5, 0.5, 1)
    assert furthest(drawn(rendering).points, truth.astype(np.float32)) < 1


def test_a_scaled_and_shifted_source_gives_the_same_poses(make_store, make_model, skeletons):
    points = skeletons(COUNT)
    own = make_store("own", pose=points)
    other = make_store("other", pose=(points * (2, 2, 1) + (60, 10, 0)).astype(np.float32),
                       size=(150, 200))  # fmt: skip
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    assert furthest(drawn(transfer(other)).points, points) < 1


def test_left_and_right_are_never_swapped(make_store, make_model, skeletons):
    """A person seen from behind has the left hand on the left of the image, and keeps it there."""
    points = skeletons(COUNT)
    own = make_store("own", pose=points)
    behind = points[:, list(MIRROR)]
    other = make_store("other", pose=behind)
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    rendering = transfer(other)
    assert furthest(drawn(rendering).points, behind) < 1
    assert any("turned away" in note for note in rendering.notes)


def test_a_range_equals_that_part_of_the_whole_clip(make_store, make_model, skeletons):
    store = make_store(pose=skeletons(COUNT))
    transfer = MotionTransfer.from_pretrained(model_of(make_model, store, "pose"), device="cpu")
    whole, part = transfer(store), transfer(store, start=0.4, end=1.0)
    assert len(part) == 15
    assert furthest(drawn(part).points, drawn(whole, 10, 25).points) < 0.01


def test_poses_are_not_smoothed_across_cuts(make_store, make_model, skeletons):
    points = skeletons(COUNT)
    jumped = points.copy()
    jumped[20:, :, 0] += 10
    own = make_store("own", pose=points)
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    cut = drawn(transfer(make_store("cut", pose=jumped, shots=(0, 20)))).points
    first = drawn(transfer(make_store("first", pose=jumped[:20]))).points
    # Each part moves as it does without the other.
    motion = np.diff(cut[:20, :, 0], axis=0)
    assert np.nanmax(np.abs(motion - np.diff(first[..., 0], axis=0))) < 0.5


def test_frames_without_a_person_are_noted(make_store, make_model, skeletons):
    points = skeletons(COUNT)
    own = make_store("own", pose=points)
    missing = points.copy()
    missing[20:] = np.nan
    store = make_store("gone", pose=missing)
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    assert any("no person found in 20 of 40" in note for note in transfer(store).notes)
    guessed = points.copy()
    guessed[..., 2] = 0.1
    with pytest.raises(NothingFound):
        transfer(make_store("guessed", pose=np.concatenate([guessed, points])), end=1.0)
    with pytest.raises(NothingFound) as caught:
        transfer(store, start=0.9)
    assert "0.92 s" in caught.value.message or "0.88 s" in caught.value.message


def test_other_people_in_the_range_are_noted(make_store, make_model, skeletons):
    """Preprocessing has found them: rendering only reads the store."""
    own = make_store("own", pose=skeletons(COUNT))
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    assert not any("several people" in note for note in transfer(own).notes)
    record = ClipStore.open(own).record
    pose = record.signals["pose"].model_copy(update={"measured": {"other_people": [3, 20, "x"]}})
    write_record(own, record.model_copy(update={"signals": {**record.signals, "pose": pose}}))
    (note,) = [n for n in transfer(own, start=0.4).notes if "several people" in n]
    assert "at 0.8 s" in note and "in the middle" in note
    assert not any("several people" in note for note in transfer(own, start=1.0).notes)


def test_rendering_from_a_store_does_not_load_mediapipe(make_store, make_model, skeletons):
    store = make_store(pose=skeletons(COUNT))
    run = model_of(make_model, store, "pose")
    code = (
        "import sys; sys.modules['mediapipe'] = None\n"
        "from v2v.models.generator_settings import PRESETS, Architecture\n"
        "PRESETS['mobile'] = Architecture(16, 32, 1, 8, (16,), 1)\n"
        "from v2v.pipelines.motion_transfer import MotionTransfer\n"
        f"transfer = MotionTransfer.from_pretrained({str(run)!r}, device='cpu')\n"
        f"print(sum(1 for _ in transfer({str(store)!r}, end=0.2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5"]


def test_new_poses_are_reported(make_store, make_model, skeletons):
    points = skeletons(COUNT)
    own = make_store("own", pose=points)
    up = points.copy()
    for name in (13, 15, 17, 19, 21):  # the left arm, straight up
        up[15:, name, 0] = up[15:, 11, 0]
        up[15:, name, 1] = up[15:, 11, 1] - (5 if name == 13 else 10)
    transfer = MotionTransfer.from_pretrained(model_of(make_model, own, "pose"), device="cpu")
    notes = " ".join(transfer(make_store("up", pose=up)).notes)
    assert "the left arm raised" in notes and "film yourself" in notes
    assert "right arm" not in notes


def test_the_style_picture_is_stored_in_the_model(make_store, make_model, skeletons):
    store = make_store(pose=skeletons(COUNT))
    opened = ClipStore.open(store)
    points = torch.from_numpy(np.ascontiguousarray(opened.track("pose").points))
    known = {"0.pose.points": points, "0.style": torch.full((3, HEIGHT, WIDTH), 0.5)}
    options = {"generator": {"style": "encoded"}, "frames": COUNT}
    transfer = MotionTransfer.from_pretrained(make_model(statistics=known, **options), device="cpu")
    assert len(list(transfer(store, end=0.2))) == 5
    del known["0.style"]
    without_style = MotionTransfer.from_pretrained(
        make_model("old", statistics=known, **options), device="cpu"
    )
    with pytest.raises(UsageError, match="needs a style picture"):
        without_style(store)


# ---------------------------------------------------------------- face re-enactment


@pytest.fixture
def talker() -> Callable[..., Any]:
    """`talker(eye=0.07)`: the track of a person who speaks and turns the head."""

    def make(**shape: Any) -> Any:
        neutral = person(**shape)
        time = np.arange(COUNT)
        open_ = np.clip(np.sin(time / 3), 0, 1) * (time > 8)
        shapes = np.stack([speaking(neutral, 0.4 * gap) for gap in open_])
        turns = np.stack([about(yaw=0.0 if t <= 8 else 12 * np.sin((t - 8) / 6)) for t in time])
        return filmed(shapes, turns=turns, size=14, place=(24, 30), side=HEIGHT)

    return make


def test_zero_strengths_give_the_neutral_face(make_store, make_model, talker):
    own, other = talker(), talker(eye=0.07, wide=0.9)
    target = make_store("own", face=own.points, depth=own.depth, size=(HEIGHT, HEIGHT))
    driver = make_store("other", face=other.points, depth=other.depth, size=(HEIGHT, HEIGHT))
    reenact = FaceReenactment.from_pretrained(model_of(make_model, target, "face"), device="cpu")
    rendering = reenact(driver, strengths=Strengths(0, 0, 0, 0, 0, 0))
    placement = reenact.trained.placement(0)
    neutral = placement.track(ClipStore.open(target).track("face"))[reenact.target().neutral :]
    assert furthest(drawn(rendering).points, np.repeat(neutral.points[:1], COUNT, axis=0)) < 0.01


def test_reenactment_reproduces_the_training_clip(make_store, make_model, talker):
    own = talker()
    store = make_store(face=own.points, depth=own.depth, size=(HEIGHT, HEIGHT))
    reenact = FaceReenactment.from_pretrained(model_of(make_model, store, "face"), device="cpu")
    rendering = reenact(store)
    truth = reenact.trained.placement(0).track(ClipStore.open(store).track("face"))
    assert furthest(drawn(rendering).points, truth.points) < 0.5
    # The frames do not depend on the requested ranges.
    pieces = [drawn(rendering, a, min(a + 7, COUNT)).points for a in range(0, COUNT, 7)]
    assert np.array_equal(np.concatenate(pieces), drawn(rendering).points)


def test_the_last_face_is_held_in_frames_without_one(make_store, make_model, talker):
    own = talker()
    target = make_store("own", face=own.points, depth=own.depth, size=(HEIGHT, HEIGHT))
    points, depth = own.points.copy(), own.depth.copy()
    points[:3], depth[:3] = np.nan, np.nan
    points[20:25], depth[20:25] = np.nan, np.nan
    store = make_store("gaps", face=points, depth=depth, size=(HEIGHT, HEIGHT))
    reenact = FaceReenactment.from_pretrained(model_of(make_model, target, "face"), device="cpu")
    rendering = reenact(store)
    shown = drawn(rendering).points
    assert np.isfinite(shown[..., :2]).all()
    assert np.array_equal(shown[19:25], np.repeat(shown[19:20], 6, axis=0))
    assert np.array_equal(shown[:3], np.repeat(shown[3:4], 3, axis=0))
    assert any("no face in 8 of 40" in note for note in rendering.notes)
    with pytest.raises(NothingFound):
        reenact(store, start=0.8, end=1.0)


def test_translation_stays_inside_the_trained_area(make_store, make_model, talker):
    own = talker()
    target = make_store("own", face=own.points, depth=own.depth, size=(HEIGHT, HEIGHT))
    wander = own.points + np.linspace(0, 25, COUNT)[:, None, None] * (1, 0, 0)
    store = make_store(
        "far", face=wander.astype(np.float32), depth=own.depth, size=(HEIGHT, HEIGHT)
    )
    reenact = FaceReenactment.from_pretrained(model_of(make_model, target, "face"), device="cpu")
    near, far = reenact(store, neutral=0.0), reenact(store, neutral=0.0, stay=False)
    assert any("reduced" in note for note in near.notes)
    moved = [np.ptp(drawn(r).points[:, 4, 0]) for r in (near, far)]
    assert moved[0] < 0.5 * moved[1]


def test_parts_and_strengths_are_checked(make_store, make_model, talker):
    own = talker()
    store = make_store(face=own.points, depth=own.depth, size=(HEIGHT, HEIGHT))
    reenact = FaceReenactment.from_pretrained(model_of(make_model, store, "face"), device="cpu")
    with pytest.raises(UnknownName, match="ears"):
        reenact(store, parts={"ears": 1.1})
    with pytest.raises(ConfigError):
        reenact(store, parts={"face": 3})
    with pytest.raises(ConfigError):
        Strengths(rotation=-1)


# ---------------------------------------------------------------- label-to-video

CLASSES = ("road", "sky", "car")


def street(count: int = 12, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Sky above a road, and a car (class 2) that drives to the right."""
    labels = np.zeros((count, height, width), np.uint8)
    labels[:, : height // 2] = 1
    for t in range(count):
        labels[t, height // 2 : height // 2 + 12, 4 + t : 20 + t] = 2
    return labels


def street_model(make_model: MakeModel, shares: tuple[float, ...], **more: Any) -> Path:
    share = torch.zeros(256)
    share[: len(shares)] = torch.tensor(shares)
    spec = {"classes": list(CLASSES), "palette": [[0, 0, 0], [0, 0, 9], [9, 0, 0]],
            "instances": False}  # fmt: skip
    return make_model(
        "street", signal="segmentation", channels=4, spec=spec,
        statistics={"0.segmentation.share": share, **more.pop("statistics", {})}, **more,
    )  # fmt: skip


def test_the_labels_condition_the_frames(make_store, make_model):
    labels = street()
    store = make_store(labels=labels)
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.5, 0.4, 0.1)), device="cpu")
    rendering = pipeline(store)
    assert np.array_equal(drawn(rendering).labels, labels)
    assert len(list(rendering)) == len(labels)


def test_a_class_is_replaced_by_another(make_store, make_model):
    labels = street()
    store = make_store(labels=labels)
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.5, 0.4, 0.1)), device="cpu")
    shown = drawn(pipeline(store, replace={"car": "road", "sky": "void"})).labels
    assert np.array_equal(shown == 0, labels != 1)
    assert np.array_equal(shown == VOID, labels == 1)


def test_a_class_absent_from_training_is_an_error(make_store, make_model):
    store = make_store(labels=street())
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.6, 0.4, 0.0)), device="cpu")
    with pytest.raises(LabelsMismatch) as caught:
        pipeline(store)
    assert "trained on: car" in caught.value.message and 'replace={"car": ' in (
        caught.value.hint or ""
    )
    assert len(pipeline(store, replace={"car": "road"})) == 12
    with pytest.raises(UsageError, match="not trained on car"):
        pipeline(store, replace={"sky": "car"})
    with pytest.raises(UnknownName, match="tree"):
        pipeline(store, replace={"tree": "road"})


def test_a_few_pixels_of_an_unseen_class_are_noted(make_store, make_model):
    labels = np.zeros((4, HEIGHT, WIDTH), np.uint8)
    labels[:, :30] = 1
    labels[0, 40, :5] = 2
    store = make_store(labels=labels)
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.6, 0.4, 0.0)), device="cpu")
    assert any("car" in note and "guess" in note for note in pipeline(store).notes)


def test_a_folder_of_maps(make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = street(height=128, width=96)
    (tmp_path / "maps").mkdir()
    for i, label in enumerate(labels):
        Image.fromarray(label).save(tmp_path / "maps" / f"{i:03}.png")
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.5, 0.4, 0.1)), device="cpu")
    rendering = pipeline("maps")
    assert rendering.rate == 25 and rendering.conditioning.pictures is None
    assert np.array_equal(drawn(rendering).labels, labels[:, 1::2, 1::2])
    assert pipeline("maps", fps="10").rate == 10
    Image.fromarray(np.full((128, 96), 7, np.uint8)).save(tmp_path / "maps" / "005.png")
    with pytest.raises(LabelsMismatch) as caught:
        pipeline("maps")
    assert "label id 7" in caught.value.message and "knows 3 classes" in (caught.value.hint or "")
    with pytest.raises(MediaNotFound):
        pipeline("nowhere")


def test_other_classes_are_an_error(make_store, make_model):
    store = make_store(labels=street(), classes=("a", "b", "c"))
    pipeline = LabelToVideo.from_pretrained(street_model(make_model, (0.5, 0.4, 0.1)), device="cpu")
    with pytest.raises(LabelsMismatch, match="was trained on 3"):
        pipeline(store)


def test_styles_by_clip_and_by_picture(make_store, make_model, tmp_path):
    store = make_store(labels=street())
    Image.fromarray(np.full((40, 80, 3), 200, np.uint8)).save(tmp_path / "red.png")
    shares = (0.5, 0.4, 0.1)
    plain = LabelToVideo.from_pretrained(street_model(make_model, shares), device="cpu")
    for style, words in (("red.png", "not a picture"), (str(tmp_path / "red.png"), "one style"),
                         ("car=1", "no clusters of car"), ("clip7", "not a style")):  # fmt: skip
        with pytest.raises(UsageError) as caught:
            plain(store, style=[style])
        assert words in f"{caught.value.message} {caught.value.hint}"
    by_clip = LabelToVideo.from_pretrained(
        street_model(make_model, shares, clips=2, generator={"style": "clip", "clips": 2}),
        device="cpu",
    )
    for number in (0, 1):  # an untrained style has no effect on frames: check the condition
        rendering = by_clip(store, style=[f"clip{number}"])
        given = rendering.trained.conditions(
            rendering.conditioning.tracks(0, 2), rendering.appearance
        )
        assert given.clip.tolist() == [number] * 2
        assert len(list(rendering)) == 12
    encoded = LabelToVideo.from_pretrained(
        street_model(
            make_model,
            shares,
            generator={"style": "encoded"},
            statistics={"0.style": torch.zeros(3, HEIGHT, WIDTH)},
        ),  # fmt: skip
        device="cpu",
    )
    for style, value in (([], 0.0), ([str(tmp_path / "red.png")], 200 / 127.5 - 1)):
        rendering = encoded(store, style=style)
        given = rendering.trained.conditions(
            rendering.conditioning.tracks(0, 2), rendering.appearance
        )
        assert given.style.shape == (2, 3, HEIGHT, WIDTH)
        assert given.style.mean() == pytest.approx(value, abs=1e-4)
        assert len(list(rendering)) == 12


def test_clusters_are_selected(make_store, make_model):
    generator = {"name": "pix2pixhd", "channels": 4, "preset": "mobile"}
    centres = {f"clusters.{k}": torch.randn(2, 3) for k in (0, 1, 2)}
    run = street_model(make_model, (0.5, 0.4, 0.1), generator=generator, statistics=centres)
    pipeline = LabelToVideo.from_pretrained(run, device="cpu")
    store = make_store(labels=street(4))
    renderings = [np.stack(list(pipeline(store, style=[f"car={i}"]))) for i in (0, 1)]
    assert np.abs(renderings[0].astype(int) - renderings[1]).max() > 0
    with pytest.raises(UsageError, match="no such cluster"):
        pipeline(store, style=["car=5"])


# ---------------------------------------------------------------- frame prediction


@pytest.fixture
def predicting(make_store, make_model, skeletons) -> tuple[Path, Path]:
    """A store, and a run with a model and a predictor trained on it."""
    from v2v.config import load_config
    from v2v.prediction.settings import PredictSettings
    from v2v.prediction.training import train_predictor

    store = make_store(pose=skeletons(120))
    run = model_of(make_model, store, "pose")
    values = {"budget.steps": 2, "points.past": 6, "points.hidden": 8, "points.batch": 4}
    settings = load_config(PredictSettings, "predict", values=values)
    train_predictor(settings, [store], run, Silent())
    return store, run


def test_prediction_continues_from_the_last_frames(predicting):
    store, run = predicting
    predict = FramePrediction.from_pretrained(run, device="cpu")
    rendering = predict(store, frames=12)
    assert len(rendering) == 12 and rendering.known == 0
    last = ClipStore.open(store).track("pose", 119, 120).points
    assert furthest(drawn(rendering, 0, 1).points, last) < 3
    state = rendering.conditioning.before()
    assert state.valid.tolist() == [[1, 1]]
    real = ClipStore.open(store).frames(119, 120)[0]
    newest = ((state.frames[0, -1].permute(1, 2, 0) + 1) * 127.5).numpy()
    assert np.abs(newest - real).max() < 1
    assert len(list(rendering)) == 12


def test_prediction_errors_are_compared_with_baselines(predicting, tmp_path, read_numbers):
    store, run = predicting
    predict = FramePrediction.from_pretrained(run, device="cpu")
    held = predict(store, frames=10, hold_back=True)
    errors = held.errors()
    assert {len(e) for e in errors.values()} == {10} and len(errors) == 5
    # The error of copying the last frame is the real change.
    frames = ClipStore.open(store).frames(109, 120) / 127.5 - 1
    truth = -10 * np.log10((((frames[1:] - frames[0]) / 2) ** 2).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(errors["psnr, copy last"], truth, atol=0.05)
    outcome = held.save(tmp_path / "o.mkv", codec="ffv1", compare=True)
    panels = np.stack(list(read_stored(outcome.comparison)))
    assert read_numbers(panels[:, :, :WIDTH]) == list(range(110, 120))


def test_invalid_predictions_are_errors(predicting, make_store, make_model, skeletons):
    store, run = predicting
    predict = FramePrediction.from_pretrained(run, device="cpu")
    for options in ({"frames": 0}, {"at": 99.0}, {"frames": 130, "hold_back": True}):
        with pytest.raises(UsageError):
            predict(store, **options)
    with pytest.raises(TooFewFrames, match="only 2 frames precede"):
        predict(store, at=2 / 25)
    without_predictor = model_of(make_model, store, "pose", "lone")
    with pytest.raises(CheckpointInvalid) as caught:
        FramePrediction.from_pretrained(without_predictor, device="cpu")
    assert "--task predict" in (caught.value.hint or "") and "lone" in (caught.value.hint or "")


# ---------------------------------------------------------------- sources and commands


def test_footage_is_preprocessed_once(make_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    footage = make_video("a.mp4", "-c:v", "libx264", frames=30, rate=10)
    first = open_source(footage, ["flow"])
    assert first.store.folder == Path("data/a") and len(first) == 30
    made = (tmp_path / "data/a/flow.mkv").stat().st_mtime_ns
    again = open_source(footage, ["flow"], start=1.0)
    assert (again.store.folder, len(again), again.start) == (Path("data/a"), 20, 10)
    assert (tmp_path / "data/a/flow.mkv").stat().st_mtime_ns == made
    # Other footage of the same name gets its own folder.
    other = make_video("b.mp4", "-c:v", "libx264", frames=20, rate=10).rename(footage)
    changed = open_source(other, ["flow"])
    assert changed.store.folder != Path("data/a") and len(changed) == 20
    # Of new footage, only the requested range is extracted.
    third = make_video("c.mp4", "-c:v", "libx264", frames=30, rate=10)
    part = open_source(third, ["flow"], start=1.0, end=2.0)
    assert len(part) == len(part.store) == 10 and not (tmp_path / "data/c").exists()


def test_a_missing_signal_is_extracted(make_store, skeletons):
    store = make_store(pose=skeletons(8))
    assert "flow" in open_source(store, ["pose", "flow"]).store.signals


@pytest.mark.parametrize(("start", "end"), [(5.0, None), (-1.0, None), (1.0, 0.5), (0.5, 0.5)])
def test_an_empty_range_is_an_error(make_store, skeletons, start, end):
    with pytest.raises(UsageError, match="is empty"):
        open_source(make_store(pose=skeletons(25)), ["pose"], start=start, end=end)


@pytest.mark.parametrize("moment", [float("nan"), float("inf"), -float("inf")])
def test_times_must_be_finite(make_store, skeletons, moment):
    store = make_store(pose=skeletons(25))
    for options in ({"start": moment}, {"end": moment}):
        with pytest.raises(UsageError, match="is not a time"):
            open_source(store, ["pose"], **options)


def test_times_are_those_of_the_footage(make_video, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    footage = make_video("a.mp4", "-c:v", "libx264", frames=30, rate=10)
    part = open_source(footage, ["flow"], start=1.0, end=2.0)
    assert (part.seconds(part.start), part.frame(1.5)) == (1.0, 5)
    whole = open_source(part.store, ["flow"], start=0.5)
    assert (whole.seconds(whole.start), whole.frame(0.5)) == (0.5, 5)


def test_a_model_of_another_signal_names_the_right_command(make_store, make_model, skeletons):
    run = model_of(make_model, make_store(pose=skeletons(COUNT)), "pose")
    for kind in (FaceReenactment, LabelToVideo):
        with pytest.raises(UsageError) as caught:
            kind.from_pretrained(run)
        assert "renders from pose" in caught.value.message
        assert "v2v transfer" in (caught.value.hint or "")


def test_transfer_by_command(make_store, make_model, skeletons, command, tmp_path):
    store = make_store(pose=skeletons(COUNT))
    model_of(make_model, store, "pose")
    options = ("--source", store, "--target-model", "b", "--device", "cpu")
    done = command("transfer", *options, "--compare", "--json", "--end", "0.4")
    assert done.exit_code == 0, done.exception
    result = json.loads(done.stdout)
    assert result["frames"] == 10 and result["video"] == "a-b.mp4"
    assert (tmp_path / "a-b.mp4").exists() and (tmp_path / "a-b-compare.mp4").exists()
    again = command("transfer", *options)
    assert isinstance(again.exception, UsageError) and "--overwrite" in again.exception.hint
    still = command("transfer", *options, "--preview", "--json")
    assert json.loads(still.stdout) == {"preview": "a-b.png"}
    twice = command("transfer", *options, "--preview")
    assert isinstance(twice.exception, UsageError) and (tmp_path / "a-b.png").exists()
    facts = command("info", "a-b.mp4", "--json")
    assert json.loads(facts.stdout)["pipeline"] == "motion transfer"
    for path, what in ((store, "clip store"), ("b", "model"), (tmp_path / "a.mkv", "video")):
        assert json.loads(command("info", path, "--json").stdout)["what"] == what


def test_prediction_by_command(predicting, command):
    store, _ = predicting
    done = command(
        "predict-frames", "--model", "b", "--input", store, "-n", "5", "--compare", "--device",
        "cpu", "-o", "next.mp4",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    for words in ("frames ahead", "constant velocity", "psnr, copy last", "next-compare.mp4"):
        assert words in done.stdout


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (["transfer", "--source", "a", "-m", "nobody"], CheckpointInvalid, "nobody"),
        (["transfer", "--source", "no.mp4", "-m", "b"], MediaNotFound, "no.mp4"),
        (["transfer", "--source", "notes.mp4", "-m", "b"], NotAVideo, "notes.mp4"),
        (["transfer", "--source", "a", "-m", "b", "--retarget", "limb"], UnknownName, "limbs"),
        (["transfer", "--source", "a", "-m", "b", "--start", "9"], UsageError, "is empty"),
        (["transfer", "--source", "a", "-m", "b", "--codec", "mpeg"], UnknownName, "h264"),
        (["transfer", "--source", "a", "-m", "b", "--clip", "x"], UnknownName, "clip0"),
        (["transfer", "--source", "a", "-m", "b", "--size", "big"], UsageError, "512x768"),
        (["reenact", "--source", "a", "-m", "b"], UsageError, "v2v transfer"),
        (["reenact", "--source", "a", "-m", "b", "--rotation", "5"], ConfigError, "0 to 2"),
        (["reenact", "--source", "a", "-m", "b", "--part", "face"], UsageError, "NAME=VALUE"),
        (["reenact", "--source", "a", "-m", "b", "--part", "face=x"], UsageError, "a number"),
        (["synthesize", "--labels", "a", "-m", "b"], UsageError, "v2v transfer"),
        (["predict-frames", "-m", "b", "-i", "a"], CheckpointInvalid, "--task predict"),
        (["train", "--task", "predict", "-d", "a", "--size", "64"], UsageError, "--size"),
        (["run", "--target", "no.mp4", "--source", "a"], MediaNotFound, "no.mp4"),
        (["run", "--target", "a", "--source", "a", "--task", "cat"], UnknownName, "pose"),
        (["transfer", "--source", "a", "-m", "b", "--start", "nan"], UsageError, "is not a time"),
        (["transfer", "--source", "a", "-m", ""], UsageError, "is empty"),
        (["transfer", "--source", "a", "-m", "b", "--device", "cpu:x"], UsageError, "cpu:x"),
        (["transfer", "--source", "a", "-m", "b", "-o", "notes.mp4/o.mp4"], NotWritable, "notes"),
        (["transfer", "--source", "no.mp4", "-m", "b", "-o", "o.avi"], UsageError, "o.avi"),
        (["run", "--target", "a", "--source", "a", "-o", "o.avi"], UsageError, "o.avi"),
        (["run", "--target", "a", "--source", "a", "-s", "bogus=1"], ConfigError, "bogus"),
        (["info", "nothing.mp4"], MediaNotFound, "nothing.mp4"),
    ],
)  # fmt: skip
def test_user_errors_are_reported(
    make_store, make_model, skeletons, command, tmp_path, arguments, kind, words
):
    store = make_store(pose=skeletons(COUNT))
    model_of(make_model, store, "pose")
    (tmp_path / "notes.mp4").write_text("not a video at all")
    before = sorted(p.name for p in tmp_path.iterdir())
    error = command(*arguments).exception
    assert isinstance(error, kind) and isinstance(error, V2VError), error
    assert words in f"{error.message} {error.hint}"
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "something was left behind"
