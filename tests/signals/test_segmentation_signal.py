"""Label maps: transforms keep ids intact; drawings and channels match the ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from v2v.signals.segmentation import CITYSCAPES, VOC, VOID, LabelTrack, distinct_colours

CLASSES = ("sky", "road", "car", "person")
PALETTE = np.array([(1, 2, 3), (128, 64, 128), (0, 0, 142), (220, 20, 60)], np.uint8)


def track(labels: object, instances: object = None) -> LabelTrack:
    maps = np.asarray(labels, np.uint8)
    return LabelTrack(
        maps if maps.ndim == 3 else maps[None],
        CLASSES,
        PALETTE,
        None
        if instances is None
        else np.asarray(instances, np.uint16).reshape(-1, *maps.shape[-2:]),
    )


def noise(count: int = 2, height: int = 30, width: int = 44, seed: int = 0) -> LabelTrack:
    """Blocks of random ids including void, each block a separate instance."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 2, 3, VOID], (count, -(-height // 5), -(-width // 4)))
    labels = coarse.repeat(5, axis=1).repeat(4, axis=2)[:, :height, :width].astype(np.uint8)
    numbers = (
        rng.permutation(60000)[: coarse.size]
        .reshape(coarse.shape)
        .repeat(5, axis=1)
        .repeat(4, axis=2)
    )
    return LabelTrack(labels, CLASSES, PALETTE, numbers[:, :height, :width].astype(np.uint16))


def same(a: LabelTrack, b: LabelTrack) -> None:
    np.testing.assert_array_equal(a.labels, b.labels)
    assert (a.instances is None) == (b.instances is None)
    if a.instances is not None and b.instances is not None:
        np.testing.assert_array_equal(a.instances, b.instances)


# ---------------------------------------------------------------- channels


def test_one_hot_sums_to_one_except_on_void() -> None:
    made = noise()
    channels = made.one_hot()
    assert channels.shape == (2, 4, 30, 44) and channels.dtype == torch.float32
    known = torch.from_numpy(made.labels != VOID)
    assert known.any() and not known.all()
    assert torch.equal(channels.sum(dim=1), known.float())
    assert torch.equal(channels.argmax(dim=1)[known], torch.from_numpy(made.labels).long()[known])


def test_the_tensor_is_the_classes_and_the_boundaries() -> None:
    made = noise()
    tensor = made.tensor(15, 22)
    assert tensor.shape == (2, 5, 15, 22)
    scaled = made.scaled(22, 15)
    assert torch.equal(tensor[:, :4], scaled.one_hot())
    assert torch.equal(tensor[:, 4].bool(), torch.from_numpy(scaled.boundaries()))


def test_boundaries_separate_instances_of_one_class() -> None:
    labels = [[1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    numbers = [[7, 7, 8, 8, 9, 9], [7, 7, 8, 8, 9, 9], [7, 7, 7, 7, 7, 7], [7, 7, 7, 7, 7, 7]]
    edge = [
        "-xxxx-",
        "-xxxxx",
        "--xxxx",
        "------",
    ]
    between_classes = ["-xx---", "-xxxxx", "--xxxx", "------"]
    for made, expected in ((track(labels, numbers), edge), (track(labels), between_classes)):
        drawn = ["".join("x" if e else "-" for e in row) for row in made.boundaries()[0]]
        assert drawn == expected


def test_one_region_has_no_boundary() -> None:
    assert not track(np.full((5, 6), 2)).boundaries().any()
    assert track(np.zeros((1, 1))).boundaries().shape == (1, 1, 1)


# ---------------------------------------------------------------- transforms


def test_flipping_twice_is_the_identity() -> None:
    made = noise()
    same(made.flipped().flipped(), made)
    np.testing.assert_array_equal(made.flipped().labels, made.labels[:, :, ::-1])
    assert torch.equal(made.flipped().tensor(), made.tensor().flip(-1))


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 90), height=st.integers(1, 70), data=st.data())
def test_no_new_ids_appear(width: int, height: int, data: st.DataObject) -> None:
    made = noise()
    x, y = data.draw(st.integers(0, 43)), data.draw(st.integers(0, 29))
    w, h = data.draw(st.integers(1, 44 - x)), data.draw(st.integers(1, 30 - y))
    cut = made.cropped(x, y, w, h)
    assert (cut.width, cut.height) == (w, h)
    np.testing.assert_array_equal(cut.labels, made.labels[:, y : y + h, x : x + w])
    for changed in (cut, cut.scaled(width, height), cut.flipped().scaled(width, height)):
        assert changed.labels.dtype == np.uint8
        assert changed.instances is not None and changed.instances.dtype == np.uint16
        assert set(np.unique(changed.labels)) <= set(np.unique(cut.labels))
        assert set(np.unique(changed.instances)) <= set(np.unique(cut.instances))


@pytest.mark.parametrize("size", [(88, 60), (22, 15), (11, 10), (132, 90), (45, 31)])
def test_labels_and_instances_stay_together(size: tuple[int, int]) -> None:
    """After scaling, an instance id still lies on pixels of its class."""
    made = noise()
    assert made.instances is not None
    belongs = dict(zip(made.instances.ravel().tolist(), made.labels.ravel().tolist(), strict=True))
    scaled = made.scaled(*size)
    assert scaled.instances is not None
    pairs = zip(scaled.instances.ravel().tolist(), scaled.labels.ravel().tolist(), strict=True)
    assert all(belongs[number] == label for number, label in pairs)


def test_scaling_by_integer_factors_repeats_pixels() -> None:
    made = noise(height=30, width=44)
    doubled = made.scaled(88, 60)
    np.testing.assert_array_equal(doubled.labels, made.labels.repeat(2, axis=1).repeat(2, axis=2))
    same(doubled.scaled(44, 30), made)
    same(made.scaled(44, 30), made)


@pytest.mark.parametrize(("width", "height"), [(20, 20), (64, 64), (100, 40), (2, 2), (50, 128)])
@pytest.mark.parametrize("side", [32, 100])
def test_an_edge_in_the_middle_stays_in_the_middle(side: int, width: int, height: int) -> None:
    labels = np.zeros((side, side), np.uint8)
    labels[:, side // 2 :] = 1
    labels[side // 2 :] += 2
    cut = track(labels).cropped(4, 6, side - 8, side - 12)
    scaled = cut.scaled(width, height).labels[0]
    assert (scaled[:, : width // 2] % 2 == 0).all() and (scaled[:, width // 2 :] % 2 == 1).all()
    assert (scaled[: height // 2] < 2).all() and (scaled[height // 2 :] >= 2).all()


@pytest.mark.parametrize("size", [(32, 16), (80, 112)])
def test_scaling_commutes_with_flipping(size: tuple[int, int]) -> None:
    """Scaling samples at pixel centres, without bias to one side."""
    random = np.random.default_rng(0).integers(0, 4, (2, 40, 48)).astype(np.uint8)
    made = LabelTrack(random, CLASSES, PALETTE)
    same(made.flipped().scaled(*size), made.scaled(*size).flipped())
    width, height = size
    rows, columns = (np.arange(height) + 0.5) * 40 / height, (np.arange(width) + 0.5) * 48 / width
    expected = random[:, rows.astype(int)[:, None], columns.astype(int)[None]]
    np.testing.assert_array_equal(made.scaled(*size).labels, expected)


# ---------------------------------------------------------------- drawing


def test_colours_come_from_the_palette_and_void_is_black() -> None:
    made = track([[0, 1], [3, VOID]])
    np.testing.assert_array_equal(made.draw()[0], [[(1, 2, 3), (128, 64, 128)],
                                                   [(220, 20, 60), (0, 0, 0)]])  # fmt: skip


def test_borders_between_instances_are_white() -> None:
    drawn = track(np.full((1, 6), 2), np.array([[5, 5, 5, 6, 6, 6]])).draw()[0, 0]
    assert [tuple(c) == (255, 255, 255) for c in drawn] == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize("count", [2, len(VOC), 35, 64])
def test_distinct_colours_are_distinct(count: int) -> None:
    colours = distinct_colours(count)
    assert colours[0] == (0, 0, 0)
    assert len(set(colours)) == count
    if count <= 35:
        gaps = np.abs(np.array(colours)[:, None] - colours).max(axis=2) + 255 * np.eye(count)
        assert gaps.min() >= 8


def test_class_lists_have_the_standard_ids() -> None:
    assert len(CITYSCAPES) == 35 and len(VOC) == 21
    assert list(CITYSCAPES)[7] == "road" and list(CITYSCAPES)[26] == "car"
    assert VOC[15] == "person"


def test_slices_select_frames() -> None:
    made = noise(5)
    part = made[1:3]
    assert len(part) == 2 and part.instances is not None and made.instances is not None
    np.testing.assert_array_equal(part.instances, made.instances[1:3])
    np.testing.assert_array_equal(part.labels, made.labels[1:3])
