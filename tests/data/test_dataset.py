"""Training windows: within shots, outside held-out frames, reproducible and aligned.

The clips are synthetic: a camera pans and zooms over a map of coloured regions, so that the true
flow, labels and landmarks of every frame are known.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from v2v.data.background import BackgroundPlate, Backgrounds, Mosaic
from v2v.data.dataset import ClipDataset
from v2v.data.filling import compose_over, near_references
from v2v.data.loader import loader
from v2v.data.references.gathering import gather
from v2v.data.sampling import WindowSample, shard
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
from v2v.data.transforms import AugmentationSettings, Placement
from v2v.errors import (
    ConfigError,
    SignalMissing,
    StoreConflict,
    StoreError,
    UnknownName,
    UsageError,
)
from v2v.preprocess.extractor import write_arrays
from v2v.signals.camera import CameraTrack
from v2v.signals.flow import pack
from v2v.signals.pose import LIMB_GROUPS, MIRROR, NAMES, SIGNAL
from v2v.signals.segmentation import CITYSCAPES
from v2v.types import Batch
from v2v.video.write import MapWriter, h264_stream
from v2v.warp import dense_motion, warp

HEIGHT, WIDTH, COUNT = 96, 128, 40
SHOTS = (0, 11, 30)
RATE = Fraction(25)
CLASSES = ("background", "person", "water")
PALETTE = np.array([[30, 120, 60], [220, 60, 50], [50, 80, 220]], np.uint8)
PEOPLE = tuple(CITYSCAPES)[24:34]

# ---------------------------------------------------------------- the synthetic clip


def to_map(t: int, places: NDArray[Any]) -> NDArray[Any]:
    """Map positions of pixels [..., 2] of frame t."""
    zoom = 1 + 0.004 * t
    return (places - (60, 50)) * zoom + (120 + 1.3 * t, 100 - 0.7 * t)


def from_map(t: int, places: NDArray[Any]) -> NDArray[Any]:
    zoom = 1 + 0.004 * t
    return (places - (120 + 1.3 * t, 100 - 0.7 * t)) / zoom + (60, 50)


def backward(t: int, stride: int, places: NDArray[Any]) -> NDArray[Any]:
    """Positions of pixels [..., 2] of frame t in the frame `stride` frames earlier."""
    return from_map(t - stride, to_map(t, places))


def centres(height: int, width: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x + 0.5, y + 0.5], axis=-1)


@cache
def regions() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The map, RGB [200, 300, 3], and its class ids [200, 300]."""
    noise = np.random.default_rng(3).normal(0, 1, (3, 200, 300)).astype(np.float32)
    rough = np.stack([cv2.GaussianBlur(plane, (0, 0), 12) for plane in noise])
    ids = rough.argmax(0).astype(np.uint8)
    fine = np.stack([cv2.GaussianBlur(plane, (0, 0), 2.5) for plane in noise[::-1]], axis=-1)
    colours = PALETTE[ids] + 120 * fine
    return cv2.GaussianBlur(colours.clip(0, 255), (0, 0), 0.8).astype(np.uint8), ids


def drawn(t: int, picture: NDArray[np.uint8], kind: int) -> NDArray[np.uint8]:
    places = (to_map(t, centres(HEIGHT, WIDTH)) - 0.5).astype(np.float32)
    return cv2.remap(picture, places[..., 0], places[..., 1], kind)


def scene_flow(grid: tuple[int, int] = (48, 64)) -> NDArray[np.uint16]:
    """Packed flow of all frames; the first frames of shots are fully occluded."""
    images = []
    for t in range(COUNT):
        places = centres(*grid) / grid[::-1] * (WIDTH, HEIGHT)
        before = backward(t, 1, places)
        flow = np.moveaxis((before - places) * grid[::-1] / (WIDTH, HEIGHT), -1, 0)
        hidden = ((before < 0) | (before > (WIDTH, HEIGHT))).any(-1).astype(np.float32)
        if t in SHOTS:
            flow, hidden = np.zeros_like(flow), np.ones_like(hidden)
        images.append(pack(flow.astype(np.float32), hidden))
    return np.stack(images)


def scene_pose() -> NDArray[np.float32]:
    """[COUNT, 75, 3] points fixed to the map."""
    generator = np.random.default_rng(0)
    spots = to_map(15, generator.uniform((20, 20), (100, 80), (len(NAMES), 2)))
    points = np.stack([from_map(t, spots) for t in range(COUNT)])
    return np.concatenate([points, np.ones((COUNT, len(NAMES), 1))], axis=2).astype(np.float32)


def write_maps(path: Path, images: NDArray[Any]) -> None:
    bits = 8 if images.dtype == np.uint8 else 16
    height, width = images.shape[1:]
    writer = MapWriter(path, width=width, height=height, rate=RATE, bits=bits)
    for image in images:
        writer.write(image)
    writer.close()


def write_store(
    folder: Path,
    frames: NDArray[np.uint8],
    *,
    shots: Sequence[int] = (0,),
    pose: NDArray[np.float32] | None = None,
    labels: NDArray[np.uint8] | None = None,
    classes: Sequence[str] = CLASSES,
    instances: NDArray[np.uint16] | None = None,
    flow: NDArray[np.uint16] | None = None,
    rate: Fraction = RATE,
) -> Path:
    """Write a clip store from arrays."""
    folder.mkdir()
    count, height, width, _ = frames.shape
    with av.open(str(folder / "frames.mp4"), "w") as container:
        stream = h264_stream(
            container, width=width, height=height, rate=rate, crf=8, preset="veryfast"
        )
        for t, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=1)
            picture.pts, picture.time_base = t, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    specs: dict[str, tuple[dict[str, Any], list[str]]] = {}
    if pose is not None:
        filled = np.zeros(pose.shape[:2], np.bool_)
        write_arrays(folder / "pose.npz", {"points": pose, "filled": filled})
        specs["pose"] = {"points": pose.shape[1]}, ["pose.npz"]
    if labels is not None:
        write_maps(folder / "segmentation.mkv", labels)
        names = ["segmentation.mkv"]
        if instances is not None:
            write_maps(folder / "instances.mkv", instances)
            names.append("instances.mkv")
        palette = np.resize(PALETTE, (len(classes), 3)).tolist()
        spec = {"classes": list(classes), "palette": palette, "instances": instances is not None}
        specs["segmentation"] = spec, names
    if flow is not None:
        write_maps(folder / "flow.mkv", flow)
        specs["flow"] = {"grid": [flow.shape[2], flow.shape[1] // 3]}, ["flow.mkv"]
    source = SourceRecord(
        name="drawn", sha256="", bytes=0, modified_ns=0, container="mp4", codec="h264",
        pixel_format="yuv420p", width=width, height=height, rotation=0, pixel_aspect="1",
        fps=str(rate), variable_rate=False, frames=count, duration=1.0, audio=None,
    )  # fmt: skip
    record = ClipRecord(
        schema_version=SCHEMA, tool="test", source=source,
        frames=FramesRecord(
            width=width, height=height, fps=str(rate), count=count, start=0.0,
            box=(0, 0, width, height), shots=tuple(shots), lost=(), settings={},
            file=file_record(folder / "frames.mp4"),
        ),
        signals={
            name: SignalRecord(
                spec=spec, backend="drawn", version="1", settings={}, coverage=1.0,
                files={file: file_record(folder / file) for file in files},
            )
            for name, (spec, files) in specs.items()
        },
    )  # fmt: skip
    write_record(folder, record)
    return folder


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """The synthetic clip with all signals: pose, labels, instances, flow."""
    picture, ids = regions()
    frames = np.stack([drawn(t, picture, cv2.INTER_LINEAR) for t in range(COUNT)])
    labels = np.stack([drawn(t, ids, cv2.INTER_NEAREST) for t in range(COUNT)])
    return write_store(
        tmp_path_factory.mktemp("windows") / "scene", frames, shots=SHOTS, pose=scene_pose(),
        labels=labels, instances=labels.astype(np.uint16) + 1000, flow=scene_flow(),
    )  # fmt: skip


@pytest.fixture
def small(tmp_path) -> Callable[..., Path]:
    """`small("name", count=12, size=(48, 64), ...)`: a store of grey frames."""

    def make(name: str, count: int = 12, size: tuple[int, int] = (48, 64), **signals: Any) -> Path:
        frames = np.full((count, *size, 3), 128, np.uint8)
        if signals.pop("labelled", False) or "classes" in signals:
            signals.setdefault("labels", np.ones((count, *size), np.uint8))
        return write_store(tmp_path / name, frames, **signals)

    return make


def augmentation(**changes: Any) -> AugmentationSettings:
    disabled = {
        "crop_probability": 0.0, "flip": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "colour": 0.0,
        "drop": 0.0,
        "jitter": 0.0, "reference_drop": 0.0, "past": {"noise": 0.0, "blur": 0.0, "colour": 0.0},
    }  # fmt: skip
    return AugmentationSettings.model_validate(disabled | changes)


WILD = augmentation(crop_probability=0.8, flip=0.5, scale=(1.0, 1.5), shift=1.0)
EVERYTHING = (
    "flow",
    "foreground",
    "background_plate",
    "style",
    "instances",
    "boxes",
    "control_points",
)


@dataclass(frozen=True)
class TrainingPlan:
    step: int
    length: int = 3
    size: int = 48
    batch: int = 2


def same(a: Batch, b: Batch) -> bool:
    """Whether two batches are bit-identical, missing boxes included."""
    for name in a.__dataclass_fields__:
        one, other = getattr(a, name), getattr(b, name)
        if (one is None) != (other is None):
            return False
        if one is not None and not torch.equal(one.nan_to_num(-1), other.nan_to_num(-1)):
            return False
    return True


# ---------------------------------------------------------------- sampling


@given(
    seed=st.integers(0, 2**40),
    index=st.integers(0, 2**50),
    length=st.integers(1, 11),
    stride=st.integers(1, 4),
    holdout=st.sampled_from([0.0, 0.15, 0.5]),
)
@examples(max_examples=150, deadline=None)
def test_windows_stay_within_a_shot_and_outside_held_out_frames(
    scene, seed, index, length, stride, holdout
):
    windows = opened(scene, holdout)
    windows.seed, windows.max_stride = seed, stride
    draw = windows.draw(index, length, 48)
    frames = list(draw.frames)
    assert len(frames) == length and draw.frames[-1] == draw.stop - 1
    first, stop = next((a, b) for a, b in windows.clips[0].shots if a <= frames[0] < b)
    assert frames[-1] < stop <= windows.clips[0].train[1] <= COUNT * (1 - holdout)
    assert 1 <= draw.stride <= stride
    room = (stop - first - 1) // (length - 1) if length > 1 else 1
    assert draw.stride == 1 or draw.stride <= room
    assert windows.draw(index, length, 48) == draw


@cache
def opened(scene: Path, holdout: float) -> ClipDataset:
    return ClipDataset([scene], ["pose"], seed=0, holdout=holdout, augmentation=WILD)


def test_every_start_and_stride_is_sampled(scene):
    windows = ClipDataset([scene], ["pose"], seed=1, max_stride=3)
    draws = [windows.draw(i, 4, 48) for i in range(2500)]
    for stride in (1, 2, 3):
        seen = {d.start for d in draws if d.stride == stride}
        span = 3 * stride + 1
        shots = windows.clips[0].shots
        assert shots == ((0, 11), (11, 30), (30, 34))
        possible = {s for a, b in shots for s in range(a, b - span + 1)}
        assert seen == possible | ({30} if stride == 1 else set())
    # The last shot has room for four frames at stride 1 only, so it ignores the sampled stride.
    shares = [sum(d.stride == s for d in draws) / len(draws) for s in (1, 2, 3)]
    assert 0.3 < shares[0] < 0.48 and min(shares) > 0.25


def test_the_last_frames_are_held_out(scene):
    for holdout, held in ((0.15, 6), (0.0, 0), (0.001, 1)):
        clip = ClipDataset([scene], ["pose"], seed=0, holdout=holdout).clips[0]
        assert clip.train == (0, COUNT - held) and clip.held_out == (COUNT - held, COUNT)


def test_clips_are_sampled_in_proportion_to_their_number_of_windows(small):
    paths = [small("short", 20, labelled=True), small("long", 56, labelled=True)]
    windows = ClipDataset(paths, ["segmentation"], seed=0, holdout=0.0)
    share_of_long = np.mean([windows.draw(i, 5, 48).clip for i in range(2000)])
    assert share_of_long == pytest.approx(52 / 68, abs=0.04)


def test_windows_avoid_frames_without_the_signal(small):
    pose = np.ones((40, len(NAMES), 3), np.float32)
    pose[10:30] = np.nan
    path = small("gap", 40, pose=pose)
    windows = ClipDataset([path], ["pose"], seed=0, holdout=0.0, max_stride=2)
    for index in range(300):
        frames = np.array(windows.draw(index, 6, 48).frames)
        assert ((frames < 10) | (frames >= 30)).sum() >= 3
    pose[:] = np.nan
    empty = ClipDataset([small("none", 40, pose=pose)], ["pose"], seed=0)
    with pytest.raises(SignalMissing, match="no 6 frames in a row have pose") as caught:
        empty.draw(0, 6, 48)
    assert "preview.mp4" in str(caught.value.hint)


# ---------------------------------------------------------------- alignment


def inverse(placement: Placement) -> NDArray[np.float64]:
    """[H, W, 2] the stored position of every result pixel."""
    shown = centres(*placement.size)
    if placement.flip:
        shown[..., 0] = placement.size[1] - shown[..., 0]
    return shown / placement.scale + placement.box[:2]


@pytest.mark.parametrize("size", [32, 48, 96, 128])
def test_flow_matches_the_placed_frames(scene, size):
    """Zoomed, mirrored, shrunk, at strides 1 to 3, compared with the true camera motion."""
    windows = ClipDataset([scene], ["pose"], seed=size, augmentation=WILD, max_stride=3)
    draws = [windows.draw(i, 4, size) for i in range(9)]
    assert {d.stride for d in draws} == {1, 2, 3}
    assert {d.placement.flip for d in draws} == {True, False}
    batch = windows.load(draws)
    assert batch.flow is not None and batch.occlusion is not None
    still, moved = [], []
    for b, draw in enumerate(draws):
        assert (batch.flow[b, 0] == 0).all() and (batch.occlusion[b, 0] == 1).all()
        places = inverse(draw.placement)
        for t in range(1, 4):
            flow, visible = batch.flow[b, t].numpy(), batch.occlusion[b, t, 0].numpy() == 0
            before = backward(draw.frames[t], draw.stride, places).astype(np.float32)
            truth = draw.placement.points(before) - centres(*draw.placement.size)
            error = np.abs(flow - np.moveaxis(truth, -1, 0))[:, visible]
            assert visible.mean() > 0.5
            assert np.quantile(error, 0.99) < 0.1 * size / 48
            # Errors are larger at the stored frame's border, where the grid repeats its last value.
            assert error.mean() < 0.02 * size / 48

            past = warp(batch.frames[b : b + 1, t - 1], batch.flow[b : b + 1, t])[0]
            seen = torch.from_numpy(visible)
            moved.append((past - batch.frames[b, t]).abs()[:, seen].mean())
            gap = (batch.frames[b, t - 1] - batch.frames[b, t]).abs()
            still.append(gap[:, seen].mean())
    # The remaining difference is the video codec's noise.
    assert np.mean(moved) < 0.35 * np.mean(still)
    assert max(moved) < 0.04


def test_occlusion_marks_pixels_outside_the_previous_frame(scene):
    windows = ClipDataset([scene], ["pose"], seed=4, augmentation=WILD, max_stride=3)
    for index in range(8):
        draw = windows.draw(index, 3, 48)
        occlusion = windows.load([draw]).occlusion
        assert occlusion is not None
        for t in (1, 2):
            before = backward(draw.frames[t], draw.stride, inverse(draw.placement))
            shown = draw.placement.points(before.astype(np.float32))
            height, width = draw.placement.size
            outside = ((shown < 0) | (shown > (width, height))).any(-1)
            hidden = occlusion[0, t, 0].numpy()
            assert (hidden[outside] > 0).mean() > 0.97 if outside.any() else True
            deep = ((shown > 3) & (shown < (width - 3, height - 3))).all(-1)
            stored = ((before > 6) & (before < (WIDTH - 6, HEIGHT - 6))).all(-1)
            assert (hidden[deep & stored] == 0).all()


def test_labels_and_foreground_align_with_the_colours(scene):
    windows = ClipDataset([scene], ["segmentation"], seed=2, augmentation=WILD, extras=EVERYTHING)
    batch = windows.batch(range(10), 3, 64)
    assert batch.signals.shape == (10, 3, len(CLASSES) + 1, 64, 80)
    hot, edges = batch.signals[:, :, :3], batch.signals[:, :, 3]
    assert torch.equal(hot.sum(2), torch.ones_like(edges))
    bytes_ = (batch.frames + 1) * 127.5
    colours = torch.from_numpy(PALETTE).float()[:, :, None, None]
    nearest = (bytes_[:, :, None] - colours).abs().sum(3).argmin(2)
    inside = torch.nn.functional.max_pool2d(edges, 3, stride=1, padding=1) == 0
    agree = (nearest == hot.argmax(2))[inside].float().mean()
    assert agree > 0.97
    assert batch.foreground is not None and torch.equal(batch.foreground[:, :, 0], hot[:, :, 1])
    assert batch.instances is not None and batch.instances.dtype == torch.int64
    assert torch.equal(batch.instances[:, :, 0], hot.argmax(2) + 1000)


def test_subsampled_labels_stay_in_place(small):
    places = centres(96, 128)
    labels = (np.hypot(*np.moveaxis(places - (50, 43), -1, 0)) < 30).astype(np.uint8)
    path = small("disc", 2, (96, 128), labels=np.stack([labels] * 2), classes=CLASSES)
    windows = ClipDataset([path], ["segmentation"], seed=0, holdout=0.0)
    for size, downscale in ((16, 6), (32, 2), ((32, 42), 3)):
        placement = windows.placement(0, size)
        assert placement.downscale == downscale
        batch = windows.batch([0], 1, size)
        assert batch.foreground is not None
        weight = batch.foreground[0, 0, 0].numpy()
        middle = (centres(*weight.shape) * weight[..., None]).sum((0, 1)) / weight.sum()
        truth = placement.points(np.array([50, 43], np.float32))
        # Blocks of even size have no middle label: an error of half a stored pixel is allowed.
        assert np.abs(middle - truth).max() < 0.5 / placement.downscale + 0.06


def test_landmarks_stay_on_their_map_positions(scene):
    """Each point marks a map position; its colour is the same in all frames."""
    windows = ClipDataset([scene], ["pose"], seed=3, augmentation=WILD, max_stride=2)
    picture, _ = regions()
    spots = to_map(0, scene_pose()[0, :, :2].astype(float))
    truth = cv2.remap(
        picture, *(spots - 0.5).astype(np.float32).T[..., None], cv2.INTER_LINEAR
    )[:, 0]  # fmt: skip
    store = ClipStore.open(scene)
    errors, elsewhere = [], []
    for index in range(12):
        draw = windows.draw(index, 3, 96)
        frames = ((windows.load([draw]).frames[0].numpy() + 1) * 127.5).astype(np.float32)
        track = draw.placement.track(store.track("pose", draw.start, draw.stop)[:: draw.stride])
        # Mirroring swaps left and right names, but not the map positions.
        order = list(MIRROR) if draw.placement.flip else slice(None)
        for frame, points in zip(frames, track.points[:, order, :2], strict=True):
            height, width = draw.placement.size
            good = ((points > 2) & (points < (width - 2, height - 2))).all(1)
            seen = cv2.remap(
                frame.transpose(1, 2, 0), *(points - 0.5).T[..., None], cv2.INTER_LINEAR
            )[:, 0]  # fmt: skip
            errors.append(np.abs(seen - truth)[good].mean())
            elsewhere.append(np.abs(seen - np.roll(truth, 1, 0))[good].mean())
    assert np.mean(errors) < 6 < 0.2 * np.mean(elsewhere)


def test_boxes_follow_the_points_and_stay_inside(small):
    pose = np.full((12, len(NAMES), 3), np.nan, np.float32)
    pose[:, :11] = [*((x, 20, 1) for x in range(20, 31))]
    pose[:, 33:54] = [*((60 + i / 10, 40, 1) for i in range(21))]  # too small to see
    path = small("boxed", pose=pose)
    windows = ClipDataset([path], ["pose"], seed=0, augmentation=WILD)
    assert windows.boxes == ("face", "left_hand", "right_hand")
    pose[:, 11:13, 2] = 1
    pose[:, 11:13, :2] = 30
    windows = ClipDataset([small("body", pose=pose)], ["pose"], seed=0, augmentation=WILD)
    found = 0
    for index in range(20):
        draw = windows.draw(index, 2, 96)
        boxes = windows.load([draw]).boxes
        assert boxes is not None and boxes.shape == (1, 2, 3, 4)
        assert torch.isnan(boxes[:, :, 1:]).all()
        face = boxes[0, :, 0].numpy()
        centre = draw.placement.points(np.array([25.0, 20.0], np.float32))
        if not ((centre > 0) & (centre < (128, 96))).all():
            assert np.isnan(face).all()
            continue
        found += 1
        side = face[:, 2:] - face[:, :2]
        assert np.allclose(side, 18 * draw.placement.scale[0], rtol=0.05)
        assert (face[:, :2] >= 0).all() and (face[:, 2:] <= (128, 96)).all()
        half = side[0, 0] / 2
        if (centre > half).all() and (centre < (128 - half, 96 - half)).all():
            assert np.allclose((face[:, :2] + face[:, 2:]) / 2, centre, atol=0.1)
    assert found > 5


def test_control_points_move_with_the_camera(scene):
    """All points are fixed to the map, so their dense motion is the true camera motion."""
    windows = ClipDataset(
        [scene], ["segmentation", "pose"], seed=1, augmentation=WILD, max_stride=3,
        extras=("flow", "control_points"),
    )  # fmt: skip
    batch = windows.batch(range(8), 3, 96)
    assert batch.control_points is not None and batch.flow is not None
    assert (
        batch.control_points.shape == (8, 3, windows.control_points, 3)
        and windows.control_points == 157
    )
    compared = 0
    for t in (1, 2):
        now, before = batch.control_points[:, t], batch.control_points[:, t - 1]
        coverage = dense_motion(now, now + torch.tensor([1.0, 0.0, 0.0]), (96, 128))[:, :1]
        covered = (coverage > 0.95).expand_as(batch.flow[:, t])
        gap = (dense_motion(now, before, (96, 128)) / coverage - batch.flow[:, t])[covered].abs()
        compared += len(gap)
        assert gap.mean() < 0.1 and batch.flow[:, t][covered].abs().mean() > 1
    assert compared > 20000


def test_sequences_have_the_control_points_of_the_placed_track(scene):
    """At a size other than the stored one, for the second of two signals."""
    windows = ClipDataset([scene], ["segmentation", "pose"], seed=0, extras=("control_points",))
    batch = next(windows.sequence(0, 3, 6, size=48))
    track = windows.placement(0, 48).track(ClipStore.open(scene).track("pose", 3, 6))
    assert batch.control_points is not None
    torch.testing.assert_close(batch.control_points[0], track.control_point_tensor())
    stored = ClipStore.open(scene).track("pose", 3, 6).control_point_tensor()
    torch.testing.assert_close(2 * batch.control_points[0], stored, atol=1e-3, rtol=1e-4)


def test_control_points_exist_only_for_signals_with_points(scene, small):
    assert (
        ClipDataset([scene], ["pose"], seed=0).batch([0], 2, 48).control_points is None
    )  # not requested
    labels = ClipDataset([scene], ["segmentation"], seed=0, extras=("control_points",))
    assert labels.control_points == 0 and labels.batch([0], 2, 48).control_points is None
    pose = np.full((12, len(NAMES), 3), np.nan, np.float32)
    pose[:, 11:14:2] = 1.0  # a shoulder and an elbow: the body size is unknown
    windows = ClipDataset([small("head", pose=pose)], ["pose"], seed=0, extras=("control_points",))
    batch = windows.batch([0], 2, 48)
    assert batch.control_points is not None and not batch.control_points.isnan().any()
    assert (batch.control_points[..., 2] == 0).all()


# ---------------------------------------------------------------- other parts of a batch


def test_windows_without_augmentation_are_the_stored_frames(scene):
    windows = ClipDataset([scene], ["pose", "segmentation"], seed=0)
    draw = windows.draw(5, 4, 96)
    batch, stored = windows.load([draw]), ClipStore.open(scene).window(draw.start, 4)
    assert torch.equal(batch.frames[0], stored.frames)
    assert torch.equal(batch.signals[0, :, :3], stored.signals["pose"])
    assert torch.equal(batch.signals[0, :, 3:], stored.signals["segmentation"])
    assert batch.clip.tolist() == [0] and windows.channels == batch.signals.shape[2] == 7
    assert batch.background_plate is None and batch.style is None and batch.instances is None


def test_the_order_of_signals_is_the_order_of_channels(scene):
    one = ClipDataset([scene], ["segmentation", "pose"], seed=0).batch([3], 2, 48)
    other = ClipDataset([scene], ["pose", "segmentation"], seed=0).batch([3], 2, 48)
    assert torch.equal(one.signals[:, :, :4], other.signals[:, :, 3:])
    assert torch.equal(one.signals[:, :, 4:], other.signals[:, :, :3])


def test_flow_can_be_a_condition(scene):
    windows = ClipDataset([scene], ["flow"], seed=0, augmentation=WILD, max_stride=2)
    batch = windows.batch(range(3), 3, 48)
    assert batch.flow is not None and batch.occlusion is not None
    assert torch.equal(batch.signals, torch.cat([batch.flow, batch.occlusion], dim=2))


def make_background_plate(picture: Any, valid_mask: Any) -> BackgroundPlate:
    return BackgroundPlate(picture, valid_mask, 0.0, 0.0)


def panned_wall(count: int) -> tuple[Any, BackgroundPlate]:
    """A wall that the camera pans over at 3 pixels per frame, and its mosaic."""
    height, width = 48, 64
    y, x = np.mgrid[:height, : width + 3 * count].astype(np.float32)
    wave = 128 + 50 * np.sin(x / 9) + 40 * np.cos(y / 7 + x / 23)
    wall = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    matrices = np.stack([np.array([[1.0, 0, -3 * t], [0, 1, 0], [0, 0, 1]]) for t in range(count)])
    track = CameraTrack(
        matrices, np.zeros(count, np.int64), np.zeros(count, np.float32), width, height
    )
    mosaic = Mosaic(np.concatenate([wall, np.full_like(wall[..., :1], 255)], axis=-1), (0.0, 0.0))
    still = wall[:, :width]
    return wall, BackgroundPlate(still, still[..., 0], 0.0, 0.0, Backgrounds({0: mosaic}, track))


def test_a_moving_camera_sees_its_part_of_the_mosaic(small):
    """The camera pans over a wall: the background of every window matches its frames."""
    path = small("panned", labelled=True)
    width = 64
    wall, made = panned_wall(len(ClipStore.open(path)))
    windows = ClipDataset(
        [path], ["segmentation"], seed=0, extras=("background_plate",), background_plates=[made],
        max_stride=2,
        augmentation=augmentation(crop_probability=0.8, flip=0.5, scale=(1.0, 1.3)),
    )  # fmt: skip
    for index in range(8):
        draw = windows.draw(index, 3, 48)
        batch = windows.load([draw])
        assert batch.background_plate is not None and batch.background_plate.shape[1] == 3
        for t, frame in enumerate(draw.frames):
            truth = draw.placement.picture(np.ascontiguousarray(wall[:, 3 * frame :][:, :width]))
            shown = (batch.background_plate[0, t, :3].permute(1, 2, 0) + 1) * 127.5
            gap = np.abs(shown.numpy() - truth)[2:-2, 2:-2]
            assert gap.mean() < 1.0 and gap.max() < 8, (index, t)
            assert (batch.background_plate[0, t, 3, 2:-2, 2:-2] > 0.99).all()
        assert torch.equal(batch.between(1, 3).background_plate, batch.background_plate[:, 1:3])
        assert torch.equal(batch.condition(2).background_plate, batch.background_plate[:, 2])


def test_a_still_clip_beside_one_with_a_moving_camera(small):
    """Each window has the background of its own clip: a constant one, or one per frame."""
    moving, still = small("panned", labelled=True), small("still", labelled=True)
    _, mosaic = panned_wall(len(ClipStore.open(moving)))
    grey = make_background_plate(
        np.full((48, 64, 3), 100, np.uint8), np.full((48, 64), 255, np.uint8)
    )
    windows = ClipDataset(
        [moving, still],
        ["segmentation"],
        seed=0,
        extras=("background_plate",),
        background_plates=[mosaic, grey],
    )
    alone = ClipDataset(
        [moving], ["segmentation"], seed=0, extras=("background_plate",), background_plates=[mosaic]
    )
    draws = [windows.draw(index, 3, 48) for index in range(12)]
    assert {draw.clip for draw in draws} == {0, 1}
    batch = windows.load(draws)
    assert batch.background_plate is not None and batch.background_plate.shape[1] == 3
    for draw, background_plate in zip(draws, batch.background_plate, strict=True):
        if draw.clip:
            assert torch.allclose(background_plate[:, :3], torch.tensor(100 / 127.5 - 1), atol=1e-6)
            assert (background_plate[:, 3] == 1).all()
        else:
            expected = alone.load([draw]).background_plate
            assert expected is not None and torch.equal(background_plate, expected[0])
            assert not torch.equal(background_plate[0], background_plate[1])


def test_frames_background_plate_and_style_share_the_colour_change(small):
    path = small("grey", labelled=True)
    background_plate = make_background_plate(
        np.full((48, 64, 3), 128, np.uint8), np.full((48, 64), 255, np.uint8)
    )
    windows = ClipDataset(
        [path], ["segmentation"], seed=0, augmentation=augmentation(colour=0.8),
        extras=("background_plate", "style"), background_plates=[background_plate],
    )  # fmt: skip
    batch = windows.batch(range(6), 3, 48)
    assert batch.background_plate is not None and batch.style is not None
    levels = batch.frames.mean((2, 3, 4))
    assert levels.std(0).min() > 0.05  # windows differ
    assert levels.std(1).max() < 1e-3  # their frames do not
    assert torch.allclose(batch.style.mean((1, 2, 3)), levels[:, 0], atol=0.02)
    assert torch.allclose(batch.background_plate[:, 0, :3].mean((1, 2, 3)), levels[:, 0], atol=0.02)
    assert (batch.background_plate[:, 0, 3] == 1).all()


def test_the_background_plate_aligns_with_the_frames(scene):
    store = ClipStore.open(scene)
    still = store.frames(4, 5)[0]
    valid_mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    valid_mask[:, : WIDTH // 2] = 1
    windows = ClipDataset(
        [scene], ["pose"], seed=0, augmentation=WILD, extras=("background_plate",),
        background_plates=[make_background_plate(still, valid_mask)],
    )  # fmt: skip
    assert windows.batch([0], 1, 48).flow is None
    for index in range(6):
        draw = replace(windows.draw(index, 1, 48), start=4)
        batch = windows.load([draw])
        assert batch.background_plate is not None
        assert torch.equal(batch.background_plate[0, 0, :3], batch.frames[0, 0])
        left = inverse(draw.placement)[..., 0] < WIDTH / 2 - 2
        right = inverse(draw.placement)[..., 0] > WIDTH / 2 + 2
        assert (batch.background_plate[0, 0, 3].numpy()[left] == 1).all()
        assert (batch.background_plate[0, 0, 3].numpy()[right] == 0).all()
    windows.background_plates[0] = None
    assert windows.batch([0], 1, 48).background_plate is None


def test_style_is_a_random_training_frame(scene):
    windows = ClipDataset([scene], ["pose"], seed=0, extras=("style",), holdout=0.5)
    frames = ClipStore.open(scene).window(0, COUNT, signals=[]).frames
    chosen = set()
    styles = windows.batch(range(30), 1, 96).style
    assert styles is not None
    for style in styles:
        (found,) = (t for t in range(COUNT) if torch.equal(style, frames[t]))
        assert found < COUNT // 2
        chosen.add(found)
    assert len(chosen) > 10


def test_limbs_are_dropped_and_jittered(scene):
    plain = ClipDataset([scene], ["pose"], seed=0).batch([0], 4, 96)
    every = ClipDataset([scene], ["pose"], seed=0, augmentation=augmentation(drop=1.0))
    some = ClipDataset([scene], ["pose"], seed=0, augmentation=augmentation(drop=0.3))
    moved = ClipDataset([scene], ["pose"], seed=0, augmentation=augmentation(jitter=20.0))
    ink = [(w.batch([0], 4, 96).signals > -1).any(2).float().mean() for w in (every, some)]
    full = (plain.signals > -1).any(2).float().mean()
    assert 0 < ink[0] < ink[1] < full  # the torso is in no group that is dropped
    assert len(LIMB_GROUPS) == 7
    batch = moved.batch([0], 4, 96)
    assert torch.equal(batch.frames, plain.frames)
    assert not torch.equal(batch.signals, plain.signals)
    assert batch.boxes is not None and plain.boxes is not None
    assert torch.equal(batch.boxes.nan_to_num(-1), plain.boxes.nan_to_num(-1))


def test_the_foreground_of_street_scenes_includes_vehicles(small):
    labels = np.zeros((12, 48, 64), np.uint8)
    labels[:, :, 32:] = 26  # a car
    path = small("street", labels=labels, classes=tuple(CITYSCAPES))
    batch = ClipDataset([path], ["segmentation"], seed=0).batch([0], 2, 48)
    assert batch.foreground is not None and batch.signals.shape[2] == 36
    assert (batch.foreground[..., 32:] == 1).all() and (batch.foreground[..., :32] == 0).all()
    assert PEOPLE[0] == "person" and PEOPLE[-1] == "bicycle"
    assert batch.boxes is None and batch.flow is None

    things = small("things", classes=("floor", "box"))
    assert ClipDataset([things], ["segmentation"], seed=0).batch([0], 2, 48).foreground is None


# ---------------------------------------------------------------- reproducibility


def everything(scene: Path, **changes: Any) -> ClipDataset:
    varied = WILD.model_copy(update={"colour": 0.5, "drop": 0.1, "jitter": 3.0})
    picture = ClipStore.open(scene).frames(0, 1)[0]
    background_plate = make_background_plate(picture, np.full((HEIGHT, WIDTH), 255, np.uint8))
    values: dict[str, Any] = {
        "seed": 7, "augmentation": varied, "extras": EVERYTHING, "max_stride": 3,
        "background_plates": [background_plate]
    }  # fmt: skip
    return ClipDataset([scene], ["pose", "segmentation"], **(values | changes))


def test_the_cache_changes_nothing(scene):
    kept, read = everything(scene), everything(scene, cache=0)
    for size, first in (
        (32, 0),
        (96, 0),
        (96, 2),
        (32, 1),
    ):  # other sizes need other downscaled copies
        indices = range(first, first + 3)
        assert same(kept.batch(indices, 4, size), read.batch(indices, 4, size))
    assert kept._reader is not None and kept._reader.blocks
    assert read._reader is not None and not read._reader.blocks


def test_the_cache_keeps_to_its_budget_and_follows_the_size(scene, small):
    other = small("other", 40, (96, 128), labelled=True)
    windows = ClipDataset([scene, other], ["segmentation"], seed=0, cache=1, extras=("foreground",))
    for size, kept in ((16, {0, 1}), (96, set())):
        windows.batch(range(12), 2, size)
        reader = windows._reader
        assert reader is not None and reader.kept == kept
        total = sum(b.nbytes for (k, _, _), b in reader.blocks.items() if k == "frames")
        assert total <= 2**20 and (total > 0) == bool(kept)


def test_a_window_loaded_alone_equals_the_one_in_the_batch(scene):
    windows = everything(scene)
    batch = windows.batch([4, 9, 2], 3, 48)
    for place, index in enumerate((4, 9, 2)):
        alone = windows.batch([index], 3, 48)
        assert same(alone, batch.map(lambda tensor, p=place: tensor[p : p + 1]))


def test_worker_processes_give_the_same_batches(scene):
    plans = [
        TrainingPlan(0),
        TrainingPlan(1, length=4),
        TrainingPlan(2, size=32, batch=1),
        TrainingPlan(3),
    ]
    here = list(loader(everything(scene), plans))
    windows = everything(scene)
    windows.batch([0], 2, 48)  # open files and a filled cache are not pickled
    there = list(loader(windows, plans, workers=2))
    assert [b.frames.shape for b in there] == [b.frames.shape for b in here]
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_there_are_no_more_workers_than_cores(scene, monkeypatch):
    """With more, torch warns, which is an error in these tests."""
    monkeypatch.setattr("v2v.data.loader.cores", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert len(list(loader(everything(scene), [TrainingPlan(0)], workers=9))) == 1


def test_an_error_in_a_worker_keeps_its_message(scene):
    windows = everything(scene)
    with pytest.raises(StoreError, match=r"^too few frames: a window needs 30 in a row") as caught:
        next(loader(windows, [TrainingPlan(0, length=30)], workers=1))
    assert "Traceback" not in caught.value.message and caught.value.hint


def test_the_shards_of_all_processes_form_the_whole_batch(scene):
    windows = everything(scene)
    plans = [TrainingPlan(n, batch=4) for n in range(2)]
    whole = list(loader(windows, plans))
    parts = [list(loader(windows, plans, rank=rank, world=2)) for rank in range(2)]
    for n, batch in enumerate(whole):
        assert len(parts[0][n]) == len(parts[1][n]) == 2
        for rank in range(2):
            half = batch.map(lambda tensor, r=rank: tensor[2 * r : 2 * r + 2])
            assert same(parts[rank][n], half)
    for batch in (1, 3, 5):
        with pytest.raises(ConfigError, match=f"batch of {batch} .* 2 processes") as caught:
            shard(TrainingPlan(0, batch=batch), world=2)
        assert "multiple of 2" in str(caught.value.hint)


def test_steps_never_share_a_window():
    seen = [i for n in range(50) for i in shard(TrainingPlan(n, batch=1 + n % 7))]
    assert len(set(seen)) == len(seen)


def test_a_resumed_loader_continues_like_an_uninterrupted_one(scene):
    def plans(first: int) -> list[TrainingPlan]:
        return [TrainingPlan(n, length=2 + n // 2, batch=1 + n % 2) for n in range(first, 5)]

    straight = list(loader(everything(scene), plans(0)))
    resumed = list(loader(everything(scene), plans(3)))
    assert all(same(a, b) for a, b in zip(straight[3:], resumed, strict=True))


def test_endless_plans_are_accepted(scene):
    windows = everything(scene)
    endless = (TrainingPlan(n) for n in iter(int, 1))
    assert len(list(islice(loader(windows, endless), 3))) == 3


def test_pickled_windows_are_small(scene):
    windows = everything(scene)
    windows.batch(range(3), 3, 48)
    data = pickle.dumps(windows)
    assert len(data) < 200_000
    assert same(pickle.loads(data).batch([1], 3, 48), windows.batch([1], 3, 48))


# ---------------------------------------------------------------- sequences


def test_a_sequence_continues_across_chunks(scene):
    windows = everything(scene)
    whole = list(windows.sequence(0, 3, 25, size=48, chunk=100))
    parts = list(windows.sequence(0, 3, 25, size=48, chunk=8))
    assert [b.length for b in parts] == [8, 8, 6] and len(whole) == 1
    timed = ("frames", "signals", "flow", "occlusion", "foreground", "instances", "boxes")
    for name in (*timed, "control_points"):
        joined = torch.cat([getattr(b, name) for b in parts], dim=1)
        assert torch.equal(joined.nan_to_num(-1), getattr(whole[0], name).nan_to_num(-1)), name
    assert whole[0].flow is not None and whole[0].occlusion is not None
    assert (whole[0].occlusion[0, 0] == 1).all() and (whole[0].flow[0, 0] == 0).all()
    assert (whole[0].occlusion[0, 8] == 1).all()  # frame 11 is the first of a shot
    assert whole[0].occlusion[0, 7].mean() < 0.2
    placement = windows.placement(0, 48)
    stored = ClipStore.open(scene).frames(3, 4)[0]
    shown = torch.from_numpy(placement.picture(stored)).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(whole[0].frames[0, 0], shown, atol=1e-6)


def test_a_sequence_has_the_held_out_frames_by_default(scene):
    windows = ClipDataset([scene], ["pose"], seed=0)
    frames = ClipStore.open(scene).window(34, 6, signals=[]).frames
    (batch,) = windows.sequence(0, size=96)
    assert torch.equal(batch.frames[0], frames)
    whole = ClipDataset([scene], ["pose"], seed=0, holdout=0.0)
    for start, stop, shown in ((None, None, "40 to 40"), (5, 41, "5 to 41"), (7, 7, "7 to 7")):
        with pytest.raises(UsageError, match=f"frames {shown} of .*scene do not exist") as caught:
            next(whole.sequence(0, start, stop, size=96))
        assert "0 to 40" in str(caught.value.hint)


# ---------------------------------------------------------------- sizes and several clips


@pytest.mark.parametrize(
    ("stored", "size", "shown"),
    [
        ((48, 64), 48, (48, 64)), ((456, 256), 256, (448, 256)), ((256, 512), 128, (128, 256)),
        ((270, 480), 256, (256, 448)), ((64, 64), 32, (32, 32)), ((456, 256), 128, (224, 128)),
    ],
)  # fmt: skip
def test_frame_sizes(small, stored, size, shown):
    path = small("one", 2, stored, labelled=True)
    windows = ClipDataset([path], ["segmentation"], seed=0, holdout=0.0)
    assert windows.frame_size(size) == shown
    assert windows.frame_size(shown) == shown
    assert windows.batch([0], 1, size).frames.shape[3:] == shown


def test_impossible_frame_sizes_are_refused(small):
    windows = ClipDataset([small("one", labelled=True)], ["segmentation"], seed=0)
    for size, hint in ((50, "48"), (0, "16"), (-16, "16"), (7, "16")):
        with pytest.raises(ConfigError, match=f"{size} pixels .* multiple of 16") as caught:
            windows.draw(0, 1, size)
        assert str(caught.value.hint).endswith(hint)
    with pytest.raises(ConfigError, match="256 pixels are more than twice .* at 48") as caught:
        windows.draw(0, 1, 256)
    assert "train at 48" in str(caught.value.hint) and "--size 256" in str(caught.value.hint)


def test_clips_of_other_shapes_are_cropped_with_a_note(small):
    paths = [
        small("wide", 4, (48, 72), labelled=True), small("usual", 30, labelled=True),
        small("fast", 9, rate=Fraction(60), labelled=True),
    ]  # fmt: skip
    windows = ClipDataset(paths, ["segmentation"], seed=0, holdout=0.0)
    assert windows.frame_size(48) == (48, 64)
    assert [note.split(":")[0] for note in windows.notes] == ["wide", "fast"]
    assert "11% of the picture" in windows.notes[0] and "64x48" in windows.notes[0]
    assert "60 frames per second" in windows.notes[1]
    batch = windows.batch(range(24), 2, 48)
    assert batch.frames.shape == (24, 2, 3, 48, 64) and set(batch.clip.tolist()) == {0, 1, 2}
    with pytest.raises(StoreConflict, match="tall has frames of 48x128.*64x48.*half"):
        ClipDataset([*paths, small("tall", 4, (128, 48), labelled=True)], ["segmentation"], seed=0)


def test_parts_missing_from_a_clip_are_left_out(scene, small):
    plain = small("plain", 12, (96, 128), labelled=True, classes=CLASSES)
    windows = ClipDataset([scene, plain], ["segmentation"], seed=0, extras=EVERYTHING)
    batch = windows.batch(range(4), 2, 48)
    assert batch.flow is None and batch.occlusion is None and batch.instances is None
    assert (
        batch.background_plate is None and batch.foreground is not None and batch.style is not None
    )


# ---------------------------------------------------------------- errors


def test_a_missing_signal_is_reported(small, scene):
    path = small("bare", labelled=True)
    with pytest.raises(SignalMissing, match=r"bare has no pose .it has: segmentation") as caught:
        ClipDataset([scene, path], ["segmentation", "pose"], seed=0)
    assert f"v2v preprocess {path} --signal pose" in str(caught.value.hint)


def test_clips_with_different_classes_are_refused(small):
    first = small("first", classes=("background", "person"))
    more = small("more", classes=CLASSES)
    other = small("other", classes=("background", "horse"))
    with pytest.raises(StoreConflict, match="segmentation has 4 channels in .*more.* 3 in .*first"):
        ClipDataset([first, more], ["segmentation"], seed=0)
    with pytest.raises(
        StoreConflict, match="classes of segmentation differ between .*other"
    ) as caught:
        ClipDataset([first, other], ["segmentation"], seed=0)
    assert "overwrite=True" in str(caught.value.hint)


def test_too_few_frames_are_reported(small):
    path = small("short", 12, labelled=True, shots=(0, 5))
    windows = ClipDataset([path], ["segmentation"], seed=0, holdout=0.25)
    assert windows.draw(0, 5, 48).start == 0
    with pytest.raises(StoreError) as caught:
        windows.draw(0, 6, 48)
    assert caught.value.message == (
        "too few frames: a window needs 6 in a row, the longest shot for training has 5"
        " (12 frames in all, 9 for training, 3 held out)"
    )
    assert "shorter windows" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"clips": []}, UsageError, "no clip to train on"),
        ({"signals": ["pse"]}, UnknownName, "unknown signal 'pse'"),
        ({"extras": ["plates"]}, UnknownName, "unknown part of a batch 'plates'"),
        ({"holdout": 1.0}, ConfigError, "holdout cannot be 1.0"),
        ({"max_stride": 0}, ConfigError, "max_stride cannot be 0"),
        ({"background_plates": []}, None, ""),
        ({"background_plates": [None, None]}, UsageError, "2 background plates for 1 clips"),
    ],
)
def test_wrong_arguments_are_refused(scene, changes, kind, message):
    values: dict[str, Any] = {"clips": [scene], "signals": ["pose"], "seed": 0} | changes
    if kind is None:
        ClipDataset(**values)
        return
    with pytest.raises(kind, match=message):
        ClipDataset(**values)


def test_repr_describes_the_dataset(scene):
    text = repr(ClipDataset([scene], ["pose", "segmentation"], seed=0))
    assert text == (
        "ClipDataset(1 clip(s), 34 frames for training, signals=pose+segmentation, channels=7)"
    )


# ---------------------------------------------------------------- composed flow


def test_composing_over_one_step_changes_nothing():
    flow = np.random.default_rng(0).normal(0, 1, (4, 2, 6, 8)).astype(np.float32)
    hidden = np.random.default_rng(1).random((4, 1, 6, 8), np.float32)
    composed, covered = compose_over(flow, hidden, 1)
    assert np.array_equal(composed, flow) and np.array_equal(covered, hidden)


def test_flow_is_composed_along_the_path():
    """Two zooms by 1.25 are one by 1.5625; adding the flows at one position does not give that."""
    places = np.moveaxis(centres(40, 40) - 20, -1, 0).astype(np.float32)
    flow = np.repeat(-0.2 * places[None], 3, axis=0)  # towards the middle: 0.8 times as far out
    composed, _ = compose_over(flow, np.zeros((3, 1, 40, 40), np.float32), 2)
    assert np.allclose(composed[1], (0.8**2 - 1) * places, atol=1e-4)


def test_occlusion_in_any_step_occludes_the_composition():
    flow = np.zeros((5, 2, 6, 8), np.float32)
    flow[:, 0] = 1  # everything comes from one pixel to the right
    hidden = np.zeros((5, 1, 6, 8), np.float32)
    hidden[1, 0, 2, 5] = 1
    composed, covered = compose_over(flow, hidden, 2)
    assert composed.shape == (3, 2, 6, 8) and (composed[1:, 0] == 2).all()
    truth = np.zeros((6, 8), np.float32)
    truth[2, 4] = 1  # frame 2 refers to frame 1, one pixel to the right
    assert np.allclose(covered[1, 0], truth, atol=1e-5) and (covered[2] == 0).all()


# ---------------------------------------------------------------- references


def with_references(scene: Path, **changes: Any) -> ClipDataset:
    windows = ClipDataset(
        [scene], ["pose"], seed=3, holdout=0.25, extras=("references",), multiple=8, **changes
    )
    clip = windows.clips[0]
    found = gather(
        ClipStore(*windows.records[0]), *clip.train, signal=SIGNAL, whole=True, count=6,
        placement=windows.placement(0, 48),
    )  # fmt: skip
    assert found is not None
    windows.references = (found,)
    return windows


def test_references_are_warped_to_every_frame(scene):
    windows = with_references(scene, augmentation=augmentation(), candidates=2)
    batch = windows.batch([0, 1], 3, 48)
    size = windows.frame_size(48)
    assert batch.references is not None and batch.references.shape == (2, 3, 2, 5, *size)
    condition = batch.condition(1)
    assert condition.references is not None
    assert torch.equal(condition.references, batch.references[:, 1])
    # A candidate includes the background, unless all references are too close in time.
    valid = batch.references[:, :, :, 3].flatten(3)
    assert (valid.amin(-1) == valid.amax(-1)).all() and valid.any()
    again = with_references(scene, augmentation=augmentation(), candidates=2).batch([0, 1], 3, 48)
    assert same(batch, again)


def test_a_mirrored_window_has_mirrored_references(scene):
    windows = with_references(scene, candidates=1)
    draw = WindowSample(0, 4, 1, 2, windows.placement(0, 48))
    turned = replace(draw, placement=replace(draw.placement, flip=True))
    plain, flipped = windows.load([draw]).references, windows.load([turned]).references
    assert plain is not None and flipped is not None
    assert torch.equal(plain.flip(-1), flipped)


def test_training_uses_no_reference_close_in_time(scene):
    windows = with_references(scene)
    clip, references = windows.clips[0], windows.references[0]
    for index in range(30):
        draw = windows.draw(index, 3, 48)
        near = near_references(references, draw, clip)
        gap = max(0.5 * clip.rate, 0.1 * clip.train[1])
        for number, frame in enumerate(references.frames):
            apart = max(draw.start - frame, frame - (draw.stop - 1))
            assert (number in near) == (apart < gap)
    shown = WindowSample(0, clip.held_out[0], 1, 1, windows.placement(0, 48))
    assert not len(near_references(references, shown, clip))  # rendering may use all of them


def test_dropped_references_are_invalid_everywhere(scene):
    windows = with_references(scene, augmentation=augmentation(reference_drop=1.0))
    batch = windows.batch([0], 2, 48)
    assert batch.references is not None and not batch.references.any()


def test_the_choice_of_references_continues_across_chunks(scene):
    windows = with_references(scene)
    pieces = [batch.references for batch in windows.sequence(0, 2, 14, size=48, chunk=5)]
    (whole,) = (batch.references for batch in windows.sequence(0, 2, 14, size=48, chunk=20))
    assert whole is not None
    assert torch.equal(torch.cat([p for p in pieces if p is not None], dim=1), whole)
