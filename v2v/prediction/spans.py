"""Which frames of the clips a predictor is trained on and validated with."""

from __future__ import annotations

from dataclasses import dataclass

from v2v.checkpoint import ClipUse, ModelRecord
from v2v.data.sampling import trained_part
from v2v.data.store import ClipStore
from v2v.errors import SignalMissing, StoreConflict, TooFewFrames, UsageError
from v2v.prediction.predictor import LEAST, MEMORY, SIGNALS
from v2v.prediction.settings import PredictSettings
from v2v.signals import Track
from v2v.signals.segmentation import LabelTrack

PIECE = 64  # label maps read at a time
MAX_VALIDATED = 24  # approximate number of windows per score
MEASURED = 150  # frames per shot that errors are measured on


@dataclass(frozen=True)
class Span:
    """A shot, or the part of it in the training footage."""

    store: ClipStore
    start: int
    stop: int
    target: int  # first validation frame; `stop` if there is none


def predicted_signal(model: ModelRecord) -> str:
    names = [use.name for use in model.signals]
    if len(names) != 1 or names[0] not in SIGNALS:
        raise UsageError(
            f"the model is driven by {' and '.join(names)}, which cannot be predicted",
            hint=f"use a model that is driven by one of {', '.join(SIGNALS)}",
        )
    return names[0]


def find_spans(
    stores: list[ClipStore], model: ModelRecord, signal: str, settings: PredictSettings
) -> list[Span]:
    """The shots of the training footage; the end of each clip is for validation."""
    if not stores:
        raise UsageError("no clip to train on", hint="name one or more clip stores")
    known = {use.sha256: use.trained for use in model.clips}
    spans = []
    for store in stores:
        record = store.record.signals.get(signal)
        if record is None:
            raise SignalMissing(
                f"{store.folder} has no {signal} (it has: {', '.join(store.signals) or 'none'})",
                hint=f"add it with: v2v preprocess {store.folder} --signal {signal}",
            )
        classes = model.signals[0].spec.get("classes")
        if record.spec.get("classes") != classes:
            raise StoreConflict(
                f"the classes of {signal} in {store.folder} differ from the model's",
                hint="preprocess both with the same backend and classes, with --overwrite",
            )
        own = known.get(store.record.source.sha256)
        begin, end = trained_part(len(store), settings.hold_out)
        if own is not None and own[1] <= len(store):
            begin, end = own
        target = end - max(round((end - begin) * settings.validation), 1)
        for a, b in store.shots:
            start, stop = max(a, begin), min(b, end)
            if stop - start > LEAST:
                spans.append(Span(store, start, stop, min(max(target, start), stop)))
    trained = max((s.target - s.start for s in spans), default=0)
    checked = any(s.stop > max(s.target, s.start + LEAST) for s in spans)
    if trained <= LEAST or not checked:
        raise TooFewFrames(
            f"too few frames: training needs {LEAST + 1} in a row, and validation one more after"
            f" {LEAST}; the longest training shot has"
            f" {max((s.stop - s.start for s in spans), default=0)}",
            hint="use longer footage, or hold out less (-s hold_out=0.05)",
        )
    return spans


def validation_tracks(spans: list[Span], model: ModelRecord) -> tuple[list[Track], list[int]]:
    """The tracks that errors are measured on, and the first validation frame in each."""
    tracks, targets = [], []
    for span in spans:
        start, stop = max(span.start, span.target - MEMORY), min(span.stop, span.target + MEASURED)
        track = span.store.track(model.signals[0].name, start, stop)
        # Errors are fractions of pixels: they hardly change at the model's size.
        tracks.append(
            track.scaled(model.width, model.height) if isinstance(track, LabelTrack) else track
        )
        targets.append(span.target - start)
    return tracks, targets


def clip_uses(stores: list[ClipStore], spans: list[Span]) -> tuple[ClipUse, ...]:
    uses = []
    for store in stores:
        own = [span for span in spans if span.store is store]
        trained = (
            min((s.start for s in own), default=0), max((s.stop for s in own), default=0)
        )  # fmt: skip
        frames, source = store.record.frames, store.record.source
        uses.append(
            ClipUse(
                name=store.folder.name,
                source=source.name,
                sha256=source.sha256,
                fps=frames.fps,
                frames=frames.count,
                trained=trained,
                width=frames.width,
                height=frames.height,
                still=False,
            )  # fmt: skip
        )
    return tuple(uses)
