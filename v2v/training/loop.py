"""The training loop. `train` reads from top to bottom:

    processes, device, precision     lightning-fabric
    data                             windows of the clips, background plates
    networks, optimisers             generator, its moving average, discriminators
    resume                           from the newest checkpoint
    loop                             stage, window, log, checkpoint, preview
    finish                           the model

All randomness derives from the seed and the window number, so there is no random state to save: a
killed run resumes from its last checkpoint and reproduces the same numbers. A run that is asked to
stop does so after the current update, in the middle of a window if need be.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from v2v.checkpoint import (
    DAMAGED,
    Checkpoint,
    Model,
    as_progress,
    load_optimiser,
    load_weights,
    save_model,
)
from v2v.data.transforms import PastCorruption, corrupt_past
from v2v.data.windows import ClipDataset, loader
from v2v.errors import CheckpointInvalid, OutOfMemory, RunConflict, TrainingDiverged, V2VError
from v2v.models import build_generator
from v2v.models.augment import draw
from v2v.models.baselines.pix2pixhd import Clusters, FeatureEncoder, cluster_features
from v2v.models.discriminators import DiscriminatorOutput, Discriminators, frozen, with_real
from v2v.models.rollout import rollout
from v2v.prefetch import prefetch
from v2v.progress import Reporter, Silent
from v2v.records import Count, Record
from v2v.runtime import cores, cpu_has_bf16
from v2v.training.objective import Objective, Rendered
from v2v.training.prepare import TrainingPlan, describe_model, files_used, open_windows, plan_run
from v2v.training.preview import write_preview
from v2v.training.run import RunFolder
from v2v.training.schedule import Stage, stage_at
from v2v.training.settings import Budget, TrainSettings
from v2v.training.stopping import GracefulStop
from v2v.types import Batch, GeneratorState

ROLLBACKS = 3  # times that a diverged run is rolled back before training gives up
ROLLBACK_LR_SCALE = 0.5  # factor on the learning rates after each rollback
CLUSTERED = 64  # training frames whose instance features are clustered


@dataclass
class Progress:
    """The progress of a run; checkpoints store all of it."""

    step: int = 0  # updates of the generator
    window: int = 0  # finished batches of windows; with the seed, it determines the next one
    frame: int = 0  # of the current window, where the next chunk begins
    stage: int = 0
    seconds: float = 0.0  # of training, over all restarts
    lr_scale: float = 1.0  # factor on the learning rates, after rollbacks
    rollbacks: int = 0
    bptt_steps: int = 1  # frames that gradients flow through; lowered when memory runs out
    accumulate: int = 1  # parts of a batch; raised when memory runs out
    recompute: bool = False

    @classmethod
    def read(cls, saved: dict[str, Any], where: Path) -> tuple[Progress, int]:
        """A checkpoint's progress and number of averaged updates. Raises `CheckpointInvalid`."""
        values = as_progress(SavedProgress, saved, where).model_dump()
        averaged = values.pop("averaged")
        return cls(**values), averaged

    def share(self, budget: Budget) -> float:
        """The fraction of the budget that is used up."""
        if budget.steps is not None:
            return self.step / budget.steps
        assert budget.minutes is not None
        return self.seconds / 60 / budget.minutes


class SavedProgress(Record):
    """`Progress` as a checkpoint stores it. Fields of other versions are ignored."""

    model_config = ConfigDict(extra="ignore")

    averaged: Count
    step: Count = 0
    window: Count = 0
    frame: Annotated[int, Field(ge=0, le=256)] = 0
    stage: Annotated[int, Field(ge=0, le=10_000)] = 0
    seconds: Annotated[float, Field(ge=0, le=1e10)] = 0.0
    lr_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    rollbacks: Annotated[int, Field(ge=0, le=ROLLBACKS)] = 0
    bptt_steps: Annotated[int, Field(ge=1, le=8)] = 1
    accumulate: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    recompute: bool = False


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of a training run."""

    folder: Path
    model: Path
    steps: int
    minutes: float
    losses: dict[str, float]
    preview: Path | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.folder), "model": str(self.model), "steps": self.steps,
            "minutes": round(self.minutes, 2), "losses": self.losses,
            "preview": str(self.preview) if self.preview else None, "notes": list(self.notes),
        }  # fmt: skip


class Unroll(nn.Module):
    """The generator over a chunk as one module: DDP needs one forward per backward."""

    def __init__(self, generator: nn.Module, corruption: PastCorruption) -> None:
        super().__init__()
        self.generator = generator
        self.corruption = corruption
        self.recompute = False

    def forward(
        self, batch: dict[str, Tensor | None], state: dict[str, Tensor] | None, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Takes and returns plain dicts: Fabric and DDP find tensors only in those."""
        chunk = Batch(**batch)  # type: ignore[arg-type]
        random = torch.Generator(chunk.frames.device).manual_seed(seed)

        def corrupt(frames: Tensor) -> Tensor:
            with torch.autocast(frames.device.type, enabled=False):
                return corrupt_past(frames, **self.corruption.model_dump(), generator=random)

        conditions = [chunk.condition(t) for t in range(chunk.length)]
        if getattr(self.generator, "wants_target", False):
            conditions = [replace(c, style=chunk.frames[:, t]) for t, c in enumerate(conditions)]
        past = None if state is None else GeneratorState(**state)
        rolled = rollout(
            self.generator, conditions, past, corrupt=corrupt, recompute=self.recompute
        )
        outputs, states = zip(*rolled, strict=True)
        names = ("frame", "synthesised", "synthesis_only", "warped", "flow", "occlusion", "matte")
        stacked = {
            name: torch.stack([getattr(o, name) for o in outputs], dim=1)
            for name in names
            if getattr(outputs[0], name) is not None
        }
        extra = [o.auxiliary for o in outputs if o.auxiliary is not None]
        if extra:
            stacked["auxiliary"] = torch.stack(extra).mean()
        return stacked, vars(states[-1])


@dataclass(frozen=True)
class _Step:
    """What the loader needs to draw a batch of windows."""

    step: int
    length: int
    size: tuple[int, int]
    batch: int


@dataclass
class History:
    """The frames of a window before the chunk, for temporal discriminators and losses."""

    batch: Batch
    fake: Tensor | None = None  # [B, t, 3, H, W], detached
    state: GeneratorState | None = None

    def to_carry(self) -> dict[str, Tensor]:
        """The tensors that the next chunk needs."""
        assert self.fake is not None and self.state is not None
        return {"fake": self.fake, **vars(self.state)}

    @classmethod
    def resume(cls, batch: Batch, carried: dict[str, Tensor]) -> History:
        state = {name: value for name, value in carried.items() if name != "fake"}
        return cls(batch, carried["fake"], GeneratorState(**state))


def train(
    settings: TrainSettings,
    clips: list[Path],
    folder: Path,
    report: Reporter,
    *,
    overwrite: bool = False,
) -> TrainingResult:
    """Train a model on clip stores in a run folder, or resume a stopped run.

    Raises `RunConflict`, `SignalMissing`, `TooFewFrames`, `TrainingDiverged`, `OutOfMemory`,
    `DiskFull` and what opening stores raises; `KeyboardInterrupt` once a stopped run is saved.
    """
    # Processes, device, precision.
    fabric = launch(settings)
    first = fabric.is_global_zero
    settings = with_budget(settings)

    # Data.
    windows = open_windows(settings, clips, report if first else None)
    plan = plan_run(settings, windows, world=fabric.world_size)
    notes = [*windows.notes, *plan.notes]

    # Networks, optimisers.
    trainer = Trainer(fabric, settings, windows, plan, report if first else Silent())
    with RunFolder(folder) if first else nullcontext(RunFolder(folder)) as run:
        if first:
            if overwrite:
                run.clear()
            run.begin(settings, clips, files_used(settings, windows))
            for note in notes:
                report.note(note)
        fabric.barrier()

        # Resume.
        checkpoint = run.latest()
        if checkpoint is not None:
            trainer.restore(checkpoint, run.checkpoints)
        progress = trainer.progress
        if first:
            run.rewind(progress.step)
            if progress.step and progress.share(settings.budget) >= 1:
                report.note(f"{folder} is already trained; increase the budget to train it further")
            elif progress.step:
                report.note(f"resuming from step {progress.step}")

        # Loop.
        log_writer = _LogWriter(run, settings, first, progress.step)
        with GracefulStop() as stopping, log_writer:
            stopped = _loop(trainer, run, log_writer, stopping, report)
        fabric.barrier()  # no process leaves before the first has saved
        if stopped:
            raise KeyboardInterrupt

        # Finish.
        preview = None
        if first:
            preview = trainer.publish(run)
        fabric.barrier()
    return TrainingResult(
        folder=folder, model=run.model, steps=trainer.progress.step,
        minutes=trainer.progress.seconds / 60, losses=log_writer.last, preview=preview,
        notes=tuple(notes),
    )  # fmt: skip


def _loop(
    trainer: Trainer,
    run: RunFolder,
    log_writer: _LogWriter,
    stopping: GracefulStop,
    report: Reporter,
) -> bool:
    """Train until the budget is used up. Returns whether it was stopped earlier."""
    settings, fabric = trainer.settings, trainer.fabric
    output, budget = settings.output, settings.budget
    first = fabric.is_global_zero
    if first and not run.saved():
        trainer.save(run)  # for rollbacks
    bar = _ProgressBar(report if first else None, trainer)
    clock = time.monotonic()
    saved = previewed = trainer.progress.seconds

    stop = False
    while trainer.progress.share(budget) < 1 and not stop:
        stage = trainer.enter_stage()
        bar.announce(stage)
        for batch in trainer.batches(stage):
            losses = trainer.window(batch, stopping)

            # All processes use the clock and the stop flag of the first one: if they disagreed on
            # what is due, they would deadlock.
            trainer.progress.seconds += time.monotonic() - clock
            clock = time.monotonic()
            stop = stopping.asked
            if fabric.world_size > 1:
                trainer.progress.seconds, stop = fabric.broadcast((trainer.progress.seconds, stop))
            now = trainer.progress.seconds
            bar.advance(losses)
            over = trainer.progress.share(budget) >= 1 or stop
            save_due = over or now - saved > 60 * output.checkpoint_minutes
            preview_due = not over and now - previewed > 60 * output.preview_minutes

            # Log. Roll back from NaN or infinite values, so that only finite weights are saved.
            log_writer.add(losses)
            saving = save_due or preview_due
            if log_writer.due(trainer.progress) or saving:
                if not log_writer.finite(fabric) or (saving and not trainer.finite()):
                    trainer.roll_back(run, report)
                    log_writer.rewind(trainer.progress.step)
                    if stop and first:
                        trainer.save(run)  # stores the lower learning rates
                    break
                log_writer.write(trainer, stage)
            if save_due:
                saved = now
                if first:
                    trainer.save(run)
            if preview_due:
                previewed = now
                if first:
                    trainer.publish(run)
            if over or trainer.stage_is_over():
                break
    bar.done()
    return stop and trainer.progress.share(budget) < 1


def launch(settings: TrainSettings) -> Fabric:
    """Set up processes, device and precision; joins processes that torchrun started."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # silence its start-up banner
    loop = settings.loop
    device = "auto" if loop.device == "auto" else {"cuda": "gpu"}.get(loop.device, loop.device)
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if loop.device == "auto" and on_cpu:
        device = "cpu"
    precision = "32-true" if loop.precision == "32" else "bf16-mixed"
    if loop.precision == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        has_bf16 = cpu_has_bf16() if on_cpu else on_gpu
        precision = "bf16-mixed" if has_bf16 else "32-true"
    devices, nodes = _processes(loop.devices)
    # Inactive scales and temporal discriminators with too long a stride get no gradients.
    strategy = "ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto"
    try:
        fabric = Fabric(
            accelerator=device, devices=devices, num_nodes=nodes, strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        fabric.launch()
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        if isinstance(error, V2VError):
            raise
        raise RunConflict(
            f"cannot train on {loop.devices} x {loop.device}: {error}",
            hint="use -s loop.device=cpu or --devices 1, which work everywhere",
        ) from error
    if on_cpu:
        # Leave one core to the loader: threads spin while they wait for one another, so if one of
        # them has to wait for its core, convolutions take many times as long.
        torch.set_num_threads(loop.threads or max((cores() - 1) // devices, 1))
    return fabric


def _processes(devices: int) -> tuple[int, int]:
    """Processes per machine and number of machines; torchrun overrides both."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, 1
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def with_budget(settings: TrainSettings) -> TrainSettings:
    """The settings, with a budget of one hour if none is given."""
    if settings.budget.steps is None and settings.budget.minutes is None:
        return settings.model_copy(update={"budget": Budget(steps=None, minutes=60)})
    return settings


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
        generator: Any = self.generator
        if hasattr(generator, "active"):
            for module in (generator, self.ema.module):
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
                hint="train smaller: --size 128, -s generator.preset=mobile,"
                " -s discriminator.width=16",
            ) from error
        self.report.note(f"out of memory: {change} from now on")

    # ------------------------------------------------------------ keeping

    def finite(self) -> bool:
        """Whether all weights are finite: a gradient can overflow although the loss is finite."""
        modules = (self.generator, self.ema.module, self.discriminators)
        weights = [p.detach() for module in modules for p in module.parameters()]
        norms = torch.stack(torch._foreach_norm(weights))  # type: ignore[arg-type]
        return bool(torch.isfinite(norms).all())

    def save(self, run: RunFolder) -> None:
        modules = {
            "generator": self.generator.state_dict(),
            "ema": self.ema.module.state_dict(),
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
            "generator": self.generator, "ema": self.ema.module,
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

    def publish(self, run: RunFolder) -> Path | None:
        """Write the current model and a preview of it."""
        clusters = self._clusters()
        save_model(run.model, self._model(clusters))
        return self._preview(run, clusters)

    def _model(self, features: Clusters | None) -> Model:
        """The current model: the moving average of the generator."""
        record = describe_model(
            self.settings, self.windows, self.plan,
            active=getattr(self.generator, "active", None),
            training={
                "steps": self.progress.step, "minutes": round(self.progress.seconds / 60, 2),
                "perceptual": type(self.objective.perceptual).__name__,
            },
        )  # fmt: skip
        clusters = {
            f"clusters.{kind}": torch.from_numpy(centres)
            for kind, centres in (features or {}).items()
        }
        statistics = {**self.plan.statistics, **clusters}
        downscale = self.plan.height // record.height
        background_plates = {
            clip: torch.nn.functional.avg_pool2d(background_plate, downscale)
            for clip, background_plate in self.plan.background_plates.items()
        }
        references = {
            clip: found.scaled((record.height, record.width))
            for clip, found in enumerate(self.windows.references)
        }
        backgrounds = {
            clip: found
            for clip in background_plates
            if (found := self.windows.backgrounds(clip, (record.height, record.width)))
        }
        return Model(
            record, self.ema.module, background_plates, statistics, references, backgrounds
        )

    @torch.no_grad()
    def _clusters(self) -> Clusters | None:
        """Clusters of the instance features of the training footage, for models that use them."""
        encoder = getattr(self.ema.module, "encoder", None)
        if not isinstance(encoder, FeatureEncoder):
            return None
        stage = self.stage()
        size = (stage.height, stage.width)
        starts = range(0, CLUSTERED, 8)
        batches = (self.shown.batch(range(n, n + 8), 1, size) for n in starts)
        return cluster_features(encoder, (b.to(self.fabric.device) for b in batches))

    def _preview(self, run: RunFolder, features: Clusters | None) -> Path | None:
        stage = self.stage()
        return write_preview(
            self.ema.module, self.shown, run.previews / f"{self.progress.step:08d}.mp4",
            size=(stage.height, stage.width), seconds=self.settings.output.preview_seconds,
            device=self.fabric.device, clusters=features,
        )  # fmt: skip


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


# ---------------------------------------------------------------- around the loop


class _LogWriter:
    """Writes the log and TensorBoard: means over the updates since the last entry."""

    def __init__(self, run: RunFolder, settings: TrainSettings, enabled: bool, step: int) -> None:
        self.run, self.every, self.enabled = run, settings.output.log_every, enabled
        self.last: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._writer: Any = None
        self.rewind(step)

    def __enter__(self) -> _LogWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def due(self, progress: Progress) -> bool:
        return progress.step >= self._next

    def finite(self, fabric: Fabric) -> bool:
        """Whether all losses since the last entry are finite, in every process."""
        sums = torch.stack(list(self._sums.values())).sum() if self._sums else torch.zeros(())
        bad = (~torch.isfinite(sums)).float()
        if fabric.world_size > 1:
            bad = fabric.all_reduce(bad, reduce_op="sum")  # type: ignore[assignment]
        return not bool(bad.item())

    def rewind(self, step: int) -> None:
        """Discard unwritten losses and continue from `step`."""
        self._sums, self._counts = {}, {}
        self._next = (step // self.every + 1) * self.every
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write(self, trainer: Trainer, stage: Stage) -> None:
        progress = trainer.progress
        self._next = (progress.step // self.every + 1) * self.every
        self.last = {n: float(v) / self._counts[n] for n, v in self._sums.items()}
        self._sums, self._counts = {}, {}
        if not self.enabled or not self.last:
            return
        rate = trainer.rate(trainer.settings.optimiser.generator_rate)
        losses = {name: round(value, 6) for name, value in self.last.items()}
        self.run.log(
            {
                "step": progress.step, "minutes": round(progress.seconds / 60, 4),
                "stage": progress.stage, "size": [stage.width, stage.height],
                "length": stage.length, "rate": rate, "losses": losses,
            }
        )  # fmt: skip
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(  # type: ignore[no-untyped-call]
                str(self.run.folder / "tensorboard"), purge_step=progress.step
            )
        for name, value in self.last.items():
            self._writer.add_scalar(name, value, progress.step)
        self._writer.add_scalar("schedule/rate", rate, progress.step)
        self._writer.add_scalar("schedule/stage", progress.stage, progress.step)
        self._writer.flush()


class _ProgressBar:
    """A progress bar over the whole run, in the unit of the budget: updates or seconds."""

    def __init__(self, report: Reporter | None, trainer: Trainer) -> None:
        self.report, self.trainer = report, trainer
        self.name = "train"
        self.described = 0.0
        budget = trainer.settings.budget
        self.units = budget.steps or round(60 * (budget.minutes or 0))
        self.at = self._share()
        if report is not None:
            report.start(self.name, self.units, self.at)

    def _share(self) -> int:
        share = self.trainer.progress.share(self.trainer.settings.budget)
        return min(int(share * self.units), self.units)

    def announce(self, stage: Stage) -> None:
        if self.report is not None:
            number, of = self.trainer.progress.stage + 1, len(self.trainer.plan.schedule)
            self.report.note(f"stage {number} of {of}: {stage}")

    def advance(self, losses: dict[str, Tensor]) -> None:
        if self.report is None:
            return
        now = self._share()
        self.report.advance(self.name, now - self.at)
        self.at = now
        if time.monotonic() - self.described < 0.5:  # reading a loss waits for the GPU
            return
        self.described = time.monotonic()
        stage = self.trainer.stage()
        total = float(losses["total"])
        self.report.describe(
            self.name,
            f"train {stage.width}x{stage.height} x{stage.length}"
            f"  step {self.trainer.progress.step}  loss {total:.2f}",
        )

    def done(self) -> None:
        if self.report is not None and self._share() >= self.units:
            self.report.finish(self.name)
