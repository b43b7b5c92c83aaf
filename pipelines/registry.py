"""The registry of pipelines: built-in ones, and those that installed packages add.

An installed package declares a `PipelineSpec` under the entry point group `v2v.pipelines`, with the
command as the name of the entry point. The command line then offers the command, models of another
signal are referred to it, and `v2v train --task` knows its task.

This module loads no pipeline and no library: `v2v --help` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

from v2v.errors import MissingLibrary, UnknownName

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from v2v.pipelines.rendering.rendering import Rendering
    from v2v.progress import Reporter

GROUP = "v2v.pipelines"
PREDICT = "predict"  # the task of `v2v train` that trains a frame predictor, not a model


class Pipeline(Protocol):
    """A loaded pipeline: renders video from its input."""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto") -> Self:
        """Load a model by the name of its run or by its folder."""

    def __call__(self, source: Any, *, report: Reporter | None = None, **options: Any) -> Rendering:
        """The rendering of one input; `options` are those that the spec declares."""


@dataclass(frozen=True)
class Option:
    """An option of a pipeline's command, and a keyword argument of the pipeline.

    Attributes:
        name: of the argument; the option is --name, with dashes.
        help: one sentence.
        kind: str, float, int, bool (a flag), or "time" (seconds or hh:mm:ss).
        default: None is an option without a default; required for an input.
        choices: the accepted values, if they are few.
        repeat: the option may be repeated; the argument is a list.
        short: a letter, for -x.
        argument: name of the argument, if it differs.
    """

    name: str
    help: str
    kind: type | str = str
    default: Any = None
    choices: tuple[str, ...] = ()
    repeat: bool = False
    short: str | None = None
    argument: str | None = None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


SOURCE = Option("source", "Footage, or a clip store.")
MODEL = Option(
    "target_model", "A run's name (runs/b is b), or its folder.", short="m"
)  # fmt: skip
RANGE = frozenset({"start", "end"})


@dataclass(frozen=True)
class PipelineSpec:
    """What the command line and the registry know about a pipeline before it is loaded.

    Attributes:
        command: of `v2v`; also the name of the entry point.
        load: the pipeline's class, or where it is: "package.module:Class".
        help: of the command, in Markdown: a sentence, details, examples.
        signals: what the model must render from; empty: any signal.
        task: of `v2v train`, which makes such models; None: no task of its own.
        training: what the task changes in configs/train.yaml, by dotted key.
        input, model: the options that name the input and the model.
        options: further options, which become keyword arguments of the pipeline.
        common: which of start, end, clip and camera the pipeline takes as well.
        driven: whether the input is footage of another performer, so that `v2v run` can use it.
        previews: whether the signals can be previewed before rendering.
        prepare: turns the values of all options into keyword arguments; by default they stay.
        errors: measures per frame that --compare prints: name -> [frames].
    """

    command: str
    load: str | Callable[[], type[Any]]
    help: str
    signals: tuple[str, ...] = ()
    task: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    input: Option = SOURCE
    model: Option = MODEL
    options: tuple[Option, ...] = ()
    common: frozenset[str] = RANGE
    driven: bool = False
    previews: bool = True
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    errors: Callable[[Any], dict[str, Any]] | None = None

    def pipeline(self) -> type[Pipeline]:
        """Import the pipeline's class."""
        if not isinstance(self.load, str):
            return self.load()
        module, _, name = self.load.partition(":")
        loaded: type[Pipeline] = getattr(import_module(module), name)
        return loaded

    @property
    def usage(self) -> str:
        """The beginning of the command: `v2v transfer --source VIDEO`."""
        return f"v2v {self.command} {self.input.flag} {_METAVARS.get(self.input.name, 'VIDEO')}"


_METAVARS = {"labels": "DIR"}


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # takes as long as all other imports here

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def command_names() -> list[str]:
    """The commands of all pipelines, built-in ones first. Loads no package."""
    from v2v.pipelines.builtin import BUILT_IN

    own = [spec.command for spec in BUILT_IN]
    return own + sorted(set(_installed()) - set(own))


def load_spec(command: str) -> PipelineSpec:
    """The spec of a command.

    Raises `UnknownName`; `MissingLibrary` if the package that declares it cannot be imported or
    declares something else.
    """
    from v2v.pipelines.builtin import BUILT_IN

    for spec in BUILT_IN:
        if spec.command == command:
            return spec
    entry = _installed().get(command)
    if entry is None:
        raise UnknownName.among("pipeline", command, command_names())
    package = entry.dist.name if entry.dist else entry.value
    try:
        spec = entry.load()
    except Exception as error:  # a package may fail in any way
        raise MissingLibrary(
            f"the pipeline {command} of {package} cannot be loaded: {error}",
            hint=f"update or remove {package}",
        ) from error
    if not isinstance(spec, PipelineSpec) or spec.command != command:
        raise MissingLibrary(
            f"{package} declares no PipelineSpec of the command {command}",
            hint=f"update or remove {package}",
        )
    return spec


def specs() -> Iterator[PipelineSpec]:
    """The pipelines that can be loaded."""
    for command in command_names():
        try:
            yield load_spec(command)
        except MissingLibrary:
            continue  # its own command reports it


def spec_for(signals: tuple[str, ...]) -> PipelineSpec | None:
    """The pipeline that renders from exactly these signals."""
    return next((spec for spec in specs() if spec.signals == signals), None)


def tasks() -> dict[str, PipelineSpec]:
    """The tasks of `v2v train` that make models, with the pipelines that use them."""
    return {spec.task: spec for spec in specs() if spec.task is not None}
