"""Writes the drawn samples as footage: a dancing person and a talking face with audio, a street.

`v2v sample`, `v2v demo` and tests call it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from v2v.errors import NotWritable, writing
from v2v.files import partial_of, replacing_file, workplace
from v2v.progress import Reporter, Silent
from v2v.video.write import VideoWriter

Kind = Literal["person", "face", "street"]
KINDS: tuple[str, ...] = get_args(Kind)
RATE = {"person": 30, "face": 30, "street": 15}


def write_sample(
    kind: str,
    folder: Path,
    *,
    seconds: float = 4.0,
    seed: int = 0,
    who: str = "host",
    empty: float = 0.0,
    finale: float = 0.0,
    report: Reporter | None = None,
) -> Path:
    """Draw one sample into `folder`.

    Args:
        who: the person of `v2v.samples.person` who dances.
        empty: seconds at the start that show the person's room empty.
        finale: seconds at the end in which the person dances the other person's dance.

    Returns the file `person.mp4` (`guest.mp4` for the guest) or `face.mp4`, or the folder
    `street` with `images`, `labels` (Cityscapes ids), `instances` (class * 1000 + number) and
    `flow` (exact, npz).
    """
    report = report or Silent()
    count = max(round(seconds * RATE[kind]), 1)
    # The host's clip is named after the kind, other clips after the person.
    name = who if kind == "person" and who != "host" else kind
    frames = None if kind == "street" else _frames(kind, count, seed, who, empty, finale)
    report.start(f"draw {name}", count)
    if frames is None:
        path = folder / "street"
        busy = NotWritable(
            f"another process is drawing {path}",
            hint="wait for it to end, or choose another --output",
        )
        with workplace(partial_of(path), busy):
            _write_street(path, count, seed, report)
    else:
        path = folder / f"{name}.mp4"
        with replacing_file(path) as partial:
            _write_video(frames, partial, count, RATE[kind], report)
    report.finish(f"draw {name}")
    return path


def _frames(
    kind: str, count: int, seed: int, who: str, empty: float, finale: float
) -> Iterator[NDArray[np.uint8]]:
    from v2v.samples import face, person

    if kind == "person":
        empty_frames, finale_frames = round(empty * RATE[kind]), round(finale * RATE[kind])
        return person.frames(
            count=count, seed=seed, who=who, empty=empty_frames, finale=finale_frames
        )
    return face.frames(count=count, seed=seed)


def _write_video(
    frames: Iterator[NDArray[np.uint8]], path: Path, count: int, rate: int, report: Reporter
) -> None:
    first = next(frames)
    sound = path.with_name("sound.m4a")
    _write_tune(sound, count / rate)
    with VideoWriter(
        path, width=first.shape[1], height=first.shape[0], rate=Fraction(rate), crf=16,
        audio=sound,
    ) as video:  # fmt: skip
        video.write(first)
        report.advance(f"draw {path.stem}")
        for frame in frames:
            video.write(frame)
            report.advance(f"draw {path.stem}")


def _write_street(folder: Path, count: int, seed: int, report: Reporter) -> None:
    from v2v.samples import street

    for name in ("images", "labels", "instances", "flow"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(street.frames(count=count, seed=seed)):
        with writing(folder):
            Image.fromarray(frame.rgb).save(folder / "images" / f"{i:06}.png")
            Image.fromarray(frame.labels).save(folder / "labels" / f"{i:06}.png")
            Image.fromarray(frame.instances).save(folder / "instances" / f"{i:06}.png")
            np.savez_compressed(
                folder / "flow" / f"{i:06}.npz", flow=frame.flow, occlusion=frame.occlusion
            )
        report.advance("draw street")
    note = {"fps": RATE["street"], "labels": "Cityscapes ids", "seed": seed}
    (folder / "street.json").write_text(json.dumps(note) + "\n", "utf-8")


def _write_tune(path: Path, seconds: float, rate: int = 44100) -> None:
    """Write a soft arpeggio, two notes per second, as AAC."""
    time = np.arange(round(seconds * rate)) / rate
    beat = (time * 2).astype(int)
    pitch = 220 * 2 ** (np.array([0, 4, 7, 12, 7, 4])[beat % 6] / 12)
    decay = np.exp(-3 * (time * 2 % 1))
    wave: NDArray[np.float32] = (0.2 * decay * np.sin(2 * np.pi * pitch * time)).astype(np.float32)
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=rate)
        for start in range(0, len(wave), 1024):
            block = np.zeros(1024, np.float32)
            part = wave[start : start + 1024]
            block[: len(part)] = part
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
