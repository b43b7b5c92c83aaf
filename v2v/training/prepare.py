"""From settings and clips to a plan: what is opened, built and trained, before anything runs.

`--dry-run` prints it; the loop carries it out; the model's record is written from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from v2v import __version__
from v2v.checkpoint import FORMAT, ClipUse, ModelRecord, SignalUse
from v2v.data.background import BackgroundPlate, build_background_plate
from v2v.data.references import COUNTS, References, gather, reference_signal
from v2v.data.store import ClipStore
from v2v.data.windows import ClipDataset, trained_part
from v2v.errors import ConfigError, UnknownName
from v2v.models import generator_names
from v2v.models.generator import CORE_STRIDE, TRUST, Compose, Past
from v2v.progress import Reporter
from v2v.signals._landmarks import planes
from v2v.signals.segmentation import LabelTrack
from v2v.training.schedule import Stage, build_schedule
from v2v.training.settings import TrainSettings

CORE_SIDE = 128  # pixels: the core works on no more, unless told
STATISTICS = 4096  # frames of a clip that the model remembers the poses of
PIECE = 4096  # frames that are read at a time
LABEL_SAMPLES = 256  # label maps that are looked at for which classes there are
REGIONS = {  # which boxes a crop discriminator looks at
    "face": ("face", "eyes", "mouth", "right_eye", "left_eye"),
    "hands": ("left_hand", "right_hand"),
}

MIRRORED = 0.5  # of the training windows, where references are mirrored with them


@dataclass(frozen=True)
class TrainingPlan:
    """All that follows from the settings and the clips."""

    height: int
    width: int
    scales: int
    schedule: tuple[Stage, ...]
    generator: dict[str, Any]  # name and arguments, for `build_generator`
    discriminators: dict[str, float]  # name -> weight; of those that are built
    crops: dict[str, list[int]]  # discriminator -> the boxes it looks at
    background_plates: dict[int, Tensor]  # clip -> [4, H, W] at the final size
    statistics: dict[str, Tensor]
    workers: int
    notes: tuple[str, ...] = field(default=())


def open_windows(
    settings: TrainSettings, clips: list[Path], report: Reporter | None = None
) -> ClipDataset:
    """The clips as a source of windows, their files compared with their hashes.

    Raises what opening stores and windows raises.
    """
    stores = [ClipStore.open(clip) for clip in clips]
    for store in stores:
        for signal in settings.data.signals:
            store.track(signal, 0, 1)  # a missing signal is said before anything long
        used = {*settings.data.signals, "segmentation", "flow", "camera"} & set(store.signals)
        store.check_frames()
        store.verify(used, again=False, report=report)
    background_plates, reason = _background_plates(settings, stores)
    generator = settings.generator
    extras = ["flow", "foreground"]
    if background_plates is not None:
        extras.append("background_plate")
    if any(getattr(settings.losses.discriminators, name) for name in REGIONS):
        extras.append("boxes")
    if generator.style == "encoded" or generator.name == "spade":
        extras.append("style")
    if generator.name == "pix2pixhd":
        extras.append("instances")
    warps = generator.name == "sequential" and generator.sequential and generator.compose != "none"
    if warps and generator.control_points != "off":
        extras.append("control_points")
    wanted = generator.name == "sequential" and generator.references != "off"
    if wanted and reference_signal(settings.data.signals) is not None:
        extras.append("references")
    windows = ClipDataset(
        stores, settings.data.signals, seed=settings.loop.seed, augmentation=settings.augment,
        extras=extras, holdout=settings.data.hold_out, max_stride=settings.data.max_stride,
        multiple=CORE_STRIDE << (scales_of(settings) - 1), cache=settings.data.cache_mb,
        background_plates=background_plates, candidates=generator.candidates,
    )  # fmt: skip
    windows.notes = (*windows.notes, *reason)
    if "references" in extras:
        windows.references = _references(settings, stores, windows, background_plates is not None)
        if windows.references and settings.augment.flip is None:
            # Beside mirrored references the mirrored person is no other: twice as many poses.
            windows.augmentation = settings.augment.model_copy(update={"flip": MIRRORED})
    return windows


def _references(
    settings: TrainSettings, stores: list[ClipStore], windows: ClipDataset, has_plate: bool
) -> tuple[References, ...]:
    """Real frames of each clip's person; none where a clip has no frame to be one."""
    signal = reference_signal(settings.data.signals)
    assert signal is not None
    size = windows.frame_size(settings.data.size)
    found = []
    for number, store in enumerate(stores):
        references = gather(
            store, *windows.clips[number].train, signal=signal, count=COUNTS[signal],
            placement=windows.placement(number, size), whole=not has_plate,
        )  # fmt: skip
        if references is None:
            if settings.generator.references == "on":
                raise ConfigError(
                    f"generator.references is on, and no frame of {store.folder} shows a {signal}",
                    hint="leave it at auto, or use footage in which the person is seen",
                )
            return ()
        found.append(references)
    return tuple(found)


def files_used(settings: TrainSettings, windows: ClipDataset) -> list[dict[str, str]]:
    """The files of each clip that training reads, and their SHA-256: what makes data the same."""
    used = {*settings.data.signals, "segmentation", "flow", "camera"}
    return [
        {
            "frames.mp4": record.frames.file.sha256,
            **{
                file: row.sha256
                for name, signal in sorted(record.signals.items())
                if name in used
                for file, row in signal.files.items()
            },
        }
        for _, record in windows.records
    ]


def scales_of(settings: TrainSettings) -> int:
    """How often the generator doubles its size, and once for the core."""
    if settings.generator.name != "sequential":
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
    """A plate for each clip, None where the generator uses none; and why, in sentences."""
    wanted, prior = settings.generator.background_plate, settings.generator.prior
    if wanted == prior == "on":
        raise ConfigError(
            "generator.background_plate and generator.prior are both on: a plate is the better"
            " prior",
            hint="leave one of them at auto",
        )
    if settings.generator.name != "sequential" or wanted == "off" or prior == "on":
        return None, []
    background_plates, reasons = [], []
    for store in stores:
        background_plate = build_background_plate(
            store, *trained_part(len(store), settings.data.hold_out)
        )
        if background_plate is None:
            if wanted == "on":
                raise ConfigError(
                    f"a background plate wants to know where the person is: {store.folder} has no"
                    " person mask",
                    hint=f"add it with: v2v preprocess {store.folder} --signal segmentation",
                )
            return None, []
        if not background_plate.still and wanted == "auto":
            return None, [_unexplained(store, background_plate)]
        if background_plate.backgrounds is not None:
            moved = background_plate.backgrounds.track.motion().max()
            reasons.append(
                f"{store.folder.name}: the camera moves by up to {moved:.0f} of"
                f" {max(store.record.frames.width, store.record.frames.height)} pixels; the"
                " background is a mosaic that follows it"
            )
        background_plates.append(background_plate)
    return background_plates, reasons


def _unexplained(store: ClipStore, background_plate: BackgroundPlate) -> str:
    """Why a clip has no background plate, and what is done instead."""
    deviation, moved = background_plate.limits
    said = (
        f"{store.folder.name}: no background plate: {background_plate.moved:.0%} of the"
        f" background changes"
        f" (at most {moved:.0%} may), by {background_plate.deviation:.1f} of 255 in the mean"
        f" (at most"
        f" {deviation:.0f})"
    )
    if "camera" not in store.signals:
        return (
            f"{said}. If the camera moves, follow it: v2v preprocess {store.folder} --signal camera"
        )
    why = "people or things move in it, or it lies at several depths"
    return f"{said}, though the camera was followed: {why}. It comes from references instead"


def plan_run(settings: TrainSettings, windows: ClipDataset, *, world: int = 1) -> TrainingPlan:
    """Work out the whole run, for `world` processes.

    Raises `ConfigError`, `UnknownName`, `TooFewFrames`.
    """
    g = settings.generator
    if g.name not in generator_names():
        raise UnknownName.among("generator", g.name, generator_names())
    scales = scales_of(settings)
    height, width = size = windows.frame_size(settings.data.size)
    notes = []
    longest = max((b - a for clip in windows.clips for a, b in clip.shots), default=0)
    lengths = tuple(n for n in settings.schedule.lengths if n <= longest)
    if lengths != settings.schedule.lengths:
        if not lengths:
            windows.starts(min(settings.schedule.lengths), 1)  # says so
        notes.append(
            f"windows grow to {max(lengths)} frames only: the longest shot for training has"
            f" {longest}"
        )
    schedule = build_schedule(
        settings.schedule.model_copy(update={"lengths": lengths}),
        height=height, width=width, scales=scales, bptt_steps=settings.loop.bptt_steps,
    )  # fmt: skip
    smallest = min(schedule[0].height, schedule[0].width)
    if smallest < 32:
        raise ConfigError(
            f"the first stage would train at {schedule[0].width}x{schedule[0].height}: too small",
            hint=f"use fewer scales (-s generator.scales={max(scales - 1, 1)}) or a larger --size",
        )
    for length in lengths:  # windows in which the signals are there
        windows.draw(0, length, (schedule[-1].height, schedule[-1].width))
    several = len(windows.clips) > 1
    if g.control_points == "on" and not windows.control_points:
        raise ConfigError(
            "generator.control_points is on, and there is nothing for it: flow begins with"
            " points of pose"
            " or face, where the generator is sequential and warps",
            hint="leave it at auto",
        )
    has_plate = "background_plate" in windows.extras and all(
        p is not None for p in windows.background_plates
    )
    architecture: dict[str, Any] = {
        "name": g.name, "channels": windows.channels, "preset": g.preset, "scales": scales,
    }  # fmt: skip
    if g.name == "sequential":
        style = ("clip" if several else "none") if g.style == "auto" else g.style
        architecture |= {
            "sequential": g.sequential, "compose": _composed(settings, windows),
            "past": _past(settings, windows, has_plate), "background_plate": has_plate,
            "prior": _has_prior(settings, windows, has_plate),
            "style": style, "clips": len(windows.clips),
            "control_points": windows.control_points > 0,
            "references": windows.candidates if windows.references else 0,
            "motion": "dense" if reference_signal(settings.data.signals) == "face" else "parts",
            "residual": bool(windows.references) and g.residual,
            "outline": bool(windows.references) and has_plate, "trust": TRUST,
        }  # fmt: skip
    if has_plate:
        notes.append(
            "the background is a plate of the footage (-s generator.background_plate=off: none)"
        )
    if windows.references:
        count = sum(len(references) for references in windows.references)
        notes.append(f"{count} frames of the footage are references of how the person looks")
    elif "references" in windows.extras:
        notes.append("no frame of a clip is fit to be a reference: all is synthesised")
    if not all("flow" in record.signals for _, record in windows.records):
        where = next(f for f, record in windows.records if "flow" not in record.signals)
        notes.append(
            "without optical flow the model learns motion from the pictures alone; steadier with:"
            f" v2v preprocess {where} --signal flow,segmentation"
        )
    if world > 1:
        for stage in schedule:
            if stage.batch % world:
                raise ConfigError(
                    f"{world} processes cannot share a batch of {stage.batch} evenly (frames of"
                    f" {stage.width}x{stage.height}, {stage.length} at a time)",
                    hint=f"-s schedule.frames={world * settings.loop.bptt_steps}",
                )
    discriminators = {n: w for n, w in settings.losses.discriminators.model_dump().items() if w > 0}
    crops = {}
    for name, regions in REGIONS.items():
        which = [i for i, box in enumerate(windows.boxes) if box in regions]
        if which:
            crops[name] = which
        else:
            discriminators.pop(name, None)
    side = min(smallest, settings.discriminator.crop) if crops else smallest
    if discriminators and side < 3 << settings.discriminator.layers:
        raise ConfigError(
            f"discriminators of {settings.discriminator.layers} layers need"
            f" {3 << settings.discriminator.layers} pixels a side, here there are {side}",
            hint="-s discriminator.layers=3 and -s discriminator.crop=48 fit",
        )
    if not discriminators and not (settings.losses.l1 or settings.losses.perceptual_weight):
        raise ConfigError("all losses are turned off", hint="leave losses.l1 or a critic on")
    workers = settings.data.workers
    if workers is None:
        import os

        on_gpu = torch.cuda.is_available() and settings.loop.device != "cpu"
        workers = min((os.cpu_count() or 1) // settings.loop.devices - 1, 8) if on_gpu else 0
        workers = max(workers, 0)
    return TrainingPlan(
        height=height, width=width, scales=scales, schedule=schedule, generator=architecture,
        discriminators=discriminators, crops=crops,
        background_plates=dict(_background_plates_at(windows, size)) if has_plate else {},
        statistics=_statistics(windows, size), workers=workers, notes=tuple(notes),
    )  # fmt: skip


def _composed(settings: TrainSettings, windows: ClipDataset) -> Compose:
    """What becomes of the past frame.

    References are sharp and in place; a past frame that was warped again and again is neither, and
    blended over them it blurs.
    """
    wanted = settings.generator.compose
    if wanted != "auto":
        return wanted
    return "condition" if windows.references else "blend"


def _past(settings: TrainSettings, windows: ClipDataset, has_plate: bool) -> Past:
    """What the core sees of the past.

    Where the camera stands still the signals describe all motion, and earlier output frames only
    add their errors; where flow begins with the signals' points no earlier signals are needed
    either. Where the camera moves only pictures show how it moves: real ones (references) where
    there are any, else earlier output frames.
    """
    g = settings.generator
    if g.sequential and g.compose == "none" and g.past in ("signals", "nothing"):
        raise ConfigError(
            f"generator.past={g.past} and generator.compose=none leave no picture of the past",
            hint="use generator.sequential=false for frame by frame",
        )
    if g.past != "auto":
        return g.past
    if _composed(settings, windows) == "none" or not (has_plate or windows.references):
        return "frames"
    return "nothing" if windows.control_points else "signals"


def _has_prior(settings: TrainSettings, windows: ClipDataset, has_plate: bool) -> bool:
    wanted = settings.generator.prior
    if wanted == "off" or has_plate:
        return False
    if wanted == "on" and not windows.has_foreground:
        raise ConfigError(
            "a foreground prior wants to know what is in front: a clip has no person mask and no"
            " labels",
            hint=f"add it with: v2v preprocess {windows.clips[0].folder} --signal segmentation",
        )
    return windows.has_foreground


def _background_plates_at(
    windows: ClipDataset, size: tuple[int, int]
) -> Iterator[tuple[int, Tensor]]:
    """Each clip's plate as rendering sees it, from a camera that stands still."""
    for clip in range(len(windows.clips)):
        seen = windows.background(clip, size)
        background_plate = torch.empty(4, *seen.shape[:2])
        planes(seen[None, ..., :3], background_plate[None, :3].numpy())
        background_plate[3] = torch.from_numpy(seen[..., 3]).float().div_(255)
        yield clip, background_plate


def _statistics(windows: ClipDataset, size: tuple[int, int]) -> dict[str, Tensor]:
    """What rendering must know of the footage: transfer measures the body on the points it saw.

    `N.SIGNAL.points` and `.depth` in stored pixels of clip N, `N.frames` which frames they are;
    `N.SIGNAL.share` [256] the share of pixels that each class has; `N.style` [3, H, W] a frame.
    """
    found: dict[str, Tensor] = {}
    for number, (folder, record) in enumerate(windows.records):
        store = ClipStore(folder, record)
        start, stop = windows.clips[number].train
        chosen = np.unique(np.linspace(start, stop - 1, STATISTICS).astype(int))
        found[f"{number}.frames"] = torch.from_numpy(chosen)
        if "style" in windows.extras:
            batch = next(windows.sequence(number, start, start + 1, size=size))
            assert batch.style is not None
            found[f"{number}.style"] = batch.style[0]
        for signal in windows.signals:
            if isinstance(store.track(signal, 0, 1), LabelTrack):
                found[f"{number}.{signal}.share"] = _class_shares(store, signal, start, stop)
            for name in ("points", "depth"):
                if not isinstance(getattr(store.track(signal, 0, 1), name, None), np.ndarray):
                    continue
                parts = []  # in pieces: a long clip's mesh does not fit into memory
                for first in range(start, stop, PIECE):
                    end = min(first + PIECE, stop)
                    rows = chosen[(chosen >= first) & (chosen < end)] - first
                    parts.append(getattr(store.track(signal, first, end), name)[rows])
                values = np.ascontiguousarray(np.concatenate(parts), np.float32)
                found[f"{number}.{signal}.{name}"] = torch.from_numpy(values)
    return found


def _class_shares(store: ClipStore, signal: str, start: int, stop: int) -> Tensor:
    """[256] share of the pixels of frames `start` to `stop` that each class has."""
    counts = np.zeros(256, np.int64)
    for index in np.unique(np.linspace(start, stop - 1, LABEL_SAMPLES).astype(int)):
        track = store.track(signal, int(index), int(index) + 1)
        assert isinstance(track, LabelTrack)
        counts += np.bincount(track.labels.ravel(), minlength=256)
    return torch.from_numpy((counts / counts.sum()).astype(np.float32))


def describe_model(
    settings: TrainSettings,
    windows: ClipDataset,
    plan: TrainingPlan,
    *,
    active: int | None,
    training: dict[str, Any],
) -> ModelRecord:
    """The model's record; see `v2v.checkpoint.ModelRecord`."""
    from v2v.signals import load_signal

    record = windows.records[0][1]
    smaller = 0 if active is None else plan.scales - active
    return ModelRecord(
        format=FORMAT, tool=f"v2v {__version__}", task=settings.task,
        signals=tuple(
            SignalUse(
                name=name, spec=record.signals[name].spec,
                channels=load_signal(name).channels(record.signals[name].spec),
            )
            for name in windows.signals
        ),
        height=plan.height >> smaller, width=plan.width >> smaller, generator=plan.generator,
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
