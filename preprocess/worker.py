"""A thread that runs one extractor over the frames that a job reads."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

from v2v.errors import V2VError
from v2v.files import Seal, remove
from v2v.preprocess.extractor import PART, Extractor, Record
from v2v.preprocess.frames import Item
from v2v.progress import Reporter

QUEUE = 4  # frames that an extractor may lag behind; extractors share them


class Worker(threading.Thread):
    """Runs one extractor over the queued frames, part by part."""

    def __init__(
        self, name: str, extractor: Extractor, folder: Path, count: int, report: Reporter
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.extractor = extractor
        self.folder = folder
        self.count = count
        self.report = report
        self.parts = [folder / f"{part:05}" for part in range(-(-count // PART))]
        self.done = 0
        while self.done < len(self.parts) and seal_of(self.parts[self.done]).holds(
            [self.parts[self.done]]
        ):
            self.done += 1
        for path in self.parts[self.done :]:  # a damaged part and those that continue from it
            remove(path)
        self.queue: queue.Queue[Item | None] = queue.Queue(QUEUE)
        self.error: V2VError | None = None  # only this signal fails
        self.crash: BaseException | None = None  # the whole run fails
        self.stopped = False

    @property
    def first(self) -> int:
        """The first frame that is not done."""
        return min(self.done * PART, self.count)

    def put(self, item: Item | None) -> None:
        while self.error is None:
            if self.crash is not None:
                raise self.crash
            try:
                self.queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def stop(self) -> None:
        """End the thread without finishing its part, after Ctrl-C or a crash."""
        self.stopped = True
        if self.is_alive():
            while not self.queue.empty():
                self.queue.get_nowait()
            self.queue.put(None)
            self.join()

    def run(self) -> None:
        self.report.start(self.name, self.count, self.first)
        try:
            self._work()
            if not self.stopped:
                self.report.finish(self.name)
        except V2VError as error:
            self.error = error
            for partial in self.folder.glob(".*.partial"):
                remove(partial)
        except BaseException as error:
            self.crash = error
        finally:
            self.extractor.end()

    def _work(self) -> None:
        previous: Any = None
        writer = None
        carry: Record | None = None
        if self.done:
            carry = self.extractor.last_record(self.parts[self.done - 1])
        while not self.stopped:
            item = self.queue.get()
            if item is None:
                return
            if item.index >= self.first:
                path = self.parts[item.index // PART]
                if writer is None:
                    self.extractor.begin(carry)
                    writer = self.extractor.part_writer(path)
                writer.add(self.extractor.step(item.index, item.frame, previous, item.cut))
                self.report.advance(self.name)
                if (item.index + 1) % PART == 0 or item.index + 1 == self.count:
                    writer.close()
                    seal_of(path).write([path])
                    writer = None
                    self.extractor.end()
                    carry = self.extractor.last_record(path)
            previous = item.frame


def seal_of(part: Path) -> Seal:
    return Seal(part.with_name(f".{part.name}.seal"))
