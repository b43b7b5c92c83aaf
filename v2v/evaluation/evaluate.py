"""Evaluate a model: compare its video of held-out frames with the real video and with baselines.

    clips -> methods -> frames of each method, on disk -> metrics -> ranking -> report

Each method is first rendered into a lossless temporary video. All videos are then read in parallel
and measured; only a few numbers per frame are kept. The same inputs give the same report.json,
byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from v2v.data.references.choosing import reference_signal
from v2v.data.store import ClipStore
from v2v.defaults import DRIFT_FRAMES, EVALUATED_FRAMES
from v2v.errors import NotWritable, UsageError, writing
from v2v.evaluation.clips import Measured, measured_clips
from v2v.evaluation.detectors import Detector, find
from v2v.evaluation.equipment import Equipment, equipment_for
from v2v.evaluation.frame_scores import TRUTH, FeatureStatistics, FrameScores, Video, measure
from v2v.evaluation.leakage import find_leakage
from v2v.evaluation.methods import REAL, Method, methods_for
from v2v.evaluation.metrics import FeatureDistance, VideoStatistic, all_metrics
from v2v.evaluation.networks import frechet
from v2v.evaluation.ranking import order
from v2v.evaluation.region import read_region
from v2v.evaluation.rendered import REAL_FRAMES, RenderedVideos, render_methods, return_differences
from v2v.evaluation.report.page import page
from v2v.evaluation.results import Evaluation, block_of
from v2v.evaluation.statistics import FEWEST, Summary, known, summary
from v2v.files import remove, workplace
from v2v.images import Picture
from v2v.pipelines.model import LoadedModel
from v2v.progress import Reporter, Silent
from v2v.video.stored import read_stored, stored_frames

AGAINST = ("copy", "frozen", "nearest")


def evaluate(
    model: str | Path,
    data: Sequence[str | Path | ClipStore] = (),
    *,
    against: Sequence[str] | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    frames: int = EVALUATED_FRAMES,
    drift: int = DRIFT_FRAMES,
    device: str = "auto",
    region: str | None = None,
    detectors: Mapping[str, Callable[[], Detector]] | None = None,
    report: Reporter | None = None,
) -> Evaluation:
    """Render frames outside the training data, measure them, and write report.html and .json.

    Args:
        model: a run's name, run folder or model folder.
        data: clip stores or footage; defaults to the training clips. Of training clips the
            held-out frames are measured, of others all.
        against: baselines: copy, frozen, nearest, warped, frame, NAME=RUN, NAME=VIDEO; see
            `methods`. None: the first three, and warped if the model renders a body or a face.
        output: the folder of the report; defaults to `evaluation` in the run folder.
        name: name of the model in the report; defaults to the run's name.
        frames: maximum number of frames per clip.
        drift: minimum number of rendered frames, to measure drift; 0: drift is not measured.
        region: the measured region: "x0,y0,x1,y1" in pixels of the clip's frames, or a mask
            picture of the same shape, bright inside. Outside it every method counts as correct,
            which excludes captions and logos.
        detectors: detectors to run on the frames, by name; defaults to those for the model's
            signals.

    Raises `UsageError` for invalid arguments or if nothing is held out, and what opening the
    model, its clips and its signals raises.
    """
    report = report or Silent()
    if frames < 2 or drift < 0:
        raise UsageError(
            f"cannot evaluate {frames} frames with a drift of {drift} frames",
            hint="give --frames of at least 2 and --drift of at least 0",
        )
    trained = LoadedModel.open(model, device=device)
    if against is None:
        can_warp = reference_signal([use.name for use in trained.model.record.signals]) is not None
        against = (*AGAINST, "warped") if can_warp else AGAINST
    clips, notes = measured_clips(trained, data, frames=frames, drift=drift, report=report)
    chosen = None
    if region is not None:
        chosen, note = read_region(region, clips)
        notes.append(note)
    folder = Path(output) if output is not None else _default_folder(trained)
    own = name or trained.name
    busy = NotWritable(
        f"another process is evaluating into {folder}",
        hint="wait for it to end, or choose another --output",
    )
    with workplace(folder / ".work", busy) as work:
        # Earlier versions left lossless videos behind when they were killed.
        for leftover in folder.glob(".evaluate-*"):
            remove(leftover)
        methods, clips, more = methods_for(trained, against, clips, work, report, name=own)
        notes += more
        leakage, warnings = find_leakage(trained, clips, report)
        notes = warnings + notes
        rendered = [
            render_methods(methods, clip, work / str(i), report) for i, clip in enumerate(clips)
        ]
        again = tuple(
            return_differences(methods, clip, paths)
            for clip, paths in zip(clips, rendered, strict=True)
        )
        notes += [
            f"{name}: frames of {clip.name} rendered twice differ by {gap:.2f} of 255 on average"
            for clip, found in zip(clips, again, strict=True)
            for name, gap in found.items()
        ]
        equipment = equipment_for(trained, clips[0], detectors, chosen)
        frame_scores, sets = _measure(methods, clips, rendered, equipment, work, report)
        summaries = _summaries(methods, clips, frame_scores, sets, drift=drift > 0)
        notes += _warnings(clips, sets, drift=drift > 0)
        ranked = {
            method.name: summaries[method.name]
            for method in methods
            if not method.uses_ground_truth
        }
        found = Evaluation(
            folder, own, tuple(clips), tuple(methods), summaries, frame_scores,
            order(ranked, summaries[REAL]), equipment.unavailable, tuple(notes), tuple(leakage),
            again,
        )  # fmt: skip
        written = {
            "report.html": page(found, rendered),
            "report.json": json.dumps(found.as_json(), indent=1) + "\n",
        }
        with writing(folder):
            for file, text in written.items():
                (work / file).write_text(text, "utf-8")
            for file in written:
                (work / file).replace(folder / file)
    return found


def _default_folder(trained: LoadedModel) -> Path:
    run = trained.folder.parent if trained.folder.name == "model" else trained.folder
    return run / "evaluation"


Sets = tuple[FeatureStatistics, dict[str, FeatureStatistics]]


def _measure(
    methods: Sequence[Method],
    clips: Sequence[Measured],
    rendered: Sequence[RenderedVideos],
    equipment: Equipment,
    work: Path,
    report: Reporter,
) -> tuple[list[dict[str, FrameScores]], Sets]:
    """Per-frame scores of every method on every clip, and feature statistics over all clips."""
    sets: Sets = (FeatureStatistics(), {method.name: FeatureStatistics() for method in methods})
    frame_scores = []
    for clip, paths in zip(clips, rendered, strict=True):
        videos = {
            name: Video(read_stored(path), _found(name or "ground truth", path, equipment, report))
            for name, path in paths.items()
        }
        stage = f"measure {clip.name}"
        report.start(stage, len(clip.order))
        found = measure(
            videos.pop(REAL_FRAMES), videos,
            count=len(clip.order), tools=equipment.tools, cuts=clip.cuts, sets=sets,
            sets_until=clip.count, advance=lambda n, stage=stage: report.advance(stage, n),  # type: ignore[misc]
        )  # fmt: skip
        # The real video's own scores come from the original, not from its re-encoded copy.
        found[REAL] |= found.pop(TRUTH)
        for name, metric in all_metrics().items():
            statistic = metric.statistic
            if isinstance(statistic, VideoStatistic) and name not in equipment.unavailable:
                for method in methods:
                    values = statistic.take(paths[method.name], paths[REAL_FRAMES], work)
                    found[method.name][name] = metric.values(values)
        report.finish(stage)
        frame_scores.append(found)
    return frame_scores, sets


def _found(what: str, video: Path, equipment: Equipment, report: Reporter) -> dict[str, Any]:
    """Run each detector on a video, one after another because each needs a lot of memory."""
    found = {}
    for name, make in equipment.detectors.items():
        stage = f"detect {name} in {what}"
        count = sum(1 for _ in stored_frames(video))
        report.start(stage, count)

        def measured_frames(stage: str = stage) -> Iterator[Picture]:
            for picture in read_stored(video):
                yield picture
                report.advance(stage)

        found[name] = find(measured_frames(), count, make, video.with_suffix(f".{name}.npy"))
        report.finish(stage)
    return found


def _summaries(
    methods: Sequence[Method],
    clips: Sequence[Measured],
    frame_scores: Sequence[dict[str, FrameScores]],
    sets: Sets,
    *,
    drift: bool,
) -> dict[str, dict[str, Summary]]:
    block = block_of(clips)
    summaries: dict[str, dict[str, Summary]] = {}
    for method in methods:
        found: dict[str, Summary] = {}
        for name in all_metrics():
            if name not in frame_scores[0][method.name]:
                continue
            values = [scores[method.name][name] for scores in frame_scores]
            parts = [v[: clip.count] for v, clip in zip(values, clips, strict=True)]
            longer = [(v, clip.order) for v, clip in zip(values, clips, strict=True)]
            measured_frames = drift and method.runs_on
            found[name] = summary(parts, block=block, longer=longer if measured_frames else ())
        for name, real in sets[0].sets.items():
            ours = sets[1][method.name].sets[name]
            distance = known(frechet(ours, real))
            found[name] = Summary(distance, frames=ours.count)
        summaries[method.name] = found
    return summaries


def _warnings(clips: Sequence[Measured], sets: Sets, *, drift: bool) -> list[str]:
    notes = []
    for name, real in sets[0].sets.items():
        metric = all_metrics()[name]
        distance = metric.statistic
        if isinstance(distance, FeatureDistance) and real.count < distance.enough:
            notes.append(
                f"{metric.title} is biased: {real.count} {distance.samples}, not"
                f" {distance.enough} or more"
            )
    short = [clip.name for clip in clips if len(clip.order) > clip.count]
    if short:
        notes.append(
            f"drift is measured over {max(len(clip.order) for clip in clips)} frames: the measured"
            f" part of {', '.join(short)} is shorter, so it is played forwards and backwards; means"
            " are taken over the first pass"
        )
    once = [clip.name for clip in clips if len(clip.order) == clip.count >= FEWEST]
    if drift and once:
        notes.append(
            f"{', '.join(once)}: each frame is rendered once, so drift compares the last fifth with"
            " the second fifth and also depends on their different content"
        )
    return notes
