"""The proof on footage: train, render what was held out, compare with what is cheaper.

python benchmarks/held_out.py --data data/dance --task pose --size 128 --minutes 15
python benchmarks/held_out.py --data data/talk --task face --steps 2000 -s generator.preset=base
python benchmarks/held_out.py --data data/dance --task pose --baselines copy,nearest
    --models sequential=runs/a --models other=runs/b

The last 15 percent of the clip are rendered free running, from nothing. The rows:

real         the real frames, encoded once more: the floor of every detector and codec
sequential   the model
frame        the same generator without a past (generator.sequential=false), with equal compute,
             budget, data and critics
copy         the real frame before: what a model that only repeats can reach, given the truth
frozen       the last frame for training, held
nearest      the training frame whose landmarks are nearest: at each of them as the picture shows
             it, in units of its shorter side, so that the person stands in the same place

The columns: PSNR and SSIM; landmarks, detected again by MediaPipe on the rendered frames, against
those detected on the real ones in the same way (pose: distance over torso, PCK at 0.1; face:
distance over the inter-ocular distance, correlation of eye and mouth openness; frames in which
nothing was found); warping error, x 1000, with the real video's flow (the real video's own is in
the first row, and a blurred or frozen video wins it); tOF, pixels of difference between the flows;
mean difference of neighbouring frames, x 1000; frames a second of the generator alone.

Everything is resumable: run the same command again. --models takes finished runs; one that is
called sequential or frame takes the place of the one that would be trained. OUT holds
sequential/ and frame/ (the runs), result.json (with every measure as a course over time),
sheet.png and panels.mp4.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from v2v.native import prepare_process

prepare_process()

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from v2v.checkpoint import Model, load_model
from v2v.config import PreprocessSettings, load_config
from v2v.data.store import ClipStore
from v2v.data.video import Geometry, VideoWriter, read_stored
from v2v.data.windows import Windows
from v2v.errors import UnknownName, UsageError, V2VError
from v2v.evaluation import measures
from v2v.models.rollout import rollout
from v2v.progress import Terminal
from v2v.signals.pose import MIN_SCORE
from v2v.training.loop import train
from v2v.training.prepare import open_windows
from v2v.training.preview import pixels, render
from v2v.training.settings import TrainSettings

Picture = NDArray[np.uint8]
BASELINES = ("frame", "copy", "frozen", "nearest")
MODEL, FRAME = "sequential", "frame"
DETECT = 512  # shorter side that small frames are enlarged to: the detectors are made for that
CANDIDATES = 4096  # training frames, evenly spread, among which the nearest is looked for
MISSING = 0.2  # of the shorter side: what a landmark costs that a candidate does not show
SHOWN = 8  # moments on the contact sheet
PANEL = 192  # shorter side of a panel on sheet and video, at least


# ---------------------------------------------------------------- the footage


@dataclass(frozen=True)
class HeldOut:
    """The moments that were held out, as rendering sees them."""

    windows: Windows
    task: str
    start: int
    stop: int
    size: tuple[int, int]  # (height, width)

    @cached_property
    def store(self) -> ClipStore:
        return ClipStore(*self.windows.records[0])

    def read(self, start: int, stop: int) -> Tensor:
        """Real frames [T, 3, H, W]."""
        batches = self.windows.sequence(0, start, stop, size=self.size)
        return torch.cat([batch.frames[0] for batch in batches])

    @cached_property
    def real(self) -> Tensor:
        return self.read(self.start, self.stop)

    @cached_property
    def before(self) -> Tensor:
        """The last frame for training, [1, 3, H, W]."""
        return self.read(self.start - 1, self.start)

    @cached_property
    def motion(self) -> measures.Motion:
        return measures.motion(self.real)

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        return detect(self.task, self.real, self.store.rate)

    @cached_property
    def steady(self) -> Tensor:
        """[T-1] false where a cut lies between two frames: nothing is measured across it."""
        cuts = [first - self.start for first, _ in self.store.shots]
        return torch.tensor([t + 1 not in cuts for t in range(self.stop - self.start - 1)])

    def drawn(self) -> Iterator[Picture]:
        """The signals as a person sees them."""
        height, width = self.size
        placement = self.windows.placement(0, self.size)
        pictures = np.zeros((self.stop - self.start, height, width, 3), np.uint8)
        for name in self.windows.signals:
            track = placement.track(self.store.track(name, self.start, self.stop))
            pictures = np.maximum(pictures, track.draw(height, width))
        yield from pictures


def held_out(windows: Windows, task: str, size: tuple[int, int], most: int) -> HeldOut:
    start, stop = windows.clips[0].held_out
    if stop - start < 3 or start == 0:
        raise UsageError(
            f"{windows.clips[0].name} holds out {stop - start} frames: too few to measure",
            hint="use longer footage, or -s data.hold_out=0.15",
        )
    return HeldOut(windows, task, start, min(stop, start + most), size)


# ---------------------------------------------------------------- rows


def encoded_again(held: HeldOut) -> Tensor:
    """The real frames after H.264: what a perfect model would be measured as.

    Encoded at twice the size: at their own the codec's halved colour would be most of the loss.
    """
    height, width = held.size
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "real.mp4"
        with VideoWriter(path, width=2 * width, height=2 * height, rate=held.store.rate) as writer:
            for frame in held.real:
                writer.write(pixels(frame).repeat(2, axis=0).repeat(2, axis=1))
        frames = np.stack(list(read_stored(path)))
    large = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.nn.functional.avg_pool2d(large, 2)


def nearest(held: HeldOut) -> Tensor:
    """For each moment the training frame whose landmarks are nearest."""
    last = held.windows.clips[0].train[1]
    candidates = np.unique(np.linspace(0, last - 1, CANDIDATES).astype(int))
    known = points_of(held, 0, last)[candidates]
    chosen: list[int] = []
    for wanted in points_of(held, held.start, held.stop):
        shown = np.isfinite(wanted[:, 0])
        if not shown.any():  # nothing to go by: the last one again
            chosen.append(chosen[-1] if chosen else last - 1)
            continue
        away = np.linalg.norm(known[:, shown] - wanted[shown], axis=-1)
        chosen.append(int(candidates[np.nan_to_num(away, nan=MISSING).mean(axis=1).argmin()]))
    return torch.cat([held.read(t, t + 1) for t in chosen])


def points_of(held: HeldOut, start: int, stop: int) -> NDArray[np.float32]:
    """Stored landmarks [T, N, 2] in units of the picture's shorter side; NaN: not seen."""
    track: Any = held.store.track(held.task, start, stop)
    points = np.array(track.points[:, :33] if held.task == "pose" else track.points, np.float32)
    points[~(points[..., 2] >= MIN_SCORE)] = np.nan
    placed = held.windows.placement(0, held.size).points(points[..., :2])
    return placed / min(held.size)


def rendered(model: Model, held: HeldOut, windows: Windows, device: str) -> Tensor:
    """Free running, from nothing."""
    frames = render(
        model.generator, windows, 0, held.start, held.stop, size=held.size, device=device
    )
    return torch.cat([part.cpu() for part, _ in frames])


def speed(model: Model, held: HeldOut, windows: Windows, device: str) -> float:
    """Frames a second of the generator alone, one after another, in float32, not compiled."""
    batch = next(windows.sequence(0, held.start, held.stop, size=held.size, chunk=8)).to(device)
    conditions = [batch.condition(t) for t in range(batch.length)]

    def run() -> float:
        settle(device)
        began = time.perf_counter()
        for _ in rollout(model.generator, conditions):
            pass
        settle(device)
        return time.perf_counter() - began

    with torch.no_grad():
        run()
        # The best of some: what another process took away is not the generator's.
        return len(conditions) / min(run() for _ in range(5))


def settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# ---------------------------------------------------------------- models


def settings_of(chosen: argparse.Namespace, *more: str) -> TrainSettings:
    return load_config(
        TrainSettings, "train", f"train-{chosen.task}", overrides=[*chosen.set, *more],
        values={
            "task": chosen.task, "data.size": chosen.size,
            "budget.minutes": chosen.minutes, "budget.steps": chosen.steps,
        },
    )  # fmt: skip


def models(chosen: argparse.Namespace, out: Path, device: str) -> dict[str, Model]:
    """All models to compare, trained where they are not there yet."""
    given = {}
    for text in chosen.models:
        name, separator, folder = text.partition("=")
        if not separator:
            raise UsageError(f"--models {text}", hint="write NAME=RUNFOLDER")
        given[name] = Path(folder)
    wanted = {MODEL: settings_of(chosen)}
    if FRAME in chosen.baselines:
        wanted[FRAME] = settings_of(chosen, "generator.sequential=false")
    for name, settings in wanted.items():
        if name in given:
            continue
        print(f"training: {name}", flush=True)
        with Terminal() as report:
            given[name] = train(settings, [chosen.data], out / name, report).folder
    ordered = [*wanted, *(name for name in given if name not in wanted)]
    return {name: load_model(given[name], device=device) for name in ordered}


def trained_with(model: Model) -> TrainSettings:
    """The settings that a model was trained with, also where there are newer ones since."""
    task = model.record.task
    today = load_config(TrainSettings, "train", f"train-{task}").model_dump(mode="json")
    return TrainSettings.model_validate(taken(model.record.training["settings"], today))


def taken(old: dict[str, Any], today: dict[str, Any]) -> dict[str, Any]:
    """The old values of what there is today."""
    return {
        key: taken(old[key], value)
        if isinstance(value, dict) and isinstance(old.get(key), dict)
        else old.get(key, value)
        for key, value in today.items()
    }


def windows_of(model: Model, data: Path, main: Windows | None) -> Windows:
    """The clip as this model wants it; each may have other signals and another plate."""
    windows = open_windows(trained_with(model), [data])
    if main is not None and windows.clips[0].held_out != main.clips[0].held_out:
        raise UsageError(
            f"{model} held out other frames: {windows.clips[0].held_out}, not"
            f" {main.clips[0].held_out}",
            hint="compare runs of the same clip and data.hold_out",
        )
    return windows


# ---------------------------------------------------------------- measuring


def detect(task: str, frames: Tensor, rate: Fraction) -> NDArray[np.float32]:
    """Landmarks [T, N, 3] in pixels of the frames [T, 3, H, W], as detected, never smoothed."""
    from importlib import import_module

    from preprocess.extractor import ClipContext

    count, _, rows, columns = frames.shape
    factor = max(DETECT / min(rows, columns), 1.0)
    height, width = round(rows * factor), round(columns * factor)
    # What follows one person from frame to frame must not lose the one there is: another row of
    # the table may show them anywhere.
    settings = load_config(
        PreprocessSettings, "preprocess", values={"pose.max_jump": 1e3, "face.max_jump": 1e3}
    )
    context = ClipContext(
        name="rendered", width=width, height=height, rate=rate, count=count,
        geometry=Geometry((0, 0, width, height), width, height), sources=None,
        source_frames=count, upright=(width, height),
    )  # fmt: skip
    extractor = import_module(f"preprocess.{task}").Extractor(settings, context)
    extractor.begin(None)
    found, previous = [], None
    for index, frame in enumerate(frames):
        picture = pixels(frame)
        if factor > 1:
            size = (width, height)
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
        points = np.asarray(extractor.step(index, picture, previous, cut=False)["points"])
        found.append(points[:, [0, 1, -1]])  # a face's have a depth before the score
        previous = picture
    extractor.end()
    landmarks: NDArray[np.float32] = np.stack(found).astype(np.float32)
    landmarks[..., :2] *= (columns / width, rows / height)
    return landmarks


Course = dict[str, list[float]]


def measured(frames: Tensor, held: HeldOut) -> tuple[dict[str, float], Course]:
    """Every measure of one row: its mean, and its course over time where it has one."""
    steady = held.steady
    courses: dict[str, Any] = {
        "psnr": measures.psnr(frames, held.real),
        "ssim": measures.ssim(frames, held.real),
        "warping_error": measures.warping_error(frames, held.motion)[steady],
        "tof": measures.flow_difference(measures.motion(frames), held.motion)[steady],
        "frame_difference": measures.frame_difference(frames)[steady],
    }
    alone: dict[str, float] = {}
    found = detect(held.task, frames, held.store.rate)
    if held.task == "pose":
        pose = measures.pose_error(found, held.landmarks)
        courses |= {"pose_error": pose.distance, "pck": pose.correct}
        alone = {"missed": pose.missed}
    else:
        face = measures.face_error(found, held.landmarks)
        courses |= {"face_error": face.distance}
        alone = {"eyes": face.eyes, "mouth": face.mouth, "missed": face.missed}
    means = {name: measures.average(values) for name, values in courses.items()}
    plain = {name: np.asarray(values, np.float64) for name, values in courses.items()}
    return means | alone, {name: values.round(6).tolist() for name, values in plain.items()}


COLUMNS: dict[str, tuple[str, str, float]] = {  # measure: heading, format, factor
    "psnr": ("PSNR", ".2f", 1), "ssim": ("SSIM", ".3f", 1),
    "pose_error": ("pose error", ".3f", 1), "pck": ("PCK@0.1", ".2f", 1),
    "face_error": ("face error", ".3f", 1), "eyes": ("eyes r", ".2f", 1),
    "mouth": ("mouth r", ".2f", 1), "missed": ("missed", ".0%", 1),
    "warping_error": ("warping x1000", ".3f", 1000), "tof": ("tOF px", ".3f", 1),
    "frame_difference": ("difference x1000", ".2f", 1000), "speed": ("frames/s", ".1f", 1),
}  # fmt: skip


def table(rows: dict[str, dict[str, float]]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    used = [name for name in COLUMNS if any(name in row for row in rows.values())]
    grid.add_column("")
    for name in used:
        grid.add_column(COLUMNS[name][0], justify="right")
    for title, row in rows.items():
        cells = []
        for name in used:
            _, form, factor = COLUMNS[name]
            value = row.get(name, np.nan)
            cells.append("-" if np.isnan(value) else format(value * factor, form))
        grid.add_row(title, *cells)
    return grid


# ---------------------------------------------------------------- to look at


def enlarged(picture: Picture) -> Picture:
    factor = max(-(-PANEL // min(picture.shape[:2])), 1)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def captioned(picture: Picture, text: str, *, strip: int = 18) -> Picture:
    """A picture under a strip with its name."""
    head = np.full((strip, picture.shape[1], 3), 24, np.uint8)
    cv2.putText(head, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235,) * 3, 1, cv2.LINE_AA)
    return np.vstack([head, picture])


def panels(held: HeldOut, rows: dict[str, Tensor]) -> dict[str, list[Picture]]:
    """All that is shown, by name: the signals, the real frames, then the rows."""
    shown = {"signals": list(held.drawn()), "real": [pixels(f) for f in held.real]}
    return shown | {name: [pixels(f) for f in frames] for name, frames in rows.items()}


def write_sheet(path: Path, shown: dict[str, list[Picture]], first: int) -> None:
    """A row for each of `shown`, a column for each of eight moments."""
    count = len(shown["real"])
    moments = np.unique(np.linspace(0, count - 1, SHOWN).round().astype(int))
    lines = []
    for name, frames in shown.items():
        cells = [captioned(enlarged(frames[t]), f"{name}  {first + t}") for t in moments]
        lines.append(np.hstack(cells))
    cv2.imwrite(str(path), np.vstack(lines)[..., ::-1])


def write_panels(path: Path, held: HeldOut, shown: dict[str, list[Picture]]) -> None:
    """The panels side by side, at the clip's speed."""

    def row(t: int) -> Picture:
        whole = np.hstack([captioned(enlarged(f[t]), name) for name, f in shown.items()])
        return whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2]  # H.264 wants even

    height, width = row(0).shape[:2]
    with VideoWriter(path, width=width, height=height, rate=held.store.rate, crf=16) as writer:
        for t in range(len(shown["real"])):
            writer.write(row(t))


# ---------------------------------------------------------------- all together


def compare(chosen: argparse.Namespace) -> None:
    ClipStore.open(chosen.data).track(chosen.task, 0, 1)  # what is missing is said at once
    out: Path = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    found = models(chosen, out, device)
    torch.set_num_threads(threads)  # training takes as many as suit it; rendering has them all

    main = found[MODEL].record
    windows = windows_of(found[MODEL], chosen.data, None)
    held = held_out(windows, chosen.task, (main.height, main.width), chosen.frames)
    rows: dict[str, Tensor] = {}
    speeds: dict[str, float] = {}
    for name, model in found.items():
        if (model.record.height, model.record.width) != held.size:
            raise UsageError(
                f"{name} renders {model.record.width}x{model.record.height}, {MODEL}"
                f" {main.width}x{main.height}",
                hint="compare models of one size; train on until the last stage",
            )
        own = windows if name == MODEL else windows_of(model, chosen.data, windows)
        print(f"rendering {held.stop - held.start} frames: {name}", flush=True)
        rows[name] = rendered(model, held, own, device)
        speeds[name] = speed(model, held, own, device)
    simple: dict[str, Callable[[], Tensor]] = {
        "copy": lambda: torch.cat([held.before, held.real[:-1]]),
        "frozen": lambda: held.before.expand_as(held.real),
        "nearest": lambda: nearest(held),
    }
    rows |= {name: make() for name, make in simple.items() if name in chosen.baselines}

    results: dict[str, dict[str, float]] = {}
    courses: dict[str, Course] = {}
    for name, frames in {"real": encoded_again(held), **rows}.items():
        print(f"measuring: {name}", flush=True)
        results[name], courses[name] = measured(frames, held)
        if name in speeds:
            results[name]["speed"] = speeds[name]
    # Of the real video as it is, not as it was encoded again.
    real = {
        "warping_error": measures.warping_error(held.real, held.motion),
        "frame_difference": measures.frame_difference(held.real),
    }
    results["real"] |= {n: measures.average(values[held.steady]) for n, values in real.items()}

    shown = panels(held, rows)
    write_sheet(out / "sheet.png", shown, held.start)
    write_panels(out / "panels.mp4", held, shown)
    write_result(out / "result.json", chosen, found, held, results, courses)
    heading = (
        f"{chosen.data.name}, {main.width}x{main.height}, frames {held.start} to {held.stop},"
        f" {machine()}"
    )
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(heading, highlight=False)
    console.print(table(results))
    console.print(f"look at {out / 'sheet.png'} and {out / 'panels.mp4'}", highlight=False)


def write_result(
    path: Path,
    chosen: argparse.Namespace,
    found: dict[str, Model],
    held: HeldOut,
    results: dict[str, dict[str, float]],
    courses: dict[str, Course],
) -> None:
    record = {
        "data": str(chosen.data), "task": chosen.task, "machine": machine(),
        "size": [held.size[1], held.size[0]], "frames": [held.start, held.stop],
        "models": {
            name: {
                "parameters": sum(p.numel() for p in model.generator.parameters()),
                **{k: v for k, v in model.record.training.items() if k != "settings"},
                "generator": model.record.generator,
            }
            for name, model in found.items()
        },
        "rows": {
            name: {"means": row, "courses": courses[name]}
            for name, row in results.items()
        },
    }  # fmt: skip
    path.write_text(json.dumps(without_nan(record), indent=1) + "\n", "utf-8")


def without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null instead."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def machine() -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a clip store")
    parser.add_argument("--task", choices=["pose", "face"], default="pose")
    parser.add_argument("--size", type=int, default=128, help="shorter side (default: 128)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="of training, each model (default: 15)")
    budget.add_argument("--steps", type=int, help="updates, each model, instead")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--baselines", default=",".join(BASELINES), help=f"of {','.join(BASELINES)} (default: all)"
    )
    parser.add_argument("--models", action="append", default=[], metavar="NAME=RUNFOLDER")
    parser.add_argument("--frames", type=int, default=600, help="at most (default: 600)")
    parser.add_argument("--out", type=Path, help="(default: runs/held_out/DATA-SIZE)")
    chosen = parser.parse_args()
    chosen.baselines = [name for name in chosen.baselines.split(",") if name]
    for name in chosen.baselines:
        if name not in BASELINES:
            raise UnknownName.among("baseline", name, BASELINES)
    if chosen.steps is None and chosen.minutes is None:
        chosen.minutes = 15.0
    if chosen.out is None:
        chosen.out = Path("runs/held_out") / f"{chosen.data.name}-{chosen.size}"
    return chosen


def main() -> None:
    try:
        compare(arguments())
    except V2VError as error:
        sys.exit(f"error: {error.message}" + (f"\n  try: {error.hint}" if error.hint else ""))


if __name__ == "__main__":
    main()
