"""Whole videos with known scores: identical, frozen, blurred, ..."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch

from v2v.evaluation.frame_scores import (
    CHUNK,
    TRUTH,
    FeatureStatistics,
    FrameScores,
    Tools,
    Video,
    measure,
)
from v2v.evaluation.measures import average
from v2v.evaluation.metrics import FrameStatistic, all_metrics
from v2v.evaluation.ranking import compare, faults, order
from v2v.evaluation.statistics import Summary, summary

COUNT, HEIGHT, WIDTH = 40, 64, 80
Frames = np.ndarray  # uint8 [T, H, W, 3]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def footage(count: int = COUNT, seed: int = 0) -> Frames:
    """A textured square that moves in front of a textured wall, uint8 [T, H, W, 3]."""
    random = np.random.default_rng(seed)

    def texture(height: int, width: int) -> np.ndarray:
        noise = cv2.GaussianBlur(random.random((height, width, 3)), (0, 0), 1.2)
        return ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)

    wall, square = texture(HEIGHT, WIDTH), texture(24, 24)
    frames = np.repeat(wall[None], count, axis=0)
    for t, frame in enumerate(frames):
        x, y = round(25 + 20 * np.sin(t / 6)), round(20 + 14 * np.cos(t / 5))
        frame[y : y + 24, x : x + 24] = square
    return frames


def blurred(frames: Frames, sigma: float = 2.0) -> Frames:
    return np.stack([cv2.GaussianBlur(f, (0, 0), sigma) for f in frames])


def noisy(frames: Frames, amount: float, seed: int = 1) -> Frames:
    """The error of a plausible model: small, everywhere and constant over time."""
    error = np.random.default_rng(seed).normal(0, amount, frames.shape[1:])
    error = cv2.GaussianBlur(error, (0, 0), 2.0) * 4
    return np.clip(frames + error, 0, 255).astype(np.uint8)


def run(real: Frames, rows: dict[str, Frames], tools: Tools | None = None, **more):  # noqa: ANN201
    videos = {name: Video(iter(frames)) for name, frames in rows.items()}
    return measure(Video(iter(real)), videos, count=len(real), tools=tools or Tools(), **more)


def summaries_of(frame_scores: dict[str, FrameScores]) -> dict[str, dict[str, Summary]]:
    return {
        row: {name: summary([values], block=10) for name, values in scores.items()}
        for row, scores in frame_scores.items()
    }


# ---------------------------------------------------------------- one video


def test_an_identical_video_scores_perfectly() -> None:
    real = footage()
    (scores,) = (c for name, c in run(real, {"same": real}).items() if name != TRUTH)
    expected = {"psnr": 100, "ssim": 1, "sharpness": 1, "tof": 0, "flicker": 0}
    for name, value in expected.items():
        assert average(scores[name]) == pytest.approx(value, abs=1e-6), name
    assert all(len(values) == COUNT for values in scores.values())
    for name in ("warping_error", "frame_difference"):
        assert average(scores[name]) > 0


def test_errors_outside_the_region_do_not_count() -> None:
    real, region = footage(), np.zeros((HEIGHT, WIDTH), np.bool_)
    region[:40] = True
    captioned, worse = real.copy(), real.copy()
    captioned[:, 50:] = 255 - captioned[:, 50:]
    worse[:, 30:50] = 255 - worse[:, 30:50]
    frame_scores = run(real, {"captioned": captioned, "worse": worse}, Tools(region=region))
    for name, value in {"psnr": 100, "ssim": 1, "sharpness": 1, "tof": 0, "flicker": 0}.items():
        assert average(frame_scores["captioned"][name]) == pytest.approx(value, abs=1e-6), name
    assert average(frame_scores["worse"]["psnr"]) < 20
    whole = run(real, {"worse": worse})["worse"]
    assert average(frame_scores["worse"]["psnr"]) != pytest.approx(average(whole["psnr"]), abs=0.1)


def test_person_and_background_are_measured_separately() -> None:
    real = footage()
    labels = np.zeros(real.shape[:3], np.uint8)
    labels[:, :, :30] = 1
    wrong = real.copy()
    wrong[:, :, 40:] = 255 - wrong[:, :, 40:]
    videos = {"wrong": Video(iter(wrong), {"labels": labels})}
    truth = Video(iter(real), {"labels": labels})
    scores = measure(truth, videos, count=COUNT, tools=Tools(person=1))["wrong"]
    assert average(scores["person_psnr"]) == 100
    assert average(scores["background_psnr"]) < 15


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporal measures include the frame before each chunk."""
    real = footage()
    rows = {"blurred": blurred(real)}
    chunked = run(real, rows)["blurred"]
    monkeypatch.setattr("v2v.evaluation.frame_scores.CHUNK", 1000)
    whole = run(real, rows)["blurred"]
    for name, values in whole.items():
        np.testing.assert_allclose(chunked[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


def test_temporal_measures_belong_to_the_later_frame_and_are_undefined_at_cuts() -> None:
    real = footage()
    scores = run(real, {"row": real}, cuts=(7, CHUNK))["row"]
    for name, values in scores.items():
        statistic = all_metrics()[name].statistic
        assert isinstance(statistic, FrameStatistic)
        undefined = {0, 7, CHUNK} if statistic.temporal else set()
        assert set(np.flatnonzero(np.isnan(values)).tolist()) == undefined, name


def test_flicker_has_a_known_amplitude() -> None:
    real = np.full((12, HEIGHT, WIDTH, 3), 128, np.uint8)
    real[:, :, ::2] = 100
    row = real.copy()
    row[::2] += 10
    scores = run(real, {"row": row})["row"]
    assert average(scores["flicker"]) == pytest.approx(10 / 255, abs=1e-6)
    assert average(scores["frame_difference"]) == pytest.approx(10 / 255, abs=1e-6)


def test_tof_measures_a_known_shift() -> None:
    """A static output has an error of 3 pixels if the real video moves by (3, 0)."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).random((HEIGHT, 3 * WIDTH, 3)), (0, 0), 2.0)
    big = ((noise - noise.min()) / np.ptp(noise) * 255).astype(np.uint8)
    real = np.stack([big[:, 60 - 3 * t : 60 - 3 * t + WIDTH] for t in range(10)])
    scores = run(real, {"still": np.repeat(real[:1], 10, axis=0)})["still"]
    assert average(scores["tof"]) == pytest.approx(3, abs=0.35)


def test_an_output_may_end_early() -> None:
    real = footage()
    scores = run(real, {"short": real[: CHUNK + 3]})["short"]
    assert all(len(values) == CHUNK + 3 for values in scores.values())
    assert average(scores["psnr"]) == 100


def test_every_metric_has_a_description() -> None:
    for name, metric in all_metrics().items():
        assert metric.name == name and metric.about and metric.title


# ---------------------------------------------------------------- detections


def pose(count: int = COUNT, x: float = 0.0) -> np.ndarray:
    points = np.random.default_rng(0).uniform(10, 60, (33, 2)).astype(np.float32)
    points[[11, 12]], points[[23, 24]] = (40, 20), (40, 40)  # a torso of 20 pixels
    sway = 5 * np.sin(np.arange(count) / 5)[:, None, None]
    found = np.ones((count, 33, 3), np.float32)
    found[..., :2] = points + sway + np.float32([x, 0])
    return found


def test_known_landmark_errors_and_missed_people() -> None:
    real, ours = pose(), pose(x=3.0)
    ours[30:] = np.nan
    videos = {"row": Video(iter(footage()), {"pose": ours})}
    truth = Video(iter(footage()), {"pose": real})
    scores = measure(truth, videos, count=COUNT, tools=Tools())["row"]
    assert average(scores["pose_error"]) == pytest.approx(3 / 20)
    assert average(scores["pose_missed"]) == pytest.approx(10 / COUNT)
    assert (scores["pck"] == 0).all()


def test_swapped_identities_rank_lower() -> None:
    """Two people side by side are swapped: each keypoint is one torso length off."""
    one, other = pose(), pose(x=20.0)
    swapped = one.copy()
    swapped[10:20] = other[10:20]
    videos = {
        "right": Video(iter(footage()), {"pose": one}),
        "swapped": Video(iter(footage()), {"pose": swapped}),
    }
    frame_scores = measure(
        Video(iter(footage()), {"pose": one}), videos, count=COUNT, tools=Tools()
    )
    np.testing.assert_allclose(frame_scores["swapped"]["pose_error"][10:20], 1.0, rtol=1e-5)
    assert average(frame_scores["swapped"]["pck"]) == pytest.approx(0.75)
    places = order(
        {n: summaries_of(frame_scores)[n] for n in videos}, summaries_of(frame_scores)[TRUTH]
    )
    assert [place.method for place in places] == ["right", "swapped"]


def test_labels_have_a_known_overlap() -> None:
    real = np.zeros((COUNT, HEIGHT, WIDTH), np.uint8)
    real[:, :, : WIDTH // 2] = 1
    ours = np.zeros_like(real)
    ours[:, :, : WIDTH // 4] = 1
    videos = {"row": Video(iter(footage()), {"labels": ours})}
    truth = Video(iter(footage()), {"labels": real})
    scores = measure(truth, videos, count=COUNT, tools=Tools())["row"]
    assert average(scores["label_accuracy"]) == pytest.approx(0.75)
    assert average(scores["label_iou"]) == pytest.approx((1 / 2 + 2 / 3) / 2)


# ---------------------------------------------------------------- networks


class Brightness:
    """A stand-in for LPIPS with known distances, for tests only."""

    def __call__(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.mean(dim=(1, 2, 3)) - other.mean(dim=(1, 2, 3))).abs() / 2


def test_tlp_is_the_difference_of_perceptual_distances() -> None:
    real = np.full((8, HEIGHT, WIDTH, 3), 100, np.uint8)
    real += np.arange(8, dtype=np.uint8)[:, None, None, None] * 5  # steps of 5 / 255
    tools = Tools({"lpips": Brightness()})
    frame_scores = run(real, {"frozen": np.repeat(real[:1], 8, axis=0), "same": real}, tools)
    assert average(frame_scores["frozen"]["tlp"]) == pytest.approx(5 / 255, rel=1e-4)
    assert average(frame_scores["same"]["tlp"]) == 0
    assert frame_scores["frozen"]["lpips"][3] == pytest.approx(15 / 255, rel=1e-4)


def test_features_come_from_the_measured_frames_only() -> None:
    real = footage()
    tools = Tools({"inception": lambda frames: frames.mean(dim=(2, 3)).double().numpy()})
    sets = FeatureStatistics(), {"row": FeatureStatistics()}
    run(real, {"row": real}, tools, sets=sets, sets_until=CHUNK)
    assert sets[0].sets["fid"].count == sets[1]["row"].sets["fid"].count == CHUNK


# ---------------------------------------------------------------- ranking


@pytest.mark.parametrize(
    ("name", "degrade", "fault"),
    [
        ("frozen", lambda real: np.repeat(real[:1], len(real), axis=0), "frozen"),
        ("slow", lambda real: real[np.arange(len(real)) // 8 * 8], "frozen"),
        ("blurred", blurred, "blurred"),
    ],
)
def test_a_frozen_or_blurred_video_ranks_below_a_noisy_one(
    name: str, degrade: Callable[[Frames], Frames], fault: str
) -> None:
    """An obvious fault ranks last even if the pixel error is smaller."""
    real = footage()
    plausible = noisy(real, 12.0)
    summaries = summaries_of(run(real, {name: degrade(real), "noisy": plausible}))
    truth = summaries.pop(TRUTH)
    places = order(summaries, truth)
    assert [place.method for place in places] == ["noisy", name]
    if name != "slow":  # it jumps, so its total motion is the same
        assert any(found.startswith(fault) for found in places[1].faults)
    assert not places[0].faults


def test_warping_error_favours_a_frozen_video_and_is_not_ranked() -> None:
    real = footage()
    frame_scores = run(
        real, {"frozen": np.repeat(real[:1], COUNT, axis=0), "noisy": noisy(real, 12.0)}
    )
    assert all_metrics()["warping_error"].family is None
    better, worse, same = compare(
        [frame_scores["noisy"]], [frame_scores["frozen"]], [COUNT], block=10
    )
    assert "warping_error" not in (*better, *worse, *same)
    assert "tof" in better


def test_a_comparison_is_paired_by_frame() -> None:
    """Frames differ far more than the videos: only a paired comparison is significant."""
    hard = np.random.default_rng(0).normal(20, 5, 60)
    one, other = {"psnr": hard + 0.5}, {"psnr": hard}
    assert compare([one], [other], [60], block=5) == (["psnr"], [], [])
    assert compare([other], [one], [60], block=5) == ([], ["psnr"], [])
    assert compare([one], [one], [60], block=5) == ([], [], ["psnr"])
    assert compare([one], [{"psnr": np.full(60, np.nan)}], [60], block=5) == (["psnr"], [], [])


def test_faults_are_described() -> None:
    real = {"frame_difference": Summary(0.02), "sharpness": Summary(1.0)}
    row = {"frame_difference": Summary(0.001), "sharpness": Summary(0.3)}
    assert faults(row, real) == (
        "frozen: it moves 5% as much as the real video",
        "blurred: 30% of the real video's sharpness",
    )
    assert faults(real, real) == ()


def test_ties_share_their_mean_rank() -> None:
    row = {"psnr": Summary(20.0), "frame_difference": Summary(0.02), "sharpness": Summary(1.0)}
    better = row | {"psnr": Summary(30.0)}
    undefined = {name: summary for name, summary in row.items() if name != "psnr"}
    places = order({"a": row, "b": row, "best": better, "none": undefined}, row)
    picture = {place.method: place.groups["picture"] for place in places}
    # Ranks by PSNR 2.5, 2.5, 1, 4; by sharpness all 2.5.
    assert picture == {"a": 2.5, "b": 2.5, "best": 1.75, "none": 3.25}
    assert [place.method for place in places] == ["best", "a", "b", "none"]
