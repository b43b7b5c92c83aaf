"""The errors that `v2v` raises on purpose.

    V2VError                       exit code 1
    ├── UsageError                 exit code 2: the command or the config is wrong
    │   ├── ConfigError            unknown key or value out of range
    │   └── UnknownName            a signal, backend or plugin that does not exist
    ├── MediaError                 the footage cannot be used
    │   ├── MediaNotFound
    │   ├── NotAVideo
    │   └── BrokenStream
    ├── SignalError                the footage is valid, but the signal cannot be found
    │   ├── NothingFound           no person, no face
    │   └── LabelsMismatch         imported label maps do not fit the frames
    ├── StoreError                 the clip store cannot be used
    │   ├── StoreNotFound
    │   ├── StoreSchemaError       written by a newer version, or not a store
    │   ├── StoreDamaged           edited by hand or incomplete
    │   ├── StoreLocked            another process is using it
    │   ├── StoreConflict          made from other footage or with other settings
    │   ├── SignalMissing          the store lacks a signal
    │   └── TooFewFrames           the clips are too short to train on
    ├── TrainingError              a run cannot continue
    │   ├── RunConflict            the run folder holds another run, or is in use
    │   ├── CheckpointInvalid      unknown format or version, damaged, or unsafe to load
    │   └── TrainingDiverged       a loss is NaN or infinite
    └── EnvironmentProblem         the machine lacks something
        ├── OutOfMemory
        ├── DiskFull
        ├── NotWritable
        ├── WeightsUnavailable
        └── MissingLibrary

A message states what was given and what is wrong; `hint` states what to do next. The command line
prints both, without a traceback. Both are written with the options of the command line; callers in
Python read arguments instead (`v2v.wording`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from v2v.wording import for_caller


class V2VError(Exception):
    """Base of all errors that a user can cause or fix."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self._written = message, hint
        self.message = for_caller(message)
        self.hint = None if hint is None else for_caller(hint)
        super().__init__(self.message)
        if self.hint is not None:
            self.add_note(f"try: {self.hint}")  # tracebacks show it

    def __reduce__(self) -> tuple[object, ...]:
        # The hint is kept when a worker process sends an error to its parent, where the command
        # line may run.
        message, hint = self._written
        return _rebuild, (type(self), message, hint)


def _rebuild(kind: type[V2VError], message: str, hint: str | None) -> V2VError:
    return kind(message, hint=hint)


class UsageError(V2VError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class UnknownName(UsageError):
    @classmethod
    def among(cls, kind: str, given: str, known: Iterable[str]) -> UnknownName:
        """The error for a name that is not in `known`; suggests the nearest name."""
        names = sorted(known)
        near = get_close_matches(given, names, n=1, cutoff=0.5)
        hint = f"valid: {', '.join(names)}"
        if near:
            hint = f"did you mean {near[0]!r}? {hint}"
        return cls(f"unknown {kind} {given!r}", hint=hint)


class MediaError(V2VError):
    pass


class MediaNotFound(MediaError):
    pass


class NotAVideo(MediaError):
    pass


class BrokenStream(MediaError):
    pass


class SignalError(V2VError):
    pass


class NothingFound(SignalError):
    pass


class LabelsMismatch(SignalError):
    pass


class StoreError(V2VError):
    pass


class StoreNotFound(StoreError):
    pass


class StoreSchemaError(StoreError):
    pass


class StoreDamaged(StoreError):
    pass


class StoreLocked(StoreError):
    pass


class StoreConflict(StoreError):
    pass


class SignalMissing(StoreError):
    pass


class TooFewFrames(StoreError):
    pass


class TrainingError(V2VError):
    pass


class RunConflict(TrainingError):
    pass


class CheckpointInvalid(TrainingError):
    pass


class TrainingDiverged(TrainingError):
    pass


class EnvironmentProblem(V2VError):
    pass


class OutOfMemory(EnvironmentProblem):
    pass


class DiskFull(EnvironmentProblem):
    pass


class NotWritable(EnvironmentProblem):
    pass


class WeightsUnavailable(EnvironmentProblem):
    pass


class MissingLibrary(EnvironmentProblem):
    pass


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on writing `path` into `V2VError`s.

    This covers PyAV: its errors are OSErrors with the same errno.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk is full: could not write {path}",
                hint="free some space and run the same command again; finished work is kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise NotWritable(
                f"no permission to write {path}",
                hint="choose another folder with --output, or change its permissions",
            ) from error
        if error.errno == errno.ENAMETOOLONG:
            raise NotWritable(
                f"cannot write {path}: {(error.strerror or str(error)).lower()}",
                hint="choose another --output",
            ) from error
        raise
