"""Progress of long tasks: stages with a count, a rate and an ETA; silent, or on the terminal.

Functions of the library take a `Reporter`. `reporting` chooses one for calls that name none: bars
in a terminal or a notebook, else nothing. The reporters here also log stages, notes and failures to
the logger "v2v"; the library installs no handler, so nothing appears unless the application asks:

>>> logging.basicConfig(level=logging.INFO)
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ParamSpec, Protocol, Self, TypeVar

from v2v.wording import for_caller

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("v2v")
logger.addHandler(logging.NullHandler())


class Reporter(Protocol):
    """Receives progress. A `stage` name may be reused for another clip."""

    def start(self, stage: str, total: int, done: int = 0) -> None: ...
    def advance(self, stage: str, amount: int = 1) -> None: ...
    def describe(self, stage: str, text: str) -> None: ...
    def finish(self, stage: str) -> None: ...
    def note(self, text: str) -> None: ...


class Logged:
    """Logs stages, with their counts and seconds, and notes; forwards them to `inner`, if any.

    Records have `stage`, `count`, `total` and `seconds` as attributes, for structured logs.
    """

    def __init__(self, inner: Reporter | None = None) -> None:
        self.inner = inner
        self._stages: dict[str, _Stage] = {}

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self._stages[stage] = _Stage(total, done, time.monotonic())
        logger.info(
            "%s: started, %d of %d done", stage, done, total,
            extra={"stage": stage, "count": done, "total": total, "seconds": 0.0},
        )  # fmt: skip
        if self.inner is not None:
            self.inner.start(stage, total, done)

    def advance(self, stage: str, amount: int = 1) -> None:
        if stage in self._stages:
            self._stages[stage].count += amount
        if self.inner is not None:
            self.inner.advance(stage, amount)

    def describe(self, stage: str, text: str) -> None:
        if self.inner is not None:
            self.inner.describe(stage, text)

    def finish(self, stage: str) -> None:
        ended = self._stages.pop(stage, None)
        if ended is not None:
            seconds = time.monotonic() - ended.began
            logger.info(
                "%s: finished, %d of %d in %.1f s", stage, ended.count, ended.total, seconds,
                extra={"stage": stage, "count": ended.count, "total": ended.total,
                       "seconds": seconds},
            )  # fmt: skip
        if self.inner is not None:
            self.inner.finish(stage)

    def note(self, text: str) -> None:
        logger.info("%s", for_caller(text))
        if self.inner is not None:
            self.inner.note(for_caller(text))


@dataclass
class _Stage:
    """A stage that has begun."""

    total: int
    count: int
    began: float


class Silent(Logged):
    """Prints nothing."""

    def __init__(self) -> None:
        super().__init__()


class Relayed:
    """Sends the progress of a worker process to the process with the terminal.

    Steps are sent a few times per second, not one by one, since each message wakes that process.
    """

    EVERY = 0.2  # seconds

    def __init__(self, queue: Any, prefix: str) -> None:
        self.queue = queue
        self.prefix = prefix
        self.lock = threading.Lock()
        self.unsent: dict[str, int] = {}
        self.sent = time.monotonic()

    def start(self, stage: str, total: int, done: int = 0) -> None:
        self.queue.put(("start", f"{self.prefix}{stage}", total, done))

    def advance(self, stage: str, amount: int = 1) -> None:
        with self.lock:
            self.unsent[stage] = self.unsent.get(stage, 0) + amount
            if time.monotonic() - self.sent > self.EVERY:
                self._send()

    def describe(self, stage: str, text: str) -> None:
        self.queue.put(("describe", f"{self.prefix}{stage}", text))

    def finish(self, stage: str) -> None:
        with self.lock:
            self._send()
        self.queue.put(("finish", f"{self.prefix}{stage}"))

    def _send(self) -> None:
        for stage, amount in self.unsent.items():
            self.queue.put(("advance", f"{self.prefix}{stage}", amount))
        self.unsent.clear()
        self.sent = time.monotonic()

    def note(self, text: str) -> None:
        self.queue.put(("note", text))


class Terminal(Logged):
    """One progress bar per stage on standard error: count, rate, time left."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:6.1f}/s" if speed else "      -")

        self.console = Console(stderr=True)  # in a notebook, rich writes below the cell
        self.progress = Progress(
            TextColumn("{task.description}", justify="left"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def start(self, stage: str, total: int, done: int = 0) -> None:
        super().start(stage, total, done)
        self.tasks[stage] = self.progress.add_task(stage, total=total, completed=done)

    def advance(self, stage: str, amount: int = 1) -> None:
        super().advance(stage, amount)
        self.progress.advance(self.tasks[stage], amount)

    def describe(self, stage: str, text: str) -> None:
        """Change the text shown for the stage."""
        self.progress.update(self.tasks[stage], description=text)

    def finish(self, stage: str) -> None:
        super().finish(stage)
        task = self.tasks[stage]
        self.progress.update(task, completed=self.progress.tasks[task].total)

    def note(self, text: str) -> None:
        super().note(text)
        self.progress.console.print(for_caller(text))


# ---------------------------------------------------------------- the default

_current: ContextVar[Reporter | None] = ContextVar("v2v reporter", default=None)


@contextmanager
def reporting(report: Reporter | None = None) -> Iterator[Reporter]:
    """The reporter of a call.

    It is the given one, or else that of the enclosing call, or else bars if a person is watching (a
    terminal or a notebook), or else `Silent`. The outermost call logs what it raises.
    """
    enclosing = _current.get()
    if enclosing is not None:
        yield report or enclosing
        return
    with ExitStack() as stack:
        if report is None:
            report = stack.enter_context(Terminal()) if is_watched() else Silent()
        elif not isinstance(report, Logged):
            report = Logged(report)
        token = _current.set(report)
        stack.callback(_current.reset, token)
        try:
            yield report
        except Exception as error:
            logger.error("failed: %s: %s", type(error).__name__, error)
            raise


def is_watched() -> bool:
    """Whether standard error is a terminal, or the process runs a notebook."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


def with_progress(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function with an optional keyword `report`, which `reporting` then chooses."""

    @functools.wraps(function)
    def reported(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = kwargs.get("report")
        with reporting(given) as report:
            kwargs["report"] = report
            return function(*args, **kwargs)

    return reported
