"""Records on disk: JSON files with a schema, read in one place.

The caller passes a pydantic model and the error to raise for foreign or damaged files. The error
names the file, the field and the problem: text that is not UTF-8 or not JSON, NaN and infinity,
excessive nesting and size, wrong types, unknown and missing fields, a folder in the file's place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from v2v.errors import UsageError, V2VError

MOST_BYTES = 64 << 20  # per record: a clip of 100 hours with a shot per second has 4 MB
MOST_LINE = 1 << 20  # bytes per line, in files of many records
MOST_FRAMES = 1 << 31
MOST_SIDE = 1 << 16  # pixels
MOST_NAME = 200  # bytes; files derived from the name have longer ones
SHOWN = 60  # characters of a wrong value in an error message

RecordT = TypeVar("RecordT", bound=BaseModel)
# Receives the plain data first; returns data to validate instead, or None.
Checked = Callable[[dict[str, Any]], dict[str, Any] | None]


class Record(BaseModel):
    """Base of all records: immutable; refuses unknown keys and non-finite values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _rate(value: str) -> str:
    try:
        # No exponents: they allow numbers of any length.
        if len(value) > 40 or "e" in value.lower():
            raise ValueError
        rate = Fraction(value)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not Fraction(1, 1000) <= rate <= 100_000:
        raise ValueError("expected a frame rate such as 25 or 30000/1001")
    return value


def _file_name(value: str) -> str:
    if not value or "\0" in value or value in (".", "..") or Path(value).name != value:
        raise ValueError("expected a file name, without folders")
    return value


def _finite(value: Any) -> Any:
    if not is_finite(value):
        raise ValueError("expected finite numbers")
    return value


def is_finite(value: Any) -> bool:
    """Whether nested plain data contains no NaN or infinity."""
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


Count = Annotated[int, Field(ge=0, le=MOST_FRAMES)]
Frames = Annotated[int, Field(ge=1, le=MOST_FRAMES)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 63)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[str, AfterValidator(_rate)]
FileName = Annotated[str, AfterValidator(_file_name)]
Plain = Annotated[dict[str, Any], AfterValidator(_finite)]  # any content with finite numbers


def check_name(name: str, option: str = "--name") -> str:
    """Check a name for a folder: one plain path component. Raises `UsageError`."""
    plain = (
        name.isprintable()  # neither control characters nor lone surrogates
        and name.strip() == name
        and not name.startswith((".", "-"))
        and not set(name) & set("/\\")
    )
    if not name or not plain or len(name.encode("utf-8")) > MOST_NAME:
        raise UsageError(
            f"{option} {shown(name)} cannot name a folder",
            hint=f"use 1 to {MOST_NAME} letters, digits and signs except / and \\; the first must"
            " be neither a dot nor a dash",
        )
    return name


def read_text(
    path: Path, error: type[V2VError], *, hint: str, most: int = MOST_BYTES
) -> str:  # fmt: skip
    """Read a UTF-8 file of at most `most` bytes. Raises `error`."""
    try:
        if not path.is_file():
            raise error(f"cannot read {path}: it is not a file", hint=hint)
        with open(path, "rb") as file:
            raw = file.read(most + 1)
        if len(raw) > most:
            raise error(f"{path} is too large: at most {most >> 20} MiB are accepted", hint=hint)
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error(f"cannot read {path}: it is not UTF-8 text ({problem})", hint=hint) from problem
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}", hint=hint) from problem


def parse(text: str, where: object, error: type[V2VError], *, hint: str) -> dict[str, Any]:
    """Parse the JSON object in `text`. Raises `error`, which names `where` it is."""
    try:
        # Refuses more than 200 levels of nesting, at which json.loads overflows its stack.
        data = from_json(text, allow_inf_nan=False)
    except ValueError as problem:
        raise error(f"{where} is not valid JSON: {problem}", hint=hint) from problem
    if not isinstance(data, dict):
        raise error(f"{where} is not valid: expected a JSON object", hint=hint)
    return data


def validate(
    model: type[RecordT], text: str, where: object, error: type[V2VError], *, hint: str,
    check: Checked | None = None,
) -> RecordT:  # fmt: skip
    """Validate `text` as a record. `check` checks the version first and may upgrade the data.

    Raises `error`, which names `where` the text is, the field and the problem.
    """
    data = parse(text, where, error, hint=hint)
    if check is not None and (upgraded := check(data)) is not None:
        text = json.dumps(upgraded)
    try:
        # From the text: strict JSON validation accepts lists for tuples, and no other conversion.
        return model.model_validate_json(text, strict=True)
    except ValidationError as problem:
        raise error(f"{where}: {explain(problem)}", hint=hint) from problem


def read_record(
    path: Path, model: type[RecordT], error: type[V2VError], *, hint: str,
    check: Checked | None = None,
) -> RecordT:  # fmt: skip
    """Read a JSON file as a record; see `validate`. Raises `error`."""
    return validate(model, read_text(path, error, hint=hint), path, error, hint=hint, check=check)


def read_lines(
    path: Path, model: type[RecordT], error: type[V2VError], *, hint: str
) -> Iterator[tuple[str, RecordT]]:
    """Yield the text and record of each line of a file, except a truncated last line.

    Raises `error`, which names the line.
    """
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(MOST_LINE + 1), b""), 1):
                where = f"{path}, line {number}"
                if len(raw) > MOST_LINE:
                    raise error(f"{where} is too long for a line that v2v wrote", hint=hint)
                # A killed process leaves a partial line without a newline.
                if raw.endswith(b"\n") and raw.strip():
                    text = raw.decode("utf-8").rstrip("\r\n")
                    yield text, validate(model, text, where, error, hint=hint)
    except UnicodeDecodeError as problem:
        raise error(f"cannot read {path}: it is not UTF-8 text ({problem})", hint=hint) from problem
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}", hint=hint) from problem


def explain(error: ValidationError) -> str:
    """The first problem: the field, what is wrong, and the value."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = problem.get("input")
    if isinstance(value, str | int | float | bool | None) and problem["type"] != "missing":
        message = f"{message}, not {shown(value)}"
    return f"{where}: {message}" if where else message


def shown(value: Any) -> str:
    """A short text of any value, for error messages."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**SHOWN:
        return "an integer of more than 60 digits"  # its digits may be too many to print
    text = json.dumps(value, ensure_ascii=False, default=str)
    if not text.isprintable():  # e.g. lone surrogates, which terminals cannot print
        text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
