"""The evaluated methods: the model and the baselines to compare it with.

real      the real frames, re-encoded: the score of a perfect model
copy      the previous real frame: repetition with access to the ground truth
frozen    the last training frame, repeated (for another clip: its first frame)
nearest   for each frame, the training frame with the nearest signal
warped    parts of training frames, warped to the pose, over the background: no network
NAME=RUN  another run, rendered in the same way
NAME=VIDEO  a video of the same frames from any source
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from v2v.checkpoint import MODEL_FILE, ClipUse
from v2v.data.background import Backgrounds, build_background_plate
from v2v.data.references.choosing import Chooser, reference_signal
from v2v.data.references.gathering import gather
from v2v.data.references.memory import References
from v2v.data.references.warping import candidates
from v2v.data.store import ClipStore
from v2v.data.transforms import Placement
from v2v.errors import UnknownName, UsageError
from v2v.evaluation.clips import Measured, find_store, is_of, trained_on
from v2v.images import Picture
from v2v.pipelines.model import LoadedModel, find_model
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.rendering import Rendering
from v2v.pipelines.source import open_source
from v2v.progress import Reporter
from v2v.signals import Track, load_signal
from v2v.signals.pose import BODY, MIN_SCORE
from v2v.signals.traits import LabelMaps, LabelSignal, PointSignal
from v2v.video.probe import probe
from v2v.video.stored import read_stored
from v2v.video.write import VideoWriter

REAL = "real"
SIMPLE = ("copy", "frozen", "nearest", "warped")
FRAME = "frame"
CANDIDATES = 2048  # evenly spread training frames that `nearest` searches
MISSING = 0.2  # cost of a point missing in a candidate, as a fraction of the shorter side
GRID = 24  # label maps are compared on a grid of GRID x GRID pixels

Frames = Callable[[Measured], Iterator[Picture]]


@dataclass(frozen=True)
class Method:
    """A method to evaluate."""

    name: str
    what: str  # description
    frames: Frames
    runs_on: bool = False  # it renders all of `Measured.order`, so that drift can be measured
    uses_ground_truth: bool = False  # it reads the real frames, so it is not ranked
    model: LoadedModel | None = None


# ---------------------------------------------------------------- models


def model_method(name: str, trained: LoadedModel) -> Method:
    record = trained.model.record
    how = record.generator.get("name", "?")
    if record.generator.get("sequential") is False:
        how = "frame by frame"
    steps = record.training.get("steps")
    trained_for = f", {steps} updates" if steps else ""
    return Method(
        name, f"the model {trained.name} ({how}{trained_for}), autoregressive, no initial frames",
        lambda clip: iter(rendering(trained, clip)), runs_on=True, model=trained,
    )  # fmt: skip


def rendering(trained: LoadedModel, clip: Measured) -> Rendering:
    """Render a clip's signals with the model, without retargeting."""
    record = trained.model.record
    names = [use.name for use in record.signals]
    clip_number = next((i for i, use in enumerate(record.clips) if use.sha256 == _sha(clip)), 0)

    def tracks(first: int, stop: int) -> Sequence[Track]:
        return [clip.track(name, first, stop) for name in names]

    backgrounds = None
    if is_of(clip.store.record, record.clips[clip_number]):
        backgrounds = trained.model.backgrounds.get(clip_number)

    def behind(first: int, stop: int) -> NDArray[np.uint8]:
        """The background seen by the footage's camera in each frame."""
        assert backgrounds is not None
        return np.stack([backgrounds.of(int(frame)) for frame in clip.order[first:stop]])

    conditioning = ConditioningSource(
        pipeline="evaluation", count=len(clip.order), rate=clip.store.rate, tracks=tracks,
        settings={}, source=clip.name, source_sha256=_sha(clip),
        behind=None if backgrounds is None else behind,
    )  # fmt: skip
    return Rendering(trained, conditioning, trained.appearance(clip_number))


def _sha(clip: Measured) -> str:
    return clip.store.record.source.sha256


def other_model(name: str, path: str, main: LoadedModel, clips: Sequence[Measured]) -> Method:
    """Another run to compare with. Raises `UsageError` if the comparison would not be fair."""
    other = LoadedModel.open(path, device=str(main.device))
    signals = [use.name for use in other.model.record.signals]
    if other.size != main.size:
        raise UsageError(
            f"{name} renders {other.size[1]}x{other.size[0]}, but {main.name} renders"
            f" {main.size[1]}x{main.size[0]}",
            hint="compare models of the same size; continue training until the last stage",
        )
    for clip in clips:
        missing = [signal for signal in signals if signal not in clip.store.signals]
        if missing:
            raise UsageError(
                f"{name} renders from {' and '.join(signals)}, but {clip.store.folder} has no"
                f" {missing[0]}",
                hint=f"add it with: v2v preprocess {clip.store.folder} --signal {missing[0]}",
            )
        seen = trained_on(other, clip)
        if seen:
            raise UsageError(
                f"{name} was trained on {seen} of the measured frames ({clip.name})",
                hint="compare runs with the same clip and data.hold_out",
            )
    return model_method(name, other)


def frame_by_frame(main: LoadedModel) -> str:
    """Find a sibling run trained without temporal conditioning. Raises `UsageError`."""
    run = main.folder.parent if main.folder.name == "model" else main.folder
    names = (FRAME, f"{run.name}-{FRAME}", f"{run.name}_{FRAME}")
    for place in (run.with_name(name) for name in names):
        if (place / "model" / MODEL_FILE).is_file():
            return str(place)
    raise UsageError(
        f"there is no frame-by-frame run next to {run}",
        hint=f"train one with -s generator.sequential=false --name {names[1]}, or give its path:"
        " --against frame=runs/NAME",
    )


# ---------------------------------------------------------------- baselines


def encoded_again(clip: Measured) -> Iterator[Picture]:
    """Yield the real frames after H.264 compression.

    They are encoded at twice the size: otherwise chroma subsampling would dominate the loss.
    """
    height, width = clip.placement.size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "real.mp4"
        with VideoWriter(path, width=2 * width, height=2 * height, rate=clip.store.rate) as writer:
            for picture in clip.pictures(clip.order[: clip.count]):
                writer.write(picture.repeat(2, axis=0).repeat(2, axis=1))
        for large in read_stored(path):
            small = cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA)
            yield np.asarray(small, np.uint8)


def copied(clip: Measured) -> Iterator[Picture]:
    order = clip.order[: clip.count] - 1
    return clip.pictures(np.maximum(order, 0))


def frozen(clip: Measured) -> Iterator[Picture]:
    held = max(clip.start - 1, 0)
    picture = next(clip.pictures(np.asarray([held])))
    return (picture for _ in range(clip.count))


def _training_store(trained: LoadedModel, use: ClipUse, method: str) -> ClipStore:
    """The store of a training clip. Raises `UsageError` if it cannot be found."""
    store = find_store(trained, use)
    if store is None:
        raise UsageError(
            f"{method} needs training frames, but the store of {use.name} cannot be found",
            hint=f"move it to data/{use.name}, or remove {method} from --against",
        )
    return store


@dataclass(frozen=True)
class Nearest:
    """For each frame, the training frame with the nearest signal, at the model's size."""

    store: ClipStore  # the training clip
    placement: Placement
    stop: int  # end of the training frames
    signal: str

    @classmethod
    def of(cls, trained: LoadedModel, clip_number: int) -> Nearest:
        """Raises `UsageError` if the training clip is missing or has no points or labels."""
        use = trained.model.record.clips[clip_number]
        store = _training_store(trained, use, "nearest")
        for use_of in trained.model.record.signals:
            if isinstance(load_signal(use_of.name), PointSignal | LabelSignal):
                return cls(store, trained.placement(clip_number), use.trained[1], use_of.name)
        raise UsageError(
            f"nearest compares points or labels; {trained.name} has neither",
            hint="remove nearest from --against",
        )

    def __call__(self, clip: Measured) -> Iterator[Picture]:
        candidates = np.unique(np.linspace(0, self.stop - 1, CANDIDATES).astype(int))
        features = np.concatenate(
            [
                self._features(self.placement.track(self.store.track(self.signal, t, t + 1)))
                for t in map(int, candidates)
            ]
        )
        last = int(candidates[-1])
        for place in range(clip.count):
            (query,) = self._features(clip.track(self.signal, place, place + 1))
            distance = self._distance(features, query)
            last = last if distance is None else int(candidates[distance.argmin()])
            frame = self.store.frames(last, last + 1)[0]
            yield np.asarray(self.placement.picture(frame), np.uint8)

    def _features(self, track: Track) -> NDArray[np.float32]:
        """[T, N, 2] points in units of the shorter side, NaN if missing; or [T, GRID^2] labels."""
        if isinstance(track, LabelMaps):
            rows = (np.arange(GRID) + 0.5) * track.height / GRID
            columns = (np.arange(GRID) + 0.5) * track.width / GRID
            maps = track.labels[:, rows.astype(int)][:, :, columns.astype(int)]
            return maps.reshape(len(track), -1).astype(np.float32)
        all_points: NDArray[np.float32] = track.points  # type: ignore[attr-defined]
        # Hands are often missing, and small: of a pose, the body decides.
        points = np.array(all_points[:, : len(BODY)] if self.signal == "pose" else all_points)
        points[~(points[..., 2] >= MIN_SCORE)] = np.nan
        scaled: NDArray[np.float32] = points[..., :2] / min(track.height, track.width)
        return scaled

    @staticmethod
    def _distance(known: NDArray[np.float32], query: NDArray[np.float32]) -> Any:
        """[candidates] distances to the query; None if the query has no points."""
        if query.ndim == 1:
            return (known != query).mean(axis=1)
        shown = np.isfinite(query[:, 0])
        if not shown.any():
            return None
        distance = np.linalg.norm(known[:, shown] - query[shown], axis=-1)
        return np.nan_to_num(distance, nan=MISSING).mean(axis=1)


@dataclass(frozen=True)
class Warped:
    """For each frame, parts of the training frames with the nearest poses, warped to its pose.

    It uses no network: the result of appearance references alone. See `v2v.data.references`.
    """

    references: References
    signal: str  # signal of the references
    background: Picture | None  # RGB [H, W, 3]; None: the reference's own background is shown
    backgrounds: Backgrounds | None  # per-frame backgrounds if the camera moves
    use: ClipUse  # the training clip

    @classmethod
    def of(cls, trained: LoadedModel, clip_number: int) -> Warped:
        """Raises `UsageError` if the training clip is missing or has nothing to warp."""
        use = trained.model.record.clips[clip_number]
        signal = reference_signal([used.name for used in trained.model.record.signals])
        if signal is None:
            raise UsageError(
                f"warped moves parts of a body or a face; {trained.name} renders from neither",
                hint="remove warped from --against",
            )
        store = _training_store(trained, use, "warped")
        placement = trained.placement(clip_number)
        plate = build_background_plate(store, *use.trained)
        still = plate is not None and plate.still
        references = gather(
            store, *use.trained, signal=signal, placement=placement,
            count=signal.reference_count, whole=not still,
        )  # fmt: skip
        if references is None:
            raise UsageError(
                f"no frame of {use.name} shows a {signal.name} to warp",
                hint="remove warped from --against",
            )
        background = np.asarray(placement.picture(plate.picture)) if plate and still else None
        backgrounds = plate.backgrounds if plate and still else None
        placed = None if backgrounds is None else backgrounds.placed(placement)
        return cls(references, signal.name, background, placed, use)

    def __call__(self, clip: Measured) -> Iterator[Picture]:
        chooser = Chooser(self.references, 1)
        behind: NDArray[Any] = (
            np.zeros(3, np.float32) if self.background is None else self.background
        )
        for place in range(clip.count):
            track = clip.track(self.signal, place, place + 1)
            (found,) = candidates(self.references, track, chooser(track))
            pictures = found[0].transpose(1, 2, 0)
            alpha = pictures[..., 3:4]
            if self.backgrounds is not None and is_of(clip.store.record, self.use):
                behind = self.backgrounds.of(int(clip.order[place]))[..., :3]
            shown = pictures[..., :3] * alpha + behind * (1 - alpha)
            yield np.clip(np.rint(shown), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- external videos


@dataclass(frozen=True)
class VideoMethod:
    """A video of the measured frames, converted to the model's size and the clip's rate."""

    store: ClipStore
    first: int  # its frame that shows the first measured frame
    count: int

    def __call__(self, clip: Measured) -> Iterator[Picture]:
        height, width = self.store.record.frames.height, self.store.record.frames.width
        placement = Placement.plain((height, width), clip.placement.size)
        for first in range(self.first, self.first + self.count, 16):
            stop = min(first + 16, self.first + self.count)
            for frame in self.store.frames(first, stop):
                yield np.asarray(placement.picture(frame), np.uint8)


def video_method(
    name: str, path: Path, clips: Sequence[Measured], work: Path, report: Reporter
) -> tuple[Method, int, list[str]]:
    """A video as a method, its number of frames, and notes on its conversion.

    Raises `UsageError`, `MediaError`.
    """
    if len(clips) > 1:
        raise UsageError(
            f"{name}={path}: a video shows one clip, but {len(clips)} are measured",
            hint="measure them one at a time: --data STORE",
        )
    (clip,) = clips
    seen = probe(path)
    rate = clip.store.rate
    values = {
        "frames.fps": str(rate), "frames.crf": 1, "frames.crop": "none", "preview.enabled": False,
    }  # fmt: skip
    store = open_source(path, [], values=values, data=work / f"film-{name}", report=report).store
    notes = []
    if seen.rate != rate:
        notes.append(f"{name}: {float(seen.rate):.4g} fps, resampled to {float(rate):.4g} fps")
    height, width = clip.placement.size
    if (seen.upright_width, seen.upright_height) != (width, height):
        notes.append(
            f"{name}: {seen.upright_width}x{seen.upright_height}, compared at the model's size"
            f" {width}x{height}"
        )
    ours, whole = len(store), len(clip.store)
    first = clip.start if clip.start and abs(ours - whole) <= 1 else 0
    if first:
        notes.append(f"{name}: as long as the whole clip; its frames from {first} on are compared")
    count = min(ours - first, clip.count)
    if count < 2:
        raise UsageError(
            f"{path} has {ours} frame(s), too few for the {clip.count} measured frames",
            hint=f"give a video of frames {clip.start} to {clip.start + clip.count} of {clip.name}",
        )
    if count < clip.count:
        notes.append(f"{name}: has {count} of the {clip.count} frames; only those are compared")
    elif not first and ours > clip.count:
        notes.append(f"{name}: has {ours} frames; the first {clip.count} are compared")
    return Method(name, f"the video {path.name}", VideoMethod(store, first, count)), count, notes


# ---------------------------------------------------------------- all methods


def methods_for(
    main: LoadedModel,
    against: Sequence[str],
    clips: Sequence[Measured],
    work: Path,
    report: Reporter,
    *,
    name: str,
) -> tuple[list[Method], list[Measured], list[str]]:
    """All methods (real frames, model, baselines), the clips cut to their common frames, and notes.

    Raises `UsageError` if methods cannot be compared, `UnknownName`, `CheckpointInvalid`,
    `MediaError`.
    """
    methods = [Method(REAL, "the real frames, re-encoded", encoded_again, uses_ground_truth=True)]
    methods.append(model_method(name, main))
    notes: list[str] = []
    for text in against:
        key, separator, value = text.partition("=")
        if key in {method.name for method in methods} or not key:
            raise UsageError(
                f"--against {text}: the name {key!r} is empty or already in use",
                hint="give another name",
            )
        if text == "copy":
            what = "the previous real frame: repetition with access to the ground truth"
            methods.append(Method(key, what, copied, uses_ground_truth=True))
        elif text == "frozen":
            methods.append(Method(key, "the frame before the measured ones, repeated", frozen))
        elif text == "nearest":
            found = {clip.clip_number: Nearest.of(main, clip.clip_number) for clip in clips}
            methods.append(
                Method(
                    key,
                    f"the training frame with the nearest {found[clips[0].clip_number].signal}",
                    lambda clip, found=found: found[clip.clip_number](clip),  # type: ignore[misc]
                )
            )  # fmt: skip
        elif text == "warped":
            warped = {clip.clip_number: Warped.of(main, clip.clip_number) for clip in clips}
            methods.append(
                Method(
                    key, "parts of training frames, warped to the pose: no network",
                    lambda clip, warped=warped: warped[clip.clip_number](clip),  # type: ignore[misc]
                )
            )  # fmt: skip
        elif text == FRAME:
            methods.append(other_model(key, frame_by_frame(main), main, clips))
        elif not separator:
            raise UnknownName.among("--against", text, (*SIMPLE, FRAME, "NAME=RUN", "NAME=VIDEO"))
        elif Path(value).is_file():
            method, count, video_notes = video_method(key, Path(value), clips, work, report)
            clips = [replace(clip, count=min(clip.count, count)) for clip in clips]
            methods.append(method)
            notes += video_notes
        else:
            find_model(value)
            methods.append(other_model(key, value, main, clips))
    return methods, list(clips), notes
