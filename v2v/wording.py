"""Messages name options as on the command line; here they are reworded for callers in Python.

    "--fps 24 is out of range"                    "fps=24 is out of range"
    "replace it with --overwrite"                 "replace it with overwrite=True"
    "use -s pose.max_gap=0.5"                     'use settings={"pose.max_gap": 0.5}'
    "add it with: v2v preprocess a --size 64"     unchanged: a command

The library writes every message once, with options. `for_caller` leaves it as it is while the
command line runs (`command_line`), and rewords it otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

FLAGS = (
    "absolute", "compare", "difference", "dry-run", "longest", "overwrite", "pairs", "preview",
    "results",
)  # fmt: skip
ARGUMENTS = {  # option -> argument, where dashes to underscores is not enough
    "add": "picture", "camera-path": "camera", "drop": "number", "label": "labels",
    "part": "parts", "set": "settings", "signal": "signals",
}  # fmt: skip
SHORT = {"o": "output", "n": "name"}
WORDS = {  # values that look like the next word of the sentence
    "camera", "face", "flow", "global", "limbs", "none", "person", "pose", "predict",
    "segmentation", "source", "still", "street", "target",
}  # fmt: skip
LISTS = frozenset(["signals"])

# A command reaches to the end of its clause: a closing quote or bracket, a separator, a wide space.
_COMMAND = (
    r"`[^`]*`"
    r"|\b(?:v2v(?= [a-z-]+ )|curl|pip|sudo|torchrun)\b(?:(?![,;.)]*(?:\s\s|$))[^;`)](?<!, ))*"
)
_VALUE = r"\[[^\]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"|[^\s,;:)\]]*[^\s,;:.)\]]"
_SETTING = rf"-s (?:[\w.]+)=(?:{_VALUE})"
_PATTERN = re.compile(
    rf"(?P<command>{_COMMAND})"
    rf"|(?<![\w-])(?P<settings>{_SETTING}(?: {_SETTING})*)"
    rf"|(?<![\w/-])(?:--(?P<option>[a-z]+(?:-[a-z]+)*)|-(?P<short>[on]))(?![\w-])"
    rf"(?P<value>[ =](?:\[[^\]]*\]|'[^']*'|\"[^\"]*\"|[^\s;:)]*[^\s,;:.)]))?"
)

_command_line = False


@contextmanager
def command_line() -> Iterator[None]:
    """While the command line runs, messages speak of options.

    A plain variable, not a context variable: threads and callbacks raise errors, too.
    """
    global _command_line
    before, _command_line = _command_line, True
    try:
        yield
    finally:
        _command_line = before


def for_caller(text: str) -> str:
    """The message for whoever called: the command line or Python."""
    return text if _command_line else for_python(text)


def for_python(text: str) -> str:
    """Options as arguments; commands unchanged."""
    return _PATTERN.sub(_reworded, text) if "-" in text else text


def _reworded(found: re.Match[str]) -> str:
    if found["command"]:
        return found[0]
    if found["settings"]:
        pairs = re.findall(rf"-s ([\w.]+)=({_VALUE})", found["settings"])
        return "settings={" + ", ".join(f'"{key}": {_literal(value)}' for key, value in pairs) + "}"
    option = found["option"] or SHORT[found["short"]]
    name = ARGUMENTS.get(option, option.replace("-", "_"))
    rest = found["value"] or ""
    if option in FLAGS:
        return f"{name}=True{rest}"
    value = rest[1:]
    if not (_is_value(value) or found["short"]):
        return f"{name}={rest}"
    if option == "part" or option == "replace":
        key, separator, new = value.strip("'").partition("=")
        return f'{name}={{"{key}": {_literal(new)}}}' if separator else f"{name}={value}"
    if name in LISTS and "," in value:
        return f"{name}=[{', '.join(map(_literal, value.split(',')))}]"
    return f"{name}={_literal(value)}"


def _is_value(word: str) -> bool:
    """Whether the word after an option is its value rather than the next word of the sentence."""
    words = set(word.split(","))
    return bool(word) and (
        bool(re.search(r"[\d/.=\[\]'\"]|^[A-Z]+$", word)) or bool(words & WORDS) or len(words) > 1
    )


def _literal(value: str) -> str:
    """A value of an option as Python code."""
    value = value.strip()
    known = {"true": "True", "false": "False", "null": "None"}
    if value in known:
        return known[value]
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", value):
        return value
    if size := re.fullmatch(r"(\d+)x(\d+)", value):
        return f"({size[1]}, {size[2]})"
    if value.startswith("["):
        inner = value[1:-1]
        return f"[{', '.join(_literal(item) for item in inner.split(',') if item)}]"
    if value.isupper() or value[:1] in "'\"{" or value == "...":  # a metavariable, or quoted
        return value
    return f'"{value}"'
