"""One rollout for training, rendering and export."""

from __future__ import annotations

import torch
from test_generator import TINY

from v2v.data.transforms import PastCorruption
from v2v.models.generator import SequentialGenerator
from v2v.models.rollout import rollout
from v2v.training.loop import Unroll
from v2v.types import Batch, Condition, GeneratorState

FRAMES = 64


def generator() -> SequentialGenerator:
    torch.manual_seed(0)
    made = SequentialGenerator(channels=3, arch=TINY, scales=1, compose="both")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def conditions(count: int = FRAMES) -> list[Condition]:
    torch.manual_seed(1)
    return [Condition(signals=torch.rand(1, 3, 16, 24)) for _ in range(count)]


def test_rendering_equals_the_training_rollout() -> None:
    """64 free-running frames in eval, one by one, are those of training's unrolled chunks."""
    made, seen = generator(), conditions()
    with torch.no_grad():
        made.eval()
        rendered = torch.stack([o.frame for o, _ in rollout(made, seen)], dim=1)
        made.train()
        unroll = Unroll(made, PastCorruption(noise=0, blur=0, colour=0))
        signals = torch.stack([c.signals for c in seen], dim=1)
        batch = Batch(torch.zeros(1, FRAMES, 3, 16, 24), signals, torch.zeros(1, dtype=torch.int64))
        state, trained = None, []
        for start in range(0, FRAMES, 2):
            outputs, state = unroll(vars(batch.between(start, start + 2)), state, start)
            trained.append(outputs["frame"])
    assert torch.equal(torch.cat(trained, dim=1), rendered)


def test_chunks_are_the_whole() -> None:
    made, seen = generator(), conditions(12)
    with torch.no_grad():
        whole = [o.frame for o, _ in rollout(made, seen)]
        first = list(rollout(made, seen[:5]))
        rest = list(rollout(made, seen[5:], first[-1][1]))
    parts = [o.frame for o, _ in first + rest]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_it_is_lazy() -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield conditions(1)[0]

    with torch.no_grad():
        rolled = rollout(generator(), endless())  # type: ignore[arg-type]
        for _ in range(3):
            next(rolled)
    assert len(taken) == 3


def test_gradients_flow_back_through_time() -> None:
    made = generator()
    seen = conditions(3)
    first = seen[0].signals.requires_grad_()
    *_, (last, _) = rollout(made, seen)
    last.frame.mean().backward()
    assert first.grad is not None and first.grad.abs().sum() > 0


def test_recomputing_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        made = generator()
        *_, (last, _) = rollout(made, conditions(3), recompute=recompute)
        last.frame.mean().backward()
        gradients.append([p.grad for p in made.parameters() if p.grad is not None])
    for straight, again in zip(*gradients, strict=True):
        torch.testing.assert_close(straight, again)


def test_what_is_fed_back_may_be_corrupted_but_not_what_is_kept() -> None:
    made, seen = generator(), conditions(4)
    with torch.no_grad():
        outputs = list(rollout(made, seen, corrupt=lambda past: past + 1))
    for (output, state), (_, following) in zip(outputs, outputs[1:], strict=False):
        assert torch.equal(state.frames[:, -1], output.frame.clamp(-1, 1))
        assert torch.equal(following.frames[:, 0], output.frame.clamp(-1, 1))


def test_frames_that_are_not_there_stay_nothing_when_corrupted() -> None:
    state = GeneratorState.empty(conditions(1)[0])
    assert not state.with_frames(torch.ones_like(state.frames)).frames.any()


def test_a_real_first_frame_may_be_given() -> None:
    made, seen = generator(), conditions(2)
    real = torch.rand(1, 3, 16, 24)
    state = GeneratorState.from_frame(seen[0], real)
    assert state.valid.tolist() == [[0, 1]]
    with torch.no_grad():
        given = next(rollout(made, seen[1:], state))[0].frame
        nothing = next(rollout(made, seen[1:]))[0].frame
    assert not torch.allclose(given, nothing)
