"""Facts about a path: a rendered video, a clip store, a model or footage."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

from v2v.checkpoint import MODEL_FILE, load_model
from v2v.data.store import CLIP_FILE, ClipStore
from v2v.errors import UsageError
from v2v.pipelines.provenance import read_provenance
from v2v.prediction.predictor import load_predictor
from v2v.progress import Reporter, Silent
from v2v.signals import signal_names
from v2v.video.probe import probe


def describe(
    path: str | Path, *, verify: bool = False, report: Reporter | None = None
) -> dict[str, Any]:
    """Return facts about a path by name. Raises what opening it raises.

    Args:
        verify: compare every file of a clip store with its hash, or also load a model's
            predictor. A model's own files are always read completely.
    """
    from v2v.pipelines.model import RUNS

    place = Path(path)
    if (place / CLIP_FILE).is_file():
        store = ClipStore.open(place)
        return _store(store) | (_verified(store, report or Silent()) if verify else {})
    for folder in (place, RUNS / path):
        if (folder / MODEL_FILE).is_file() or (folder / "model" / MODEL_FILE).is_file():
            return _model(folder) | (_checked(folder) if verify else {})
    if verify:
        raise UsageError(
            f"{path} cannot be verified: it is neither a clip store nor a model",
            hint="check footage with v2v doctor VIDEO",
        )
    return _video(place)


def _verified(store: ClipStore, report: Reporter) -> dict[str, Any]:
    """Compare every file with its hash and every header with the record."""
    store.verify(report=report)
    store.check_frames()
    for signal in store.signals:
        if signal in signal_names():
            store.check_signal(signal)
    files = store.record.files
    size = sum(file.bytes for file in files.values())
    return {"verified": f"{len(files)} files, {size / 1e6:.1f} MB: all unchanged"}


def _checked(folder: Path) -> dict[str, Any]:
    """Load the predictor, too. Loading checks that weights are complete and finite."""
    run = folder.parent if (folder / MODEL_FILE).is_file() else folder
    checked = ["the model"]
    if (run / "predictor").exists():
        load_predictor(run / "predictor")
        checked.append("its predictor")
    return {"verified": f"{' and '.join(checked)}: weights complete and finite"}


def _video(path: Path) -> dict[str, Any]:
    seen = probe(path)
    facts: dict[str, Any] = {
        "what": "video", "codec": seen.codec, "size": f"{seen.upright_width}x{seen.upright_height}",
        "fps": round(float(seen.rate), 4), "frames": seen.frames,
        "seconds": round(seen.duration, 3), "sound": seen.audio.codec if seen.audio else None,
    }  # fmt: skip
    mark = None if seen.images else read_provenance(path)
    if mark is None:
        return facts | {"synthetic": "not marked as rendered by v2v"}
    return facts | {"what": "rendered video"} | mark.model_dump(mode="json")


def _store(store: ClipStore) -> dict[str, Any]:
    frames, source = store.record.frames, store.record.source
    return {
        "what": "clip store", "source": source.name, "source_sha256": source.sha256,
        "size": f"{frames.width}x{frames.height}", "fps": round(float(store.rate), 4),
        "frames": len(store), "shots": len(frames.shots),
        "sound": store.record.audio.codec if store.record.audio else None,
        **{
            name: f"{signal.coverage:.1%} of the frames, by {signal.backend}"
            for name, signal in store.record.signals.items()
        },
    }  # fmt: skip


def _model(folder: Path) -> dict[str, Any]:
    model = load_model(folder)
    record = model.record
    references = [
        f"{record.clips[clip].name}: {len(found)} pictures"
        for clip, found in model.references.items()
    ]
    return {
        "what": "model", "task": record.task, "size": f"{record.width}x{record.height}",
        "signals": [use.name for use in record.signals], "tool": record.tool,
        "generator": {k: v for k, v in record.generator.items() if v is not None},
        "parameters": sum(p.numel() for p in model.generator.parameters()),
        "clips": [
            f"{clip.name} ({clip.source}, frames {clip.trained[0]} to {clip.trained[1]} of"
            f" {clip.frames} at {float(Fraction(clip.fps)):.4g} fps"
            f"{_camera(clip.still, number in model.backgrounds)})"
            for number, clip in enumerate(record.clips)
        ],
        **({"references": references} if references else {}),
        "training": {k: v for k, v in record.training.items() if k != "settings"},
        "note": record.synthetic,
    }  # fmt: skip


def _camera(still: bool, followed: bool) -> str:
    if followed:
        return ", moving camera: the background is a mosaic"
    return ", still camera" if still else ""
