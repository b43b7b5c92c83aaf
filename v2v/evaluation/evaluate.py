"""Evaluate a model: compare its video of held-out frames with the real video and with baselines.

    clips -> methods -> frames of each method, on disk -> measures -> ranking -> report

Each method is first rendered into a lossless temporary video. All videos are then read in parallel
and measured; only a few numbers per frame are kept. The same inputs give the same report.json,
byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v import __version__
from v2v.data.references import reference_signal
from v2v.data.store import ClipStore
from v2v.defaults import DRIFT_FRAMES, EVALUATED_FRAMES
from v2v.errors import EnvironmentProblem, NotWritable, UsageError, V2VError, writing
from v2v.evaluation.clips import Measured, measured_clips
from v2v.evaluation.detectors import Detector, FrameFormat, detectors_for, find
from v2v.evaluation.frame_scores import TRUTH, FeatureStatistics, FrameScores, Tools, Video, measure
from v2v.evaluation.leakage import Leakage, find_leakage
from v2v.evaluation.methods import REAL, Method, methods_for
from v2v.evaluation.networks import Inception, Lpips, VideoResNet, frechet
from v2v.evaluation.ranking import Place, compare, order
from v2v.evaluation.registry import ALL, BY_NAME, FRAME_STATISTICS, MEASURES, SET_MEASURES, Picture
from v2v.evaluation.returns import difference_on_return
from v2v.evaluation.statistics import FEWEST, Summary, known, summary
from v2v.evaluation.vmaf import ffmpeg_with_vmaf, vmaf
from v2v.files import remove, workplace
from v2v.images import read_picture
from v2v.pipelines.model import LoadedModel
from v2v.progress import Reporter, Silent
from v2v.signals.segmentation import LabelTrack
from v2v.video.stored import read_stored, stored_frames
from v2v.video.write import VideoWriter
from v2v.weights import have_weights

FORMAT = 1
AGAINST = ("copy", "frozen", "nearest")
PERSON = ("background", "person")
PERSON_SEGMENTERS = ("person", "selfie")  # backends with these classes


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`."""

    folder: Path  # of the report
    name: str  # of the evaluated model's method
    clips: tuple[Measured, ...]
    methods: tuple[Method, ...]
    summaries: dict[str, dict[str, Summary]]  # method -> measure -> summary
    frame_scores: list[dict[str, FrameScores]]  # per clip: method -> measure -> [frames]
    order: list[Place]  # ranking of the methods without access to the ground truth
    unavailable: dict[str, str]  # measure -> why it was not measured
    notes: tuple[str, ...]
    leakage: tuple[Leakage, ...]  # per clip: measured frames that occur in training
    # Per clip: method -> mean difference (0 to 255) between two renderings of a frame.
    returns: tuple[dict[str, float], ...] = ()

    def against(self, method: str) -> tuple[list[str], list[str], list[str]]:
        """Measures in which the model is better, worse, or not significantly different."""
        ours, theirs = (
            [methods[name] for methods in self.frame_scores] for name in (self.name, method)
        )
        counts = [clip.count for clip in self.clips]
        return compare(ours, theirs, counts, block=block_of(self.clips))

    def as_json(self) -> dict[str, Any]:
        """The content of report.json; floats are rounded to six significant digits."""
        (main,) = [method.model for method in self.methods if method.name == self.name]
        assert main is not None
        record = main.model.record
        return {
            "format": FORMAT, "tool": f"v2v {__version__}",
            "model": {
                "name": main.name, "row": self.name, "task": record.task, "sha256": main.sha256,
                "width": record.width, "height": record.height,
                "steps": record.training.get("steps"),
            },
            "data": [
                {
                    "name": clip.name, "source": clip.store.record.source.name,
                    "sha256": clip.store.record.source.sha256,
                    "part": "held out" if clip.held_out else "whole",
                    "frames": [clip.start, clip.start + clip.count],
                    "free_running": len(clip.order), "fps": str(clip.store.rate),
                    "in_training": {"moving": leak.moving, "still": leak.still},
                    "differs_on_return": _rounded(again),
                }
                for clip, leak, again in zip(self.clips, self.leakage, self.returns, strict=True)
            ],
            "notes": list(self.notes),
            "measures": {
                m.name: {"title": m.title, "unit": m.unit, "better": m.better, "about": m.about}
                for m in ALL if m.name not in self.unavailable
            },
            "unavailable": self.unavailable,
            "rows": {
                method.name: {
                    "what": method.what, "given_the_truth": method.uses_ground_truth,
                    "measures": {
                        name: _rounded(found.as_json())
                        for name, found in self.summaries[method.name].items()
                    },
                }
                for method in self.methods
            },
            "order": [
                {"row": place.method, "faults": list(place.faults), "rank": _rounded(place.rank),
                 "groups": _rounded(place.groups)}
                for place in self.order
            ],
            "against": {
                method.name: dict(zip(("better", "worse", "same"), found, strict=True))
                for method in self.methods
                if method.name not in (self.name, REAL)
                for found in [self.against(method.name)]
            },
            "courses": [
                {
                    method: {name: _rounded(values.tolist()) for name, values in scores.items()}
                    for method, scores in methods.items()
                }
                for methods in self.frame_scores
            ],
        }  # fmt: skip


def _rounded(value: Any) -> Any:
    """Round floats to six significant digits; NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if not isinstance(value, float):
        return value
    number = known(value)
    return None if number is None else float(f"{number:.6g}")


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
        rendered = [_render(methods, clip, work / str(i), report) for i, clip in enumerate(clips)]
        again = tuple(
            _returns(methods, clip, paths) for clip, paths in zip(clips, rendered, strict=True)
        )
        notes += [
            f"{name}: frames of {clip.name} rendered twice differ by {gap:.2f} of 255 on average"
            for clip, found in zip(clips, again, strict=True)
            for name, gap in found.items()
        ]
        equipment, unavailable = _equipment(trained, clips[0], detectors)
        if chosen is not None:
            equipment = replace(equipment, tools=replace(equipment.tools, region=chosen))
            unavailable["vmaf"] = "it measures whole frames only, and a region is given"
        frame_scores, sets = _measure(
            methods, clips, rendered, equipment, unavailable, work, report
        )
        summaries = _summaries(methods, clips, frame_scores, sets, drift=drift > 0)
        notes += _warnings(clips, sets, drift=drift > 0)
        ranked = {
            method.name: summaries[method.name]
            for method in methods
            if not method.uses_ground_truth
        }
        found = Evaluation(
            folder, own, tuple(clips), tuple(methods), summaries, frame_scores,
            order(ranked, summaries[REAL]), unavailable, tuple(notes), tuple(leakage), again,
        )  # fmt: skip
        from v2v.evaluation.report import page

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


def read_region(region: str, clips: Sequence[Measured]) -> tuple[NDArray[np.bool_], str]:
    """[H, W] the measured region in the model's pixels, and a note. Raises `UsageError`."""
    placement = clips[0].placement
    if any(clip.placement != placement for clip in clips):
        raise UsageError(
            "--region needs clips of the same size",
            hint="measure them one at a time: --data STORE",
        )
    height, width = placement.source
    mask = np.zeros((height, width), np.uint8)
    numbers = region.split(",")
    if len(numbers) == 4 and all(_is_whole(number) for number in numbers):
        x0, y0, x1, y1 = (int(number) for number in numbers)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UsageError(
                f"--region {region} is not inside the {width}x{height} frames",
                hint=f"give x0,y0,x1,y1 with x0 < x1 <= {width} and y0 < y1 <= {height}",
            )
        mask[y0:y1, x0:x1] = 255
    else:
        if not Path(region).is_file():
            raise UsageError(
                f"--region {region} is neither four numbers nor a picture",
                hint="give x0,y0,x1,y1 in pixels, or a mask picture, bright inside the region",
            )
        picture = read_picture(Path(region))
        mask = np.asarray(
            cv2.resize(picture.max(axis=2), (width, height), interpolation=cv2.INTER_NEAREST),
            np.uint8,
        )
    chosen = np.asarray(np.asarray(placement.picture(mask)) > 127)
    if not chosen.any():
        raise UsageError(
            f"--region {region} is empty",
            hint="give a mask picture that is bright inside the region",
        )
    return chosen, (
        f"only {chosen.mean():.0%} of the picture is measured (--region {region}); outside it every"
        " method counts as correct, so compare scores only with scores of the same region. Poses,"
        " faces and labels are detected on whole frames"
    )


def _is_whole(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


def _default_folder(trained: LoadedModel) -> Path:
    run = trained.folder.parent if trained.folder.name == "model" else trained.folder
    return run / "evaluation"


# ---------------------------------------------------------------- frames

RenderedVideos = dict[str, Path]  # method -> its lossless video; `REAL_FRAMES` -> the real one
REAL_FRAMES = ""  # not a valid method name


def _render(
    methods: Sequence[Method], clip: Measured, folder: Path, report: Reporter
) -> RenderedVideos:
    """Render one clip with every method into lossless videos in `folder`."""
    folder.mkdir()
    rendered = {REAL_FRAMES: folder / "truth.mkv"}
    _write_frames(rendered[REAL_FRAMES], clip, clip.pictures(), report)
    for number, method in enumerate(methods):
        rendered[method.name] = folder / f"{number}.mkv"
        stage = f"render {method.name}"
        wanted = len(clip.order) if method.runs_on else clip.count
        report.start(stage, wanted)
        _write_frames(
            rendered[method.name], clip, islice(method.frames(clip), wanted), report, stage
        )
        report.finish(stage)
    return rendered


def _returns(
    methods: Sequence[Method], clip: Measured, rendered: RenderedVideos
) -> dict[str, float]:
    """World consistency of the autoregressive methods on one clip, by name."""
    found = {
        method.name: difference_on_return(rendered[method.name], clip.order)
        for method in methods
        if method.runs_on
    }
    return {name: gap for name, gap in found.items() if gap is not None}


def _write_frames(
    path: Path,
    clip: Measured,
    pictures: Iterator[Picture],
    report: Reporter,
    stage: str | None = None,
) -> None:
    height, width = clip.placement.size
    with VideoWriter(
        path, width=width, height=height, rate=clip.store.rate, codec="ffv1"
    ) as writer:
        for picture in pictures:
            writer.write(picture)
            if stage:
                report.advance(stage)


# ---------------------------------------------------------------- detectors and networks


@dataclass(frozen=True)
class Equipment:
    """The available detectors and networks."""

    detectors: Mapping[str, Callable[[], Detector]]
    tools: Tools


def _equipment(
    trained: LoadedModel, clip: Measured, detectors: Mapping[str, Callable[[], Detector]] | None
) -> tuple[Equipment, dict[str, str]]:
    """The available equipment, and for each unavailable measure the reason."""
    height, width = trained.size
    device = str(trained.device)
    signals = tuple(use.name for use in trained.model.record.signals)
    missing: dict[str, str] = {}
    segmenter, why = _segmenter(signals, clip)
    if segmenter is None:
        missing["labels"] = why
    if detectors is None:
        detectors = detectors_for(signals, segmenter, FrameFormat(height, width, clip.store.rate))
    distance = _opened("lpips", lambda: Lpips(device), missing)
    networks = {
        "fid": _opened("fid", lambda: Inception(device), missing),
        "fvd": _opened("fvd", lambda: VideoResNet(device), missing),
    }
    person = PERSON.index("person") if segmenter in PERSON_SEGMENTERS else None
    tools = Tools(distance, {name: n for name, n in networks.items() if n is not None}, person)
    unavailable = {}
    for chosen in MEASURES:
        if chosen.name == "vmaf":
            try:
                ffmpeg_with_vmaf()
            except V2VError as error:
                unavailable["vmaf"] = _sentence(error)
        elif not tools.can_read(chosen.source, detectors, height, width):
            unavailable[chosen.name] = _why(chosen.source, missing, signals, (height, width))
    unavailable |= {m.name: missing[m.name] for m in SET_MEASURES if m.name in missing}
    return Equipment(detectors, tools), unavailable


def _opened(name: str, make: Callable[[], Any], missing: dict[str, str]) -> Any:
    try:
        return make()
    except EnvironmentProblem as error:
        missing[name] = _sentence(error)
        return None


def _sentence(error: V2VError) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def _why(
    reading: str, missing: Mapping[str, str], signals: tuple[str, ...], size: tuple[int, int]
) -> str:
    for need in FRAME_STATISTICS[reading].needs:
        number, _, unit = need.partition(" ")
        if unit == "pixels" and min(size) < int(number):
            return f"its windows need sides of {number} pixels; frames are {size[1]}x{size[0]}"
        if need in missing:
            return missing[need]
        if need in ("pose", "face") and need not in signals:
            return f"the model does not render from {need}"
        if need == "person":
            return "the segmenter does not separate the person from the background"
    return "no detector or network for it is available"


def _segmenter(signals: tuple[str, ...], clip: Measured) -> tuple[str | None, str]:
    """The backend that segments rendered frames; or None and the reason."""
    if "pose" in signals:
        return "person", ""
    if "face" in signals:
        return "selfie", ""  # there is no body in view to track
    if "segmentation" not in signals:
        return None, "the model does not render people or label maps"
    record = clip.store.record.signals["segmentation"]
    track = clip.store.track("segmentation", 0, 1)
    assert isinstance(track, LabelTrack)
    if tuple(track.classes) == PERSON:
        return "selfie" if record.backend == "selfie" else "person", ""
    if record.backend in ("deeplab", "lraspp") and have_weights(record.backend):
        return record.backend, ""
    return None, (
        f"no segmenter for these {len(track.classes)} classes is available: labels made by"
        f" {record.backend} cannot be detected on rendered frames"
    )


# ---------------------------------------------------------------- measuring

Sets = tuple[FeatureStatistics, dict[str, FeatureStatistics]]


def _measure(
    methods: Sequence[Method],
    clips: Sequence[Measured],
    rendered: Sequence[RenderedVideos],
    equipment: Equipment,
    unavailable: Mapping[str, str],
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
        if "vmaf" not in unavailable:
            for method in methods:
                found[method.name]["vmaf"] = vmaf(paths[method.name], paths[REAL_FRAMES], work)
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


def block_of(clips: Sequence[Measured]) -> int:
    """Bootstrap block length in frames: one second, within which errors are correlated."""
    return max(round(float(clips[0].store.rate)), 1)


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
        for name in BY_NAME:
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
        chosen = next(m for m in SET_MEASURES if m.name == name)
        if real.count < chosen.enough:
            notes.append(
                f"{chosen.title} is biased: {real.count} {chosen.samples}, not"
                f" {chosen.enough} or more"
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
