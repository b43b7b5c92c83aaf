"""Signal predictors start as simple baselines and stay within bounds; shape PCA is lossless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from v2v.prediction.model import (
    LabelPredictor,
    LabelState,
    PointPredictor,
    ShapePCA,
    compose_map,
    one_hot,
)


def moving_points(frames: int = 40, points: int = 12) -> np.ndarray:
    """Points [T, N, 2] of a shape that moves, scales and bends."""
    random = np.random.default_rng(0)
    shape, bend = random.normal(size=(2, points, 2))
    t = np.arange(frames, dtype=np.float32)[:, None, None]
    moved = (1 + 0.2 * np.sin(t / 9)) * (shape + 0.3 * np.sin(t / 5) * bend) + t * [0.02, -0.01]
    return (0.1 * moved).astype(np.float32)


def randomised(network: nn.Module, sigma: float = 1.0) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, sigma)


# ---------------------------------------------------------------- shape PCA


def test_encoding_and_decoding_restores_the_points() -> None:
    points = moving_points()
    pca = ShapePCA.fit([points[:30]], [0, 1, 2, 3], components=3, variance=0.99)
    state, residual = pca.encode(points)
    assert state.shape == (40, pca.length) and residual.shape == points.shape
    np.testing.assert_allclose(pca.decode(state, residual), points, atol=1e-6)


def test_components_explain_the_motion_they_were_fitted_to() -> None:
    points = moving_points()
    pca = ShapePCA.fit([points], [0, 1, 2, 3], components=4, variance=0.999)
    _, residual = pca.encode(points)
    shapes = pca._split(points)[0] - pca.mean
    assert (residual**2).sum() < 0.01 * (shapes**2).sum()


def test_gaps_are_interpolated_and_missing_points_come_from_the_shape() -> None:
    points = moving_points()
    pca = ShapePCA.fit([points], [0, 1, 2, 3], components=3, variance=0.99)
    holes = points.copy()
    holes[10:13, 5] = np.nan
    holes[:, 7] = np.nan
    holes[:, 2] = np.nan  # an anchor
    complete = pca.complete(holes)
    present = np.isfinite(holes)
    np.testing.assert_array_equal(complete[present], points[present])
    assert np.abs(complete[10:13, 5] - points[10:13, 5]).max() < 0.01
    size = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1).max()
    assert np.abs(complete[:, [2, 7]] - points[:, [2, 7]]).max() < 0.3 * size


def test_state_weights_approximate_point_displacement() -> None:
    points = moving_points()
    pca = ShapePCA.fit([points], list(range(12)), components=6, variance=1.0)
    state, residual = pca.encode(points)
    weight = pca.weight()
    size = float(np.exp(state[0, 2]))
    weight[:2] /= size
    for number in range(pca.length):
        other = state[:1].copy()
        other[0, number] += 1e-3 * size if number < 2 else 1e-3
        moved = pca.decode(other, 0 * residual[:1]) - pca.decode(state[:1], 0 * residual[:1])
        estimate = np.abs((other - state[:1]) * weight).sum() * size
        assert np.sqrt((moved**2).sum(-1).mean()) == pytest.approx(estimate, rel=0.4)


# ---------------------------------------------------------------- points


def test_an_untrained_network_is_damped_constant_velocity() -> None:
    network = PointPredictor(5, past=6, damping=0.8).eval()
    past = torch.randn(3, 2, 5).cumsum(dim=1)
    past = torch.cat([past, past[:, -1:] + 0.5], dim=1)
    rolled = network.rollout(network.begin(past), 4)
    path = torch.tensor([0.4, 0.72, 0.976, 1.1808])
    expected = past[:, -1:] + path[None, :, None]
    # An untrained network has wide bounds, which do not clamp here.
    torch.testing.assert_close(rolled, expected)


def test_the_state_is_an_argument_and_a_result() -> None:
    network = PointPredictor(3, past=4).eval()
    randomised(network, 0.1)
    initial = network.begin(torch.randn(2, 7, 3))
    before = initial.past.clone()
    first, state = network(initial)
    assert torch.equal(initial.past, before)
    assert torch.equal(state.past[:, -1], first) and torch.equal(state.past[:, :-1], before[:, 1:])
    assert torch.equal(network(initial)[0], first)
    second, _ = network(state)
    assert torch.equal(network.rollout(initial, 2), torch.stack([first, second], dim=1))


def test_a_long_rollout_stays_within_bounds() -> None:
    network = PointPredictor(4).eval()
    states = torch.randn(50, 4)
    network.learn_range(states, states[1:] - states[:-1], margin=0.25)
    randomised(network)
    past = states[None, :5].clone()
    past[:, :, 3] += 9  # footage outside the range may stay there
    rolled = network.rollout(network.begin(past), 300)
    assert torch.isfinite(rolled).all()
    extent = states.amax(dim=0) - states.amin(dim=0)
    assert (rolled[..., :3] <= (states.amax(dim=0) + 0.26 * extent)[:3]).all()
    assert (rolled[..., 3] <= past[..., 3].max() + 1e-5).all()


# ---------------------------------------------------------------- labels


def maps(batch: int = 1, height: int = 32, width: int = 48, channels: int = 4) -> torch.Tensor:
    torch.manual_seed(1)
    blocks = torch.randint(channels, (batch, 3, height // 8, width // 8))
    return blocks.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def test_occlusion_selects_between_copy_and_synthesis() -> None:
    last = one_hot(maps()[:, -1], 4)
    zeros = torch.zeros(1, 3, 32, 48)
    synthesised = torch.full_like(last, 0.25)
    output = compose_map(last, zeros[:, :2], zeros[:, 2:], synthesised)
    torch.testing.assert_close(output.following, last, atol=1e-4, rtol=0)
    output = compose_map(last, zeros[:, :2], zeros[:, 2:] + 1, synthesised)
    torch.testing.assert_close(output.following, synthesised)


def test_an_untrained_network_copies_the_last_map() -> None:
    network = LabelPredictor(4, width=16).eval()
    labels = maps()
    with torch.no_grad():
        output, state = network(LabelState(one_hot(labels, 4)))
    assert torch.equal(output.following.argmax(dim=1), labels[:, -1])
    assert torch.equal(output.flow, torch.zeros_like(output.flow))
    assert torch.equal(state.maps[:, -1], output.following)


def test_probabilities_sum_to_one_and_void_is_never_synthesised() -> None:
    network = LabelPredictor(4, width=16).eval()
    randomised(network, 0.1)
    with torch.no_grad():
        output, _ = network(LabelState(one_hot(maps(), 4)))
    assert not output.made_up[:, -1].any()
    torch.testing.assert_close(output.following.sum(dim=1), torch.ones(1, 32, 48))
