"""Typed configs: YAML defaults from `configs/`, then a file, then dotted overrides.

An unknown key fails and names the nearest known one; a wrong value names the key and what it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from difflib import get_close_matches
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeGuard, TypeVar, cast, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from v2v.errors import ConfigError
from v2v.records import read_text
from v2v.timecode import parse_rate, parse_time


class Config(BaseModel):
    """Base of all configs: immutable; refuses unknown keys. Defaults are in the YAML files."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    # Dotted keys of earlier versions -> their current names.
    renamed_keys: ClassVar[Mapping[str, str]] = {}

    def fingerprint(self) -> str:
        """A short hash of all values: equal settings have equal fingerprints."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rate(value: Any) -> Any:
    return value if value is None or isinstance(value, Fraction) else parse_rate(value)


def _size(value: Any) -> Any:
    if isinstance(value, str) and "x" in value.lower():
        parts = value.lower().split("x")
        return tuple(int(v) if v.isascii() and v.isdigit() and len(v) < 9 else v for v in parts)
    return tuple(value) if isinstance(value, list) else value


def _switch(value: Any) -> Any:
    """YAML parses a bare on and off as true and false."""
    return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_switch)]
Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_time)]
Duration = Annotated[float, Field(ge=0, le=1e9)]


class FrameSettings(Config):
    size: Annotated[int | tuple[int, int] | None, BeforeValidator(_size)]
    fps: Annotated[Fraction | None, BeforeValidator(_rate)]
    start: Seconds | None
    end: Seconds | None
    crop: Literal["none", "person", "face"]
    crop_margin: Annotated[float, Field(ge=0, le=2)]
    crop_face_widths: Annotated[float, Field(ge=1, le=10)]
    crf: Annotated[float, Field(ge=0, le=40)]
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]


class Smoothing(Config):
    min_cutoff: Positive
    beta: Annotated[float, Field(ge=0)]


class PoseSettings(Config):
    backend: Literal["mediapipe"]
    min_detection: Unit
    min_tracking: Unit
    max_jump: Positive
    max_gap: Seconds
    smoothing: Smoothing | None


class FaceSettings(PoseSettings):
    pass


class SegmentationSettings(Config):
    backend: Literal["person", "selfie", "deeplab", "lraspp", "labels"]
    threshold: Unit
    labels: Path | None
    classes: Literal["cityscapes", "voc"] | tuple[str, ...]
    void: tuple[int, ...] | None
    numbering: Literal["auto", "ids", "trainids", "mask"]

    @model_serializer(mode="wrap")
    def _as_recorded(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit the default `numbering`: stores made before the key existed then match."""
        values: dict[str, Any] = plain(self)
        if self.numbering == "auto":
            values.pop("numbering", None)
        return values


class FlowSettings(Config):
    backend: Literal["auto", "dis", "raft-small", "raft-large"]
    scale: Annotated[float, Field(gt=0, le=1)]
    dis_preset: Literal["ultrafast", "fast", "medium"]
    weights: Path | None
    device: str


class CameraSettings(Config):
    side: Annotated[int, Field(ge=128, le=4096)]


class PreviewSettings(Config):
    enabled: bool
    side: Annotated[int, Field(ge=64, le=2160)]


class PreprocessSettings(Config):
    frames: FrameSettings
    pose: PoseSettings
    face: FaceSettings
    segmentation: SegmentationSettings
    flow: FlowSettings
    camera: CameraSettings
    preview: PreviewSettings
    plugins: dict[str, dict[str, Any]] = {}  # settings of signals from installed packages

    def of(self, signal: str) -> Config | dict[str, Any]:
        """The settings of one signal."""
        own = getattr(self, signal, None)
        return own if isinstance(own, Config) else self.plugins.get(signal, {})


ConfigT = TypeVar("ConfigT", bound=Config)
MOST_BYTES = 1 << 20  # per YAML file
MOST_NODES = 20_000  # values in it, with aliases expanded
MOST_LEVELS = 32


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings as plain data: one document, a mapping, of limited size.

    Raises `ConfigError` for everything else, e.g. aliases that expand to millions of values.
    """
    text = read_text(path, ConfigError, hint="save it as UTF-8 text", most=MOST_BYTES)
    try:
        levels = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # not recursive, unlike the rest
            levels += isinstance(event, yaml.CollectionStartEvent)
            levels -= isinstance(event, yaml.CollectionEndEvent)
            if levels > MOST_LEVELS:
                raise ConfigError(
                    f"cannot read {path}: it is nested more than {MOST_LEVELS} levels deep"
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"cannot read {path}: expected settings such as frames: {{size: 256}}"
            )
        if _nodes(node, {}) > MOST_NODES:
            raise ConfigError(
                f"cannot read {path}: it has more than {MOST_NODES} values, with aliases expanded"
            )
        read = OmegaConf.create(text)
        if missing := sorted(OmegaConf.missing_keys(read)):
            raise ConfigError(
                f"cannot read {path}: {missing[0]} is ???, which means that it has no value"
            )
        plain = OmegaConf.to_container(read, resolve=False)
    except RecursionError:
        raise ConfigError(f"cannot read {path}: an alias is used within its own value") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {path}: {_reason(error)}") from error
    return cast(dict[str, Any], plain)


def _nodes(node: Any, known: dict[int, int]) -> int:
    """The number of values in a YAML node, with aliases counted at each use."""
    if id(node) not in known:
        parts = node.value if isinstance(node.value, list) else []
        inner = [p for part in parts for p in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_nodes(part, known) for part in inner)
    return known[id(node)]


def _reason(error: Exception) -> str:
    return " ".join(str(error).partition("\n    full_key")[0].split())


def load_config(
    schema: type[ConfigT],
    *names: str,
    base: Mapping[str, Any] | None = None,
    file: Path | None = None,
    overrides: list[str] | None = None,
    values: dict[str, Any] | None = None,
) -> ConfigT:
    """Defaults `configs/<name>.yaml`, then `file`, then `overrides` (`a.b=c`), then `values`.

    Args:
        names: of the defaults; a later one overrides earlier ones.
        base: dotted keys and values that override the defaults.
        values: dotted keys and typed values of command-line options; None is ignored.

    Raises `ConfigError` naming the key.
    """
    defaults = [files("v2v.configs").joinpath(f"{name}.yaml").read_text("utf-8") for name in names]
    merged = cast(Any, OmegaConf.merge(*map(OmegaConf.create, defaults)))
    given = "the settings"  # the current source, for errors
    try:
        for key, value in (base or {}).items():
            OmegaConf.update(merged, key, value, force_add=True)
        if file is not None:
            if not file.is_file():
                raise ConfigError(f"no such config file: {file}", hint=None)
            given = str(file)
            merged = cast(Any, OmegaConf.merge(merged, OmegaConf.create(load_yaml(file))))
        for override in overrides or []:
            key, separator, _ = override.partition("=")
            if not separator or not key:
                raise ConfigError(
                    f"cannot read the setting {override!r}",
                    hint="write KEY=VALUE, for example -s pose.max_gap=0.5",
                )
            given = f"the setting {override!r}"
            merged = cast(Any, OmegaConf.merge(merged, OmegaConf.from_dotlist([override])))
        given = "the settings"
        for key, value in (values or {}).items():
            if value is not None:
                OmegaConf.update(merged, key, value, force_add=True)
        plain = OmegaConf.to_container(merged, resolve=True)
    except RecursionError as error:
        raise ConfigError(f"cannot read {given}: it refers to itself") from error
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot read {given}: {_reason(error)}") from error
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise _explain(schema, error) from error


def _is_config(annotation: Any) -> TypeGuard[type[Config]]:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _explain(schema: type[Config], error: ValidationError) -> ConfigError:
    """The first problem as a `ConfigError`; the rest would only repeat it."""
    problem = error.errors()[0]
    parts = [p for p in problem["loc"] if isinstance(p, str)]
    known = schema
    path: list[str] = []
    for part in parts:
        if part not in known.model_fields:
            break
        path.append(part)
        annotation = known.model_fields[part].annotation
        if get_origin(annotation) is dict:
            path = parts
        inner = [k for k in (annotation, *get_args(annotation)) if _is_config(k)]
        if not inner:
            break
        known = inner[0]
    if problem["type"] == "extra_forbidden":
        renamed = schema.renamed_keys.get(".".join(parts))
        if renamed is not None:
            return ConfigError(
                f"unknown setting {'.'.join(parts)}", hint=f"it is now called {renamed}"
            )
        names = sorted(known.model_fields)
        near = get_close_matches(parts[-1], names, n=1, cutoff=0.4)
        suggestion = ".".join([*path, near[0]]) if near else None
        hint = f"did you mean {suggestion}? " if suggestion else ""
        return ConfigError(
            f"unknown setting {'.'.join(parts)}", hint=f"{hint}known here: {', '.join(names)}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    return ConfigError(
        f"setting {'.'.join(path) or 'config'} cannot be {problem['input']!r}: {message}", hint=None
    )
