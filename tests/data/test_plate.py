"""The background plate: what is behind a person, and whether the camera stood still."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from v2v.data.plate import LEAST, _median, background_plate

HEIGHT, WIDTH, COUNT = 48, 64, 40


class Filmed:
    """What the plate asks of a clip store, with frames that no codec has touched."""

    def __init__(
        self,
        frames: NDArray[np.uint8],
        person: NDArray[np.bool_],
        classes: Any = ("rest", "person"),
    ) -> None:
        self.pictures, self.person = frames, person
        spec = SimpleNamespace(spec={"classes": list(classes)})
        size = SimpleNamespace(height=frames.shape[1], width=frames.shape[2])
        self.signals = {"segmentation"}
        self.record = SimpleNamespace(signals={"segmentation": spec}, frames=size)

    def __len__(self) -> int:
        return len(self.pictures)

    def frames(self, start: int, stop: int) -> NDArray[np.uint8]:
        return self.pictures[start:stop]

    def track(self, _: str, start: int, stop: int) -> Any:
        labels = SimpleNamespace(labels=self.person[start:stop].astype(np.uint8))
        return SimpleNamespace(scaled=lambda *_: labels)


def scene() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def walk() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A grey figure, 12 pixels wide, walks before the scene from one side to the other."""
    frames, person = np.stack([scene()] * COUNT), np.zeros((COUNT, HEIGHT, WIDTH), bool)
    for t in range(COUNT):
        left = t * (WIDTH - 12) // (COUNT - 1)
        person[t, 8:, left : left + 12] = True
    frames[person] = 128
    person[0], frames[0] = False, scene()  # nobody is there yet
    return frames, person


def plate_of(filmed: Any, *part: int) -> Any:
    return background_plate(filmed, *part)


def test_behind_who_walks_by_is_the_scene_itself() -> None:
    plate = plate_of(Filmed(*walk()))
    assert (plate.known == 255).all()
    assert np.array_equal(plate.picture, scene())
    assert plate.still and plate.deviation == 0


def test_what_is_never_seen_is_not_known() -> None:
    frames, person = walk()
    person[:, 20:30, 30:40] = True  # with a margin around it
    plate = plate_of(Filmed(frames, person))
    assert not plate.known[20:30, 30:40].any()
    assert not plate.known[19, 30:40].any(), "masks end a little inside"
    assert plate.known[:16].all() and plate.known[:, :24].all()
    seen = plate.known > 0
    assert np.array_equal(plate.picture[seen], scene()[seen])


def test_only_the_given_frames_count() -> None:
    frames, person = walk()
    frames[COUNT // 2 :] = 0  # the light goes out
    plate = plate_of(Filmed(frames, person), 0, COUNT // 2)
    seen = plate.known > 0
    assert np.array_equal(plate.picture[seen], scene()[seen])


def test_a_camera_that_moves_has_no_plate() -> None:
    frames, person = walk()
    frames = np.stack([np.roll(frame, 2 * t, axis=1) for t, frame in enumerate(frames)])
    assert not plate_of(Filmed(frames, person)).still


def test_no_person_no_plate() -> None:
    frames, person = walk()
    assert plate_of(Filmed(frames, person, ("road", "sky"))) is None
    everywhere = plate_of(Filmed(frames, np.ones_like(person)))
    assert not everywhere.known.any() and not everywhere.still


@pytest.mark.parametrize("count", [1, LEAST, 12])
def test_the_median_is_that_of_what_is_free(count: int) -> None:
    random = np.random.default_rng(count)
    frames = random.integers(0, 256, (count, 9, 7, 3), np.uint8)
    free = random.random((count, 9, 7)) < 0.6
    free[:, 0], free[:, 1] = False, True
    holed = np.where(free[..., None], frames, np.nan)
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        truth = np.nan_to_num(np.nanmedian(holed, axis=0))
    assert np.array_equal(_median(frames, free), np.rint(truth).astype(np.uint8))
