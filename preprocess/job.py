"""One clip store in the making: which signals are missing, and the passes that make them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from v2v import __version__
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import (
    CLIP_FILE,
    SCHEMA,
    AudioRecord,
    ClipRecord,
    ClipStore,
    FramesRecord,
    SignalRecord,
    SourceRecord,
    file_record,
    read_record,
    write_record,
)
from v2v.errors import BrokenStream, StoreConflict, StoreError, UsageError, V2VError
from v2v.files import Seal, file_sha256, remove
from v2v.preprocess.crop import find_box
from v2v.preprocess.extractor import PART, ClipContext, Extractor
from v2v.preprocess.frames import GrowingFrames, Item, finished_frames
from v2v.preprocess.preview import write_preview
from v2v.preprocess.worker import Worker
from v2v.progress import Reporter
from v2v.video.audio import copy_audio
from v2v.video.plan import FramePlan, Geometry, plan_frames, plan_geometry
from v2v.video.probe import Probe, hash_files

WORK = ".work"
MOST_LOST = 0.5  # maximum fraction of lost frames; above it the footage is rejected


@dataclass
class BuildResult:
    """What one run did for one clip."""

    folder: Path
    record: ClipRecord
    made: list[str] = field(default_factory=list)  # signals extracted by this run
    kept: list[str] = field(default_factory=list)  # signals that already existed
    failed: dict[str, V2VError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Job:
    """One run on one store. The caller holds its lock."""

    def __init__(
        self,
        folder: Path,
        footage: Probe | None,
        settings: PreprocessSettings,
        overwrite: bool,
        report: Reporter,
        needed: set[str],  # not requested, but requested signals depend on them
    ) -> None:
        self.needed = needed
        self.folder = folder
        self.work = folder / WORK
        self.footage = footage
        self.settings = settings
        self.overwrite = overwrite
        self.report = report
        self.record = self._existing()

    # ------------------------------------------------------------ the existing store

    def _existing(self) -> ClipRecord | None:
        """The store's record if it matches the request, None to start from scratch."""
        if not (self.folder / CLIP_FILE).is_file():
            return None
        try:
            record = read_record(self.folder)
            ClipStore.open(self.folder)
        except StoreError:
            if self.overwrite and self.footage is not None:
                self._start_over()
                return None
            raise
        if self.footage is None:
            return record
        conflict = self._conflict(record, self.footage)
        if conflict is None:
            return record
        if self.overwrite:
            self._start_over()
            return None
        raise StoreConflict(
            f"{self.folder} was made {conflict}",
            hint="choose another --output, or rebuild it with --overwrite",
        )

    def _start_over(self) -> None:
        (self.folder / CLIP_FILE).unlink()
        remove(self.work)

    def _conflict(self, record: ClipRecord, footage: Probe) -> str | None:
        stat = footage.path.stat()
        old = record.source
        same = (old.bytes, old.modified_ns) == (stat.st_size, stat.st_mtime_ns)
        if not same and old.sha256 != source_hash(footage):
            return f"from other footage ({old.name}, sha256 {old.sha256[:8]})"
        requested = self.settings.frames.model_dump(mode="json")
        if requested == DEFAULTS().frames.model_dump(mode="json"):
            return None  # defaults: the store keeps its own settings
        stored = record.frames.settings
        differing = [k for k in requested if requested[k] != stored.get(k)]
        if differing:
            return "with other settings: " + ", ".join(
                f"{k} {stored.get(k)} instead of {requested[k]}" for k in differing
            )
        return None

    def _is_made(self, name: str, extractor: Extractor) -> bool:
        """Whether a signal exists as requested. Raises `StoreConflict` if its settings differ."""
        assert self.record is not None
        if name not in self.record.signals:
            return False
        if name in self.needed:
            return True
        existing = self.record.signals[name].settings
        requested = signal_settings(self.settings, name, extractor)
        if existing == requested or (
            not self.overwrite and requested == signal_settings(DEFAULTS(), name)
        ):
            return not self.overwrite
        if self.overwrite:
            return False
        differing = [k for k in requested if requested[k] != existing.get(k)]
        raise StoreConflict(
            f"{self.folder} has {name} with other settings: "
            + ", ".join(f"{k} {existing.get(k)} instead of {requested[k]}" for k in differing),
            hint="extract it again with --overwrite",
        )

    # ------------------------------------------------------------ the run

    def run(self, kinds: dict[str, type[Extractor]]) -> BuildResult:
        frames: GrowingFrames | None = None
        if self.record is None:
            frames = self._plan()
            context = self._context(frames.geometry, frames.plan)
        else:
            context = self._context_of(self.record)
        failed: dict[str, V2VError] = {}
        todo: dict[str, Extractor] = {}
        kept: list[str] = []
        for name, make in kinds.items():
            try:
                extractor = make(self.settings, context)
            except (UsageError, StoreError):
                raise
            except V2VError as error:
                failed[name] = error
                continue
            if self.record is not None and self._is_made(name, extractor):
                kept.append(name)
            else:
                todo[name] = extractor

        made: list[str] = []
        # Signals derived from other signals need a second pass, once those are finished.
        first = {name: extractor for name, extractor in todo.items() if not extractor.after}
        later = {name: extractor for name, extractor in todo.items() if extractor.after}
        for growing, chosen in ((frames, first), (None, later)):
            workers = [
                Worker(
                    name, extractor, self._parts_folder(name, extractor), context.count,
                    self.report,
                )
                for name, extractor in chosen.items()
            ]  # fmt: skip
            if growing is not None or workers:
                self._pass(growing, workers)
            if growing is not None:
                self.record = self._finish_frames(growing)
            for worker in workers:
                problem = worker.error or self._finish_signal(worker)
                if problem is None:
                    made.append(worker.name)
                else:
                    failed[worker.name] = problem
        assert self.record is not None
        preview = self.settings.preview
        if preview.enabled and (made or frames or not (self.folder / "preview.mp4").exists()):
            write_preview(ClipStore.open(self.folder), preview.side, self.report)
        if not failed:
            remove(self.work)
        return BuildResult(
            self.folder,
            self.record,
            made,
            kept,
            failed,
            warnings=_warnings(self.record),
        )

    def _plan(self) -> GrowingFrames:
        """Choose frames and crop box once, and save them for resuming."""
        assert self.footage is not None
        chosen = self.settings.frames
        plan = plan_frames(self.footage, fps=chosen.fps, start=chosen.start, end=chosen.end)
        self.source_sha256 = source_hash(self.footage)
        identity = {
            "source": self.source_sha256,
            "settings": chosen.model_dump(mode="json"),
            "version": __version__,
            "part": PART,
        }
        note, seal = self.work / "plan.json", Seal(self.work / ".plan.seal")
        stored = json.loads(note.read_bytes()) if seal.holds([note]) else {}
        if stored.get("identity") != identity:
            remove(self.work)
            (self.work / "frames").mkdir(parents=True)
            box = find_box(self.footage, plan, self.settings, self.report)
            stored = {"identity": identity, "box": box}
            note.write_text(json.dumps(stored), "utf-8")
            seal.write([note])
        box = tuple(stored["box"]) if stored["box"] else None
        geometry = plan_geometry(self.footage, size=chosen.size, box=box)
        return GrowingFrames(self.work / "frames", self.footage, plan, geometry, chosen)

    def _context(self, geometry: Geometry, plan: FramePlan) -> ClipContext:
        assert self.footage is not None
        return ClipContext(
            name=self.footage.path.name, width=geometry.width, height=geometry.height,
            rate=plan.rate, count=len(plan), geometry=geometry, sources=plan.sources,
            source_frames=self.footage.frames,
            upright=(self.footage.upright_width, self.footage.upright_height),
            names=tuple(file.name for file in self.footage.images), folder=self.folder,
        )  # fmt: skip

    def _context_of(self, record: ClipRecord) -> ClipContext:
        frames = record.frames
        geometry = Geometry(frames.box, frames.width, frames.height)
        store = ClipStore(self.folder, record)
        upright = (record.source.width, record.source.height)
        sources = None
        if frames.count == record.source.frames and not record.source.variable_rate:
            sources = np.arange(frames.count, dtype=np.int64)
        if self.footage is not None:
            kept = self._stored_settings(record)
            sources = plan_frames(
                self.footage, fps=kept.frames.fps, start=kept.frames.start, end=kept.frames.end
            ).sources
        return ClipContext(
            name=record.source.name, width=frames.width, height=frames.height, rate=store.rate,
            count=frames.count, geometry=geometry, sources=sources,
            source_frames=record.source.frames, upright=upright,
            names=tuple(file.name for file in self.footage.images) if self.footage else (),
            folder=self.folder,
        )  # fmt: skip

    @staticmethod
    def _stored_settings(record: ClipRecord) -> PreprocessSettings:
        values = {f"frames.{k}": v for k, v in record.frames.settings.items()}
        return load_config(PreprocessSettings, "preprocess", values=values)

    def _parts_folder(self, name: str, extractor: Extractor) -> Path:
        """Folder of a signal's parts; its name's hash keeps parts of other settings apart."""
        requested = {
            "settings": signal_settings(self.settings, name, extractor),
            "backend": extractor.backend,
            "version": extractor.version,
        }
        digest = hashlib.sha256(json.dumps(requested, sort_keys=True).encode()).hexdigest()
        folder = self.work / f"{name}-{digest[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _pass(self, frames: GrowingFrames | None, workers: list[Worker]) -> None:
        """Pass every frame that a worker still needs to the workers."""
        firsts = [worker.first for worker in workers]
        items: Iterator[Item]
        if frames is not None:
            done = min(frames.parts_done * PART, len(frames.plan))
            first = min([done, *firsts])
            if first >= len(frames.plan):
                return
            self.report.start("frames", len(frames.plan), done)
            items = frames.items(max(first - 1, 0))
        else:
            assert self.record is not None
            done = self.record.frames.count
            first = min(firsts, default=done)
            if first >= done:
                return
            stored = self.folder / "frames.mp4"
            items = finished_frames(stored, list(self.record.frames.shots), max(first - 1, 0))
        for worker in workers:
            worker.start()
        try:
            for item in items:
                for worker in workers:
                    worker.put(item)
                if frames is not None and item.index >= done:
                    self.report.advance("frames")
            for worker in workers:
                worker.put(None)
            for worker in workers:
                worker.join()
        finally:
            for worker in workers:
                worker.stop()
        if frames is not None:
            self.report.finish("frames")
        for worker in workers:
            if worker.crash is not None:
                raise worker.crash

    # ------------------------------------------------------------ writing the store

    def _finish_frames(self, frames: GrowingFrames) -> ClipRecord:
        assert self.footage is not None
        target = self.folder / "frames.mp4"
        shots, lost = frames.finish(target)
        count = len(frames.plan)
        if len(lost) > MOST_LOST * count:
            target.unlink()
            raise BrokenStream(
                f"{len(lost)} of {count} frames of {self.footage.path} cannot be decoded",
                hint="the file is damaged; export it again, or select its intact part with --end",
            )
        plan = frames.plan
        audio = None
        if self.footage.audio is not None and self.footage.audio.codec:
            end = plan.start + count / float(plan.rate)
            copied = copy_audio(
                self.footage.path, self.folder, audio=self.footage.audio, start=plan.start, end=end
            )  # fmt: skip
            if copied is not None:
                path, offset = copied
                audio = AudioRecord(
                    name=path.name, codec=self.footage.audio.codec, offset=round(offset, 6),
                    file=file_record(path),
                )  # fmt: skip
        record = ClipRecord(
            schema_version=SCHEMA,
            tool=f"v2v {__version__}",
            source=source_record(self.footage, self.source_sha256),
            frames=FramesRecord(
                width=frames.geometry.width, height=frames.geometry.height, fps=str(plan.rate),
                count=count, start=round(plan.start, 6), box=frames.geometry.box,
                shots=tuple(shots), lost=tuple(lost),
                settings=self.settings.frames.model_dump(mode="json"), file=file_record(target),
            ),
            audio=audio,
        )  # fmt: skip
        self._write(record)
        remove(self.work / "frames")
        return record

    def _finish_signal(self, worker: Worker) -> V2VError | None:
        assert self.record is not None
        extractor = worker.extractor
        starts = [*self.record.frames.shots, self.record.frames.count]
        shots = list(zip(starts, starts[1:], strict=False))
        try:
            done = extractor.finish(worker.parts, self.folder, shots)
        except V2VError as error:
            return error
        signal = SignalRecord(
            spec=done.spec,
            backend=extractor.backend,
            version=extractor.version,
            settings=signal_settings(self.settings, worker.name, extractor),
            coverage=round(done.coverage, 4),
            measured=done.measured,
            warnings=done.warnings,
            files={name: file_record(self.folder / name) for name in done.files},
        )
        signals = {**self.record.signals, worker.name: signal}
        self.record = self.record.model_copy(update={"signals": dict(sorted(signals.items()))})
        self._write(self.record)
        remove(worker.folder)
        return None

    def _write(self, record: ClipRecord) -> None:
        """Write the record; remove an outdated preview first, so that it is rendered again."""
        if self.settings.preview.enabled:
            remove(self.folder / "preview.mp4")
        write_record(self.folder, record)


_DEFAULTS: list[PreprocessSettings] = []


def DEFAULTS() -> PreprocessSettings:  # noqa: N802 - a constant loaded on first use
    if not _DEFAULTS:
        _DEFAULTS.append(load_config(PreprocessSettings, "preprocess"))
    return _DEFAULTS[0]


def signal_settings(
    settings: PreprocessSettings, name: str, extractor: Extractor | None = None
) -> dict[str, Any]:
    """The settings and inputs that a signal's content depends on, as stored in clip.json."""
    chosen = settings.of(name)
    values = dict(chosen) if isinstance(chosen, dict) else chosen.model_dump(mode="json")
    return values | (extractor.inputs() if extractor else {})


def source_hash(footage: Probe) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's images."""
    if footage.images:
        return hash_files(list(footage.images))
    return file_sha256(footage.path)


def source_record(footage: Probe, sha256: str) -> SourceRecord:
    stat = footage.path.stat()
    audio = footage.audio
    return SourceRecord(
        name=footage.path.name,
        sha256=sha256,
        bytes=stat.st_size,
        modified_ns=stat.st_mtime_ns,
        container=footage.container,
        codec=footage.codec,
        pixel_format=footage.pixel_format,
        width=footage.upright_width,
        height=footage.upright_height,
        rotation=footage.rotation,
        pixel_aspect=str(footage.pixel_aspect),
        fps=str(footage.rate),
        variable_rate=footage.variable_rate,
        frames=footage.frames,
        duration=round(footage.duration, 6),
        audio=None if audio is None else {
            "codec": audio.codec, "sample_rate": audio.sample_rate, "channels": audio.channels,
            "duration": round(audio.duration, 6),
        },
        notes=footage.notes,
    )  # fmt: skip


def _warnings(record: ClipRecord) -> list[str]:
    frames = record.frames
    found = list(record.source.notes)
    if frames.lost:
        found.append(f"{len(frames.lost)} frames could not be decoded and repeat the previous one")
    if len(frames.shots) > 1:
        starts = ", ".join(str(s) for s in frames.shots[1:6])
        found.append(f"{len(frames.shots) - 1} cuts (at frames {starts})")
    if frames.count < 48:
        found.append(f"only {frames.count} frames: too few to train on")
    for name, signal in record.signals.items():
        found += [f"{name}: {w}" for w in signal.warnings]
    return found
