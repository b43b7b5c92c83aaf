"""Plan a run from its settings and clips: what to open, build and train, before anything runs.

`--dry-run` prints the plan, the loop executes it, and the model's record is written from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from v2v.data.background import BackgroundPlate, build_background_plate
from v2v.data.dataset import ClipDataset
from v2v.data.references.choosing import reference_signal
from v2v.data.references.gathering import gather
from v2v.data.references.memory import References
from v2v.data.sampling import trained_part
from v2v.data.store import ClipRecord, ClipStore
from v2v.errors import ConfigError
from v2v.models import TrainingData, generator_type
from v2v.pixels import planes
from v2v.progress import Reporter
from v2v.signals.traits import BESIDE, CameraSignal, FlowSignal
from v2v.training.schedule import Stage, build_schedule
from v2v.training.settings import TrainSettings
from v2v.training.statistics import footage_statistics

CORE_SIDE = 128  # pixels: largest shorter side of the core, by default
SMALLEST_SIDE = 32  # pixels: of the first stage's frames
REGIONS = {  # boxes that each crop discriminator covers
    "face": ("face", "eyes", "mouth", "right_eye", "left_eye"),
    "hands": ("left_hand", "right_hand"),
}

MIRRORED = 0.5  # flip probability of training windows if references are mirrored with them


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that follows from the settings and the clips."""

    height: int
    width: int
    scales: int
    schedule: tuple[Stage, ...]
    generator: dict[str, Any]  # name and arguments, for `build_generator`
    discriminators: dict[str, float]  # name -> weight, of those in use
    crops: dict[str, list[int]]  # discriminator -> indices of its boxes
    background_plates: dict[int, Tensor]  # clip -> [4, H, W] at the final size
    statistics: dict[str, Tensor]
    workers: int
    notes: tuple[str, ...] = field(default=())


def open_windows(
    settings: TrainSettings, clips: list[Path], report: Reporter | None = None
) -> ClipDataset:
    """Open the clips as a dataset of windows and verify the hashes of their files.

    Raises the errors of `ClipStore.open` and `ClipDataset`.
    """
    stores = [ClipStore.open(clip) for clip in clips]
    for store in stores:
        for signal in settings.data.signals:
            store.track(signal, 0, 1)  # report a missing signal before any long work
        store.check_frames()
        store.verify(_signals_used(settings, store.record), again=False, report=report)
    background_plates, notes = _background_plates(settings, stores)
    generator = settings.generator
    reads = generator_type(generator.name).reads_with(generator)
    if reference_signal(settings.data.signals) is None:
        reads -= {"references"}
    if background_plates is None:
        reads -= {"background_plate"}
    extras = ["flow", "foreground", *sorted(reads)]
    if any(getattr(settings.losses.discriminators, name) for name in REGIONS):
        extras.append("boxes")
    windows = ClipDataset(
        stores, settings.data.signals, seed=settings.loop.seed, augmentation=settings.augment,
        extras=extras, holdout=settings.data.hold_out, max_stride=settings.data.max_stride,
        multiple=generator_type(generator.name).multiple_at(scales_of(settings)),
        cache=settings.data.cache_mb,
        background_plates=background_plates, candidates=generator.candidates,
        options=settings.data.signal_options,
    )  # fmt: skip
    windows.notes = (*windows.notes, *notes)
    if "references" in extras:
        windows.references = _references(settings, stores, windows, background_plates is not None)
        if windows.references and settings.augment.flip is None:
            # Mirrored references keep the person's identity, so flips double the poses.
            windows.augmentation = settings.augment.model_copy(update={"flip": MIRRORED})
    return windows


def _references(
    settings: TrainSettings, stores: list[ClipStore], windows: ClipDataset, has_plate: bool
) -> tuple[References, ...]:
    """Reference frames of each clip's person; empty if a clip has no suitable frame."""
    signal = reference_signal(settings.data.signals)
    assert signal is not None
    size = windows.frame_size(settings.data.size)
    found = []
    for number, store in enumerate(stores):
        references = gather(
            store, *windows.clips[number].train, signal=signal, count=signal.reference_count,
            placement=windows.placement(number, size), whole=not has_plate,
        )  # fmt: skip
        if references is None:
            if settings.generator.references == "on":
                raise ConfigError(
                    f"generator.references is on, but no frame of {store.folder} shows a"
                    f" {signal.name}",
                    hint="set it to auto, or use footage that shows the person",
                )
            return ()
        found.append(references)
    return tuple(found)


def _signals_used(settings: TrainSettings, record: ClipRecord) -> set[str]:
    """The signals of a clip that training reads."""
    beside = {signal.name for trait in BESIDE if (signal := record.find(trait)) is not None}
    return beside | (set(settings.data.signals) & set(record.signals))


def files_used(settings: TrainSettings, windows: ClipDataset) -> list[dict[str, str]]:
    """The files of each clip that training reads and their SHA-256, which identify the data."""
    return [
        {
            "frames.mp4": record.frames.file.sha256,
            **{
                file: row.sha256
                for name, signal in sorted(record.signals.items())
                if name in _signals_used(settings, record)
                for file, row in signal.files.items()
            },
        }
        for _, record in windows.records
    ]


def scales_of(settings: TrainSettings) -> int:
    """The number of generator scales: one for the core, one for each doubling of the size."""
    if not generator_type(settings.generator.name).grows:
        return 1
    if settings.generator.scales is not None:
        return settings.generator.scales
    scales = 1
    while settings.data.size >> (scales - 1) > CORE_SIDE:
        scales += 1
    return scales


def _background_plates(
    settings: TrainSettings, stores: list[ClipStore]
) -> tuple[list[BackgroundPlate] | None, list[str]]:
    """The background plate of each clip, or None if the generator uses none; and notes."""
    wanted, prior = settings.generator.background_plate, settings.generator.prior
    if wanted == prior == "on":
        raise ConfigError(
            "generator.background_plate and generator.prior are both on, but a plate replaces"
            " the prior",
            hint="set one of them to auto",
        )
    reads = generator_type(settings.generator.name).reads_with(settings.generator)
    if "background_plate" not in reads:
        return None, []
    background_plates, reasons = [], []
    for store in stores:
        background_plate = build_background_plate(
            store, *trained_part(len(store), settings.data.hold_out)
        )
        if background_plate is None:
            if wanted == "on":
                raise ConfigError(
                    f"generator.background_plate=on needs a person mask, but {store.folder} has"
                    " none",
                    hint=f"add it with: v2v preprocess {store.folder} --signal segmentation",
                )
            return None, []
        if not background_plate.still and wanted == "auto":
            return None, [_no_plate_reason(store, background_plate)]
        if background_plate.backgrounds is not None:
            moved = background_plate.backgrounds.track.motion().max()
            reasons.append(
                f"{store.folder.name}: the camera moves by up to {moved:.0f} of"
                f" {max(store.record.frames.width, store.record.frames.height)} pixels; the"
                " background is a mosaic that follows it"
            )
        background_plates.append(background_plate)
    return background_plates, reasons


def _no_plate_reason(store: ClipStore, background_plate: BackgroundPlate) -> str:
    """Why a clip has no background plate, and what to do or what is used instead."""
    deviation, moved = background_plate.limits
    reason = (
        f"{store.folder.name}: no background plate: {background_plate.moved:.0%} of the"
        f" background changes (limit {moved:.0%}), by {background_plate.deviation:.1f} of 255 on"
        f" average (limit {deviation:.0f})"
    )
    if store.record.find(CameraSignal) is None:
        return (
            f"{reason}. If the camera moves, track it: v2v preprocess {store.folder}"
            " --signal camera"
        )
    why = "people or objects in it move, or it lies at several depths"
    return f"{reason}, although the camera is tracked: {why}. References replace the plate"


def plan_run(settings: TrainSettings, windows: ClipDataset, *, world: int = 1) -> TrainingPlan:
    """Plan the whole run for `world` processes.

    Raises `ConfigError`, `UnknownName`, `TooFewFrames`.
    """
    scales = scales_of(settings)
    height, width = size = windows.frame_size(settings.data.size)
    schedule, notes = _schedule(settings, windows, size, scales, world)
    architecture = _architecture(settings, windows, scales)
    discriminators, crops = _discriminators(settings, windows, schedule[0])
    return TrainingPlan(
        height=height, width=width, scales=scales, schedule=schedule, generator=architecture,
        discriminators=discriminators, crops=crops,
        background_plates=dict(_background_plates_at(windows, size)) if _has_plate(windows) else {},
        statistics=footage_statistics(windows, size), workers=_workers(settings),
        notes=(*notes, *_notes(windows)),
    )  # fmt: skip


def _schedule(
    settings: TrainSettings, windows: ClipDataset, size: tuple[int, int], scales: int, world: int
) -> tuple[tuple[Stage, ...], list[str]]:
    """The stages, with windows that the footage is long enough for; and notes."""
    notes = []
    longest = max((b - a for clip in windows.clips for a, b in clip.shots), default=0)
    lengths = tuple(n for n in settings.schedule.lengths if n <= longest)
    if lengths != settings.schedule.lengths:
        if not lengths:
            windows.starts(min(settings.schedule.lengths), 1)  # raises TooFewFrames
        notes.append(
            f"windows grow to {max(lengths)} frames only: the longest training shot has {longest}"
        )
    schedule = build_schedule(
        settings.schedule.model_copy(update={"lengths": lengths}),
        height=size[0], width=size[1], scales=scales, bptt_steps=settings.loop.bptt_steps,
    )  # fmt: skip
    first, last = schedule[0], schedule[-1]
    if min(first.height, first.width) < SMALLEST_SIDE:
        raise ConfigError(
            f"the first stage would train at {first.width}x{first.height}: the shorter side must"
            f" be at least {SMALLEST_SIDE}",
            hint=f"use fewer scales (-s generator.scales={max(scales - 1, 1)}) or a larger --size",
        )
    for length in lengths:  # fails if no window has all signals
        windows.draw(0, length, (last.height, last.width))
    for stage in schedule if world > 1 else ():
        if stage.batch % world:
            raise ConfigError(
                f"{world} processes cannot split a batch of {stage.batch} evenly (frames of"
                f" {stage.width}x{stage.height}, {stage.length} at a time)",
                hint=f"use -s schedule.frames={world * settings.loop.bptt_steps}",
            )
    return schedule, notes


def _architecture(settings: TrainSettings, windows: ClipDataset, scales: int) -> dict[str, Any]:
    """The name and arguments of the generator, for `build_generator`."""
    g = settings.generator
    if g.control_points == "on" and not windows.control_points:
        raise ConfigError(
            "generator.control_points is on, but it needs the signal pose or face and a"
            " sequential generator that warps the past",
            hint="set it to auto",
        )
    signal = reference_signal(settings.data.signals)
    data = TrainingData(
        folders=tuple(clip.folder for clip in windows.clips),
        background_plate=_has_plate(windows), foreground=windows.has_foreground,
        control_points=windows.control_points,
        references=windows.candidates if windows.references else 0,
        warped_by=signal.warped_by if signal is not None else "parts",
    )  # fmt: skip
    return {
        "name": g.name, "channels": windows.channels, "preset": g.preset, "scales": scales,
        **generator_type(g.name).arguments(g, data),
    }  # fmt: skip


def _has_plate(windows: ClipDataset) -> bool:
    return "background_plate" in windows.extras and all(
        plate is not None for plate in windows.background_plates
    )


def _discriminators(
    settings: TrainSettings, windows: ClipDataset, first: Stage
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """The weight of each discriminator in use, and the boxes of those that see crops.

    Args:
        first: the stage with the smallest frames.
    """
    discriminators = {n: w for n, w in settings.losses.discriminators.model_dump().items() if w > 0}
    crops = {}
    for name, regions in REGIONS.items():
        which = [i for i, box in enumerate(windows.boxes) if box in regions]
        if which:
            crops[name] = which
        else:
            discriminators.pop(name, None)
    side = min(first.height, first.width)
    side = min(side, settings.discriminator.crop) if crops else side
    if discriminators and side < 3 << settings.discriminator.layers:
        raise ConfigError(
            f"discriminators with {settings.discriminator.layers} layers need"
            f" {3 << settings.discriminator.layers} pixels per side, but the smallest has {side}",
            hint="use -s discriminator.layers=3 -s discriminator.crop=48",
        )
    if not discriminators and not (settings.losses.l1 or settings.losses.perceptual_weight):
        raise ConfigError("all losses are 0", hint="set losses.l1 or a discriminator above 0")
    return discriminators, crops


def _notes(windows: ClipDataset) -> list[str]:
    """What the user should know about the data that the model is trained on."""
    notes = []
    if _has_plate(windows):
        notes.append(
            "the background is a plate of the footage (disable: -s generator.background_plate=off)"
        )
    if windows.references:
        count = sum(len(references) for references in windows.references)
        notes.append(f"{count} frames of the footage are references for the person's appearance")
    elif "references" in windows.extras:
        notes.append("a clip has no frame that is fit as a reference: everything is synthesised")
    still = [folder for folder, record in windows.records if record.find(FlowSignal) is None]
    if still:
        notes.append(
            "without optical flow the model learns motion from the frames alone; for steadier"
            f" video: v2v preprocess {still[0]} --signal flow,segmentation"
        )
    return notes


def _workers(settings: TrainSettings) -> int:
    """The number of processes that load data."""
    if settings.data.workers is not None:
        return settings.data.workers
    if not torch.cuda.is_available() or settings.loop.device == "cpu":
        return 0
    return max(min((os.cpu_count() or 1) // settings.loop.devices - 1, 8), 0)


def _background_plates_at(
    windows: ClipDataset, size: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Yield each clip's background plate as in rendering, for a static camera."""
    for clip in range(len(windows.clips)):
        seen = windows.background(clip, size)
        background_plate = torch.empty(4, *seen.shape[:2])
        planes(seen[None, ..., :3], background_plate[None, :3].numpy())
        background_plate[3] = torch.from_numpy(seen[..., 3]).float().div_(255)
        yield clip, background_plate
