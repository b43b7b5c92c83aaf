"""End to end in one call: preprocess two clips, train on one, render it driven by the other.

Every stage is cached under the hash of its inputs, so a second call resumes with the remaining
ones.

>>> run(Path("me.mp4"), Path("dance.mp4"), minutes=60)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.checkpoint import MODEL_FILE, load_model
from v2v.config import load_config
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.defaults import MINUTES
from v2v.errors import MediaError, RunConflict, UnknownName, UsageError
from v2v.pipelines.provenance import read_provenance
from v2v.pipelines.registry import tasks
from v2v.pipelines.rendering.frames import RenderResult
from v2v.pipelines.rendering.output import Output
from v2v.pipelines.source import Source, open_source
from v2v.preprocess.build import default_folder
from v2v.preprocess.job import source_hash
from v2v.progress import Reporter, Silent
from v2v.records import check_name
from v2v.training.settings import TrainSettings
from v2v.video.probe import probe

STAGES = 4
STORED = 2.0  # stored size relative to the training size: augmentation zooms in
OVERALL = "all"


@dataclass(frozen=True)
class Run:
    """The result of `run`."""

    target: Path  # clip store
    source: Path  # clip store
    run: Path
    rendered: RenderResult
    training: dict[str, Any]
    kept: bool  # an up-to-date video existed already
    steps: tuple[tuple[str, float], ...]  # name and seconds of each step


def run(
    target: Path,
    source: Path,
    *,
    task: str = "pose",
    output: Path | None = None,
    name: str | None = None,
    minutes: float = MINUTES,
    size: int = 256,
    settings: list[str] | None = None,
    compare: bool = False,
    render_size: int | None = None,
    overwrite: bool = False,
    data: Path = Path("data"),
    runs: Path = Path("runs"),
    report: Reporter | None = None,
) -> Run:
    """Train on `target` and drive the model with `source`.

    Args:
        target, source: footage or clip stores.
        task: `pose` transfers body motion, `face` facial motion.
        output: the video; defaults to SOURCE-NAME.mp4.
        name: name of the run; defaults to the target's.
        minutes: training time.
        size: shorter side of the training frames in pixels.
        settings: training settings as `KEY=VALUE`.
        render_size: shorter side of the written video in pixels; defaults to the model's.
        overwrite: replace a video at `output` that was not made from these inputs.

    Raises what preprocessing, training and rendering raise.
    """
    report = report or Silent()
    driven = {name: spec for name, spec in tasks().items() if spec.driven}
    if task not in driven:
        raise UnknownName.among("task", task, driven)
    # Validate everything before hours of computation.
    values = {"data.size": size, "budget.minutes": minutes}
    chosen = load_config(TrainSettings, "train", f"train-{task}", overrides=settings, values=values)
    folder = runs / check_name(default_folder(target).name if name is None else name)
    path = output or Path(f"{default_folder(source).name}-{folder.name}.mp4")
    video = Output(path, compare=compare, size=render_size, overwrite=True)
    video.check()
    _check_run(folder, target, _digest(target))
    if not overwrite:
        _check_overwrite(video, folder, _digest(source))

    report.start(OVERALL, STAGES)
    begun: list[tuple[str, float]] = []

    def begin(number: int, what: str) -> None:
        begun.append((what, time.monotonic()))
        if number > 1:
            report.advance(OVERALL)
        report.describe(OVERALL, f"{number} of {STAGES}: {what}")

    begin(1, f"signals of {target.name}")
    filmed = _target(target, task, size, data, report)
    begin(2, f"signals of {source.name}")
    driving = open_source(source, [task], data=data, report=report)

    begin(3, f"train {folder}")
    from v2v.training.loop import train

    try:
        trained = train(chosen, [filmed.store.folder], folder, report)
    except RunConflict as error:
        raise RunConflict(
            error.message, hint=f"choose another --name, or remove {folder} to start over"
        ) from error

    begin(4, f"render {path.name}")
    pipeline = driven[task].pipeline().from_pretrained(folder)
    rendering = pipeline(driving.store, report=report)
    kept = rendering.is_saved(video)
    if kept:
        video.tidy()
    else:
        for note in rendering.notes:
            report.note(note)
        rendering.save(video, report=report)
    report.finish(OVERALL)
    ends = [*(moment for _, moment in begun[1:]), time.monotonic()]
    steps = tuple((what, end - start) for (what, start), end in zip(begun, ends, strict=True))
    return Run(
        filmed.store.folder, driving.store.folder, folder, rendering.outcome(video),
        trained.as_json(), kept, steps,
    )  # fmt: skip


def _digest(given: Path) -> str:
    """Hash of footage, or of a clip store's source."""
    if (given / CLIP_FILE).is_file():
        return ClipStore.open(given).record.source.sha256
    return source_hash(probe(given))


def _target(target: Path, task: str, size: int, data: Path, report: Reporter) -> Source:
    """The training clip, with mask and camera for the background and flow for temporal losses."""
    values: dict[str, Any] = {"frames.crop": "face"} if task == "face" else {}
    if not (target / CLIP_FILE).is_file():
        seen = probe(target)
        stored = round(STORED * size)
        if min(seen.upright_width, seen.upright_height) > stored or task == "face":
            values["frames.size"] = stored
    return open_source(
        target, [task, "segmentation", "flow", "camera"], values=values, data=data, report=report
    )


def _check_run(folder: Path, target: Path, digest: str) -> None:
    if not (folder / "model" / MODEL_FILE).is_file():
        return
    clips = load_model(folder).record.clips
    if [clip.sha256 for clip in clips] != [digest]:
        raise RunConflict(
            f"{folder} was trained on {', '.join(clip.source for clip in clips)}, not on the given"
            f" {target.name}",
            hint="choose another --name",
        )


def _check_overwrite(video: Output, folder: Path, digest: str) -> None:
    """Refuse to replace files that were not rendered by this model from this source."""
    for file in video.files:
        if not file.exists():
            continue
        try:
            mark = read_provenance(file)
        except MediaError:
            mark = None
        if not mark or (mark.model, mark.source_sha256) != (folder.resolve().name, digest):
            raise UsageError(
                f"{file} already exists and was not made from this target and source",
                hint="replace it with --overwrite, or choose another --output",
            )
