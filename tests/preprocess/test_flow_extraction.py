"""Tests extracted flow on motions with known exact backward flow."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from v2v.config import PreprocessSettings, load_config
from v2v.errors import WeightsUnavailable
from v2v.preprocess.extractor import ClipContext
from v2v.preprocess.flow import Dis, Extractor
from v2v.signals.flow import unpack
from v2v.video.plan import Geometry
from v2v.warp import occlusion, warp
from v2v.weights import torchvision_models

HEIGHT, WIDTH = 160, 224
Field = NDArray[np.float32]


def texture(seed: int = 0) -> NDArray[np.uint8]:
    """Smooth noise with detail at several scales, with 48 pixels of margin on each side."""
    rng = np.random.default_rng(seed)
    height, width = HEIGHT + 96, WIDTH + 96
    picture = np.zeros((height, width, 3), np.float32)
    for cell, weight in ((48, 1.0), (24, 0.8), (12, 0.6), (6, 0.4)):
        coarse = rng.normal(0, weight, (height // cell + 2, width // cell + 2, 3))
        picture += cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    return np.clip(128 + 45 * picture, 0, 255).astype(np.uint8)


def moved(matrix: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Field]:
    """The previous frame, the frame, and the exact backward flow of a motion about the centre.

    `matrix` [2, 3] maps a point of the frame to the same point in the previous frame.
    """
    big = texture()
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    middle = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    at = np.stack([x, y], axis=-1) - middle
    source = at @ matrix[:, :2].T + matrix[:, 2] + middle
    frames = []
    for places in (np.stack([x, y], axis=-1), source):
        maps = (places + 48).astype(np.float32)
        frames.append(cv2.remap(big, maps[..., 0], maps[..., 1], cv2.INTER_CUBIC))
    flow = (source - np.stack([x, y], axis=-1)).transpose(2, 0, 1).astype(np.float32)
    return frames[0], frames[1], flow


def motion(u: float = 0, v: float = 0, degrees: float = 0, zoom: float = 1) -> NDArray[np.float64]:
    c, s = np.cos(np.radians(degrees)) * zoom, np.sin(np.radians(degrees)) * zoom
    return np.array([[c, -s, u], [s, c, v]])


def stays_inside(flow: Field, margin: int = 6) -> NDArray[np.bool_]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x + flow[0], y + flow[1]
    return (x > margin) & (y > margin) & (x < WIDTH - margin) & (y < HEIGHT - margin)


MOTIONS = [
    pytest.param(motion(u=3), 0.15, id="right"),
    pytest.param(motion(u=-2.5, v=1.25), 0.15, id="left-down"),
    pytest.param(motion(v=-8), 0.15, id="up"),
    pytest.param(motion(u=14, v=6), 0.15, id="far"),
    pytest.param(motion(degrees=3), 0.3, id="rotation"),
    pytest.param(motion(degrees=-4, u=2), 0.3, id="rotation-back"),
    pytest.param(motion(zoom=1.05), 0.3, id="zoom-out"),
    pytest.param(motion(zoom=0.96, v=3), 0.3, id="zoom-in"),
]


def settings(*overrides: str) -> PreprocessSettings:
    return load_config(PreprocessSettings, "preprocess", overrides=["flow.scale=1", *overrides])


def context(count: int = 4, width: int = WIDTH, height: int = HEIGHT) -> ClipContext:
    return ClipContext(
        name="drawn", width=width, height=height, rate=Fraction(25), count=count,
        geometry=Geometry((0, 0, width, height), width, height), sources=np.arange(count),
        source_frames=count, upright=(width, height),
    )  # fmt: skip


# ---------------------------------------------------------------- DIS


@pytest.mark.parametrize(("matrix", "bound"), MOTIONS)
def test_mean_endpoint_error_is_small(matrix: NDArray[np.float64], bound: float) -> None:
    before, now, exact = moved(matrix)
    backward, forward = Dis("medium")(before, now)
    visible = stays_inside(exact)
    assert visible.mean() > 0.7
    error = np.linalg.norm(backward - exact, axis=0)[visible]
    assert error.mean() < bound
    # The forward flow is the inverse of the backward flow.
    returned = (
        backward + warp(torch.from_numpy(forward)[None], torch.from_numpy(exact)[None])[0].numpy()
    )
    assert np.linalg.norm(returned, axis=0)[visible].mean() < 2 * bound


@pytest.mark.parametrize(("matrix", "bound"), MOTIONS)
def test_warped_previous_frame_matches_the_frame(matrix: NDArray[np.float64], bound: float) -> None:
    """`frame_t(p) ~ frame_{t-1}(p + flow_t(p))`: tests sign and frame order."""
    before, now, exact = moved(matrix)
    backward, _ = Dis("medium")(before, now)
    pictures = torch.from_numpy(np.stack([before, now])).permute(0, 3, 1, 2).float()
    warped = warp(pictures[:1], torch.from_numpy(backward)[None])
    visible = torch.from_numpy(stays_inside(exact))
    error = (warped - pictures[1:]).abs().mean(dim=1)[0][visible].mean()
    still = (pictures[:1] - pictures[1:]).abs().mean(dim=1)[0][visible].mean()
    assert error < 0.15 * still


@pytest.mark.parametrize("preset", ["ultrafast", "fast"])
def test_faster_presets_are_less_accurate_but_correct(preset: str) -> None:
    before, now, exact = moved(motion(u=3, v=-2))
    backward, _ = Dis(preset)(before, now)
    assert np.linalg.norm(backward - exact, axis=0)[stays_inside(exact)].mean() < 0.5


def test_disocclusion_behind_a_moving_square_is_found() -> None:
    ground, square = texture(1)[:HEIGHT, :WIDTH], texture(2)
    before, now = ground.copy(), ground.copy()
    before[50:114, 60:124] = square[:64, :64]
    now[50:114, 72:136] = square[:64, :64]  # 12 to the right
    backward, forward = (torch.from_numpy(f)[None] for f in Dis("medium")(before, now))
    occluded = occlusion(backward, forward)[0, 0].numpy().astype(bool)
    assert occluded[54:110, 61:71].mean() > 0.8, "the ground was behind the square"
    far = np.ones_like(occluded)
    far[40:124, 50:146] = False
    assert occluded[far].mean() < 0.02
    assert occluded[58:106, 80:128].mean() < 0.1, "the square itself was visible before"


# ---------------------------------------------------------------- the extractor


def test_steps_give_flow_and_occlusion_but_none_across_cuts() -> None:
    before, now, exact = moved(motion(u=4, v=-2))
    extractor = Extractor(settings("flow.backend=dis"), context())
    extractor.begin(None)
    records = [
        extractor.step(0, before, None, False),
        extractor.step(1, now, before, False),
        extractor.step(2, texture(5)[:HEIGHT, :WIDTH], now, True),
        extractor.step(3, now, now, False),
    ]
    extractor.end()
    flow, occluded = unpack(np.stack([record["flow.mkv"] for record in records]))
    assert flow.shape == (4, 2, HEIGHT, WIDTH) and occluded.shape == (4, 1, HEIGHT, WIDTH)
    for t in (0, 2):
        assert not flow[t].any() and (occluded[t] == 1).all(), "there is no previous frame"
    visible = stays_inside(exact)
    assert np.linalg.norm(flow[1] - exact, axis=0)[visible].mean() < 0.15
    assert occluded[1, 0][visible].mean() < 0.02
    entered = np.ones((HEIGHT, WIDTH), np.bool_)
    entered[2:, :-4] = False
    assert occluded[1, 0][entered].mean() > 0.7, "these pixels entered at the right and the top"
    assert np.abs(flow[3]).max() < 0.1 and not occluded[3].any()


@pytest.mark.parametrize(
    ("size", "scale", "grid"),
    [((224, 160), 0.5, (112, 80)), ((1280, 720), 0.5, (640, 360)), ((100, 60), 0.5, (48, 32)),
     ((16, 16), 0.5, (16, 16)), ((64, 48), 0.1, (16, 16)), ((250, 130), 1, (248, 128))],
)  # fmt: skip
def test_flow_is_in_pixels_of_the_grid(
    size: tuple[int, int], scale: float, grid: tuple[int, int]
) -> None:
    extractor = Extractor(settings("flow.backend=dis", f"flow.scale={scale}"), context(2, *size))
    assert extractor.grid == grid
    big = cv2.resize(texture(), (size[0] + 64, size[1] + 64))
    before, now = big[32:-32, 32:-32].copy(), big[32:-32, 36 : 36 + size[0]].copy()
    flow, _ = unpack(extractor.step(1, now, before, False)["flow.mkv"][None])
    assert flow.shape[2:] == (grid[1], grid[0])
    if min(grid) >= 64:
        u, v = np.median(flow[0], axis=(1, 2))
        assert u == pytest.approx(4 * grid[0] / size[0], abs=0.15)
        assert v == pytest.approx(0, abs=0.15)


def test_auto_backend_is_dis_without_gpu_or_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Extractor(settings(), context()).backend == "dis"
    monkeypatch.setattr("v2v.preprocess.flow.have_weights", lambda name: True)
    assert Extractor(settings("flow.device=cpu"), context()).backend == "dis"


# ---------------------------------------------------------------- RAFT


@pytest.fixture(scope="module")
def raft_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, to test the format only; their flow is meaningless."""
    torch.manual_seed(0)
    model = torchvision_models().optical_flow.raft_small(weights=None)
    path: Path = tmp_path_factory.mktemp("weights") / "raft-random.pth"
    torch.save(model.state_dict(), path)
    return path


def test_raft_loads_given_weights_and_runs(raft_file: Path) -> None:
    width, height = 72, 40  # below the network's minimum size: padded, then cropped
    extractor = Extractor(
        settings("flow.backend=raft-small", f"flow.weights={raft_file}", "flow.device=cpu"),
        context(2, width, height),
    )
    assert extractor.backend == "raft-small" and "raft-random.pth" in extractor.version
    frames = [texture(seed)[:height, :width].copy() for seed in (0, 1)]
    record = extractor.step(1, frames[1], frames[0], False)
    assert record["flow.mkv"].shape == (3 * height, width)
    assert np.ptp(unpack(record["flow.mkv"][None])[0]) > 0


def test_raft_gives_backward_flow_first(raft_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from v2v.preprocess.flow import Raft

    raft = Raft("raft-small", raft_file, torch.device("cpu"))
    calls = []

    def model(image1: torch.Tensor, image2: torch.Tensor) -> list[torch.Tensor]:
        """Record the arguments and return the images' means as flow."""
        calls.append((image1, image2))
        mean = torch.stack([image1.mean(dim=(1, 2, 3)), image2.mean(dim=(1, 2, 3))], dim=1)
        return [mean[:, :, None, None].expand(-1, -1, *image1.shape[2:])]

    monkeypatch.setattr(raft, "model", model)
    dark, light = (np.full((136, 160, 3), value, np.uint8) for value in (0, 255))
    backward, forward = raft(dark, light)  # previous, frame
    assert backward.shape == forward.shape == (2, 136, 160)
    assert (backward[:, 0, 0] == (1, -1)).all(), "from the frame to the previous one"
    assert (forward[:, 0, 0] == (-1, 1)).all()


def test_raft_large_loads_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "large.pth"
    torch.save(torchvision_models().optical_flow.raft_large(weights=None).state_dict(), path)
    extractor = Extractor(
        settings("flow.backend=raft-large", f"flow.weights={path}", "flow.device=cpu"), context()
    )
    assert extractor.backend == "raft-large"


def test_weights_of_another_network_are_rejected(raft_file: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"raft-random\.pth does not hold the weights"):
        Extractor(settings("flow.backend=raft-large", f"flow.weights={raft_file}"), context())
