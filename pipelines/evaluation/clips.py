"""Which real frames a model is measured on: never those that it was trained on.

Of a clip that it was trained on, what was held out; of any other clip, all. Where that is short,
the model runs on over it, there and back again, as long as its drift is to be seen: every moment
still has a real frame to be compared with, and none of training is touched.

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
from v2v.evaluation.registry import Picture
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.source import open_source
from v2v.progress import Reporter
from v2v.signals import Track, load_signal
from v2v.training.run import read_run

LEAST = 2  # frames: below, nothing moves
LEAST_TO_REPEAT = 8  # frames that are worth running over again
PIECE = 16  # frames that are read together


@dataclass(frozen=True)
class Measured:
    """The moments of one clip that are measured."""

    store: ClipStore
    placement: Placement  # of its frames in the model's
    clip_number: int  # of the model's clips, which one to look like
    start: int  # first frame
    count: int  # frames that figures are taken from
    order: NDArray[np.int64]  # [>= count] frames of the store that the model runs over
    held_out: bool  # of a clip that the model was trained on

    @property
    def name(self) -> str:
        return self.store.folder.name

    @property
    def cuts(self) -> tuple[int, ...]:
        """Places in `order` before which a shot begins."""
        starts = np.asarray([first for first, _ in self.store.shots])
        low = np.minimum(self.order[1:], self.order[:-1])[:, None]
        high = np.maximum(self.order[1:], self.order[:-1])[:, None]
        across = ((starts > low) & (starts <= high)).any(axis=1)
        return tuple(int(t) + 1 for t in np.flatnonzero(across))

    def pictures(self, order: NDArray[np.int64] | None = None) -> Iterator[Picture]:
        """Real frames as the model would show them, in the order they are run over."""
        order = self.order if order is None else order
        for first in range(0, len(order), PIECE):
            part = order[first : first + PIECE]
            low = int(part.min())
            frames = self.store.frames(low, int(part.max()) + 1)
            for index in part:
                yield np.asarray(self.placement.picture(frames[index - low]), np.uint8)

    def track(self, signal: str, first: int, stop: int) -> Track:
        """A signal at places `first` to `stop` of the order, in the model's pixels."""
        part = self.order[first:stop]
        low = int(part.min())
        track = self.store.track(signal, low, int(part.max()) + 1)
        # Tracks are numpy arrays over time: those take a list of frames as well as a slice.
        return self.placement.track(cast(Any, track)[part - low])


def ping_pong(count: int, length: int) -> NDArray[np.int64]:
    """[length] places 0 to `count` - 1, forth and back; the ends are not repeated."""
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
    """What to measure on, and sentences on what to know of it.

    Args:
        data: clip stores or footage; none means the clips that the model was trained on.
        frames: of each clip, at most.
        drift: frames to run on for, where a clip has fewer.

    Raises `UsageError` where nothing is held out or a clip is empty, `StoreConflict`,
    `SignalMissing`; what `open_source` raises.
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
        clip, said = _measured(trained, store, frames, drift)
        found.append(clip)
        notes += said
    return found, notes


def training_clips(trained: LoadedModel) -> list[ClipStore]:
    """The stores that the model was trained on. Raises `UsageError` where one is not at hand."""
    found = []
    for use in trained.model.record.clips:
        store = find_store(trained, use)
        if store is None:
            raise UsageError(
                f"the clip store that {trained.name} was trained on, {use.name}, is not here",
                hint="say where it is, or name another clip, with --data",
            )
        found.append(store)
    return found


def find_store(trained: LoadedModel, use: ClipUse) -> ClipStore | None:
    """The store of a clip that the model was trained on.

    Looked for where training found it, in data/, and under other names in both: it is known by
    the hash of its footage.
    """
    try:
        places = [Path(place) for place in read_run(trained.folder.parent).data]
    except RunConflict:  # a model that was carried here without its run
        places = []
    places.append(Path("data") / use.name)
    homes = dict.fromkeys(place.parent for place in places)
    beside = (path.parent for home in homes for path in sorted(home.glob(f"*/{CLIP_FILE}")))
    for place in chain(places, beside):
        try:
            if is_of(read_record(place), use):
                return ClipStore.open(place)
        except StoreError:
            continue
    return None


def _is(store: ClipStore, use: ClipUse) -> bool:
    return is_of(store.record, use)


def is_of(record: ClipRecord, use: ClipUse) -> bool:
    """Whether a store's record is of a clip that a model was trained on."""
    return (record.source.sha256, record.frames.count) == (use.sha256, use.frames)


def trained_on(trained: LoadedModel, clip: Measured) -> int:
    """How many of the measured frames a model was trained on."""
    shown = np.unique(clip.order)
    return sum(
        int(((shown >= use.trained[0]) & (shown < use.trained[1])).sum())
        for use in trained.model.record.clips
        if _is(clip.store, use)
    )


def _check_signals(trained: LoadedModel, store: ClipStore) -> None:
    for use in trained.model.record.signals:
        spec = store.record.signals[use.name].spec
        channels = load_signal(use.name).channels(spec)
        if channels != use.channels or spec.get("classes") != use.spec.get("classes"):
            raise SignalMissing(
                f"the {use.name} of {store.folder} is not what {trained.name} renders from: it has"
                f" {channels} channels or other classes, the model wants {use.channels}",
                hint="make it with the backend and classes of the training clip",
            )


def _measured(
    trained: LoadedModel, store: ClipStore, frames: int, drift: int
) -> tuple[Measured, list[str]]:
    record = trained.model.record
    uses = [(i, use) for i, use in enumerate(record.clips) if use.sha256 == _sha256(store)]
    exact = [(i, use) for i, use in uses if _is(store, use)]
    if uses and not exact:
        raise StoreConflict(
            f"{store.folder} is made of {uses[0][1].source}, which {trained.name} was trained on,"
            f" but has {len(store)} frames instead of {uses[0][1].frames}: which of them were held"
            " out cannot be told",
            hint="give the store that it was trained on, or other footage",
        )
    start, stop, clip_number = 0, len(store), 0
    if exact:
        clip_number, use = exact[0]
        start, stop = use.trained[1], use.frames
        if stop - start < LEAST:
            raise UsageError(
                f"{trained.name} was trained on {start} of the {use.frames} frames of"
                f" {use.name}: too few are held out to measure on",
                hint="train with -s data.hold_out=0.15, or give footage that it never saw with"
                " --data",
            )
    count = min(stop - start, frames)
    if count < LEAST:
        raise UsageError(
            f"{store.folder} has {count} frame(s) to measure: nothing moves",
            hint="give longer footage, or a larger --frames",
        )
    notes = []
    flows = "flow" in [use.name for use in record.signals]  # it does not run backwards
    length = max(count, drift) if count >= LEAST_TO_REPEAT and not flows else count
    if count < LEAST_TO_REPEAT:
        notes.append(f"{store.folder.name}: {count} frames only: too few for any conclusion")
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
        return trained.placement(clip_number)  # as training saw it
    source = store.record.frames.height, store.record.frames.width
    return Placement.plain(source, trained.size, downscale=downscale_of(source, trained.size))


def _differences(trained: LoadedModel, clip: Measured) -> list[str]:
    """How another clip differs from those of training."""
    use, name = trained.model.record.clips[clip.clip_number], clip.name
    height, width = clip.placement.source
    notes = [f"{name}: {trained.name} was never trained on it; all of it is measured"]
    kept = clip.placement.box[2] * clip.placement.box[3] / (height * width)
    if kept < 0.98:
        notes.append(
            f"{name}: frames of {width}x{height} are cut to the model's shape,"
            f" {trained.size[1]}x{trained.size[0]}: {1 - kept:.0%} of the picture is left out"
        )
    rate, known = float(clip.store.rate), float(Fraction(use.fps))
    if not 0.8 < rate / known < 1.25:
        notes.append(
            f"{name}: {rate:.4g} frames a second, the model was trained at {known:.4g}: motion"
            " between frames is not what it knows"
        )
    return notes
