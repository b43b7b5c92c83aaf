"""The front door in Python: what the commands do, as functions. `import v2v` offers them.

The functions take paths, text and numbers, and return the results that the library's modules
define. The command line calls them as well, so that both accept the same and do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

from v2v.defaults import DRIFT_FRAMES, EVALUATED_FRAMES
from v2v.errors import ConfigError, UnknownName, UsageError
from v2v.progress import Reporter, logger, with_progress

if TYPE_CHECKING:
    from v2v.checkpoint import Model
    from v2v.config import ConfigT
    from v2v.data.store import ClipStore
    from v2v.evaluation.results import Evaluation
    from v2v.prediction.training import PredictorResult
    from v2v.preprocess.run import ClipResult
    from v2v.training.loop import TrainingResult
    from v2v.training.settings import TrainSettings

CROPS = ("none", "person", "face")
RUNS = Path("runs")

PathLike: TypeAlias = str | Path
Time: TypeAlias = float | str  # seconds, or mm:ss, or hh:mm:ss
Size: TypeAlias = int | tuple[int, int]  # the shorter side, or (width, height), in pixels
Settings: TypeAlias = Mapping[str, Any]  # dotted keys


# ---------------------------------------------------------------- clip stores


class StoreOptions(TypedDict, total=False):
    """The keyword arguments of `build_store`."""

    signals: str | Iterable[str] | None
    output: PathLike | None
    size: Size | None
    fps: float | str | None
    start: Time | None
    end: Time | None
    crop: str | None
    labels: PathLike | None
    config: PathLike | None
    settings: Settings | None
    overwrite: bool
    report: Reporter | None


def build_store(
    footage: PathLike | ClipStore,
    *,
    signals: str | Iterable[str] | None = None,
    output: PathLike | None = None,
    size: Size | None = None,
    fps: float | str | None = None,
    start: Time | None = None,
    end: Time | None = None,
    crop: str | None = None,
    labels: PathLike | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> ClipStore:
    """Turn footage into a clip store: normalised frames and the signals that models render from.

    A second call with the same arguments resumes, or returns the finished store.

    Args:
        footage: a video, an image, a folder of images, or a clip store to add signals to.
        signals: pose, face, segmentation, flow, camera or "all"; a name, names separated by commas,
            or a list. Default: pose, or segmentation with `labels`.
        output: folder of the store. Default: data/NAME.
        size: shorter side of the stored frames, or (width, height), in pixels. Default: as filmed.
        fps: frames per second of the store. Default: as filmed.
        start, end: the range to keep, in seconds or as "mm:ss".
        crop: "none", "person" or "face": one fixed crop for the clip.
        labels: folder of label or instance maps (PNG), one per frame: the segmentation.
        config: YAML file with settings.
        settings: further settings of configs/preprocess.yaml by dotted key.
        overwrite: replace frames and signals that were made from other footage or settings.
        report: receives the progress.

    Returns the store. Warnings about the footage are logged, and are in `store.record`.

    Raises `UsageError`, `MediaError`, `SignalError` (nobody found), `StoreError`,
    `EnvironmentProblem`. A signal that fails does not stop the others: its error is raised when
    they are saved.

    >>> store = v2v.build_store("dance.mp4", signals=["pose", "segmentation"], size=512)
    >>> store = v2v.build_store("dance.mp4", signals="flow", settings={"flow.dis_preset": "fast"})
    """
    (store,) = _stores(
        build_clips(
            [footage], single=True, signals=signals, output=output, size=size, fps=fps, start=start,
            end=end, crop=crop, labels=labels, config=config, settings=settings,
            overwrite=overwrite, report=report,
        )
    )  # fmt: skip
    return store


def build_stores(
    footage: Sequence[PathLike | ClipStore], *, workers: int = 1, **options: Unpack[StoreOptions]
) -> list[ClipStore]:
    """Build the clip stores of several clips; a clip that fails does not stop the others.

    Args:
        footage: what `build_store` takes, also folders of videos and patterns.
        workers: clips to process at a time.
        options: the arguments of `build_store`; `output` is the folder that holds the stores.

    Raises the first error, when the other clips are saved.

    >>> stores = v2v.build_stores(["clips/*.mp4"], signals="pose", workers=2)
    """
    return _stores(build_clips(footage, workers=workers, **options))


def _stores(results: Sequence[ClipResult]) -> list[ClipStore]:
    """The finished stores. Raises the first error."""
    from v2v.data.store import ClipStore

    for result in results:
        for _, error in result.errors:
            raise error
    return [ClipStore.open(result.outcome.folder) for result in results if result.outcome]


@with_progress
def build_clips(
    footage: Sequence[PathLike | ClipStore],
    *,
    signals: str | Iterable[str] | None = None,
    output: PathLike | None = None,
    size: Size | None = None,
    fps: float | str | None = None,
    start: Time | None = None,
    end: Time | None = None,
    crop: str | None = None,
    labels: PathLike | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    workers: int = 1,
    single: bool = False,
    report: Reporter | None = None,
) -> list[ClipResult]:
    """What `build_stores` does, with a result per clip that holds its errors instead of raising.

    Args:
        overrides: settings as KEY=VALUE.
        single: refuse what contains several clips.

    Raises `UsageError` and `MediaNotFound` for the request.
    """
    from v2v.config import PreprocessSettings
    from v2v.preprocess.run import expand_inputs, expand_signals, preprocess_all

    assert report is not None
    values = {
        "frames.size": list(size) if isinstance(size, tuple) else size,
        "frames.fps": fps if fps is None else str(fps), "frames.start": start,
        "frames.end": end, "frames.crop": crop,
    }  # fmt: skip
    if labels is not None:
        values |= {"segmentation.labels": str(labels), "segmentation.backend": "labels"}
    if crop is not None and crop not in CROPS:
        raise UnknownName.among("--crop", crop, CROPS)
    if workers < 1:
        raise UsageError(f"--workers {workers} is out of range", hint="give 1 or more")
    chosen = _settings(
        PreprocessSettings, "preprocess", config=config, overrides=overrides, settings=settings,
        values=values,
    )  # fmt: skip
    if signals is None:
        signals = ["segmentation"] if labels is not None else ["pose"]
    names = expand_signals([signals] if isinstance(signals, str) else list(signals))
    if labels is not None and "segmentation" not in names:
        raise ConfigError(
            "--labels provides the segmentation signal, which was not requested",
            hint=f"add it: --signal {','.join([*names, 'segmentation'])}",
        )
    jobs = expand_inputs(
        [_path(item) for item in footage], None if output is None else Path(output)
    )
    if single and len(jobs) > 1:
        raise UsageError(
            f"{footage[0]} contains {len(jobs)} clips", hint="build them with v2v.build_stores"
        )
    results = preprocess_all(
        jobs, names, chosen, workers=workers, overwrite=overwrite, report=report
    )
    for result in results:
        for warning in result.outcome.warnings if result.outcome else ():
            logger.warning("%s: %s", result.job.source, warning)
        for place, error in result.errors:
            logger.error("%s: %s: %s", place, type(error).__name__, error)
    return results


def open_store(path: PathLike) -> ClipStore:
    """Open a clip store: windows of frames and signals as tensors, and whole tracks.

    Raises `StoreNotFound`, `StoreSchemaError`, `StoreDamaged`.

    >>> store = v2v.open_store("data/dance")
    >>> window = store.window(0, 8, signals=["pose"], size=256)
    >>> window.frames.shape, window.signals["pose"].shape
    (torch.Size([8, 3, 256, 256]), torch.Size([8, 3, 256, 256]))
    """
    from v2v.data.store import ClipStore

    return ClipStore.open(path)


# ---------------------------------------------------------------- training


@with_progress
def train(
    data: PathLike | ClipStore | Sequence[PathLike | ClipStore],
    *,
    task: str = "pose",
    name: str | None = None,
    output: PathLike | None = None,
    size: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    devices: int | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    report: Reporter | None = None,
) -> TrainingResult:
    """Train a model on clip stores, or resume a stopped training.

    Args:
        data: a clip store or a list of them: folders, or what `build_store` returns.
        task: what drives the model: "pose", "face" or "street" (label maps).
        name: name of the run: the folder runs/NAME. Default: name of the first clip.
        output: the run's folder, instead of a name.
        size: shorter side of the frames in pixels. Default: 256.
        steps, minutes: the budget, in updates or in minutes; at most one of them. Default: see
            configs/train.yaml.
        devices: processes, one per device. Default: 1.
        config: YAML file with settings.
        settings: further settings of configs/train.yaml (configs/predict.yaml) by dotted key.
        overrides: the same as KEY=VALUE, as on the command line.
        overwrite: discard an existing run in the folder.
        report: receives the progress.

    Returns the folder, the model's path, updates, minutes and losses. `str(result.folder)` is what
    the pipelines' `from_pretrained` takes.

    Raises `UsageError`, `ConfigError`, `StoreError` (`SignalMissing`, `TooFewFrames`),
    `TrainingError`, `EnvironmentProblem`; `KeyboardInterrupt` once a stopped run is saved.

    >>> v2v.train("data/dance", name="b", minutes=30, settings={"generator.preset": "base"})
    """
    assert report is not None
    clips = _clips(data)
    folder = run_folder(clips, name, output)
    resolved = train_settings(
        task, size=size, steps=steps, minutes=minutes, devices=devices, config=config,
        settings=settings, overrides=overrides,
    )  # fmt: skip
    from v2v.training.loop import train as run_training

    return run_training(resolved, clips, folder, report, overwrite=overwrite)


@with_progress
def train_predictor(
    data: PathLike | ClipStore | Sequence[PathLike | ClipStore],
    *,
    name: str | None = None,
    output: PathLike | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    report: Reporter | None = None,
) -> PredictorResult:
    """Train the predictor that `FramePrediction` needs beside the model of a run.

    Args:
        data: clip stores of the scene.
        name, output: name or folder of the run that holds the model. Default: name of the first
            clip.
        steps, minutes: the budget; by default training stops when it no longer improves.
        config, settings, overrides: settings of configs/predict.yaml, as in `train`.
        overwrite: train an existing predictor again.
        report: receives the progress.

    Returns the updates and the errors on validation frames, by method and frames ahead.

    Raises `CheckpointInvalid` if the run has no model, and what `train` raises.

    >>> print(v2v.train_predictor("data/street", name="street"))
    """
    from v2v.prediction.settings import PredictSettings
    from v2v.prediction.training import train_predictor as run_training

    assert report is not None
    clips = _clips(data)
    folder = run_folder(clips, name, output)
    _check_budget(steps, minutes)
    resolved = _settings(
        PredictSettings, "predict", config=config, overrides=overrides, settings=settings,
        values={"budget.steps": steps, "budget.minutes": minutes},
    )  # fmt: skip
    return run_training(resolved, clips, folder, report, overwrite=overwrite)


def train_settings(
    task: str,
    *,
    size: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    devices: int | None = None,
    config: PathLike | None = None,
    settings: Settings | None = None,
    overrides: Sequence[str] = (),
) -> TrainSettings:
    """The complete settings of a training; see `train`. Raises `UsageError`, `ConfigError`."""
    from v2v.pipelines.registry import PREDICT, tasks
    from v2v.training.settings import TrainSettings

    known = tasks()
    if task not in known:
        raise UnknownName.among("task", task, (*known, PREDICT))
    _check_budget(steps, minutes)
    values = {
        "task": task, "data.size": size, "loop.devices": devices,
        "budget.steps": steps, "budget.minutes": minutes,
    }  # fmt: skip
    names = ["train"]
    if files("v2v.configs").joinpath(f"train-{task}.yaml").is_file():
        names.append(f"train-{task}")
    return _settings(
        TrainSettings, *names, base=known[task].training, config=config, overrides=overrides,
        settings=settings, values=values,
    )  # fmt: skip


def run_folder(
    clips: Sequence[Path], name: str | None = None, output: PathLike | None = None,
    runs: Path = RUNS,
) -> Path:  # fmt: skip
    """The folder of a run. Raises `UsageError` for an invalid name."""
    from v2v.records import check_name

    if output is not None:
        if name is not None:
            raise UsageError("--name and --output are both given", hint="give one of them")
        return Path(output)
    return runs / check_name(clips[0].resolve().name if name is None else name)


def _check_budget(steps: int | None, minutes: float | None) -> None:
    if steps is not None and minutes is not None:
        raise UsageError("--steps and --minutes are both given", hint="give one of them")


def load_model(path: PathLike, *, device: str = "cpu") -> Model:
    """Load the model of a run for inspection or for your own rendering loop.

    The pipelines' `from_pretrained` loads models for rendering.

    Args:
        path: a run's name, run folder or model folder.
        device: cpu, cuda or mps.

    Raises `CheckpointInvalid`.

    >>> print(v2v.load_model("b"))                      # task, size, parameters, signals, clips
    """
    from v2v.checkpoint import load_model as load
    from v2v.pipelines.model import find_model

    return load(find_model(path), device=device)


# ---------------------------------------------------------------- evaluation


@with_progress
def evaluate(
    model: PathLike,
    data: PathLike | ClipStore | Sequence[PathLike | ClipStore] = (),
    *,
    against: Sequence[str] | None = None,
    output: PathLike | None = None,
    frames: int = EVALUATED_FRAMES,
    drift: int = DRIFT_FRAMES,
    region: str | None = None,
    device: str = "auto",
    report: Reporter | None = None,
) -> Evaluation:
    """Measure a model: compare its video of held-out frames with the real one and with baselines.

    Args:
        model: a run's name, run folder or model folder.
        data: clip stores or footage. Default: the held-out frames of the model's own clips.
        against: baselines: "copy", "frozen", "nearest", "warped", "frame", "NAME=RUN" or
            "NAME=VIDEO". Default: copy, frozen and nearest; for a body or a face also warped.
        output: folder of report.html and report.json. Default: evaluation, in the run's folder.
        frames: most frames per clip.
        drift: frames over which to measure drift; 0: none.
        region: measure only "x0,y0,x1,y1" (pixels of the clip), or a mask image, bright inside.
        device: auto, cpu, cuda or mps.
        report: receives the progress.

    Returns summaries and per-frame scores of each method, with the folder of the report.

    Raises `UsageError` for invalid arguments or if nothing is held out, and what opening the model,
    its clips and its signals raises.

    >>> found = v2v.evaluate("b", against=["copy", "nearest"])
    >>> found.summaries["b"]["psnr"].mean, found.folder / "report.html"
    """
    from v2v.evaluation.evaluate import evaluate as run

    return run(
        model, _items(data), against=against, output=output,
        frames=frames, drift=drift, region=region, device=device, report=report,
    )  # fmt: skip


# ---------------------------------------------------------------- arguments


def _items(
    given: PathLike | ClipStore | Sequence[PathLike | ClipStore],
) -> Sequence[PathLike | ClipStore]:
    """One item or several, as a sequence."""
    return [given] if isinstance(given, str) or not isinstance(given, Sequence) else given


def _path(item: PathLike | ClipStore) -> str:
    return str(item if isinstance(item, str | Path) else item.folder)


def _clips(data: PathLike | ClipStore | Sequence[PathLike | ClipStore]) -> list[Path]:
    clips = [Path(_path(item)) for item in _items(data)]
    if not clips:
        raise UsageError("no clip store is given", hint="give one or more with --data")
    return clips


def _settings(
    schema: type[ConfigT],
    *names: str,
    base: Settings | None = None,
    config: PathLike | None,
    overrides: Sequence[str],
    settings: Settings | None,
    values: dict[str, Any],
) -> ConfigT:
    """Defaults, then `base`, the config file, the settings, and the named arguments."""
    from v2v.config import load_config

    empty = [f"{key}=null" for key, value in (settings or {}).items() if value is None]
    return load_config(
        schema, *names, base=base, file=None if config is None else Path(config),
        overrides=[*overrides, *empty], values={**(settings or {}), **_given(values)},
    )  # fmt: skip


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
