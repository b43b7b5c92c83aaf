"""The run folder: everything of one training run, readable with ordinary tools.

runs/b/
  run.json        what the folder is
  config.yaml     every setting, resolved
  log.jsonl       a line every few updates: step, minutes, stage, losses
  tensorboard/    the same for TensorBoard
  checkpoints/    the last few, each a whole
  previews/       held-out frames: signals | rendered | real
  model/          what pipelines load: safetensors and JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from omegaconf import OmegaConf
from pydantic import Field

from v2v import __version__
from v2v.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    settle,
)
from v2v.config import load_yaml
from v2v.errors import CheckpointInvalid, ConfigError, RunConflict, writing
from v2v.files import LOCK, FolderLock, partial_of, remove, remove_at_once
from v2v.listing import is_hidden
from v2v.records import Count, FileName, Record, Side, read_lines, read_record, shown
from v2v.training.settings import OPERATIONAL, TrainSettings

FORMAT = 2
READABLE = (1, 2)  # where its clips are can be read from either
RUN_FILE = "run.json"
SETTINGS_FILE = "config.yaml"
REPLACED = ("model", "predictor", "predictor.checkpoint")  # folders that are replaced as a whole


class RunFolder:
    """One run on disk. Use as a context: the folder is locked within."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log_path = folder / "log.jsonl"
        self.checkpoints = folder / "checkpoints"
        self.previews = folder / "previews"
        self.model = folder / "model"
        busy = RunConflict(
            f"another process is training {folder}",
            hint="wait for it, stop it, or choose another --name",
        )
        self._lock = FolderLock(folder, busy)

    def __enter__(self) -> RunFolder:
        try:
            with writing(self.folder):
                self._lock.acquire()
                self._tidy()
        except (FileExistsError, NotADirectoryError):
            raise RunConflict(
                f"{self.folder} cannot be a run's folder: there is a file in its place",
                hint="choose another --name or --runs",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _tidy(self) -> None:
        """Put back or remove what a killed process left."""
        for name in REPLACED:
            settle(self.folder / name)
        for ending in (".partial", ".old"):
            for path in self.checkpoints.glob(f".[0-9]*{ending}"):
                settle(path.with_name(path.name[1:].removesuffix(ending)))
        for name in (RUN_FILE, SETTINGS_FILE, self.log_path.name, self.checkpoints.name):
            remove(partial_of(self.folder / name))
        for path in self.previews.glob(".*.partial"):
            remove(path)

    @property
    def exists(self) -> bool:
        return (self.folder / RUN_FILE).is_file()

    def begin(
        self, settings: TrainSettings, clips: Sequence[Path], files: list[dict[str, str]]
    ) -> None:
        """Make the folder, or check that it is of the same run.

        Args:
            clips: the stores, wherever they are now.
            files: of each store, the hashes of the files that are trained on.

        Raises `RunConflict`.
        """
        if not self.exists:
            strangers = [p.name for p in self.folder.iterdir() if not is_hidden(p)]
            if strangers:
                raise RunConflict(
                    f"{self.folder} is not empty and no run of v2v (it has {strangers[0]})",
                    hint="choose another --name",
                )
        elif self.saved():  # a run that never began holds nothing that could be lost
            self._compare(settings, clips, files)
        plain = settings.model_dump(mode="json")
        with writing(self.folder):
            # First of all the file that says that the folder is a run, in case of a kill.
            record = {
                "format": FORMAT, "tool": f"v2v {__version__}", "data": list(map(str, clips)),
                "files": files,
            }  # fmt: skip
            _replace(self.folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
            text = OmegaConf.to_yaml(OmegaConf.create(plain))
            _replace(self.folder / SETTINGS_FILE, "# Every setting of this run.\n" + text)

    def _compare(
        self, settings: TrainSettings, clips: Sequence[Path], files: list[dict[str, str]]
    ) -> None:
        record = read_run(self.folder)
        if record.format != FORMAT:
            raise RunConflict(
                f"{self.folder} was begun by an earlier version of v2v (format {record.format},"
                f" {record.tool}; this version continues format {FORMAT})",
                hint="its finished model can be used; to train, choose another --name, or start"
                " anew with --overwrite",
            )
        before = read_settings(self.folder / SETTINGS_FILE)
        now = settings.model_dump(mode="json")
        changed = [
            f"{key}: {_at(before, key)!r} before, {_at(now, key)!r} now"
            for key in sorted({*_keys(before), *_keys(now)})
            if _at(before, key) != _at(now, key)
            and not any(key == o or key.startswith(o + ".") for o in OPERATIONAL)
        ]
        if not _same_data(record, clips, files):
            changed.insert(0, f"data: {list(record.data)} before, {list(map(str, clips))} now")
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise RunConflict(
                f"{self.folder} is a run of other settings: {changed[0]}{more}",
                hint="choose another --name, give the same settings, or start anew with"
                " --overwrite",
            )

    def clear(self) -> None:
        """Throw the run away, if it is one; the folder, its lock and `run.json` stay.

        A kill at any moment leaves a run: the old one, or one that never began.
        """
        if not self.exists:
            return
        with writing(self.folder):
            remove_at_once(self.checkpoints)
            for path in self.folder.iterdir():
                if path.name not in (LOCK, RUN_FILE):
                    remove(path)

    # ------------------------------------------------------------ checkpoints

    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(p.parent for p in self.checkpoints.glob(f"[0-9]*/{CHECKPOINT_FILE}"))

    def save(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Write a checkpoint, then drop the oldest beyond `keep`.

        Raises `DiskFull`, `NotWritable`; those that were there stay.
        """
        folder = self.checkpoints / f"{checkpoint.progress['step']:08d}"
        save_checkpoint(folder, checkpoint)
        for old in self.saved()[:-keep]:
            if old != folder:
                with suppress(OSError):
                    remove_at_once(old)
        return folder

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint; one that is damaged is an error, not passed over in silence."""
        saved = self.saved()
        if not saved:
            if any(self.checkpoints.glob("*.pt")) or any(self.checkpoints.glob("*.pth")):
                raise CheckpointInvalid(
                    f"{self.checkpoints} holds torch files: they can run code and are not loaded",
                    hint="v2v's checkpoints are folders; remove the files",
                )
            return None
        return load_checkpoint(saved[-1])

    # ------------------------------------------------------------ the log

    def log(self, entry: dict[str, Any]) -> None:
        with writing(self.log_path), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def entries(self) -> Iterator[LogEntry]:
        return (entry for _, entry in read_log(self.log_path))

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`: it will be trained, and logged, again."""
        if not self.log_path.exists():
            return
        kept = [line for line, entry in read_log(self.log_path) if entry.step <= step]
        with writing(self.log_path):
            _replace(self.log_path, "".join(line + "\n" for line in kept))


class RunRecord(Record):
    """run.json."""

    format: int
    tool: str
    data: tuple[str, ...]  # the clip stores' folders when the run was last started
    files: tuple[dict[FileName, str], ...] | None = None  # of each; None: of an earlier v2v


class LogEntry(Record):
    """A line of log.jsonl."""

    step: Count
    minutes: Annotated[float, Field(ge=0)]
    stage: Count
    size: tuple[Side, Side]  # width, height
    length: Annotated[int, Field(ge=1)]
    rate: float
    losses: dict[str, float]


def read_run(folder: Path) -> RunRecord:
    """run.json of a run folder. Raises `RunConflict`."""

    def check(data: dict[str, Any]) -> None:
        if data.get("format") not in READABLE:
            raise RunConflict(
                f"{folder} was written by another version of v2v"
                f" ({shown(data.get('tool', 'unknown'))})",
                hint="choose another --name, or train with --overwrite",
            )

    return read_record(folder / RUN_FILE, RunRecord, RunConflict, hint=DAMAGED, check=check)


def read_settings(path: Path) -> dict[str, Any]:
    """config.yaml of a run folder, as plain data. Raises `RunConflict`."""
    try:
        return load_yaml(path)
    except ConfigError as error:
        raise RunConflict(error.message, hint=DAMAGED) from error


DAMAGED = "restore the file, choose another --name, or train with --overwrite"


def _same_data(
    record: RunRecord, clips: Sequence[Path], files: Sequence[Mapping[str, str]]
) -> bool:
    """Whether clips are those of the run: their content decides, not where they are.

    A signal that a store has gained since is no other data.
    """
    if record.files is None:
        return [Path(p).resolve() for p in record.data] == [Path(p).resolve() for p in clips]
    return len(record.files) == len(files) and all(
        before.items() <= now.items() for before, now in zip(record.files, files, strict=True)
    )


def read_log(path: Path) -> Iterator[tuple[str, LogEntry]]:
    """The lines of a log and what they say, without a last line that was cut off.

    Raises `RunConflict` for a line that is no entry.
    """
    hint = "remove the line: the log is for people, training does not depend on it"
    yield from read_lines(path, LogEntry, RunConflict, hint=hint)


def _replace(path: Path, text: str) -> None:
    partial = partial_of(path)
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _at(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
