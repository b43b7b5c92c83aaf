"""The background plate of still and moving cameras."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.data.background import LARGEST, LEAST, _median, build_background_plate
from v2v.data.transforms import Placement
from v2v.signals import find
from v2v.signals.camera import CameraTrack

HEIGHT, WIDTH, COUNT = 48, 64, 40


class FakeStore:
    """A stand-in for a clip store with uncompressed frames."""

    def __init__(
        self,
        frames: NDArray[np.uint8],
        person: NDArray[np.bool_],
        classes: Any = ("rest", "person"),
    ) -> None:
        self.pictures, self.person = frames, person
        spec = SimpleNamespace(spec={"classes": list(classes)})
        size = SimpleNamespace(height=frames.shape[1], width=frames.shape[2])
        self.signals: Any = {"segmentation"}
        self.camera: Any = None
        self.record = SimpleNamespace(
            signals={"segmentation": spec},
            frames=size,
            find=lambda trait: find(trait, self.signals),
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def frames(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.pictures[start:stop]

    def track(self, name: str, start: int = 0, stop: int | None = None) -> Any:
        if name == "camera":
            return self.camera[start:stop]
        labels = SimpleNamespace(labels=self.person[start:stop].astype(np.uint8))
        return SimpleNamespace(scaled=lambda *_: labels)


def scene() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def walk() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A grey figure, 12 pixels wide, walks across the scene from one side to the other."""
    frames, person = np.stack([scene()] * COUNT), np.zeros((COUNT, HEIGHT, WIDTH), bool)
    for t in range(COUNT):
        left = t * (WIDTH - 12) // (COUNT - 1)
        person[t, 8:, left : left + 12] = True
    frames[person] = 128
    person[0], frames[0] = False, scene()  # no person yet
    return frames, person


def build(store: Any, *part: int) -> Any:
    return build_background_plate(store, *part)


def test_the_background_behind_a_passer_by_is_recovered() -> None:
    background_plate = build(FakeStore(*walk()))
    assert (background_plate.valid_mask == 255).all()
    assert np.array_equal(background_plate.picture, scene())
    assert background_plate.still and background_plate.deviation == 0


def test_pixels_that_are_never_free_are_invalid() -> None:
    frames, person = walk()
    person[:, 20:30, 30:40] = True  # with a margin around it
    background_plate = build(FakeStore(frames, person))
    assert not background_plate.valid_mask[20:30, 30:40].any()
    assert not background_plate.valid_mask[19, 30:40].any(), "masks end slightly inside the person"
    assert background_plate.valid_mask[:16].all() and background_plate.valid_mask[:, :24].all()
    seen = background_plate.valid_mask > 0
    assert np.array_equal(background_plate.picture[seen], scene()[seen])


def test_only_the_given_frames_are_used() -> None:
    frames, person = walk()
    frames[COUNT // 2 :] = 0  # the light is switched off
    background_plate = build(FakeStore(frames, person), 0, COUNT // 2)
    seen = background_plate.valid_mask > 0
    assert np.array_equal(background_plate.picture[seen], scene()[seen])


def test_a_moving_camera_without_tracking_is_not_still() -> None:
    frames, person = walk()
    frames = np.stack([np.roll(frame, 2 * t, axis=1) for t, frame in enumerate(frames)])
    assert not build(FakeStore(frames, person)).still


def test_without_a_person_mask_there_is_no_background_plate() -> None:
    frames, person = walk()
    assert build(FakeStore(frames, person, ("road", "sky"))) is None
    everywhere = build(FakeStore(frames, np.ones_like(person)))
    assert not everywhere.valid_mask.any() and not everywhere.still


@pytest.mark.parametrize("count", [1, LEAST, 12])
def test_the_median_uses_only_free_pixels(count: int) -> None:
    random = np.random.default_rng(count)
    frames = random.integers(0, 256, (count, 9, 7, 3), np.uint8)
    free = random.random((count, 9, 7)) < 0.6
    free[:, 0], free[:, 1] = False, True
    holed = np.where(free[..., None], frames, np.nan)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        truth = np.nan_to_num(np.nanmedian(holed, axis=0))
    assert np.array_equal(_median(frames, free), np.rint(truth).astype(np.uint8))


# ---------------------------------------------------------------- moving cameras


def panned(speed: float) -> tuple[FakeStore, Any]:
    """A walk in front of a smooth wall that the camera pans over by whole pixels; the wall."""
    wide = WIDTH + int(speed * COUNT)
    y, x = np.mgrid[:HEIGHT, :wide].astype(np.float32)
    wave = 128 + 60 * np.sin(x / 5) * np.cos(y / 4) + 40 * np.cos(x / 11 + y / 7)
    wall = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    _, person = walk()
    gone = np.rint(speed * np.arange(COUNT)).astype(int)
    frames = np.stack([wall[:, g : g + WIDTH] for g in gone])
    frames[person] = 128
    store = FakeStore(frames, person)
    matrices = np.stack([np.array([[1.0, 0, -g], [0, 1, 0], [0, 0, 1]]) for g in gone])
    store.camera = CameraTrack(
        matrices, np.zeros(COUNT, np.int64), np.zeros(COUNT, np.float32), WIDTH, HEIGHT
    )
    store.signals = {"segmentation", "camera"}
    return store, wall


def test_a_mosaic_covers_the_views_of_all_frames() -> None:
    store, wall = panned(1.0)
    background_plate = build(store)
    assert (
        background_plate.still
        and background_plate.deviation < 1
        and background_plate.backgrounds is not None
    )
    (mosaic,) = background_plate.backgrounds.mosaics.values()
    assert mosaic.picture.shape[:2] == (HEIGHT, WIDTH + COUNT - 1)
    valid_mask = mosaic.picture[..., 3] > 0
    assert valid_mask.mean() > 0.7
    gap = np.abs(mosaic.picture[..., :3].astype(int) - wall[:, : WIDTH + COUNT - 1])
    assert gap[valid_mask].max() <= 2


def test_each_frame_shows_its_part_of_the_mosaic() -> None:
    store, wall = panned(1.0)
    backgrounds = build(store).backgrounds
    for t in (4, 20, 35):
        seen = backgrounds.of(t)
        valid_mask = seen[..., 3] == 255
        gap = np.abs(seen[..., :3].astype(int) - wall[:, t : t + WIDTH])
        assert valid_mask.mean() > 0.8 and gap[valid_mask].max() <= 2


def test_the_background_plate_of_a_still_camera_is_bit_identical() -> None:
    frames, person = walk()
    plain = build(FakeStore(frames, person))
    store = FakeStore(frames, person)
    store.camera = CameraTrack(
        np.stack([np.eye(3)] * COUNT), np.zeros(COUNT, np.int64), np.zeros(COUNT, np.float32),
        WIDTH, HEIGHT,
    )  # fmt: skip
    store.signals = {"segmentation", "camera"}
    background_plate = build(store)
    assert background_plate.backgrounds is None
    assert np.array_equal(background_plate.picture, plain.picture)
    assert np.array_equal(background_plate.valid_mask, plain.valid_mask)


def test_each_shot_has_its_own_mosaic() -> None:
    store, _ = panned(1.0)
    half = COUNT // 2
    store.pictures[half:] = 255 - store.pictures[half:]
    first = np.repeat([0, half], half)
    matrices = store.camera.homography.copy()
    matrices[half:] = matrices[half:] @ np.linalg.inv(matrices[half])
    store.camera = replace(store.camera, homography=matrices, reference=first)
    background_plate = build(store)
    assert background_plate.still and sorted(background_plate.backgrounds.mosaics) == [0, half]
    seen = background_plate.backgrounds.of(half + 3)
    valid_mask = seen[..., 3] == 255
    gap = np.abs(seen[..., :3].astype(int) - store.pictures[half + 3])
    assert gap[valid_mask & ~store.person[half + 3]].max() <= 2


def test_a_camera_with_failed_tracking_is_not_used() -> None:
    store, _ = panned(1.0)
    store.camera = replace(store.camera, residual=np.full(COUNT, np.nan, np.float32))
    background_plate = build(store)
    assert background_plate.backgrounds is None and not background_plate.still


def test_the_size_of_a_mosaic_is_limited() -> None:
    store, _ = panned(10.0)
    assert (WIDTH + 10 * (COUNT - 1)) * HEIGHT > 1.15 * LARGEST * HEIGHT * WIDTH
    background_plate = build(store)
    (mosaic,) = background_plate.backgrounds.mosaics.values()
    assert mosaic.picture.shape[0] * mosaic.picture.shape[1] <= 1.1 * LARGEST * HEIGHT * WIDTH


def test_pixels_outside_the_mosaic_are_invalid() -> None:
    store, _ = panned(1.0)
    backgrounds = build(store, 0, 10).backgrounds
    seen = backgrounds.of(COUNT - 1)
    assert not seen[:, -20:, 3].any() and seen[:, :20, 3].mean() > 100


def test_a_mosaic_is_placed_like_the_frames() -> None:
    """Downscaled and cropped with the frames, it matches them."""
    store, wall = panned(1.0)
    made = build(store).backgrounds
    placement = Placement((HEIGHT, WIDTH), (24, 24), (8, 0, 48, 48))
    seen = made.placed(placement).of(20)
    truth = placement.picture(np.ascontiguousarray(wall[:, 20 : 20 + WIDTH]))
    valid_mask = seen[..., 3] > 250
    gap = np.abs(seen[..., :3].astype(int) - truth)[valid_mask]
    assert valid_mask.mean() > 0.6 and gap.mean() < 4


def test_frames_with_failed_tracking_have_no_valid_background() -> None:
    store, _ = panned(1.0)
    residual = np.zeros(COUNT, np.float32)
    residual[20] = np.nan
    store.camera = replace(store.camera, residual=residual)
    backgrounds = build(store).backgrounds
    assert not backgrounds.of(20)[..., 3].any() and backgrounds.of(21)[..., 3].any()
    assert backgrounds.of(20)[..., :3].any()  # an estimate


def test_a_wide_pan_ends_before_the_horizon() -> None:
    """Rotated by 70 degrees, a frame lies beyond the horizon of the reference frame's plane."""
    store, _ = panned(0.0)
    focal = 50.0
    lens = np.array([[focal, 0, WIDTH / 2], [0, focal, HEIGHT / 2], [0, 0, 1]])
    angles = np.radians(np.linspace(0, 70, COUNT))
    turned = [
        lens @ np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        @ np.linalg.inv(lens) for a in angles
    ]  # fmt: skip
    matrices = np.stack([m / m[2, 2] for m in turned])
    store.camera = replace(store.camera, homography=matrices)
    background_plate = build(store)
    if background_plate.backgrounds is not None:
        (mosaic,) = background_plate.backgrounds.mosaics.values()
        assert mosaic.picture.shape[0] * mosaic.picture.shape[1] <= 1.1 * LARGEST * HEIGHT * WIDTH
