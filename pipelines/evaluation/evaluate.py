"""How good a model is: its video of held-out moments against the real one and simpler videos.

    clips -> rows -> frames of each row, kept on disk -> measures -> order -> report

Frames are rendered first, each row into a lossless video in a folder of its own; then all are
read in step, measured, and let go. What stays is a few numbers a frame. The same inputs give the
same report, to the byte of report.json.
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
from v2v.data.video import VideoWriter, read_stored, stored_frames
from v2v.errors import EnvironmentProblem, NotWritable, UsageError, V2VError, writing
from v2v.evaluation.frame_scores import TRUTH, FeatureStatistics, FrameScores, Tools, Video, measure
from v2v.evaluation.networks import Inception, Lpips, VideoResNet, frechet
from v2v.evaluation.ranking import Place, compare, order
from v2v.evaluation.registry import ALL, BY_NAME, FRAME_STATISTICS, MEASURES, SET_MEASURES, Picture
from v2v.evaluation.statistics import FEWEST, Summary, known, summary
from v2v.evaluation.vmaf import ffmpeg_with_vmaf, vmaf
from v2v.files import remove, workplace
from v2v.images import read_picture
from v2v.pipelines.evaluation.clips import Measured, measured_clips
from v2v.pipelines.evaluation.detectors import Detector, FrameFormat, detectors_for, find
from v2v.pipelines.evaluation.leakage import Leakage, find_leakage
from v2v.pipelines.evaluation.methods import REAL, Method, methods_for
from v2v.pipelines.evaluation.returns import difference_on_return
from v2v.pipelines.model import LoadedModel
from v2v.progress import Reporter, Silent
from v2v.signals.segmentation import LabelTrack
from v2v.weights import have_weights

FORMAT = 1
FRAMES = 600  # of a clip, at most
DRIFT = 300  # frames of free running, at least
AGAINST = ("copy", "frozen", "nearest")
PERSON = ("background", "person")
PERSON_SEGMENTERS = ("person", "selfie")  # whose labels are those


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, and where it wrote it."""

    folder: Path
    name: str  # of the model's row
    clips: tuple[Measured, ...]
    methods: tuple[Method, ...]
    summaries: dict[str, dict[str, Summary]]  # row -> measure -> what it came to
    frame_scores: list[dict[str, FrameScores]]  # for each clip: row -> measure -> [frames]
    order: list[Place]  # of the rows that are not given the truth
    unavailable: dict[str, str]  # measure -> why there is no number
    notes: tuple[str, ...]
    leakage: tuple[Leakage, ...]  # for each clip: measured frames that occur in training too
    # For each clip, of the rows that run on: how a moment that comes again differs, of 255.
    returns: tuple[dict[str, float], ...] = ()

    def against(self, method: str) -> tuple[list[str], list[str], list[str]]:
        """Measures in which the model is better, worse, or not told apart from another row."""
        ours, theirs = (
            [methods[name] for methods in self.frame_scores] for name in (self.name, method)
        )
        counts = [clip.count for clip in self.clips]
        return compare(ours, theirs, counts, block=block_of(self.clips))

    def as_json(self) -> dict[str, Any]:
        """The record that report.json holds; floats to six digits."""
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
    """Six digits, and null for what is no number."""
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
    frames: int = FRAMES,
    drift: int = DRIFT,
    device: str = "auto",
    region: str | None = None,
    detectors: Mapping[str, Callable[[], Detector]] | None = None,
    report: Reporter | None = None,
) -> Evaluation:
    """Render what the model was not trained on, measure it, and write report.html and .json.

    Args:
        model: a run's name, run folder or model folder.
        data: clip stores or footage; by default the clips it was trained on. Of those the part
            that was held out is measured, of others all.
        against: of copy, frozen, nearest, warped, frame, NAME=RUN, NAME=VIDEO; see `methods`. None:
            the first three, and warped where the model renders a body or a face.
        output: the folder of the report, by default `evaluation` in the run folder.
        name: what the model's row is called; by default the run's name.
        frames: of each clip, at most.
        drift: how long the model runs on where a clip has fewer frames; 0: no drift is told.
        region: what is measured: "x0,y0,x1,y1" in pixels of the clip's frames, or a mask picture
            of their shape, bright where it counts. Elsewhere every row is taken as right: captions
            and logos can be left out.
        detectors: what looks at the frames again, by name; by default what the model's signals
            call for.

    Raises `UsageError` for a choice that cannot be, or where nothing is held out; what opening
    the model, its clips and its signals raises.
    """
    report = report or Silent()
    if frames < 2 or drift < 0:
        raise UsageError(
            f"{frames} frames, {drift} of drift: that cannot be", hint="--frames is 2 or more"
        )
    trained = LoadedModel.open(model, device=device)
    if against is None:
        moves = reference_signal([use.name for use in trained.model.record.signals]) is not None
        against = (*AGAINST, "warped") if moves else AGAINST
    clips, notes = measured_clips(trained, data, frames=frames, drift=drift, report=report)
    chosen = None
    if region is not None:
        chosen, said = read_region(region, clips)
        notes.append(said)
    folder = Path(output) if output is not None else _default_folder(trained)
    own = name or trained.name
    busy = NotWritable(
        f"another process is evaluating into {folder}",
        hint="wait for it to end, or choose another --output",
    )
    with workplace(folder / ".work", busy) as room:
        for left in folder.glob(".evaluate-*"):  # earlier versions, killed, left lossless video
            remove(left)
        methods, clips, more = methods_for(trained, against, clips, room, report, name=own)
        notes += more
        leakage, warnings = find_leakage(trained, clips, report)
        notes = warnings + notes
        films = [_render(methods, clip, room / str(i), report) for i, clip in enumerate(clips)]
        again = tuple(
            _returns(methods, clip, paths) for clip, paths in zip(clips, films, strict=True)
        )
        notes += [
            f"{name}: a moment of {clip.name} that comes again looks different by {gap:.2f} of 255"
            for clip, found in zip(clips, again, strict=True)
            for name, gap in found.items()
        ]
        equipment, unavailable = _equipment(trained, clips[0], detectors)
        if chosen is not None:
            equipment = replace(equipment, tools=replace(equipment.tools, region=chosen))
            unavailable["vmaf"] = "it measures whole pictures, and a region was chosen"
        frame_scores, sets = _measure(methods, clips, films, equipment, unavailable, room, report)
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
        from v2v.pipelines.evaluation.report import page

        written = {
            "report.html": page(found, films),
            "report.json": json.dumps(found.as_json(), indent=1) + "\n",
        }
        with writing(folder):
            for file, text in written.items():
                (room / file).write_text(text, "utf-8")
            for file in written:
                (room / file).replace(folder / file)
    return found


def read_region(region: str, clips: Sequence[Measured]) -> tuple[NDArray[np.bool_], str]:
    """[H, W] what is measured, in the model's pixels, and a sentence on it. Raises `UsageError`."""
    placement = clips[0].placement
    if any(clip.placement != placement for clip in clips):
        raise UsageError(
            "--region wants clips of one size", hint="measure them one by one: --data STORE"
        )
    height, width = placement.source
    mask = np.zeros((height, width), np.uint8)
    numbers = region.split(",")
    if len(numbers) == 4 and all(_is_whole(number) for number in numbers):
        x0, y0, x1, y1 = (int(number) for number in numbers)
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UsageError(
                f"--region {region} is not inside the frames of {width}x{height}",
                hint=f"give x0,y0,x1,y1 with x0 < x1 <= {width} and y0 < y1 <= {height}",
            )
        mask[y0:y1, x0:x1] = 255
    else:
        if not Path(region).is_file():
            raise UsageError(
                f"--region {region} is neither four numbers nor a picture",
                hint="give x0,y0,x1,y1 in pixels, or a mask picture, bright where it counts",
            )
        picture = read_picture(Path(region))
        mask = np.asarray(
            cv2.resize(picture.max(axis=2), (width, height), interpolation=cv2.INTER_NEAREST),
            np.uint8,
        )
    chosen = np.asarray(np.asarray(placement.picture(mask)) > 127)
    if not chosen.any():
        raise UsageError(
            f"--region {region} shows nothing to measure", hint="let it be bright where it counts"
        )
    return chosen, (
        f"only {chosen.mean():.0%} of the picture is measured (--region {region}); elsewhere every"
        " row counts as right: compare figures with none but those of this region. Poses, faces and"
        " labels are found on whole pictures"
    )


def _is_whole(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


def _default_folder(trained: LoadedModel) -> Path:
    run = trained.folder.parent if trained.folder.name == "model" else trained.folder
    return run / "evaluation"


# ---------------------------------------------------------------- frames

RenderedVideos = dict[str, Path]  # row -> its frames, lossless; `REAL_FRAMES` are the real ones
REAL_FRAMES = ""  # no row is called so


def _render(
    methods: Sequence[Method], clip: Measured, folder: Path, report: Reporter
) -> RenderedVideos:
    """Every row's frames of one clip."""
    folder.mkdir()
    films = {REAL_FRAMES: folder / "truth.mkv"}
    _write_frames(films[REAL_FRAMES], clip, clip.pictures(), report)
    for number, method in enumerate(methods):
        films[method.name] = folder / f"{number}.mkv"
        stage = f"render {method.name}"
        wanted = len(clip.order) if method.runs_on else clip.count
        report.start(stage, wanted)
        _write_frames(films[method.name], clip, islice(method.frames(clip), wanted), report, stage)
        report.finish(stage)
    return films


def _returns(methods: Sequence[Method], clip: Measured, films: RenderedVideos) -> dict[str, float]:
    """World consistency of the rows that run on over the clip, by name."""
    found = {
        method.name: difference_on_return(films[method.name], clip.order)
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


# ---------------------------------------------------------------- what is there to measure with


@dataclass(frozen=True)
class Equipment:
    """What there is to measure with."""

    detectors: Mapping[str, Callable[[], Detector]]
    tools: Tools


def _equipment(
    trained: LoadedModel, clip: Measured, detectors: Mapping[str, Callable[[], Detector]] | None
) -> tuple[Equipment, dict[str, str]]:
    """What is here, and for each measure that has not what it needs, why."""
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
            return "what finds labels again here does not tell a person from all else"
    return "there is nothing to measure it with"


def _segmenter(signals: tuple[str, ...], clip: Measured) -> tuple[str | None, str]:
    """The backend that finds labels on rendered frames; None and why there is none."""
    if "pose" in signals:
        return "person", ""
    if "face" in signals:
        return "selfie", ""  # no body is in view to follow
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
        f"no segmenter of these {len(track.classes)} classes is here: labels made by"
        f" {record.backend} cannot be found again on rendered frames"
    )


# ---------------------------------------------------------------- measuring

Sets = tuple[FeatureStatistics, dict[str, FeatureStatistics]]


def _measure(
    methods: Sequence[Method],
    clips: Sequence[Measured],
    films: Sequence[RenderedVideos],
    equipment: Equipment,
    unavailable: Mapping[str, str],
    work: Path,
    report: Reporter,
) -> tuple[list[dict[str, FrameScores]], Sets]:
    """Courses of every row on every clip, and the features of all clips together."""
    sets: Sets = (FeatureStatistics(), {method.name: FeatureStatistics() for method in methods})
    frame_scores = []
    for clip, paths in zip(clips, films, strict=True):
        videos = {
            name: Video(read_stored(path), _found(name or "the truth", path, equipment, report))
            for name, path in paths.items()
        }
        stage = f"measure {clip.name}"
        report.start(stage, len(clip.order))
        found = measure(
            videos.pop(REAL_FRAMES), videos,
            count=len(clip.order), tools=equipment.tools, cuts=clip.cuts, sets=sets,
            sets_until=clip.count, advance=lambda n, stage=stage: report.advance(stage, n),  # type: ignore[misc]
        )  # fmt: skip
        # Of the real video as it is, not as it was encoded again.
        found[REAL] |= found.pop(TRUTH)
        if "vmaf" not in unavailable:
            for method in methods:
                found[method.name]["vmaf"] = vmaf(paths[method.name], paths[REAL_FRAMES], work)
        report.finish(stage)
        frame_scores.append(found)
    return frame_scores, sets


def _found(what: str, film: Path, equipment: Equipment, report: Reporter) -> dict[str, Any]:
    """What each detector finds on a video. One after another: each takes a lot of memory."""
    found = {}
    for name, make in equipment.detectors.items():
        stage = f"find {name} in {what}"
        count = sum(1 for _ in stored_frames(film))
        report.start(stage, count)

        def measured_frames(stage: str = stage) -> Iterator[Picture]:
            for picture in read_stored(film):
                yield picture
                report.advance(stage)

        found[name] = find(measured_frames(), count, make, film.with_suffix(f".{name}.npy"))
        report.finish(stage)
    return found


def block_of(clips: Sequence[Measured]) -> int:
    """Frames that are wrong together: a second."""
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
            f"drift is told from {max(len(clip.order) for clip in clips)} free-running frames:"
            f" the measured part of {', '.join(short)} is shorter, so it is run over there and"
            " back again; the means are of the first pass"
        )
    once = [clip.name for clip in clips if len(clip.order) == clip.count >= FEWEST]
    if drift and once:
        notes.append(
            f"{', '.join(once)}: each frame is shown once, so that drift holds the last fifth"
            " against the second, which shows other moments: it tells of them too"
        )
    return notes
