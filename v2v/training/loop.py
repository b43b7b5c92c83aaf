"""The training loop. `train` reads from top to bottom:

    processes, device, precision     lightning-fabric
    data                             windows of the clips, background plates
    networks, optimisers             generator, its moving average, critics
    resume                           from the newest checkpoint
    loop                             stage, window, log, checkpoint, preview
    finish                           the model

Nothing is random but through the seed and the number of a window, so there is no random state to
save: a run that was killed goes on from its last checkpoint and passes through the same numbers.
One that is asked to stop does so after the update at hand, in the middle of a window if need be.
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

ROLLBACKS = 3  # times that a run that diverged is taken back before it is given up
ROLLBACK_LR_SCALE = 0.5  # learning rate after each
CLUSTERED = 64  # training frames that the looks of instances are clustered from


@dataclass
class Progress:
    """Where a run stands; all of it goes into checkpoints."""

    step: int = 0  # updates of the generator
    window: int = 0  # batches of windows done; with the seed, it decides the next
    frame: int = 0  # of the window at hand, where the next chunk begins
    stage: int = 0
    seconds: float = 0.0  # spent training, over all sittings
    lr_scale: float = 1.0  # factor on the learning rates, after rollbacks
    rollbacks: int = 0
    bptt_steps: int = 1  # frames that gradients flow through; lowered when memory runs out
    accumulate: int = 1  # parts of a batch; raised when memory runs out
    recompute: bool = False

    @classmethod
    def read(cls, saved: dict[str, Any], where: Path) -> tuple[Progress, int]:
        """From a checkpoint, with how often weights were averaged. Raises `CheckpointInvalid`."""
        values = as_progress(SavedProgress, saved, where).model_dump()
        averaged = values.pop("averaged")
        return cls(**values), averaged

    def share(self, budget: Budget) -> float:
        """Of the budget, that is used up."""
        if budget.steps is not None:
            return self.step / budget.steps
        assert budget.minutes is not None
        return self.seconds / 60 / budget.minutes


class SavedProgress(Record):
    """What a checkpoint says of it. Fields that other versions add are passed over."""

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
    """What came of it."""

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
    """The generator over a chunk, as one module: one forward for one backward, as DDP wants."""

    def __init__(self, generator: nn.Module, corruption: PastCorruption) -> None:
        super().__init__()
        self.generator = generator
        self.corruption = corruption
        self.recompute = False

    def forward(
        self, batch: dict[str, Tensor | None], state: dict[str, Tensor] | None, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Plain dicts in and out, since Fabric and DDP look for tensors in those only."""
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
    """What the loader must know of a window."""

    step: int
    length: int
    size: tuple[int, int]
    batch: int


@dataclass
class History:
    """The frames of a window before the chunk, for critics and losses that look back."""

    batch: Batch
    fake: Tensor | None = None  # [B, t, 3, H, W] without gradient
    state: GeneratorState | None = None

    def carried(self) -> dict[str, Tensor]:
        """What the next chunk wants of those before."""
        assert self.fake is not None and self.state is not None
        return {"fake": self.fake, **vars(self.state)}

    @classmethod
    def after(cls, batch: Batch, carried: dict[str, Tensor]) -> History:
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
    """Train a model from clip stores in a run folder; go on where it was stopped.

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
                report.note(f"{folder} is trained already; a larger budget takes it further")
            elif progress.step:
                report.note(f"going on from step {progress.step}")

        # Loop.
        board = _Board(run, settings, first, progress.step)
        with GracefulStop() as stopping, board:
            stopped = _loop(trainer, run, board, stopping, report)
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
        minutes=trainer.progress.seconds / 60, losses=board.last, preview=preview,
        notes=tuple(notes),
    )  # fmt: skip


def _loop(
    trainer: Trainer, run: RunFolder, board: _Board, stopping: GracefulStop, report: Reporter
) -> bool:
    """Train until the budget is used up; true where it was stopped before."""
    settings, fabric = trainer.settings, trainer.fabric
    output, budget = settings.output, settings.budget
    first = fabric.is_global_zero
    if first and not run.saved():
        trainer.save(run)  # something to go back to
    bar = _Bar(report if first else None, trainer)
    clock = time.monotonic()
    saved = seen = trainer.progress.seconds

    stop = False
    while trainer.progress.share(budget) < 1 and not stop:
        stage = trainer.enter_stage()
        bar.announce(stage)
        for batch in trainer.batches(stage):
            losses = trainer.window(batch, stopping)

            # The clock, and whether to stop, are the first process's, so that all agree on what
            # is due: those who do not would wait for one another for ever.
            trainer.progress.seconds += time.monotonic() - clock
            clock = time.monotonic()
            stop = stopping.asked
            if fabric.world_size > 1:
                trainer.progress.seconds, stop = fabric.broadcast((trainer.progress.seconds, stop))
            now = trainer.progress.seconds
            bar.advance(losses)
            over = trainer.progress.share(budget) >= 1 or stop
            save_due = over or now - saved > 60 * output.checkpoint_minutes
            preview_due = not over and now - seen > 60 * output.preview_minutes

            # Log; and where there are no numbers any more, go back. What is saved is sound.
            board.add(losses)
            keeping = save_due or preview_due
            if board.due(trainer.progress) or keeping:
                if not board.finite(fabric) or (keeping and not trainer.finite()):
                    trainer.roll_back(run, report)
                    board.rewind(trainer.progress.step)
                    if stop and first:
                        trainer.save(run)  # the lower rates
                    break
                board.write(trainer, stage)
            if save_due:
                saved = now
                if first:
                    trainer.save(run)
            if preview_due:
                seen = now
                if first:
                    trainer.publish(run)
            if over or trainer.stage_is_over():
                break
    bar.done()
    return stop and trainer.progress.share(budget) < 1


def launch(settings: TrainSettings) -> Fabric:
    """Processes, device and precision; torchrun's own processes are joined."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets
    loop = settings.loop
    device = "auto" if loop.device == "auto" else {"cuda": "gpu"}.get(loop.device, loop.device)
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if loop.device == "auto" and on_cpu:
        device = "cpu"
    precision = "32-true" if loop.precision == "32" else "bf16-mixed"
    if loop.precision == "auto":
        on_gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        quick = cpu_has_bf16() if on_cpu else on_gpu
        precision = "bf16-mixed" if quick else "32-true"
    devices, nodes = _processes(loop.devices)
    # The scales that wait for their turn, and critics of too long a stride, get no gradients.
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
            hint="-s loop.device=cpu or --devices 1 work everywhere",
        ) from error
    if on_cpu:
        # One core is left to the loader: threads that wait for one another spin, and where one of
        # them has to wait for its core, convolutions take many times as long.
        torch.set_num_threads(loop.threads or max((cores() - 1) // devices, 1))
    return fabric


def _processes(devices: int) -> tuple[int, int]:
    """Processes on a machine, and machines; under torchrun it has decided both."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, 1
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def with_budget(settings: TrainSettings) -> TrainSettings:
    """An hour, where nothing is said."""
    if settings.budget.steps is None and settings.budget.minutes is None:
        return settings.model_copy(update={"budget": Budget(steps=None, minutes=60)})
    return settings


class Trainer:
    """The networks, their optimisers, and one window's worth of training."""

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
        torch.manual_seed(loop.seed)  # what the weights start from
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
        self.left: list[dict[str, Tensor]] = []  # each part's history, of a window left half done
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
        # The loader reads ahead in a thread of its own: it gets readers of its own.
        self.shown = copy.copy(windows)
        # Without critics an optimiser wants something to hold.
        learning = list(self.discriminators.parameters()) or [nn.Parameter(torch.zeros(()))]
        d_adam = torch.optim.Adam(learning, o.discriminator_rate, betas=o.betas, fused=True)
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
        """Move on to the stage of the hour, never back: what has grown does not shrink."""
        if not self.progress.frame:  # a window that was left ends as it began
            share = self.progress.share(self.settings.budget)
            self.progress.stage = max(self.progress.stage, stage_at(self.plan.schedule, share))
        return self.apply_stage()

    def apply_stage(self) -> Stage:
        """Have the generator work at the stage's scale, and train what the stage trains."""
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
        """The batches of a stage from the present window on, without end."""
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
        """Train on a batch of windows, chunk by chunk; the mean losses, without gradient.

        Gradients flow through `chunk` frames (truncated back-propagation through time); what came
        before is context. When memory runs out, less of the window is held at once. Where it is
        asked to stop the window is left after the update at hand, and next time gone on with.
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
        parts = [History(_rows(batch, some)) for some in rows]
        if self.left:
            pairs = zip(parts, self.left, strict=True)
            parts = [History.after(part.batch, carried) for part, carried in pairs]
        starts = range(self.progress.frame, batch.length, chunk)
        self.progress.frame, self.left = 0, []
        scale = 1 / (len(starts) if per_window else 1)
        # Processes agree on whether to stop between windows only.
        may_leave = self.fabric.world_size == 1 and not per_window
        total: dict[str, Tensor] = {}
        frames: dict[str, int] = {}  # that each loss is of: long strides look at the last ones only
        for start in starts:
            stop = min(start + chunk, batch.length)
            seed = _seed(self.settings.loop.seed, self.progress.window, start)
            torch.manual_seed(seed + self.fabric.global_rank)  # of what draws by itself: dropout
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
                self.progress.frame, self.left = stop, [part.carried() for part in parts]
                break
        return {name: value / frames[name] for name, value in total.items()}

    def _chunk(
        self, part: History, start: int, stop: int, share: float, seed: int, *, sync: bool
    ) -> dict[str, Tensor]:
        """Forward and backward through frames `start` to `stop`, for critics and generator.

        Both learn from the same rendering, judged by the critics as they are before the update.
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

        # What the critics see: the chunk, and before it what was rendered already.
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

        # Critics.
        losses: dict[str, Tensor] = {}
        discriminator_outputs: dict[str, DiscriminatorOutput] = {}
        looking = {"flow": flow, "boxes": boxes, "newest": stop - start}
        if self.plan.discriminators:
            with self._unsynced(self.wrapped_discriminators, sync):
                judged = self.wrapped_discriminators(signals, real, fake.detach(), **looking)
                if judged:  # none where all that there are want longer windows
                    total, parts = self.objective.for_discriminators(judged)
                    fabric.backward(total * share)
                    losses |= parts

        # Generator.
        with frozen(self.discriminators), self._unsynced(self.unroll, sync):
            if self.plan.discriminators:
                with fabric.autocast():
                    discriminator_outputs = self.discriminators(signals, None, fake, **looking)
                discriminator_outputs = with_real(discriminator_outputs, judged)
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
        """Within all but the last part of a batch, processes keep their gradients."""
        context: AbstractContextManager[None] = self.fabric.no_backward_sync(
            module, enabled=not sync
        )
        return context

    def _update(self) -> None:
        """One step of both optimisers, and of the moving average."""
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
        """Hold less at once: fewer windows side by side, then fewer frames, then recompute."""
        p = self.progress
        for adam in (self.g_adam, self.d_adam):
            adam.zero_grad(set_to_none=True)
        if self.fabric.world_size > 1:  # the others do not know, and would wait
            raise OutOfMemory(
                "the memory does not hold this training",
                hint="-s loop.recompute=true, -s loop.accumulate=2, -s loop.bptt_steps=1 or a"
                " smaller --size",
            ) from error
        if p.accumulate < batch:
            p.accumulate = min(2 * p.accumulate, batch)
            said = f"batches are cut into {p.accumulate} parts"
        elif p.bptt_steps > 1:
            p.bptt_steps //= 2
            said = f"gradients flow through {p.bptt_steps} frame(s)"
        elif not p.recompute:
            p.recompute = True
            said = "activations are computed again in the backward pass"
        else:
            raise OutOfMemory(
                "the memory does not hold a single frame of this training",
                hint="train smaller: --size 128, -s generator.preset=mobile,"
                " -s discriminator.width=16",
            ) from error
        self.report.note(f"out of memory: {said} from here on")

    # ------------------------------------------------------------ keeping

    def finite(self) -> bool:
        """Whether all weights are numbers: a gradient may be none where the losses still were."""
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
        """Go on where a checkpoint stands. Raises `CheckpointInvalid`."""
        self.progress, averaged = Progress.read(checkpoint.progress, where)
        if self.progress.stage >= len(self.plan.schedule):
            raise CheckpointInvalid(
                f"{where}: progress.stage is {self.progress.stage}, the run has"
                f" {len(self.plan.schedule)}",
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
            for part in self._left(checkpoint, where)
        ]
        if not self.left:
            self.progress.frame, self.left = 0, []
        self.apply_stage()

    def _left(self, checkpoint: Checkpoint, where: Path) -> list[dict[str, Tensor]]:
        """Each part's history of a window that was left half done. Raises `CheckpointInvalid`."""
        parts = [n for n in checkpoint.modules if n.startswith("window.")]
        if not parts or self.fabric.world_size > 1:  # several processes have other shares
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
                    f"{where}: the window that was left half done is not one of this run's",
                    hint=DAMAGED,
                )
        return found

    def roll_back(self, run: RunFolder, report: Reporter) -> None:
        """Go on from the last good checkpoint, slower. Raises `TrainingDiverged` in the end."""
        rollbacks, lr_scale = (
            self.progress.rollbacks + 1,
            self.progress.lr_scale * ROLLBACK_LR_SCALE,
        )
        if rollbacks > ROLLBACKS:
            raise TrainingDiverged(
                f"the losses became NaN or infinite {rollbacks} times, at last at step"
                f" {self.progress.step}; the last good checkpoint is {run.saved()[-1]}",
                hint="train with lower rates: -s optimiser.generator_rate=1e-4"
                " -s optimiser.discriminator_rate=1e-4, or -s loop.precision=32",
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
            f"the losses were no numbers any more: back to step {self.progress.step}, with"
            f" {lr_scale:g} of the learning rates"
        )

    def publish(self, run: RunFolder) -> Path | None:
        """Write the model as it is now, and a preview of what it renders."""
        clusters = self._clusters()
        save_model(run.model, self._model(clusters))
        return self._preview(run, clusters)

    def _model(self, looks: Clusters | None) -> Model:
        """The model as it is now: the moving average of the generator."""
        record = describe_model(
            self.settings, self.windows, self.plan,
            active=getattr(self.generator, "active", None),
            training={
                "steps": self.progress.step, "minutes": round(self.progress.seconds / 60, 2),
                "perceptual": type(self.objective.perceptual).__name__,
            },
        )  # fmt: skip
        clusters = {
            f"clusters.{kind}": torch.from_numpy(centres) for kind, centres in (looks or {}).items()
        }
        statistics = {**self.plan.statistics, **clusters}
        smaller = self.plan.height // record.height
        background_plates = {
            clip: torch.nn.functional.avg_pool2d(background_plate, smaller)
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
        """The looks that the instances of the training footage have, for models that pick one."""
        encoder = getattr(self.ema.module, "encoder", None)
        if not isinstance(encoder, FeatureEncoder):
            return None
        stage = self.stage()
        size = (stage.height, stage.width)
        drawn = range(0, CLUSTERED, 8)
        batches = (self.shown.batch(range(n, n + 8), 1, size) for n in drawn)
        return cluster_features(encoder, (b.to(self.fabric.device) for b in batches))

    def _preview(self, run: RunFolder, looks: Clusters | None) -> Path | None:
        stage = self.stage()
        return write_preview(
            self.ema.module, self.shown, run.previews / f"{self.progress.step:08d}.mp4",
            size=(stage.height, stage.width), seconds=self.settings.output.preview_seconds,
            device=self.fabric.device, clusters=looks,
        )  # fmt: skip


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential moving average that follows closely at first (as TensorFlow's does)."""

    @torch.no_grad()
    def average(averaged: Any, current: Any, updates: Tensor | int) -> None:
        now = min(decay, (1 + int(updates)) / (10 + int(updates)))
        torch._foreach_lerp_(averaged, current, 1 - now)

    return average


def _rows(batch: Batch, rows: Tensor) -> Batch:
    if len(rows) == len(batch):
        return batch
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return batch.map(lambda tensor: tensor[start:stop])


def _seed(*numbers: int) -> int:
    """One seed out of several numbers."""
    import numpy as np

    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 2


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)


# ---------------------------------------------------------------- around the loop


class _Board:
    """The log and TensorBoard: means over the updates since the last entry."""

    def __init__(self, run: RunFolder, settings: TrainSettings, enabled: bool, step: int) -> None:
        self.run, self.every, self.enabled = run, settings.output.log_every, enabled
        self.last: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._writer: Any = None
        self.rewind(step)

    def __enter__(self) -> _Board:
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
        """Whether all losses since the last entry are numbers, in every process."""
        sums = torch.stack(list(self._sums.values())).sum() if self._sums else torch.zeros(())
        bad = (~torch.isfinite(sums)).float()
        if fabric.world_size > 1:
            bad = fabric.all_reduce(bad, reduce_op="sum")  # type: ignore[assignment]
        return not bool(bad.item())

    def rewind(self, step: int) -> None:
        """Forget what has not been written; go on from `step`."""
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


class _Bar:
    """One bar over the whole run; it counts what the budget is in: updates or seconds."""

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
