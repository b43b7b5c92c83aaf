"""Training, rendering and export share one rollout."""

from __future__ import annotations

import torch
from test_generator import TINY

from v2v.data.transforms import PastCorruption
from v2v.models.generator import SequentialGenerator
from v2v.models.rollout import rollout
from v2v.training.unroll import Unroll
from v2v.types import Batch, Condition, GeneratorState

FRAMES = 64


def generator() -> SequentialGenerator:
    torch.manual_seed(0)
    network = SequentialGenerator(channels=3, arch=TINY, scales=1, compose="both")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


def conditions(count: int = FRAMES) -> list[Condition]:
    torch.manual_seed(1)
    return [Condition(signals=torch.rand(1, 3, 16, 24)) for _ in range(count)]


def test_rendering_equals_the_training_rollout() -> None:
    """64 free-running frames in eval mode equal those of training, unrolled in chunks of 2."""
    network, inputs = generator(), conditions()
    with torch.no_grad():
        network.eval()
        rendered = torch.stack([o.frame for o, _ in rollout(network, inputs)], dim=1)
        network.train()
        unroll = Unroll(network, PastCorruption(noise=0, blur=0, colour=0))
        signals = torch.stack([c.signals for c in inputs], dim=1)
        batch = Batch(torch.zeros(1, FRAMES, 3, 16, 24), signals, torch.zeros(1, dtype=torch.int64))
        state, trained = None, []
        for start in range(0, FRAMES, 2):
            outputs, state = unroll(vars(batch.between(start, start + 2)), state, start)
            trained.append(outputs["frame"])
    assert torch.equal(torch.cat(trained, dim=1), rendered)


def test_chunks_equal_the_whole_rollout() -> None:
    network, inputs = generator(), conditions(12)
    with torch.no_grad():
        whole = [o.frame for o, _ in rollout(network, inputs)]
        first = list(rollout(network, inputs[:5]))
        second = list(rollout(network, inputs[5:], first[-1][1]))
    parts = [o.frame for o, _ in first + second]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_the_rollout_is_lazy() -> None:
    consumed = []

    def endless() -> object:
        while True:
            consumed.append(1)
            yield conditions(1)[0]

    with torch.no_grad():
        rolled = rollout(generator(), endless())  # type: ignore[arg-type]
        for _ in range(3):
            next(rolled)
    assert len(consumed) == 3


def test_gradients_flow_back_through_time() -> None:
    network = generator()
    inputs = conditions(3)
    first = inputs[0].signals.requires_grad_()
    *_, (last, _) = rollout(network, inputs)
    last.frame.mean().backward()
    assert first.grad is not None and first.grad.abs().sum() > 0


def test_recomputing_keeps_the_gradients() -> None:
    gradients = []
    for recompute in (False, True):
        network = generator()
        *_, (last, _) = rollout(network, conditions(3), recompute=recompute)
        last.frame.mean().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    for stored, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(stored, recomputed)


def test_corruption_affects_the_fed_back_frames_only() -> None:
    network, inputs = generator(), conditions(4)
    with torch.no_grad():
        outputs = list(rollout(network, inputs, corrupt=lambda past: past + 1))
    for (output, state), (_, following) in zip(outputs, outputs[1:], strict=False):
        assert torch.equal(state.frames[:, -1], output.frame.clamp(-1, 1))
        assert torch.equal(following.frames[:, 0], output.frame.clamp(-1, 1))


def test_corruption_keeps_missing_frames_empty() -> None:
    state = GeneratorState.empty(conditions(1)[0])
    assert not state.with_frames(torch.ones_like(state.frames)).frames.any()


def test_a_rollout_can_start_from_a_real_frame() -> None:
    network, inputs = generator(), conditions(2)
    real = torch.rand(1, 3, 16, 24)
    state = GeneratorState.from_frame(inputs[0], real)
    assert state.valid.tolist() == [[0, 1]]
    with torch.no_grad():
        started = next(rollout(network, inputs[1:], state))[0].frame
        unstarted = next(rollout(network, inputs[1:]))[0].frame
    assert not torch.allclose(started, unstarted)
