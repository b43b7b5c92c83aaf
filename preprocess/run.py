"""Preprocesses many clips: expands inputs and signals, and runs several processes."""

from __future__ import annotations

import glob
import multiprocessing as mp
import os
import queue as queues
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from v2v.config import PreprocessSettings
from v2v.data.store import CLIP_FILE
from v2v.errors import MediaNotFound, UsageError, V2VError
from v2v.images import animation_kind
from v2v.listing import is_hidden, natural_key, visible_files
from v2v.preprocess.build import default_folder, preprocess
from v2v.preprocess.job import BuildResult
from v2v.progress import Relayed, Reporter
from v2v.runtime import prepare_process
from v2v.signals import load_signal, signal_names
from v2v.video.probe import VIDEO_SUFFIXES, image_files


@dataclass(frozen=True)
class ClipJob:
    source: Path
    output: Path | None


@dataclass
class ClipResult:
    job: ClipJob
    outcome: BuildResult | None = None
    error: V2VError | None = None

    @property
    def errors(self) -> list[tuple[str, V2VError]]:
        """(name, error) of the clip and of each failed signal."""
        name = self.job.source.name
        found = [(name, self.error)] if self.error else []
        if self.outcome:
            found += [(f"{name}: {s}", e) for s, e in self.outcome.failed.items()]
        return found

    def as_json(self) -> dict[str, Any]:
        base: dict[str, Any] = {"source": str(self.job.source)}
        if self.outcome is not None:
            record = self.outcome.record
            base |= {
                "store": str(self.outcome.folder),
                "frames": record.frames.count,
                "width": record.frames.width,
                "height": record.frames.height,
                "fps": record.frames.fps,
                "made": self.outcome.made,
                "kept": self.outcome.kept,
                "signals": {
                    n: {"coverage": s.coverage, "backend": s.backend, **s.measured}
                    for n, s in record.signals.items()
                },
                "warnings": self.outcome.warnings,
                "seconds": round(self.outcome.seconds, 2),
            }
        base["errors"] = [
            {"in": what, "kind": type(e).__name__, "message": e.message, "hint": e.hint}
            for what, e in self.errors
        ]
        return base


def expand_signals(given: list[str]) -> list[str]:
    """Signal names from repeated options and comma-separated lists, in order, without duplicates.

    `all` expands to all signals. Raises `UnknownName`, and `UsageError` for an empty list.
    """
    names: list[str] = []
    for item in given:
        for name in filter(None, (part.strip() for part in item.split(","))):
            names += signal_names() if name == "all" else [name]
    for name in names:
        load_signal(name)
    if not names:
        raise UsageError(
            "no signal is given", hint=f"give one or more of: {', '.join(signal_names())}, all"
        )
    return list(dict.fromkeys(names))


def expand_inputs(given: list[str], output: Path | None) -> list[ClipJob]:
    """Clip jobs for files, folders and glob patterns.

    A folder is a store, an image sequence, or contains videos or stores. Raises `MediaNotFound`,
    `UsageError`.
    """
    sources: list[Path] = []
    for item in given:
        path = Path(item)
        if not path.exists() and glob.has_magic(item):
            found = (Path(p) for p in glob.glob(item, recursive=True))
            matches = sorted((p for p in found if not is_hidden(p)), key=natural_key)
            if not matches:
                raise MediaNotFound(f"no file matches {item}", hint="check the pattern")
            for match in matches:
                sources += _inside(match)
        else:
            sources += _inside(path)
    sources = list(dict.fromkeys(sources))
    if len(sources) == 1:
        return [ClipJob(sources[0], output)]
    jobs = []
    taken: dict[str, Path] = {}
    for source in sources:
        if (source / CLIP_FILE).is_file():
            jobs.append(ClipJob(source, None))
            continue
        folder = default_folder(source)
        folder = folder if output is None else output / folder.name
        if str(folder) in taken:
            raise UsageError(
                f"{taken[str(folder)]} and {source} would both be written to {folder}",
                hint="run one command per clip, each with its own --output",
            )
        taken[str(folder)] = source
        jobs.append(ClipJob(source, folder))
    return jobs


def _inside(path: Path) -> list[Path]:
    if not path.is_dir() or (path / CLIP_FILE).is_file():
        return [path]
    found = (p.parent for p in path.glob(f"*/{CLIP_FILE}"))
    stores = sorted((p for p in found if not is_hidden(p)), key=natural_key)
    videos = visible_files(path, VIDEO_SUFFIXES)
    images = image_files(path)
    if images and animation_kind(images[0]):  # a folder of animations, such as ComfyUI's output
        animations = [p for p in images if animation_kind(p)]
        videos = sorted([*videos, *animations], key=natural_key)
    if images and not videos:
        return [path]
    if not videos and not stores:
        raise MediaNotFound(
            f"{path} contains no videos, images or clip stores",
            hint=f"video files must end in {', '.join(sorted(VIDEO_SUFFIXES))}",
        )
    return videos or stores


def preprocess_all(
    jobs: list[ClipJob],
    signals: list[str],
    settings: PreprocessSettings,
    *,
    workers: int,
    overwrite: bool,
    report: Reporter,
) -> list[ClipResult]:
    """Run all jobs, `workers` at a time; a failed job does not stop the others."""
    results = [ClipResult(job) for job in jobs]
    workers = min(workers, len(jobs))
    if workers == 1:
        for result in results:
            job = result.job
            prefix = f"{job.source.name}: " if len(jobs) > 1 else ""
            try:
                result.outcome = preprocess(
                    job.source, signals, settings, output=job.output, overwrite=overwrite,
                    report=_Prefixed(report, prefix),
                )  # fmt: skip
            except V2VError as error:
                result.error = error
        return results
    _in_processes(results, signals, settings, workers, overwrite, report)
    return results


@dataclass
class _Prefixed:
    """Prefixes stages with the clip's name, if there are several clips."""

    inner: Reporter
    prefix: str
    known: set[str] = field(default_factory=set)

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self.inner.start(self.prefix + stage, total, done)

    def advance(self, stage: str, amount: int = 1) -> None:
        self.inner.advance(self.prefix + stage, amount)

    def describe(self, stage: str, text: str) -> None:
        self.inner.describe(self.prefix + stage, self.prefix + text)

    def finish(self, stage: str) -> None:
        self.inner.finish(self.prefix + stage)

    def note(self, text: str) -> None:
        self.inner.note(self.prefix + text)


def _in_processes(
    results: list[ClipResult],
    signals: list[str],
    settings: PreprocessSettings,
    workers: int,
    overwrite: bool,
    report: Reporter,
) -> None:
    # Not forked from this process: codecs and networks hold threads and locks that do not survive a
    # fork. The fork server imports the libraries once for all workers, which takes seconds.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["v2v.preprocess.run", "mediapipe", *(f"v2v.preprocess.{name}" for name in signals)]
    )
    threads = max((os.cpu_count() or 1) // workers, 1)
    events = context.Queue()
    done = threading.Event()
    relay = threading.Thread(target=_relay, args=(events, report, done), daemon=True)
    relay.start()
    pool = context.Pool(workers, initializer=_prepare_worker, initargs=(threads, events))
    try:
        running = [pool.apply_async(_one, (r.job, signals, settings, overwrite)) for r in results]
        for result, handle in zip(results, running, strict=True):
            outcome = handle.get()
            if isinstance(outcome, V2VError):
                result.error = outcome
            else:
                result.outcome = outcome
        pool.close()
        pool.join()
    finally:
        pool.terminate()
        done.set()
        relay.join(timeout=5)


_events: Any = None  # a worker process's queue to the process with the terminal


def _prepare_worker(threads: int, events: Any) -> None:
    """Set up a worker; limit its threads, because workers compete for the cores."""
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    prepare_process()
    cv2.setNumThreads(threads)


def _one(
    job: ClipJob, signals: list[str], settings: PreprocessSettings, overwrite: bool
) -> BuildResult | V2VError:
    report = Relayed(_events, f"{job.source.name}: ")
    try:
        return preprocess(
            job.source, signals, settings, output=job.output, overwrite=overwrite, report=report
        )
    except V2VError as error:
        return error


def _relay(events: Any, report: Reporter, done: threading.Event) -> None:
    """Forward the workers' events to `report` until `done` is set and the queue is empty."""
    while True:
        finished = done.is_set()
        try:
            name, *values = events.get(timeout=0.1)
        except queues.Empty:
            if finished:
                return
        except (EOFError, OSError):
            return
        else:
            getattr(report, name)(*values)
