"""The networks, their optimisers, and training on one batch of windows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from v2v.data.dataset import ClipDataset
from v2v.data.loader import loader
from v2v.errors import CheckpointInvalid, OutOfMemory, TrainingDiverged
from v2v.models import Generator, build_generator
from v2v.models.augment import draw
from v2v.models.discriminators import DiscriminatorOutput, Discriminators, frozen, with_real
from v2v.prefetch import prefetch
from v2v.progress import Reporter
from v2v.resume import Checkpoint
from v2v.tensors import DAMAGED, load_optimiser, load_weights
from v2v.training.objective import Objective, Rendered
from v2v.training.prepare import TrainingPlan
from v2v.training.run import RunFolder
from v2v.training.schedule import Stage, stage_at
from v2v.training.settings import TrainSettings
from v2v.training.state import ROLLBACKS, History, Progress
from v2v.training.stopping import GracefulStop
from v2v.training.unroll import Unroll
from v2v.types import Batch, GeneratorState

ROLLBACK_LR_SCALE = 0.5  # factor on the learning rates after each rollback


@dataclass(frozen=True)
class _Step:
    """What the loader needs to draw a batch of windows."""

    step: int
    length: int
    size: tuple[int, int]
    batch: int


class Trainer:
    """The networks, their optimisers, and training on one batch of windows."""

    def __init__(
        self,
        fabric: Fabric,
        settings: TrainSettings,
        windows: ClipDataset,
        plan: TrainingPlan,
        report: Reporter,
    ) -> None:
        self.fabric, self.settings, self.windows, self.plan = fabric, settings, windows, plan
        self.report = report
        loop = settings.loop
        torch.manual_seed(loop.seed)  # initial weights
        self.generator = build_generator(**plan.generator)
        self.discriminators = Discriminators(
            settings.discriminator, channels=windows.channels,
            weights=plan.discriminators, crops=plan.crops,
        )  # fmt: skip
        if loop.channels_last:
            self.generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.discriminators.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        average = _moving_average(settings.optimiser.ema)
        self.ema = AveragedModel(self.generator, multi_avg_fn=average)
        self.ema.requires_grad_(False).to(fabric.device)
        self.objective = Objective(settings.losses).to(fabric.device)
        self.left: list[dict[str, Tensor]] = []  # history of each part of an unfinished window
        self.progress = Progress(
            bptt_steps=loop.bptt_steps, accumulate=loop.accumulate, recompute=loop.recompute
        )

        o = settings.optimiser
        unroll: nn.Module = Unroll(self.generator, settings.augment.past)
        if loop.compile:
            self.generator.compile(dynamic=False)
            self.discriminators.compile(dynamic=False)
        g_adam = torch.optim.Adam(
            self.generator.parameters(), o.generator_rate, betas=o.betas, fused=True
        )
        # The loader prefetches in its own thread, so previews need readers of their own.
        self.shown = copy.copy(windows)
        # An optimiser needs a parameter, even without discriminators.
        trainable = list(self.discriminators.parameters()) or [nn.Parameter(torch.zeros(()))]
        d_adam = torch.optim.Adam(trainable, o.discriminator_rate, betas=o.betas, fused=True)
        self.unroll, self.g_adam = fabric.setup(unroll, g_adam)
        if self.plan.discriminators:
            self.wrapped_discriminators, self.d_adam = fabric.setup(self.discriminators, d_adam)
        else:  # DDP refuses a module without parameters
            self.wrapped_discriminators, self.d_adam = (
                self.discriminators,
                fabric.setup_optimizers(d_adam),
            )

    @property
    def averaged(self) -> Generator:
        """The moving average of the generator: what a model consists of."""
        return cast(Generator, self.ema.module)

    # ------------------------------------------------------------ stages

    def stage(self) -> Stage:
        return self.plan.schedule[self.progress.stage]

    def stage_is_over(self) -> bool:
        share = self.progress.share(self.settings.budget)
        return stage_at(self.plan.schedule, share) > self.progress.stage

    def enter_stage(self) -> Stage:
        """Move to the stage that is due, but never back to an earlier one."""
        if not self.progress.frame:  # an unfinished window keeps its stage
            share = self.progress.share(self.settings.budget)
            self.progress.stage = max(self.progress.stage, stage_at(self.plan.schedule, share))
        return self.apply_stage()

    def apply_stage(self) -> Stage:
        """Set the generator's active scales and trainable parameters for the stage."""
        stage = self.stage()
        generator = self.generator
        if generator.grows:
            for module in (generator, self.averaged):
                module.active = stage.scale + 1
            generator.requires_grad_(not stage.freeze_lower)
            if stage.freeze_lower:
                for parameter in generator.newest():
                    parameter.requires_grad_(True)
        return stage

    def batches(self, stage: Stage) -> Iterator[Batch]:
        """The endless batches of a stage, from the current window on."""
        size = (stage.height, stage.width)
        batches = loader(
            self.windows,
            (_Step(n, stage.length, size, stage.batch) for n in count(self.progress.window)),
            rank=self.fabric.global_rank, world=self.fabric.world_size,
            workers=self.plan.workers,
        )  # fmt: skip
        return batches if self.plan.workers else prefetch(batches)

    def rate(self, base: float) -> float:
        """The learning rate: warmed up, lower for larger sizes, cooled down at the end."""
        o = self.settings.optimiser
        warm = min((self.progress.step + 1) / (o.warm_up + 1), 1.0)
        left = 1 - min(self.progress.share(self.settings.budget), 1.0)
        cool = min(left / o.cool_down, 1.0) if o.cool_down else 1.0
        return base * warm * self.stage().rate * (0.1 + 0.9 * cool) * self.progress.lr_scale

    # ------------------------------------------------------------ one window

    def window(self, batch: Batch, stopping: GracefulStop | None = None) -> dict[str, Tensor]:
        """Train on a batch of windows, chunk by chunk. Returns the mean losses, detached.

        Gradients flow through `bptt_steps` frames (truncated back-propagation through time);
        earlier frames are context. If memory runs out, less of the window is held at once. If
        `stopping` is set, the window is left after the current update and resumed next time.
        """
        batch = batch.to(self.fabric.device)
        while True:
            try:
                losses = self._window(batch, stopping)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if self.fabric.device.type == "cuda":
                    torch.cuda.empty_cache()
                self._fit_memory(len(batch), error)
        if not self.left:
            self.progress.window += 1
        return losses

    def _window(self, batch: Batch, stopping: GracefulStop | None) -> dict[str, Tensor]:
        chunk, per_window = self.progress.bptt_steps, self.settings.loop.updates == "window"
        rows = torch.arange(len(batch)).chunk(min(self.progress.accumulate, len(batch)))
        parts = [History(_batch_rows(batch, some)) for some in rows]
        if self.left:
            pairs = zip(parts, self.left, strict=True)
            parts = [History.resume(part.batch, carried) for part, carried in pairs]
        starts = range(self.progress.frame, batch.length, chunk)
        self.progress.frame, self.left = 0, []
        scale = 1 / (len(starts) if per_window else 1)
        # Several processes agree on whether to stop only between windows.
        may_leave = self.fabric.world_size == 1 and not per_window
        total: dict[str, Tensor] = {}
        frames: dict[str, int] = {}  # per loss: long temporal strides cover only the last ones
        for start in starts:
            stop = min(start + chunk, batch.length)
            seed = _seed(self.settings.loop.seed, self.progress.window, start)
            torch.manual_seed(seed + self.fabric.global_rank)  # for global randomness: dropout
            for i, part in enumerate(parts):
                last = i == len(parts) - 1
                share = scale * len(part.batch) / len(batch)
                losses = self._chunk(part, start, stop, share, seed + i, sync=last)
                for name, value in losses.items():
                    seen = len(part.batch) * (stop - start)
                    total[name] = total.get(name, 0.0) + value * seen
                    frames[name] = frames.get(name, 0) + seen
            if not per_window or stop == batch.length:
                self._update()
            if self.progress.step == self.settings.budget.steps:
                break
            if may_leave and stop < batch.length and stopping is not None and stopping.asked:
                self.progress.frame, self.left = stop, [part.to_carry() for part in parts]
                break
        return {name: value / frames[name] for name, value in total.items()}

    def _chunk(
        self, part: History, start: int, stop: int, share: float, seed: int, *, sync: bool
    ) -> dict[str, Tensor]:
        """Forward and backward through frames `start` to `stop`, for both networks.

        Generator and discriminators learn from the same rendering, with the discriminators'
        weights from before the update.
        """
        fabric = self.fabric
        self.unroll.recompute = self.progress.recompute
        chunk = part.batch.between(start, stop)

        # Render.
        with self._unsynced(self.unroll, sync):
            state = None if part.state is None else vars(part.state)
            stacked, past = self.unroll(vars(chunk), state, seed)
        rendered = Rendered(**stacked)
        part.state = GeneratorState(**past).detach()

        # Discriminator inputs: the chunk and the frames rendered before it.
        context = min(start, self.discriminators.context)
        seen = part.batch.between(start - context, stop)
        fake = rendered.frame.to(seen.frames.dtype)
        detached = fake.detach()
        if context:
            assert part.fake is not None
            fake = torch.cat([part.fake[:, -context:], fake], dim=1)
        augmentation = draw(
            self.settings.discriminator_augment, batch=len(seen),
            size=(fake.shape[-2], fake.shape[-1]),
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        signals, flow = augmentation.signals(seen.signals), seen.flow
        boxes = seen.boxes if seen.boxes is None else augmentation.boxes(seen.boxes)
        flow = flow if flow is None else augmentation.flow(flow)
        real, fake = augmentation.frames(seen.frames), augmentation.frames(fake)

        # Discriminators.
        losses: dict[str, Tensor] = {}
        discriminator_outputs: dict[str, DiscriminatorOutput] = {}
        inputs = {"flow": flow, "boxes": boxes, "newest": stop - start}
        if self.plan.discriminators:
            with self._unsynced(self.wrapped_discriminators, sync):
                d_outputs = self.wrapped_discriminators(signals, real, fake.detach(), **inputs)
                if d_outputs:  # empty if all of them need longer windows
                    total, parts = self.objective.for_discriminators(d_outputs)
                    fabric.backward(total * share)
                    losses |= parts

        # Generator.
        with frozen(self.discriminators), self._unsynced(self.unroll, sync):
            if self.plan.discriminators:
                with fabric.autocast():
                    discriminator_outputs = self.discriminators(signals, None, fake, **inputs)
                discriminator_outputs = with_real(discriminator_outputs, d_outputs)
            total, parts = self.objective.for_generator(
                rendered, chunk, discriminator_outputs=discriminator_outputs,
                before_real=part.batch.frames[:, start - 1] if start else None,
                before_fake=part.fake[:, -1] if start and part.fake is not None else None,
            )  # fmt: skip
            fabric.backward(total * share)
        losses |= parts
        losses["total"] = total
        part.fake = detached if part.fake is None else torch.cat([part.fake, detached], dim=1)
        part.fake = part.fake[:, -max(self.discriminators.context, 1) :]
        return {name: value.detach().float() for name, value in losses.items()}

    def _unsynced(self, module: Any, sync: bool) -> AbstractContextManager[None]:
        """Synchronise gradients between processes only for the last part of a batch."""
        context: AbstractContextManager[None] = self.fabric.no_backward_sync(
            module, enabled=not sync
        )
        return context

    def _update(self) -> None:
        """One step of both optimisers and of the moving average."""
        o = self.settings.optimiser
        for adam, module, base in (
            (self.d_adam, self.wrapped_discriminators, o.discriminator_rate),
            (self.g_adam, self.unroll, o.generator_rate),
        ):
            for group in adam.param_groups:
                group["lr"] = self.rate(base)
            if o.clip is not None and any(p.grad is not None for p in module.parameters()):
                self.fabric.clip_gradients(module, adam, max_norm=o.clip, error_if_nonfinite=False)
            adam.step()
            adam.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.generator)
        self.progress.step += 1

    def _fit_memory(self, batch: int, error: BaseException) -> None:
        """Hold less at once: split the batch, then fewer frames, then recompute."""
        p = self.progress
        for adam in (self.g_adam, self.d_adam):
            adam.zero_grad(set_to_none=True)
        if self.fabric.world_size > 1:  # the other processes would not know, and deadlock
            raise OutOfMemory(
                "not enough memory for this training",
                hint="use -s loop.recompute=true, -s loop.accumulate=2, -s loop.bptt_steps=1 or a"
                " smaller --size",
            ) from error
        if p.accumulate < batch:
            p.accumulate = min(2 * p.accumulate, batch)
            change = f"batches are split into {p.accumulate} parts"
        elif p.bptt_steps > 1:
            p.bptt_steps //= 2
            change = f"gradients flow through {p.bptt_steps} frame(s)"
        elif not p.recompute:
            p.recompute = True
            change = "activations are recomputed in the backward pass"
        else:
            raise OutOfMemory(
                "not enough memory to train on a single frame",
                hint="train smaller: --size 128, -s generator.preset=tiny,"
                " -s discriminator.width=16",
            ) from error
        self.report.note(f"out of memory: {change} from now on")

    # ------------------------------------------------------------ keeping

    def finite(self) -> bool:
        """Whether all weights are finite: a gradient can overflow although the loss is finite."""
        modules = (self.generator, self.averaged, self.discriminators)
        weights = [p.detach() for module in modules for p in module.parameters()]
        norms = torch.stack(torch._foreach_norm(weights))  # type: ignore[arg-type]
        return bool(torch.isfinite(norms).all())

    def save(self, run: RunFolder) -> None:
        modules = {
            "generator": self.generator.state_dict(),
            "ema": self.averaged.state_dict(),
            "discriminators": self.discriminators.state_dict(),
        }
        for i, carried in enumerate(self.left):
            modules[f"window.{i}"] = carried
        optimisers = {"g": self.g_adam.state_dict(), "d": self.d_adam.state_dict()}
        progress = {**asdict(self.progress), "averaged": int(self.ema.n_averaged)}
        run.save(Checkpoint(progress, modules, optimisers), keep=self.settings.output.keep)

    def restore(self, checkpoint: Checkpoint, where: Path) -> None:
        """Resume from a checkpoint. Raises `CheckpointInvalid`."""
        self.progress, averaged = Progress.read(checkpoint.progress, where)
        if self.progress.stage >= len(self.plan.schedule):
            raise CheckpointInvalid(
                f"{where}: progress.stage is {self.progress.stage}, but the run has"
                f" {len(self.plan.schedule)} stage(s)",
                hint=DAMAGED,
            )
        self.ema.n_averaged.fill_(averaged)
        modules = {
            "generator": self.generator, "ema": self.averaged,
            "discriminators": self.discriminators,
        }  # fmt: skip
        for name, module in modules.items():
            load_weights(module, dict(checkpoint.modules.get(name, {})), where)
        load_optimiser(self.g_adam, checkpoint.optimisers.get("g"), where)
        load_optimiser(self.d_adam, checkpoint.optimisers.get("d"), where)
        self.left = [
            {k: v.to(self.fabric.device) for k, v in part.items()}
            for part in self._unfinished_window(checkpoint, where)
        ]
        if not self.left:
            self.progress.frame, self.left = 0, []
        self.apply_stage()

    def _unfinished_window(self, checkpoint: Checkpoint, where: Path) -> list[dict[str, Tensor]]:
        """The history of each part of an unfinished window. Raises `CheckpointInvalid`."""
        parts = [n for n in checkpoint.modules if n.startswith("window.")]
        if not parts or self.fabric.world_size > 1:  # several processes hold different parts
            return []
        stage = self.stage()
        batch = stage.batch // self.fabric.world_size
        rows = torch.arange(batch).chunk(min(self.progress.accumulate, batch))
        found = [checkpoint.modules.get(f"window.{i}", {}) for i in range(len(rows))]
        names = {"fake", *(f.name for f in fields(GeneratorState))}
        size = (stage.height, stage.width)
        for part, row in zip(found, rows, strict=True):
            fits = set(part) == names and all(len(v) == len(row) for v in part.values())
            if not fits or any(part[n].shape[-2:] != size for n in ("fake", "frames", "signals")):
                fits = False
            if not fits or len(parts) != len(rows) or self.progress.frame >= stage.length:
                raise CheckpointInvalid(
                    f"{where}: the unfinished window does not fit this run",
                    hint=DAMAGED,
                )
        return found

    def roll_back(self, run: RunFolder, report: Reporter) -> None:
        """Restore the last good checkpoint and lower the learning rates.

        Raises `TrainingDiverged` after `ROLLBACKS` rollbacks.
        """
        rollbacks, lr_scale = (
            self.progress.rollbacks + 1,
            self.progress.lr_scale * ROLLBACK_LR_SCALE,
        )
        if rollbacks > ROLLBACKS:
            raise TrainingDiverged(
                f"the losses became NaN or infinite {rollbacks} times, last at step"
                f" {self.progress.step}; the last good checkpoint is {run.saved()[-1]}",
                hint="lower the learning rates: -s optimiser.generator_rate=1e-4"
                " -s optimiser.discriminator_rate=1e-4, or use -s loop.precision=32",
            )
        seconds = self.progress.seconds
        self.fabric.barrier()
        checkpoint = run.latest()
        assert checkpoint is not None
        self.restore(checkpoint, run.checkpoints)
        if self.fabric.is_global_zero:
            run.rewind(self.progress.step)
        self.progress.rollbacks, self.progress.lr_scale = rollbacks, lr_scale
        self.progress.seconds = seconds
        report.note(
            f"the losses became NaN or infinite: restored step {self.progress.step}, with"
            f" the learning rates scaled by {lr_scale:g}"
        )


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average with a lower decay at first (as in TensorFlow)."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        now = min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return average


def _batch_rows(batch: Batch, rows: Tensor) -> Batch:
    if len(rows) == len(batch):
        return batch
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return batch.map(lambda tensor: tensor[start:stop])


def _seed(*numbers: int) -> int:
    """Derive one seed from several numbers."""
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 2


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)
