"""The whole way in one call: two pieces of footage in, new video out.

Signals of both, training, rendering: every stage is kept under the hash of what it was made from,
so a second call does only what is left.

>>> run(Path("me.mp4"), Path("dance.mp4"), minutes=60)
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.checkpoint import MODEL_FILE, load_model
from v2v.config import load_config
from v2v.data.probe import probe
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.errors import MediaError, RunConflict, UnknownName, UsageError
from v2v.pipelines.face_reenactment import FaceReenactment
from v2v.pipelines.motion_transfer import MotionTransfer
from v2v.pipelines.provenance import read_provenance
from v2v.pipelines.rendering import Output, Rendering, RenderResult
from v2v.pipelines.source import Source, open_source
from v2v.preprocess.build import default_folder, source_hash
from v2v.progress import Reporter, Silent
from v2v.records import check_name
from v2v.training.settings import TrainSettings

TASKS = ("pose", "face")
STAGES = 4
STORED = 2.0  # stored frames over the size trained at: augmentation zooms in a little
OVERALL = "all"


@dataclass(frozen=True)
class Run:
    """Where everything is."""

    target: Path  # its clip store
    source: Path
    run: Path
    rendered: RenderResult
    training: dict[str, Any]
    kept: bool  # the video was there already
    steps: tuple[tuple[str, float], ...]  # what was done, and the seconds it took


def run(
    target: Path,
    source: Path,
    *,
    task: str = "pose",
    output: Path | None = None,
    name: str | None = None,
    minutes: float = 60.0,
    size: int = 256,
    settings: list[str] | None = None,
    compare: bool = False,
    render_size: int | None = None,
    overwrite: bool = False,
    data: Path = Path("data"),
    runs: Path = Path("runs"),
    report: Reporter | None = None,
) -> Run:
    """Train on `target`, drive it with `source`.

    Args:
        target, source: footage, or clip stores.
        task: pose transfers the motion of a body, face that of a face.
        output: the video; by default SOURCE-NAME.mp4.
        name: of the run; by default that of the target.
        minutes: of training.
        size: shorter side of the frames trained at.
        settings: of training, as `KEY=VALUE`.
        render_size: shorter side of the picture written, by default the model's.
        overwrite: replace a video at `output` that this did not make.

    Raises what preprocessing, training and rendering raise.
    """
    report = report or Silent()
    if task not in TASKS:
        raise UnknownName.among("task", task, TASKS)
    # All that can be refused is refused before hours are spent.
    values = {"data.size": size, "budget.minutes": minutes}
    chosen = load_config(TrainSettings, "train", f"train-{task}", overrides=settings, values=values)
    folder = runs / check_name(default_folder(target).name if name is None else name)
    path = output or Path(f"{default_folder(source).name}-{folder.name}.mp4")
    video = Output(path, compare=compare, size=render_size, overwrite=True)
    video.check()
    _check_run(folder, target, _digest(target))
    if not overwrite:
        _check_own(video, folder, _digest(source))

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
            error.message, hint=f"choose another --name, or remove {folder} to begin anew"
        ) from error

    begin(4, f"render {path.name}")
    rendering = _pipeline(task, folder, driving, report)
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
    """Hash of footage, or of what a clip store was made from."""
    if (given / CLIP_FILE).is_file():
        return ClipStore.open(given).record.source.sha256
    return source_hash(probe(given))


def _target(target: Path, task: str, size: int, data: Path, report: Reporter) -> Source:
    """The clip to train on: with mask and camera for the background, and flow to steady it."""
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
            f"{folder} was trained on {', '.join(clip.source for clip in clips)}, not on this"
            f" {target.name}",
            hint="choose another --name",
        )


def _check_own(video: Output, folder: Path, digest: str) -> None:
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
                f"{file} exists already, and was not made from these two",
                hint="replace it with --overwrite, or choose another --output",
            )


def _pipeline(task: str, folder: Path, driving: Source, report: Reporter) -> Rendering:
    if task == "face":
        return FaceReenactment.from_model(folder)(driving.store, report=report)
    return MotionTransfer.from_model(folder)(driving.store, report=report)
