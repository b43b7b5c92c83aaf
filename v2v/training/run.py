"""The run folder: all files of one training run, readable with ordinary tools.

runs/b/
  run.json        marks the folder as a run: format, version, training data
  config.yaml     every setting, resolved
  log.jsonl       a line every few updates: step, minutes, stage, losses
  tensorboard/    the same for TensorBoard
  checkpoints/    the last few, each complete
  previews/       held-out frames: signals | rendered | real
  model/          the model that pipelines load: safetensors and JSON
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
from v2v.config import load_yaml
from v2v.errors import CheckpointInvalid, ConfigError, RunConflict, writing
from v2v.files import LOCK, FolderLock, partial_of, remove, remove_at_once, settle
from v2v.listing import is_hidden
from v2v.records import Count, FileName, Record, Side, read_lines, read_record, shown
from v2v.resume import CHECKPOINT_FILE, Checkpoint, load_checkpoint, save_checkpoint
from v2v.training.settings import OPERATIONAL, TrainSettings

FORMAT = 2
READABLE = (1, 2)  # formats whose list of clips can be read
RUN_FILE = "run.json"
SETTINGS_FILE = "config.yaml"
REPLACED = ("model", "predictor", "predictor.checkpoint")  # folders that are replaced atomically


class RunFolder:
    """One run on disk. Use it as a context manager, which locks the folder."""

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
                f"{self.folder} cannot be a run folder: a file is in its place",
                hint="choose another --name or --runs",
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _tidy(self) -> None:
        """Restore or remove what a killed process left behind."""
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
        """Create the folder, or check that it belongs to the same run.

        Args:
            clips: the clip stores, at their current paths.
            files: for each store, the hashes of the files that training reads.

        Raises `RunConflict`.
        """
        if not self.exists:
            others = [p.name for p in self.folder.iterdir() if not is_hidden(p)]
            if others:
                raise RunConflict(
                    f"{self.folder} is neither empty nor a run of v2v (it contains {others[0]})",
                    hint="choose another --name",
                )
        elif self.saved():  # without a checkpoint there is nothing to lose
            self._compare(settings, clips, files)
        plain = settings.model_dump(mode="json")
        with writing(self.folder):
            # run.json marks the folder as a run, so it is written first in case of a kill.
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
                f"{self.folder} was started by an earlier version of v2v (format {record.format},"
                f" {record.tool}; this version resumes format {FORMAT})",
                hint="its model can still be used; to train, choose another --name, or start again"
                " with --overwrite",
            )
        before = read_settings(self.folder / SETTINGS_FILE)
        now = settings.model_dump(mode="json")
        changed = [
            f"{key}: {_value_of(before, key)!r} before, {_value_of(now, key)!r} now"
            for key in sorted({*_dotted_keys(before), *_dotted_keys(now)})
            if _value_of(before, key) != _value_of(now, key)
            and not any(key == o or key.startswith(o + ".") for o in OPERATIONAL)
        ]
        if not _same_data(record, clips, files):
            changed.insert(0, f"data: {list(record.data)} before, {list(map(str, clips))} now")
        if changed:
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise RunConflict(
                f"{self.folder} holds a run with other settings: {changed[0]}{more}",
                hint="choose another --name, use the same settings, or start again with"
                " --overwrite",
            )

    def clear(self) -> None:
        """Delete the run, if it is one; the folder, its lock and `run.json` stay.

        A kill at any moment leaves a run: the old one, or one without checkpoints.
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
        """Write a checkpoint, then delete the oldest ones beyond `keep`.

        Raises `DiskFull`, `NotWritable`; existing checkpoints then stay.
        """
        folder = self.checkpoints / f"{checkpoint.progress['step']:08d}"
        save_checkpoint(folder, checkpoint)
        for old in self.saved()[:-keep]:
            if old != folder:
                with suppress(OSError):
                    remove_at_once(old)
        return folder

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None. Raises `CheckpointInvalid` if it is damaged."""
        saved = self.saved()
        if not saved:
            if any(self.checkpoints.glob("*.pt")) or any(self.checkpoints.glob("*.pth")):
                raise CheckpointInvalid(
                    f"{self.checkpoints} has torch files, which can run code and are not loaded",
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
        """Remove log entries after `step`: those updates are trained and logged again."""
        if not self.log_path.exists():
            return
        kept = [line for line, entry in read_log(self.log_path) if entry.step <= step]
        with writing(self.log_path):
            _replace(self.log_path, "".join(line + "\n" for line in kept))


class RunRecord(Record):
    """run.json."""

    format: int
    tool: str
    data: tuple[str, ...]  # paths of the clip stores at the last start
    files: tuple[dict[FileName, str], ...] | None = None  # hashes; None in earlier versions


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
    """Read run.json of a run folder. Raises `RunConflict`."""

    def check(data: dict[str, Any]) -> None:
        if data.get("format") not in READABLE:
            raise RunConflict(
                f"{folder} was written by another version of v2v"
                f" ({shown(data.get('tool', 'unknown'))})",
                hint="choose another --name, or train with --overwrite",
            )

    return read_record(folder / RUN_FILE, RunRecord, RunConflict, hint=DAMAGED, check=check)


def read_settings(path: Path) -> dict[str, Any]:
    """Read config.yaml of a run folder as plain data. Raises `RunConflict`."""
    try:
        return load_yaml(path)
    except ConfigError as error:
        raise RunConflict(error.message, hint=DAMAGED) from error


DAMAGED = "restore the file, choose another --name, or train with --overwrite"


def _same_data(
    record: RunRecord, clips: Sequence[Path], files: Sequence[Mapping[str, str]]
) -> bool:
    """Whether the clips are those of the run, compared by content and not by path.

    Signals that were added to a store later are ignored.
    """
    if record.files is None:
        return [Path(p).resolve() for p in record.data] == [Path(p).resolve() for p in clips]
    return len(record.files) == len(files) and all(
        before.items() <= now.items() for before, now in zip(record.files, files, strict=True)
    )


def read_log(path: Path) -> Iterator[tuple[str, LogEntry]]:
    """Yield the lines of a log with their entries, except a truncated last line.

    Raises `RunConflict` for an invalid line.
    """
    hint = "remove the line: training does not depend on the log"
    yield from read_lines(path, LogEntry, RunConflict, hint=hint)


def _replace(path: Path, text: str) -> None:
    partial = partial_of(path)
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _dotted_keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _dotted_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _value_of(tree: dict[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
