"""Transforms keep frames, points, labels and flow aligned; checked on synthetic data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from v2v.data.transforms import (
    AugmentationSettings,
    Placement,
    colour_matrix,
    corrupt_past,
    recolour,
    shrink,
)
from v2v.signals import landmarks as marks
from v2v.signals.face import MIRROR as FACE_MIRROR
from v2v.signals.face import POINTS, FaceTrack
from v2v.signals.flow import FlowTrack
from v2v.signals.pose import LEFT_HAND, NAMES, POINT, RIGHT_HAND, PoseTrack
from v2v.signals.segmentation import LabelTrack

HEIGHT, WIDTH = 120, 90
SOURCE = (HEIGHT, WIDTH)


def settings(**changes: Any) -> AugmentationSettings:
    """Settings with everything disabled except `changes`."""
    disabled = {
        "crop_probability": 0.0, "flip": 0.0, "scale": (1.0, 1.0), "shift": 0.0, "colour": 0.0,
        "drop": 0.0,
        "jitter": 0.0, "reference_drop": 0.0, "past": {"noise": 0.0, "blur": 0.0, "colour": 0.0},
    }  # fmt: skip
    return AugmentationSettings.model_validate(disabled | changes)


WILD = settings(crop_probability=0.9, flip=0.5, scale=(1.0, 1.6), shift=1.0)


def placements(count: int = 40) -> list[Placement]:
    """Random placements: mirrored, zoomed, shifted, upscaled, downscaled in one or two steps."""
    made = []
    for seed in range(count):
        size = [(64, 48), (120, 90), (48, 48), (160, 112), (32, 24), (30, 40)][seed % 6]
        downscale = 2 if size in ((32, 24), (30, 40)) else 1
        generator = np.random.default_rng(seed)
        made.append(Placement.sampled(SOURCE, size, WILD, generator, downscale=downscale))
    assert {p.flip for p in made} == {True, False}
    assert any(p.box[0] > 0 and p.box[1] > 0 for p in made)
    return made


def pixel_centres(size: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W, 2] x, y."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x + 0.5, y + 0.5], axis=-1).astype(np.float32)


def stored_places(placement: Placement) -> NDArray[np.float32]:
    """[H, W, 2] stored positions that `points` maps to the result's pixel centres."""
    shown = pixel_centres(placement.size)
    if placement.flip:
        shown[..., 0] = placement.size[1] - shown[..., 0]
    return shown / np.array(placement.scale) + placement.box[:2]


def pose_at(points: NDArray[np.float32]) -> PoseTrack:
    """A track of points [T, 75, 2], all detected."""
    scored = np.concatenate([points, np.ones_like(points[..., :1])], axis=2).astype(np.float32)
    return PoseTrack(scored, np.zeros(points.shape[:2], np.bool_), WIDTH, HEIGHT)


def face_at(points: NDArray[np.float32]) -> FaceTrack:
    count = len(points)
    scored = np.concatenate([points, np.ones_like(points[..., :1])], axis=2).astype(np.float32)
    zeros = np.zeros((count, 2), np.float32)
    return FaceTrack(
        scored, scored[..., 2], np.zeros(count, np.bool_), np.zeros((count, 3, 3), np.float32),
        zeros, zeros[:, 0], WIDTH, HEIGHT,
    )  # fmt: skip


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize("placement", placements(36))
def test_a_marker_stays_under_its_landmark(placement):
    generator = np.random.default_rng(placement.box)
    x, y, width, height = placement.box
    place = np.array([x, y] + generator.uniform(0.3, 0.7, 2) * (width, height), np.float32)
    spread = np.exp(-((pixel_centres(SOURCE) - place) ** 2).sum(-1) / (2 * 4.0**2))
    picture = np.repeat((255 * spread[..., None]).round().astype(np.uint8), 3, axis=2)

    shown = placement.picture(picture)
    assert shown.shape == (*placement.size, 3) and shown.dtype == np.uint8
    weight = shown[..., 0].astype(float)
    centre = (pixel_centres(placement.size) * weight[..., None]).sum((0, 1)) / weight.sum()
    assert np.abs(centre - placement.points(place)).max() < 0.2

    points = np.tile(place, (1, len(NAMES), 1))
    track = placement.track(pose_at(points))
    assert (track.height, track.width) == placement.size
    assert np.abs(track.points[0, :, :2] - centre).max() < 0.2


def test_mirroring_swaps_left_and_right():
    points = np.random.default_rng(0).uniform(10, 80, (2, len(NAMES), 2)).astype(np.float32)
    plain = Placement.plain(SOURCE, (60, 45))
    straight = plain.track(pose_at(points)).points
    mirrored = replace(plain, flip=True).track(pose_at(points)).points
    wrists = POINT["left_wrist"], POINT["right_wrist"]
    assert np.allclose(mirrored[:, wrists[0], 0], 45 - straight[:, wrists[1], 0])
    assert np.allclose(mirrored[:, wrists[0], 1], straight[:, wrists[1], 1])


def test_mirroring_twice_is_the_identity():
    generator = np.random.default_rng(0)
    whole = Placement(SOURCE, SOURCE, (0, 0, WIDTH, HEIGHT), flip=True)
    picture = generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    assert np.array_equal(whole.picture(whole.picture(picture)), picture)
    points = generator.uniform(0, 90, (2, len(NAMES), 2)).astype(np.float32)
    twice = whole.track(whole.track(pose_at(points)))
    assert np.allclose(twice.points, pose_at(points).points, atol=1e-4)
    labels = label_track(generator.integers(0, 3, (2, HEIGHT, WIDTH), np.uint8))
    assert np.array_equal(whole.track(whole.track(labels)).labels, labels.labels)
    flow = generator.normal(0, 0.1, (2, 2, HEIGHT, WIDTH)).astype(np.float32)
    hidden = generator.random((2, 1, HEIGHT, WIDTH), np.float32)
    again, still_hidden = whole.flow(*whole.flow(flow, hidden))
    assert np.allclose(again, flow, atol=1e-4)
    assert np.allclose(still_hidden, hidden, atol=1e-4)


def test_plain_placements_crop_only_to_the_aspect_ratio():
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    plain = Placement.plain(SOURCE, SOURCE)
    assert plain.box == (0, 0, WIDTH, HEIGHT) and plain.scale == (1, 1)
    assert np.array_equal(plain.picture(picture), picture)
    cut = Placement.plain(SOURCE, (112, 84))  # the aspect of the source: downscaled, not cropped
    assert cut.box == (0, 0, WIDTH, HEIGHT)
    square = Placement.plain(SOURCE, (64, 64))
    assert square.box == (0, 15, 90, 90)


def test_a_picture_shrunk_in_advance_gives_the_same_result():
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for placement in placements():
        small = shrink(picture[None], placement.downscale)[0]
        assert np.array_equal(placement.picture(picture), placement.picture(small))


def test_sides_that_the_downscale_does_not_divide():
    source = (101, 67)
    picture = np.zeros((*source, 3), np.uint8)
    for downscale in (2, 3):
        placement = Placement.sampled(
            source, (20, 14), WILD, np.random.default_rng(downscale), downscale=downscale
        )
        assert placement.picture(picture).shape == (20, 14, 3)
        assert placement.picture(shrink(picture[None], downscale)[0]).shape == (20, 14, 3)


def test_a_placement_stays_within_the_picture_and_its_settings():
    for placement in placements(120):
        x, y, width, height = placement.box
        assert x >= 0 and y >= 0 and x + width <= WIDTH and y + height <= HEIGHT
        across, down = placement.scale
        assert across == pytest.approx(down, rel=2.5 * placement.downscale / min(width, height))
        whole = Placement.plain(SOURCE, placement.size, downscale=placement.downscale)
        assert 0.98 <= whole.box[3] / height <= 1.6 * 1.05
    generator = np.random.default_rng(0)
    centred = Placement.sampled(
        SOURCE, (60, 45), settings(crop_probability=1.0, scale=(1.5, 1.5)), generator
    )
    assert centred.box == (15, 20, 60, 80)
    still = Placement.sampled(SOURCE, (60, 45), settings(scale=(2, 2), shift=1), generator)
    assert still == Placement.plain(SOURCE, (60, 45))


def test_flips_do_not_depend_on_the_zoom():
    """Experiments with different settings should see comparable windows."""
    for seed in range(8):
        flips = {
            Placement.sampled(SOURCE, (60, 45), strength, np.random.default_rng(seed)).flip
            for strength in (settings(flip=0.5), WILD)
        }
        assert len(flips) == 1


# ---------------------------------------------------------------- labels


def label_track(labels: NDArray[np.uint8], instances: Any = None) -> LabelTrack:
    palette = np.array([[0, 0, 0], [200, 40, 40], [40, 90, 220]], np.uint8)
    return LabelTrack(labels, ("ground", "red", "blue"), palette, instances)


@pytest.mark.parametrize("placement", placements(18))
def test_labels_align_with_their_colours(placement):
    x, y = np.moveaxis(pixel_centres(SOURCE), -1, 0)
    ids = ((x // 23 + y // 31) % 3).astype(np.uint8)
    track = label_track(ids[None], ids[None].astype(np.uint16) + 7)
    shown = placement.picture(track.palette[ids])
    placed = placement.track(track)
    assert np.array_equal(placed.instances, placed.labels + 7)
    distance = np.abs(shown[..., None, :].astype(int) - track.palette).sum(-1)
    wrong = distance.argmin(-1) != placed.labels[0]
    # At boundaries, blended colours may be nearest to the third, and rounding is ambiguous.
    assert not (wrong & ~placed.boundaries()[0]).any()
    assert wrong.mean() < 0.12


# ---------------------------------------------------------------- flow


def zoomed_flow(grid: tuple[int, int]) -> NDArray[np.float32]:
    """[1, 2, h, w] flow of a camera that zooms in and pans, in pixels of the grid."""
    places = pixel_centres(grid) / grid[::-1] * (WIDTH, HEIGHT)
    step = earlier(places) - places
    return np.moveaxis(step * grid[::-1] / (WIDTH, HEIGHT), -1, 0)[None].astype(np.float32)


def earlier(places: NDArray[Any]) -> NDArray[Any]:
    """Positions of stored pixels [..., 2] in the previous frame."""
    return (places - (40, 70)) * 1.05 + (40 + 3, 70 - 2)


@pytest.mark.parametrize("grid", [(60, 45), (56, 48), (120, 90), (30, 23)])
def test_flow_is_transformed_with_the_frames(grid):
    flow, hidden = zoomed_flow(grid), np.zeros((1, 1, *grid), np.float32)
    for placement in placements(24):
        placed, occluded = placement.flow(flow, hidden)
        assert placed.shape == (1, 2, *placement.size) and placed.dtype == np.float32
        stored = stored_places(placement)
        shown = pixel_centres(placement.size)
        truth = np.moveaxis(placement.points(earlier(stored)) - shown, -1, 0)
        # Beyond its outermost pixel centres a grid repeats its border values.
        step = np.array([WIDTH, HEIGHT]) / grid[::-1]
        valid = ((stored > step) & (stored < (WIDTH, HEIGHT) - step)).all(-1)
        assert valid.mean() > 0.8
        assert np.abs(placed[0] - truth)[:, valid].max() < 0.02

        target = shown + np.moveaxis(placed[0], 0, -1)
        size = np.array(placement.size[::-1])
        # With a tolerance of a hundredth of a pixel at the border.
        left = ((target < -0.01) | (target > size + 0.01)).any(-1)
        stayed = ((target > 0.01) & (target < size - 0.01)).all(-1)
        assert (occluded[0, 0][left] == 1).all() and (occluded[0, 0][stayed] == 0).all()


def test_flow_of_a_much_finer_grid_is_averaged():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, (1, 2, 120, 88)).astype(np.float32)
    placement = Placement.plain((120, 88), (16, 12), downscale=7)
    placed, _ = placement.flow(noise, np.zeros((1, 1, 120, 88), np.float32))
    assert placed.std() * 7.4 < 0.3  # the mean of 49 values; a single value would give 1


def test_a_flow_track_is_placed_like_its_flow():
    flow, hidden = zoomed_flow((60, 45)), np.zeros((1, 1, 60, 45), np.float32)
    placement = placements()[0]
    track = placement.track(FlowTrack(flow, hidden, WIDTH, HEIGHT))
    placed, occluded = placement.flow(flow, hidden)
    assert np.array_equal(track.tensor().numpy(), np.concatenate([placed, occluded], axis=1))


# ---------------------------------------------------------------- jitter, presence and boxes


def test_jitter_has_the_given_size_and_drifts_slowly():
    offsets = marks.jitter(np.random.default_rng(0), 41, 4000, 2.0)
    assert offsets.shape == (41, 4000, 2)
    assert np.allclose(offsets.std(axis=(1, 2)), 2.0, rtol=0.05)  # in every frame
    assert np.abs(offsets.mean(axis=(1, 2))).max() < 0.1
    step = np.diff(offsets, axis=0).std()
    assert step < 2.0 * 0.3  # independent offsets would step by 2.8
    assert marks.jitter(np.random.default_rng(0), 1, 3, 1.0).shape == (1, 3, 2)


def test_a_jittered_pose_stays_connected():
    points = np.random.default_rng(0).uniform(10, 80, (9, len(NAMES), 2)).astype(np.float32)
    track = pose_at(points)
    track.points[2, POINT["left_knee"]] = np.nan
    moved = track.jittered(np.random.default_rng(1), 3.0)
    offsets = (moved.points - track.points)[..., :2]
    assert np.array_equal(moved.points[..., 2], track.points[..., 2], equal_nan=True)
    assert np.isnan(moved.points[2, POINT["left_knee"]]).all()
    for hand, side in ((LEFT_HAND, "left"), (RIGHT_HAND, "right")):
        wrist = offsets[:, [POINT[f"{side}_wrist"]]]
        assert np.allclose(offsets[:, hand], wrist, atol=1e-4)
        assert np.allclose(offsets[:, POINT[f"{side}_index"]], wrist[:, 0], atol=1e-4)
    assert np.allclose(offsets[:, :11], offsets[:, :1], atol=1e-4)
    assert not np.allclose(offsets[:, POINT["left_hip"]], offsets[:, POINT["right_hip"]], atol=0.1)


def test_a_jittered_face_keeps_its_curves():
    points = np.random.default_rng(0).uniform(10, 80, (5, POINTS, 2)).astype(np.float32)
    track = face_at(points)
    offsets = (track.jittered(np.random.default_rng(1), 3.0).points - track.points)[..., :2]
    for part in ((33, 133, 159, 469, 468), (FACE_MIRROR[33], FACE_MIRROR[468]), (61, 78, 13)):
        assert np.allclose(offsets[:, list(part)], offsets[:, part[:1]], atol=1e-4)
        assert np.abs(offsets[:, part[0]]).max() > 0.1
    assert not np.allclose(offsets[:, 33], offsets[:, 61], atol=0.1)


def test_presence_of_a_signal():
    points = np.random.default_rng(0).uniform(10, 80, (3, len(NAMES), 2)).astype(np.float32)
    pose = pose_at(points)
    pose.points[1] = np.nan
    pose.points[2, :, 2] = 0.1  # only estimated
    assert pose.present().tolist() == [True, False, False]
    face = face_at(np.zeros((3, POINTS, 2), np.float32))
    face.points[1] = np.nan
    assert face.present().tolist() == [True, False, True]
    assert label_track(np.zeros((2, 4, 4), np.uint8)).present().all()


def test_boxes_are_squares_around_their_points():
    points = np.random.default_rng(0).uniform(0, 90, (3, len(NAMES), 2)).astype(np.float32)
    points[:, :11] = np.linspace((30, 20), (50, 30), 11)
    points[:, LEFT_HAND] = np.linspace((10, 60), (14, 68), 21)
    pose = pose_at(points)
    pose.points[1, RIGHT_HAND] = np.nan
    pose.points[2, :6, 2] = 0.2
    boxes = pose.boxes()
    assert boxes.shape == (3, len(PoseTrack.regions), 4)
    assert np.allclose(boxes[0, 0], [40 - 18, 25 - 18, 40 + 18, 25 + 18])
    assert np.allclose(boxes[0, 1], [12 - 6, 64 - 6, 12 + 6, 64 + 6])
    assert np.isnan(boxes[1, 2]).all() and np.isfinite(boxes[1, :2]).all()
    assert np.isnan(boxes[2, 0]).all()

    mirrored = pose.flipped().boxes()  # left and right hand are swapped
    assert np.allclose(mirrored[0, 2, 0], WIDTH - boxes[0, 1, 2])

    face = face_at(np.random.default_rng(0).uniform(20, 60, (2, POINTS, 2)).astype(np.float32))
    face.points[1] = np.nan
    boxes = face.boxes()
    assert boxes.shape == (2, len(FaceTrack.regions), 4)
    assert np.allclose(boxes[0, :, 2] - boxes[0, :, 0], boxes[0, :, 3] - boxes[0, :, 1])
    assert np.isnan(boxes[1]).all()
    assert label_track(np.zeros((2, 4, 4), np.uint8)).boxes().shape == (2, 0, 4)


def test_signals_without_points_are_unchanged_by_drop_and_jitter():
    track = label_track(np.zeros((2, 4, 4), np.uint8))
    generator = np.random.default_rng(0)
    assert track.dropped(generator, 1.0) is track and track.jittered(generator, 5.0) is track


# ---------------------------------------------------------------- colour


def test_zero_strength_is_the_identity():
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    matrix = colour_matrix(0.0, torch.tensor([1, -1, 1, -1.0]))
    assert np.allclose(matrix, np.eye(3, 4), atol=1e-7)
    assert np.array_equal(recolour(picture, matrix), picture)


def test_greys_stay_grey_and_bytes_match_floats():
    generator = np.random.default_rng(0)
    for _ in range(20):
        change = colour_matrix(1.0, torch.from_numpy(generator.uniform(-1, 1, 4)))
        matrix = change.numpy()
        greys = np.linspace(-1, 1, 9)[:, None] @ np.ones((1, 3))
        changed = greys @ matrix[:, :3].T + matrix[:, 3]
        assert np.ptp(changed, axis=1).max() < 1e-6
        picture = generator.integers(0, 256, (6, 7, 3), np.uint8)
        floats = (picture / 127.5 - 1) @ matrix[:, :3].T + matrix[:, 3]
        truth = np.clip(np.rint((floats + 1) * 127.5), 0, 255)
        assert np.abs(recolour(picture, change) - truth).max() <= 1


def test_colour_changes_are_batched():
    draws, strengths = 2 * torch.rand(5, 4) - 1, torch.rand(5)
    single = [colour_matrix(float(s), d) for s, d in zip(strengths, draws, strict=True)]
    assert torch.allclose(colour_matrix(strengths, draws), torch.stack(single), atol=1e-6)


def test_each_kind_of_colour_change_has_its_documented_effect():
    red = np.array([0.8, -0.5, -0.5])

    def apply(**kinds: float) -> NDArray[Any]:
        names = ("hue", "saturation", "contrast", "brightness")
        matrix = colour_matrix(1.0, torch.tensor([kinds.get(n, 0.0) for n in names])).numpy()
        return matrix[:, :3] @ red + matrix[:, 3]

    assert np.allclose(apply(brightness=1) - red, 0.5)
    assert np.allclose(apply(contrast=-1), red / 2)
    assert np.ptp(apply(saturation=1)) == pytest.approx(1.5 * np.ptp(red), rel=1e-5)
    turned = apply(hue=1)
    assert turned.sum() == pytest.approx(red.sum(), rel=1e-5)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(red), rel=1e-5)
    assert np.linalg.norm(turned - red) > 0.3


# ---------------------------------------------------------------- past frames


def past_frames(height: int = 40, width: int = 56) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(6, 3, 6, 8, generator=generator) - 0.5
    frames = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return frames.reshape(3, 2, 3, height, width)


STRENGTHS = ({"noise": 0.2}, {"blur": 4.0}, {"colour": 0.5})


def corrupted(frames: torch.Tensor, seed: int = 0, **strengths: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    every = {"noise": 0.0, "blur": 0.0, "colour": 0.0} | strengths
    return corrupt_past(frames, generator=generator, **every)


def test_zero_corruption_is_the_identity():
    frames = past_frames()
    assert corrupted(frames) is frames


@pytest.mark.parametrize("strengths", [*STRENGTHS, {"noise": 0.1, "blur": 1.0, "colour": 0.2}])
def test_corruption_depends_only_on_the_generator(strengths):
    frames = past_frames()
    before = frames.clone()
    first, again = corrupted(frames, **strengths), corrupted(frames, **strengths)
    assert torch.equal(first, again) and torch.equal(frames, before)
    assert first.shape == frames.shape and first.abs().max() <= 1
    assert not torch.equal(first, frames)
    assert not torch.equal(first, corrupted(frames, seed=1, **strengths))


def test_noise_has_the_requested_strength():
    frames = torch.zeros(200, 2, 3, 33, 41)
    spread = corrupted(frames, noise=0.1).flatten(1).std(1)
    assert spread.max() < 0.125 and spread.min() < 0.01
    assert spread.mean() == pytest.approx(0.05, rel=0.15)  # strengths are uniform from 0


def test_blur_and_colour_are_the_same_over_the_past_frames_of_a_clip():
    one = past_frames()[:, :1]
    frames = torch.cat([one, one], dim=1)
    for strengths in STRENGTHS[1:]:
        changed = corrupted(frames, **strengths)
        assert torch.equal(changed[:, 0], changed[:, 1])
    changed = corrupted(frames, noise=0.1)
    assert not torch.equal(changed[:, 0], changed[:, 1])


def test_blur_keeps_flat_areas():
    flat = torch.full((2, 2, 3, 20, 30), 0.25)
    assert torch.allclose(corrupted(flat, blur=6.0), flat, atol=1e-6)
    tiny = torch.zeros(1, 1, 3, 2, 2)
    assert corrupted(tiny, blur=8.0).shape == tiny.shape


def test_invalid_past_frames_are_unchanged():
    frames, valid = past_frames(), torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    strengths = {"noise": 0.1, "blur": 2.0, "colour": 0.3}
    changed = corrupt_past(
        frames, generator=torch.Generator().manual_seed(0), valid=valid, **strengths
    )
    same = (changed == frames).flatten(2).all(2)
    assert torch.equal(same, valid == 0)


def test_one_kind_does_not_change_the_draws_of_another():
    flat = torch.zeros(3, 2, 3, 20, 30)  # blur and colour do not change it, except for brightness
    noisy = corrupted(flat, noise=0.2)
    assert torch.allclose(corrupted(flat, noise=0.2, blur=2.0), noisy, atol=1e-6)
    both = corrupted(flat, noise=0.2, colour=0.1) - corrupted(flat, colour=0.1)
    assert torch.allclose(both, noisy, atol=1e-6)


def test_corruption_is_fp32_under_autocast():
    frames = past_frames()
    exact = corrupted(frames, noise=0.1, blur=2.0, colour=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(corrupted(frames, noise=0.1, blur=2.0, colour=0.3), exact)
    half = corrupted(frames.bfloat16(), noise=0.1, blur=2.0, colour=0.3)
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), exact, atol=0.02)


def test_gradients_pass_through_corruption():
    frames = past_frames().requires_grad_()
    corrupted(frames, noise=0.1, blur=2.0, colour=0.3).sum().backward()
    assert frames.grad is not None and (frames.grad.abs().sum((1, 2, 3, 4)) > 0).all()


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": (0.8, 1.2)}, {"scale": (1.3, 1.2)}, {"flip": 1.5}, {"shift": -0.1},
        {"jitter": -1}, {"colour": 2}, {"zoom": 1.0}, {"past": {"noise": 0.1}},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValidationError):
        settings(**changes)
