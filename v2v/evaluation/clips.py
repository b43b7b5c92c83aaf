"""Select the real frames that a model is measured on; never its training frames.

Of a training clip only the held-out frames are measured, of any other clip all frames. If there
are too few to measure drift, the model continues over them backwards and forwards. Every rendered
frame then still has a real counterpart outside the training data.

    held out   0 1 2 3 | 2 1 0 1 2 3 2 ...
               means   | and drift
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from v2v.checkpoint import ClipUse
from v2v.data.store import CLIP_FILE, ClipRecord, ClipStore, read_record
from v2v.data.transforms import Placement, downscale_of
from v2v.errors import (
    MediaNotFound,
    RunConflict,
    SignalMissing,
    StoreConflict,
    StoreError,
    UsageError,
)
from v2v.images import Picture
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.source import open_source
from v2v.progress import Reporter
from v2v.signals import Track, load_signal
from v2v.training.run import read_run

LEAST = 2  # minimum number of frames: motion needs two
LEAST_TO_REPEAT = 8  # minimum number of frames for playing a clip back and forth
PIECE = 16  # frames per read


@dataclass(frozen=True)
class Measured:
    """The measured frames of one clip."""

    store: ClipStore
    placement: Placement  # from stored frames to the model's frames
    clip_number: int  # the training clip whose appearance is rendered
    start: int  # first frame
    count: int  # frames that the means are taken over
    order: NDArray[np.int64]  # [>= count] stored frames in rendering order
    held_out: bool  # whether these are the held-out frames of a training clip

    @property
    def name(self) -> str:
        return self.store.folder.name

    @property
    def cuts(self) -> tuple[int, ...]:
        """Indices into `order` of the frames that follow a cut."""
        starts = np.asarray([first for first, _ in self.store.shots])
        low = np.minimum(self.order[1:], self.order[:-1])[:, None]
        high = np.maximum(self.order[1:], self.order[:-1])[:, None]
        across = ((starts > low) & (starts <= high)).any(axis=1)
        return tuple(int(t) + 1 for t in np.flatnonzero(across))

    def pictures(self, order: NDArray[np.int64] | None = None) -> Iterator[Picture]:
        """Yield the real frames at the model's size, by default in rendering order."""
        order = self.order if order is None else order
        for first in range(0, len(order), PIECE):
            part = order[first : first + PIECE]
            low = int(part.min())
            frames = self.store.frames(low, int(part.max()) + 1)
            for index in part:
                yield np.asarray(self.placement.picture(frames[index - low]), np.uint8)

    def track(self, signal: str, first: int, stop: int) -> Track:
        """A signal for indices `first` to `stop` (excluded) of `order`, in the model's pixels."""
        part = self.order[first:stop]
        low = int(part.min())
        track = self.store.track(signal, low, int(part.max()) + 1)
        # Tracks index like numpy arrays over time: by a list of frames as well as by a slice.
        return self.placement.track(cast(Any, track)[part - low])


def ping_pong(count: int, length: int) -> NDArray[np.int64]:
    """[length] indices 0 to `count` - 1, forwards and backwards; the ends are not repeated."""
    period = max(2 * (count - 1), 1)
    place = np.arange(length) % period
    return np.minimum(place, period - place).astype(np.int64)


def measured_clips(
    trained: LoadedModel,
    data: Sequence[str | Path | ClipStore],
    *,
    frames: int,
    drift: int,
    report: Reporter,
) -> tuple[list[Measured], list[str]]:
    """Select the frames to measure on. Returns clips and notes for the report.

    Args:
        data: clip stores or footage; empty means the training clips.
        frames: maximum number of frames per clip.
        drift: minimum number of rendered frames; shorter clips are played back and forth.

    Raises `UsageError` if nothing is held out or a clip is empty, `StoreConflict`,
    `SignalMissing`, and what `open_source` raises.
    """
    signals = [use.name for use in trained.model.record.signals]
    found, notes = [], []
    for item in data or training_clips(trained):
        if not isinstance(item, ClipStore) and not Path(item).exists():
            raise MediaNotFound(
                f"no such file or folder: {item}", hint="give a clip store or footage with --data"
            )
        store = open_source(item, signals, report=report).store
        _check_signals(trained, store)
        clip, clip_notes = _measured(trained, store, frames, drift)
        found.append(clip)
        notes += clip_notes
    return found, notes


def training_clips(trained: LoadedModel) -> list[ClipStore]:
    """The stores that the model was trained on. Raises `UsageError` if one cannot be found."""
    found = []
    for use in trained.model.record.clips:
        store = find_store(trained, use)
        if store is None:
            raise UsageError(
                f"cannot find {use.name}, the clip store that {trained.name} was trained on",
                hint="give its path or another clip with --data",
            )
        found.append(store)
    return found


def find_store(trained: LoadedModel, use: ClipUse) -> ClipStore | None:
    """Find the store of a clip that the model was trained on.

    Searches its path during training, data/, and the other stores in both parent folders. The
    hash of the footage identifies it.
    """
    try:
        places = [Path(place) for place in read_run(trained.folder.parent).data]
    except RunConflict:  # the model was copied without its run
        places = []
    places.append(Path("data") / use.name)
    parents = dict.fromkeys(place.parent for place in places)
    siblings = (path.parent for home in parents for path in sorted(home.glob(f"*/{CLIP_FILE}")))
    for place in chain(places, siblings):
        try:
            if is_of(read_record(place), use):
                return ClipStore.open(place)
        except StoreError:
            continue
    return None


def _same_clip(store: ClipStore, use: ClipUse) -> bool:
    return is_of(store.record, use)


def is_of(record: ClipRecord, use: ClipUse) -> bool:
    """Whether a store's record belongs to a model's training clip."""
    return (record.source.sha256, record.frames.count) == (use.sha256, use.frames)


def trained_on(trained: LoadedModel, clip: Measured) -> int:
    """The number of measured frames that a model was trained on."""
    shown = np.unique(clip.order)
    return sum(
        int(((shown >= use.trained[0]) & (shown < use.trained[1])).sum())
        for use in trained.model.record.clips
        if _same_clip(clip.store, use)
    )


def _check_signals(trained: LoadedModel, store: ClipStore) -> None:
    for use in trained.model.record.signals:
        signal = load_signal(use.name)
        spec = store.record.signals[use.name].spec
        channels = signal.channels(signal.with_options(spec, signal.options_in(use.spec)))
        if channels != use.channels or spec.get("classes") != use.spec.get("classes"):
            raise SignalMissing(
                f"the {use.name} signal of {store.folder} does not match {trained.name}: it has"
                f" {channels} channels or other classes, the model needs {use.channels} channels",
                hint="preprocess it with the backend and classes of the training clip",
            )


def _measured(
    trained: LoadedModel, store: ClipStore, frames: int, drift: int
) -> tuple[Measured, list[str]]:
    record = trained.model.record
    uses = [(i, use) for i, use in enumerate(record.clips) if use.sha256 == _sha256(store)]
    exact = [(i, use) for i, use in uses if _same_clip(store, use)]
    if uses and not exact:
        raise StoreConflict(
            f"{store.folder} is made from {uses[0][1].source}, which {trained.name} was trained on,"
            f" but has {len(store)} frames instead of {uses[0][1].frames}: its held-out frames are"
            " unknown",
            hint="give the store that the model was trained on, or other footage",
        )
    start, stop, clip_number = 0, len(store), 0
    if exact:
        clip_number, use = exact[0]
        start, stop = use.trained[1], use.frames
        if stop - start < LEAST:
            raise UsageError(
                f"{trained.name} was trained on {start} of the {use.frames} frames of"
                f" {use.name}: too few held-out frames to measure",
                hint="train with -s data.hold_out=0.15, or give footage outside the training data"
                " with --data",
            )
    count = min(stop - start, frames)
    if count < LEAST:
        raise UsageError(
            f"{store.folder} has {count} frame(s) to measure; at least 2 are needed",
            hint="give longer footage, or a larger --frames",
        )
    notes = []
    flows = "flow" in [use.name for use in record.signals]  # flow cannot be played backwards
    length = max(count, drift) if count >= LEAST_TO_REPEAT and not flows else count
    if count < LEAST_TO_REPEAT:
        notes.append(f"{store.folder.name}: only {count} frames, too few for any conclusion")
    clip = Measured(
        store=store, placement=_placement(trained, store, clip_number if exact else None),
        clip_number=clip_number,
        start=start, count=count, order=start + ping_pong(count, length),
        held_out=bool(exact),
    )  # fmt: skip
    return clip, notes + ([] if exact else _differences(trained, clip))


def _sha256(store: ClipStore) -> str:
    return store.record.source.sha256


def _placement(trained: LoadedModel, store: ClipStore, clip_number: int | None) -> Placement:
    if clip_number is not None:
        return trained.placement(clip_number)  # the placement of training
    source = store.record.frames.height, store.record.frames.width
    return Placement.plain(source, trained.size, downscale=downscale_of(source, trained.size))


def _differences(trained: LoadedModel, clip: Measured) -> list[str]:
    """Notes on how a clip differs from the training clips."""
    use, name = trained.model.record.clips[clip.clip_number], clip.name
    height, width = clip.placement.source
    notes = [f"{name}: {trained.name} was not trained on it, so all of it is measured"]
    kept = clip.placement.box[2] * clip.placement.box[3] / (height * width)
    if kept < 0.98:
        notes.append(
            f"{name}: frames of {width}x{height} are cropped to the model's aspect ratio"
            f" ({trained.size[1]}x{trained.size[0]}): {1 - kept:.0%} of the picture is lost"
        )
    rate, known = float(clip.store.rate), float(Fraction(use.fps))
    if not 0.8 < rate / known < 1.25:
        notes.append(
            f"{name}: {rate:.4g} fps, but the model was trained at {known:.4g} fps: motion between"
            " frames differs from training"
        )
    return notes
