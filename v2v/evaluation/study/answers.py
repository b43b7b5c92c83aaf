"""Read the key and the answer files of a study, and check them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from v2v.errors import UsageError
from v2v.evaluation.study.deal import deal
from v2v.evaluation.study.records import CODE, KEY_FILE, Answers, Key
from v2v.listing import is_hidden


def answer_files(given: Sequence[str | Path]) -> list[Path]:
    """The files, and the JSON files in folders, each once. Raises `UsageError` if none."""
    found: list[Path] = []
    for one in map(Path, given):
        inside = (file for file in one.glob("*.json") if not is_hidden(file))
        found += sorted(inside) if one.is_dir() else [one]
    if not found:
        raise UsageError(
            "no answer files given",
            hint="run v2v study --results answers-1.json answers-2.json --key study/key.json",
        )
    return list(dict.fromkeys(found))


def read_key(path: Path) -> Key:
    """Read key.json, or the one in a folder. Raises `UsageError`."""
    path = path / KEY_FILE if path.is_dir() else path
    try:
        key = Key.model_validate_json(read_text(path))
    except ValidationError as error:
        raise UsageError(
            f"{path} is not the key of a study ({_first(error)})",
            hint="give the key.json that v2v study wrote next to the page",
        ) from None
    known = all(clip in key.clips for trial in key.trials for clip in trial.clips)
    if not known or len({trial.id for trial in key.trials}) < len(key.trials):
        raise UsageError(f"{path} was changed: its trials do not match its clips", hint=None)
    return key


def read_answers(path: Path, key: Key) -> Answers:
    """Read answers and check them against the pairs the page showed. Raises `UsageError`."""
    text = read_text(path)
    try:
        answers = Answers.model_validate_json(text)
    except ValidationError as error:
        raise UsageError(
            f"{path} is not an answer file of a study ({_first(error)})",
            hint="give the files downloaded from the page, unchanged",
        ) from None
    if answers.study != key.study:
        raise UsageError(
            f"{path} answers another study ({answers.study}, not {key.study})",
            hint="give the --key of the study that was answered",
        )
    shown = deal(key.study, answers.participant, key.trials)
    if len(answers.trials) != len(shown):
        raise UsageError(
            f"{path} answers {len(answers.trials)} of {len(shown)} pairs",
            hint="it was truncated or changed; ask for the file downloaded from the page",
        )
    for number, (answer, dealt) in enumerate(zip(answers.trials, shown, strict=True), 1):
        if (answer.trial, answer.left, answer.right) != dealt:
            raise UsageError(
                f"{path} was changed: pair {number} is not what the page showed"
                f" {answers.participant}",
                hint="ask for the file downloaded from the page, or leave this one out",
            )
    if not CODE.fullmatch(answers.participant):
        raise UsageError(
            f"{path} was changed: {answers.participant!r} is not a participant code", hint=None
        )
    return answers


def read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}", hint=None) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", hint=None) from None


def _first(error: ValidationError) -> str:
    """A short description of the first validation error."""
    found = error.errors()[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where}: {found['msg']}" if where else str(found["msg"])
