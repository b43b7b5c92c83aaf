"""Predictors learn predictable motion, resume exactly and continue tracks of any size."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from v2v.checkpoint import Model, ModelRecord, SignalUse, save_model
from v2v.config import load_config
from v2v.data.store import (
    SCHEMA,
    ClipRecord,
    ClipStore,
    FramesRecord,
    SignalRecord,
    SourceRecord,
    file_record,
    write_record,
)
from v2v.errors import (
    CheckpointInvalid,
    NothingFound,
    RunConflict,
    SignalMissing,
    TooFewFrames,
    UsageError,
    V2VError,
)
from v2v.models import build_generator
from v2v.prediction.measures import (
    LabelPropagator,
    compare,
    constant_velocity,
    copy_last,
    track_error,
)
from v2v.prediction.model import LabelPredictor, PointPredictor, ShapePCA
from v2v.prediction.predictor import (
    ANCHORS,
    LabelsPredictor,
    PointsPredictor,
    PredictorRecord,
    load_predictor,
    normalised,
)
from v2v.prediction.settings import PredictSettings
from v2v.prediction.training import PredictorResult, train_predictor
from v2v.progress import Silent
from v2v.saved import FORMAT
from v2v.signals.face import POINTS, FaceTrack
from v2v.signals.pose import BODY, NAMES, POINT, PoseTrack
from v2v.signals.segmentation import VOID, LabelTrack
from v2v.video.write import MapWriter

SIZE = 64
CLASSES = ("road", "sky", "car")
PALETTE = np.array([[90, 90, 90], [60, 120, 250], [250, 250, 0]], np.uint8)


# ---------------------------------------------------------------- footage with ground truth


def dancing(frames: int, *, noise: float = 0.0) -> PoseTrack:
    """A body whose joints all move in circles with a period of 16 frames."""
    random = np.random.default_rng(0)
    middle = random.uniform(20, 44, size=(len(NAMES), 2))
    phase = np.arange(frames)[:, None] * 2 * np.pi / 16 + random.uniform(0, 6, len(NAMES))
    radius = random.uniform(1, 4, len(NAMES))
    points = np.ones((frames, len(NAMES), 3), np.float32)
    points[..., 0] = middle[:, 0] + radius * np.cos(phase)
    points[..., 1] = middle[:, 1] + radius * np.sin(phase)
    points[..., :2] += noise * random.standard_normal((frames, len(NAMES), 2))
    return PoseTrack(points, np.zeros((frames, len(NAMES)), np.bool_), SIZE, SIZE)


def faces(frames: int) -> FaceTrack:
    random = np.random.default_rng(0)
    points = np.ones((frames, POINTS, 3), np.float32)
    points[..., :2] = random.uniform(20, 44, size=(POINTS, 2))
    points[..., 0] += np.arange(frames)[:, None] * 0.2
    depth = np.repeat(random.normal(0, 5, POINTS).astype(np.float32)[None], frames, axis=0)
    turn = np.repeat(np.eye(3, dtype=np.float32)[None], frames, axis=0)
    middle = points[..., :2].mean(axis=1)
    scale = np.full(frames, 9, np.float32)
    return FaceTrack(points, depth, np.zeros(frames, np.bool_), turn, middle, scale, SIZE, SIZE)


def street(frames: int, *, step: int = 1, instances: bool = False) -> LabelTrack:
    """Cars in front of a road and a sky, moving to the right by `step` pixels per frame."""
    y, x = np.mgrid[:32, :SIZE]
    labels = []
    for t in range(frames):
        moved = (x - step * t) % 32
        car = (moved > 6) & (moved < 18) & (y > 12) & (y < 24)
        labels.append(np.where(car, 2, np.where(y < 10, 1, 0)))
    ids = np.stack(labels).astype(np.uint8)
    numbers = np.where(ids == 2, 2001, ids).astype(np.uint16) if instances else None
    return LabelTrack(ids, CLASSES, PALETTE, numbers)


def write_store(folder: Path, track: PoseTrack | LabelTrack, shots: tuple[int, ...] = (0,)) -> Path:
    """A clip store with a single signal and no real frames."""
    folder.mkdir()
    (folder / "frames.mp4").write_bytes(b"none")
    if isinstance(track, PoseTrack):
        name, file = "pose", folder / "pose.npz"
        np.savez(file, points=track.points, filled=track.filled)
        spec: dict[str, Any] = {"points": 75}
    else:
        name, file = "segmentation", folder / "segmentation.mkv"
        writer = MapWriter(file, width=track.width, height=track.height, rate=Fraction(25), bits=8)
        for labels in track.labels:
            writer.write(labels)
        writer.close()
        spec = {"classes": list(CLASSES), "palette": PALETTE.tolist(), "instances": False}
    source = SourceRecord(
        name="made.mp4", sha256=folder.name, bytes=1, modified_ns=0, container="mp4",
        codec="h264", pixel_format="yuv420p", width=track.width, height=track.height, rotation=0,
        pixel_aspect="1", fps="25", variable_rate=False, frames=len(track), duration=1.0,
        audio=None,
    )  # fmt: skip
    frames = FramesRecord(
        width=track.width, height=track.height, fps="25", count=len(track), start=0.0,
        box=(0, 0, track.width, track.height), shots=shots, lost=(), settings={},
        file=file_record(folder / "frames.mp4"),
    )  # fmt: skip
    signal = SignalRecord(
        spec=spec, backend="test", version="1", settings={}, coverage=1.0,
        files={file.name: file_record(file)},
    )  # fmt: skip
    record = ClipRecord(
        schema_version=SCHEMA, tool="test", source=source, frames=frames, signals={name: signal}
    )
    write_record(folder, record)
    return folder


def write_run(folder: Path, signal: str = "pose", height: int = SIZE) -> Path:
    arguments = {"name": "sequential", "channels": 3, "preset": "mobile", "scales": 1}
    spec = {"classes": list(CLASSES)} if signal == "segmentation" else {}
    record = ModelRecord(
        format=FORMAT, tool="v2v test", task="pose",
        signals=(SignalUse(name=signal, channels=3, spec=spec),), height=height, width=SIZE,
        generator=arguments, active=1, clips=(), training={"steps": 1},
    )  # fmt: skip
    save_model(folder / "model", Model(record, build_generator(**arguments)))
    return folder


def settings(**values: Any) -> PredictSettings:
    small = {
        "points.past": 8, "points.hidden": 8, "points.components": 4, "points.lengths": [5, 10],
        "points.batch": 8, "points.rate": 3e-3, "points.noise": 0.1, "points.speed": 0.0,
        "evaluate_every": 20, "labels.width": 16, "labels.lengths": [1, 2], "device": "cpu",
    }  # fmt: skip
    return load_config(PredictSettings, "predict", values={**small, **values})


def train(run: Path, store: Path, **values: Any) -> PredictorResult:
    return train_predictor(settings(**values), [store], run, Silent())


@pytest.fixture(scope="module")
def dance_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("stores") / "dance", dancing(120, noise=0.05))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


# ---------------------------------------------------------------- training


def test_periodic_motion_is_learned(tmp_path: Path, run: Path, dance_store: Path) -> None:
    outcome = train(run, dance_store, **{"budget.steps": 160})
    held_out = ClipStore.open(dance_store).track("pose", 60, 120)
    methods = {
        "predictor": load_predictor(run).extend, "copy": copy_last, "velocity": constant_velocity,
    }  # fmt: skip
    errors = compare(methods, [held_out], [42])
    assert errors["predictor"][10] < 0.6 * min(errors["copy"][10], errors["velocity"][10])
    assert outcome.best > 0 and outcome.errors["predictor"].keys() == {1, 5, 10}
    assert "copy last" in repr(outcome)
    assert json.loads(json.dumps(outcome.as_json()))["signal"] == "pose"
    # A finished predictor is returned and not trained again.
    assert train(run, dance_store, **{"budget.steps": 160}) == outcome
    with pytest.raises(RunConflict, match="other settings or clips"):
        train(run, dance_store, seed=1)
    # At another size the motion is the same, at that size; also after saving and loading.
    once = load_predictor(run).extend(held_out[:20], 30)
    larger = load_predictor(run / "predictor").extend(held_out[:20].scaled(256, 256), 30)
    assert (larger.width, larger.height) == (256, 256)
    np.testing.assert_allclose(larger.points[..., :2], 4 * once.points[..., :2], atol=1e-2)


def test_moving_labels_are_predicted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "segmentation", 32)
    store = write_store(tmp_path / "street", street(40, step=2))
    outcome = train(run, store, **{"budget.steps": 60, "labels.rate": 4e-3})
    errors = outcome.errors
    assert errors["predictor"][1] < 0.7 * errors["copy_last"][1]
    past = street(10, step=2, instances=True)
    predicted = load_predictor(run).extend(past, 3)
    assert predicted.labels.shape == (3, 32, SIZE) and predicted.instances is not None
    assert set(np.unique(predicted.instances)) <= {0, 1, 2, 2001}


def test_a_stopped_training_resumes_bit_for_bit(
    tmp_path: Path, dance_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, stopped = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    values = {"budget.steps": 50}
    train(uninterrupted, dance_store, **values)

    from v2v.prediction import training as prediction

    update = prediction._Trainer.update

    def interrupted(self: Any) -> int:
        if self.step == 29:
            import signal

            signal.raise_signal(signal.SIGINT)
        return update(self)

    monkeypatch.setattr(prediction._Trainer, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, dance_store, **values)
    assert not (stopped / "predictor").exists()
    monkeypatch.undo()
    with pytest.raises(RunConflict, match="stopped training with other settings"):
        train(stopped, dance_store, **values, seed=3)
    train(stopped, dance_store, **values)
    assert not (stopped / "predictor.checkpoint").exists()
    first, second = load_predictor(uninterrupted), load_predictor(stopped)
    assert first.record.errors == second.record.errors
    for a, b in zip(first._tensors().items(), second._tensors().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1]), a[0]


def test_no_window_crosses_a_cut(tmp_path: Path, run: Path) -> None:
    track = dancing(80)
    track.points[:30, :, 0] += 300  # elsewhere, before the cut
    store = ClipStore.open(write_store(tmp_path / "cut", track, shots=(0, 30)))
    from v2v.checkpoint import load_model
    from v2v.prediction.points import PointTask
    from v2v.prediction.spans import find_spans

    model = load_model(run).record
    spans = find_spans([store], model, "pose", settings())
    assert [(s.start, s.stop, s.target) for s in spans] == [(0, 30, 30), (30, 68, 54)]
    task = PointTask(settings(), model, [store], spans)
    for length in (1, 10):
        starts = task._starts(length)
        past, ahead, _ = task._window(starts, length, torch.full((len(starts),), 1.2))
        x = torch.cat([past, ahead], dim=1)[..., 0]
        assert (x.amax(dim=1) - x.amin(dim=1)).max() < 2  # in shorter sides of the frame


# ---------------------------------------------------------------- baselines and errors


def test_linear_motion_is_continued() -> None:
    track = dancing(30)
    t = np.arange(30, dtype=np.float32)[:, None, None]
    track.points[..., :2] = track.points[:1, :, :2] + t * [0.5, -0.25]
    track.points[:, 40] = np.nan
    ahead = constant_velocity(track[:10], 20)
    np.testing.assert_allclose(ahead.points, track.points[10:], atol=1e-4)
    assert not track_error(ahead, track[10:]).max() > 1e-5
    held = copy_last(track[:10], 20)
    np.testing.assert_array_equal(held.points, np.repeat(track.points[9:10], 20, axis=0))


def test_errors_are_in_torso_lengths_and_fractions() -> None:
    track = dancing(5)
    ends = ("shoulder", "hip")
    joints = [[POINT[f"{side}_{end}"] for side in ("left", "right")] for end in ends]
    shoulder, hip = (track.points[0, j, :2].mean(axis=0) for j in joints)
    one = track[:1]
    torso = np.linalg.norm(shoulder - hip)
    moved = PoseTrack(one.points + np.float32([torso, 0, 0]), one.filled, SIZE, SIZE)
    assert track_error(moved, one)[0] == pytest.approx(1, abs=1e-4)
    true = street(2)
    wrong = street(2)
    wrong.labels[1, :16] = 2
    true.labels[:, :, :8] = VOID
    share = track_error(wrong, true)
    assert share[0] == 0 and 0.3 < share[1] < 0.6


def test_constant_velocity_predicts_labels_of_constant_motion() -> None:
    track = street(12, step=2)
    errors = [track_error(f(track[:4], 4), track[4:8]) for f in (constant_velocity, copy_last)]
    assert errors[0].mean() < errors[1].mean()


def test_propagated_labels_do_not_degrade() -> None:
    past = street(1, instances=True)
    past.labels[0, :4, :4] = VOID
    still = np.zeros((2, 32, SIZE), np.float32)
    half = still.copy()
    half[0] = -0.5
    propagator = LabelPropagator(past)
    for _ in range(20):
        frame = propagator.step(still)
    np.testing.assert_array_equal(frame.labels, past.labels)
    propagator.step(half)
    frame = propagator.step(half)
    np.testing.assert_array_equal(frame.labels[0, :, 1:], past.labels[0, :, :-1])
    assert (frame.labels[0, :4, :5] == VOID).all()
    # Synthesised labels have no instance number and move with the rest.
    where = np.zeros((32, SIZE), np.bool_)
    where[20:, 20:30] = True
    frame = propagator.step(still, np.full((32, SIZE), 2, np.uint8), where)
    assert (frame.instances[0][where] == 2).all() and (frame.labels[0][where] == 2).all()
    propagator.step(half)
    frame = propagator.step(half)
    assert (frame.instances[0, 20:, 21:31] == 2).all()


# ---------------------------------------------------------------- continuing tracks


def untrained(track: PoseTrack | FaceTrack, signal: str) -> PointsPredictor:
    code = ShapePCA.fit([normalised(track)], ANCHORS[signal], components=4, variance=0.9)
    network = PointPredictor(code.length, past=8).eval()
    states = torch.from_numpy(code.encode(code.complete(normalised(track)))[0])
    network.learn_range(states, states[1:] - states[:-1])
    return PointsPredictor(PredictorRecord(signal=signal, network={}), network, code)


def test_missing_points_stay_missing() -> None:
    track = dancing(30)
    track.points[:, 60] = np.nan
    track.points[25:, 50] = np.nan
    track.points[3:6, 40] = np.nan
    track.points[:, 20, 2] = 0.25
    predicted = untrained(dancing(30), "pose").extend(track, 300)
    gone = np.isnan(predicted.points).any(axis=(0, 2))
    assert set(np.flatnonzero(gone)) == {50, 60} and np.isnan(predicted.points[:, [50, 60]]).all()
    assert (predicted.points[:, 20, 2] == 0.25).all()
    seen = predicted.points[:, ~gone, :2]
    assert np.isfinite(seen).all() and (np.abs(seen) < 2 * SIZE).all()
    assert len(predicted) == 300 and predicted.filled[:, ~gone].all()


def test_prediction_begins_at_the_last_frame() -> None:
    """The shape PCA is lossless: an untrained network continues with one damped step."""
    track = dancing(30)
    predicted = untrained(track, "pose").extend(track, 1)
    step = np.abs(np.diff(track.points[-2:, :, :2], axis=0)).max()
    assert np.abs(predicted.points[0, :, :2] - track.points[-1, :, :2]).max() < 2 * step


def test_a_lost_person_is_predicted_from_the_last_visible_frame() -> None:
    track = dancing(30)
    predictor = untrained(track, "pose")
    lost = PoseTrack(track.points.copy(), track.filled, SIZE, SIZE)
    lost.points[-4:] = np.nan
    whole = predictor.extend(lost[:26], 9)
    np.testing.assert_array_equal(predictor.extend(lost, 5).points, whole.points[4:])
    lost.points[:] = np.nan
    with pytest.raises(NothingFound, match="none of the last 30 frames"):
        predictor.extend(lost, 5)


def test_a_face_that_only_translates_keeps_its_rotation() -> None:
    track = faces(20)
    predicted = untrained(track, "face").extend(track, 5)
    assert predicted.points.shape == (5, POINTS, 3)
    np.testing.assert_allclose(predicted.rotation, np.repeat(np.eye(3)[None], 5, 0), atol=1e-3)
    np.testing.assert_allclose(predicted.scale, 9, rtol=1e-3)
    np.testing.assert_allclose(predicted.depth, track.depth[:5], atol=1e-2)
    assert (np.diff(predicted.translation[:, 0]) > 0).all()


def labels_predictor() -> LabelsPredictor:
    record = PredictorRecord(
        signal="segmentation", network={"channels": 4, "width": 16}, classes=CLASSES,
        channels=(0, 1, 2), size=(32, SIZE),
    )  # fmt: skip
    return LabelsPredictor(record, LabelPredictor(4, width=16).eval())


@pytest.mark.parametrize("factor", [1, 3])
def test_untrained_labels_are_copied_at_any_size(factor: int) -> None:
    past = street(4, instances=True)
    past.labels[:, 20:24] = VOID
    past = past.scaled(factor * SIZE, factor * 32)
    predicted = labels_predictor().extend(past, 5)
    for ids, last in ((predicted.labels, past.labels), (predicted.instances, past.instances)):
        np.testing.assert_array_equal(ids, np.repeat(last[-1:], 5, axis=0))


# ---------------------------------------------------------------- errors


def test_another_signal_or_other_classes_are_refused() -> None:
    predictor = untrained(dancing(20), "pose")
    with pytest.raises(UsageError, match="continues pose, it cannot continue segmentation"):
        predictor.extend(street(5), 2)
    with pytest.raises(TooFewFrames, match="2 past frames are too few"):
        predictor.extend(dancing(2), 2)
    other = LabelTrack(street(4).labels, ("a", "b", "c"), PALETTE)
    with pytest.raises(UsageError, match="classes"):
        labels_predictor().extend(other, 2)


def test_unsuitable_footage_is_refused(tmp_path: Path, run: Path, dance_store: Path) -> None:
    def fails(error: type[V2VError], match: str, run: Path, *stores: Path) -> None:
        with pytest.raises(error, match=match) as caught:
            train_predictor(settings(), list(stores), run, Silent())
        assert caught.value.hint
        assert not (run / "predictor").exists()

    fails(CheckpointInvalid, "is not a model", tmp_path / "none", dance_store)
    labels = write_store(tmp_path / "labels", street(20))
    fails(SignalMissing, "has no pose", run, labels)
    short = write_store(tmp_path / "short", dancing(5))
    fails(TooFewFrames, "too few frames", run, short)
    cut = write_store(tmp_path / "cut", dancing(40), shots=tuple(range(0, 40, 3)))
    fails(TooFewFrames, "longest training shot", run, cut)
    fails(UsageError, "no clip", run)
    unseen = dancing(60)
    unseen.points[:] = np.nan
    fails(SignalMissing, "no training frame has a pose", run, write_store(tmp_path / "u", unseen))


@pytest.mark.parametrize("damage", ["weights", "json", "signal", "mixed", "format"])
def test_damaged_predictors_are_refused(
    tmp_path: Path, damage: str, dance_store: Path, run: Path
) -> None:
    folder = run / "predictor"
    predictor = untrained(dancing(30), "pose")
    arguments = {"length": predictor.code.length, "past": 8}
    record = PredictorRecord(signal="pose", network=arguments)
    PointsPredictor(record, predictor.network, predictor.code).save(folder)
    assert load_predictor(run).record == record and load_predictor(run / "model")
    path = folder / "predictor.json"
    data = json.loads(path.read_text())
    if damage == "weights":
        (folder / "predictor.safetensors").write_bytes(b"\x00" * 40)
    elif damage == "json":
        path.write_text("{")
    elif damage == "signal":
        path.write_text(json.dumps({**data, "signal": "face"}))
    elif damage == "mixed":
        path.write_text(json.dumps({**data, "network": {"length": 5}}))
    else:
        path.write_text(json.dumps({**data, "format": FORMAT + 1}))
    with pytest.raises(CheckpointInvalid):
        load_predictor(run)


def test_a_run_without_a_predictor_is_reported(run: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="has no predictor") as caught:
        load_predictor(run)
    assert "--task predict" in str(caught.value.hint)


def test_position_is_measured_on_all_body_points() -> None:
    assert ANCHORS["pose"] == list(range(len(BODY)))
