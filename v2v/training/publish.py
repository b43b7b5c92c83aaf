"""The model of a run, written for the pipelines, and a preview of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v2v import __version__
from v2v.checkpoint import ClipUse, Model, ModelRecord, SignalUse, save_model
from v2v.data.dataset import ClipDataset
from v2v.saved import FORMAT
from v2v.signals import load_signal
from v2v.training.prepare import TrainingPlan
from v2v.training.preview import write_preview
from v2v.training.run import RunFolder
from v2v.training.settings import TrainSettings
from v2v.training.trainer import Trainer

TOGETHER = 8  # training frames in a batch for `Generator.collect`


def publish(trainer: Trainer, run: RunFolder) -> Path | None:
    """Write the current model and a preview of it."""
    artifacts = _artifacts(trainer)
    save_model(run.model, _model(trainer, artifacts))
    stage = trainer.stage()
    return write_preview(
        trainer.averaged, trainer.shown, run.previews / f"{trainer.progress.step:08d}.mp4",
        size=(stage.height, stage.width), seconds=trainer.settings.output.preview_seconds,
        device=trainer.fabric.device, artifacts=artifacts,
    )  # fmt: skip


@torch.no_grad()
def _artifacts(trainer: Trainer) -> dict[str, Tensor]:
    """What the generator stores beside its weights, from frames of the training clips."""
    stage, generator = trainer.stage(), trainer.averaged
    size = (stage.height, stage.width)
    starts = range(0, generator.samples, TOGETHER)
    drawn = (range(n, min(n + TOGETHER, generator.samples)) for n in starts)
    batches = (trainer.shown.batch(indices, 1, size) for indices in drawn)
    return generator.collect(batch.to(trainer.fabric.device) for batch in batches)


def _model(trainer: Trainer, artifacts: dict[str, Tensor]) -> Model:
    """The current model: the moving average of the generator."""
    record = describe_model(
        trainer.settings, trainer.windows, trainer.plan, active=trainer.generator.active,
        training={
            "steps": trainer.progress.step, "minutes": round(trainer.progress.seconds / 60, 2),
            "perceptual": type(trainer.objective.perceptual).__name__,
        },
    )  # fmt: skip
    statistics = {**trainer.plan.statistics, **artifacts}
    downscale = trainer.plan.height // record.height
    background_plates = {
        clip: torch.nn.functional.avg_pool2d(background_plate, downscale)
        for clip, background_plate in trainer.plan.background_plates.items()
    }
    references = {
        clip: found.scaled((record.height, record.width))
        for clip, found in enumerate(trainer.windows.references)
    }
    backgrounds = {
        clip: found
        for clip in background_plates
        if (found := trainer.windows.backgrounds(clip, (record.height, record.width)))
    }
    return Model(record, trainer.averaged, background_plates, statistics, references, backgrounds)


def describe_model(
    settings: TrainSettings,
    windows: ClipDataset,
    plan: TrainingPlan,
    *,
    active: int | None,
    training: dict[str, Any],
) -> ModelRecord:
    """Build the model's record; see `v2v.checkpoint.ModelRecord`."""
    halvings = 0 if active is None else plan.scales - active
    return ModelRecord(
        format=FORMAT, tool=f"v2v {__version__}", task=settings.task,
        signals=tuple(
            SignalUse(name=name, spec=spec, channels=load_signal(name).channels(spec))
            for name, spec in zip(windows.signals, windows.specs, strict=True)
        ),
        height=plan.height >> halvings, width=plan.width >> halvings, generator=plan.generator,
        active=active,
        clips=tuple(
            ClipUse(
                name=clip.name, source=r.source.name, sha256=r.source.sha256, fps=r.frames.fps,
                frames=clip.count, trained=clip.train, width=r.frames.width,
                height=r.frames.height, still=number in plan.background_plates,
            )
            for number, clip in enumerate(windows.clips)
            for r in [windows.records[number][1]]
        ),
        training={**training, "settings": settings.model_dump(mode="json")},
    )  # fmt: skip
