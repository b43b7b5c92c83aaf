"""The model of a run, written for the pipelines, and a preview of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from v2v import __version__
from v2v.checkpoint import FORMAT, ClipUse, Model, ModelRecord, SignalUse, save_model
from v2v.data.dataset import ClipDataset
from v2v.models.baselines.pix2pixhd import Clusters, FeatureEncoder, cluster_features
from v2v.signals import load_signal
from v2v.training.prepare import TrainingPlan
from v2v.training.preview import write_preview
from v2v.training.run import RunFolder
from v2v.training.settings import TrainSettings
from v2v.training.trainer import Trainer

CLUSTERED = 64  # training frames whose instance features are clustered


def publish(trainer: Trainer, run: RunFolder) -> Path | None:
    """Write the current model and a preview of it."""
    clusters = _clusters(trainer)
    save_model(run.model, _model(trainer, clusters))
    return _preview(trainer, run, clusters)


def _model(trainer: Trainer, features: Clusters | None) -> Model:
    """The current model: the moving average of the generator."""
    record = describe_model(
        trainer.settings, trainer.windows, trainer.plan,
        active=getattr(trainer.generator, "active", None),
        training={
            "steps": trainer.progress.step, "minutes": round(trainer.progress.seconds / 60, 2),
            "perceptual": type(trainer.objective.perceptual).__name__,
        },
    )  # fmt: skip
    clusters = {
        f"clusters.{kind}": torch.from_numpy(centres) for kind, centres in (features or {}).items()
    }
    statistics = {**trainer.plan.statistics, **clusters}
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
    return Model(record, trainer.ema.module, background_plates, statistics, references, backgrounds)


@torch.no_grad()
def _clusters(trainer: Trainer) -> Clusters | None:
    """Clusters of the instance features of the training footage, for models that use them."""
    encoder = getattr(trainer.ema.module, "encoder", None)
    if not isinstance(encoder, FeatureEncoder):
        return None
    stage = trainer.stage()
    size = (stage.height, stage.width)
    starts = range(0, CLUSTERED, 8)
    batches = (trainer.shown.batch(range(n, n + 8), 1, size) for n in starts)
    return cluster_features(encoder, (b.to(trainer.fabric.device) for b in batches))


def _preview(trainer: Trainer, run: RunFolder, features: Clusters | None) -> Path | None:
    stage = trainer.stage()
    return write_preview(
        trainer.ema.module, trainer.shown, run.previews / f"{trainer.progress.step:08d}.mp4",
        size=(stage.height, stage.width), seconds=trainer.settings.output.preview_seconds,
        device=trainer.fabric.device, clusters=features,
    )  # fmt: skip


def describe_model(
    settings: TrainSettings,
    windows: ClipDataset,
    plan: TrainingPlan,
    *,
    active: int | None,
    training: dict[str, Any],
) -> ModelRecord:
    """Build the model's record; see `v2v.checkpoint.ModelRecord`."""
    record = windows.records[0][1]
    halvings = 0 if active is None else plan.scales - active
    return ModelRecord(
        format=FORMAT, tool=f"v2v {__version__}", task=settings.task,
        signals=tuple(
            SignalUse(
                name=name, spec=record.signals[name].spec,
                channels=load_signal(name).channels(record.signals[name].spec),
            )
            for name in windows.signals
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
