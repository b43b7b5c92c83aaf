"""Encode the clips of a study alike, under anonymous names."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from v2v import __version__
from v2v.errors import writing
from v2v.evaluation.compare.align import Aligned, ComparedVideo
from v2v.evaluation.compare.view import View
from v2v.evaluation.compare.write import write_video
from v2v.evaluation.study.page import page
from v2v.evaluation.study.records import KEY_FILE, PAGE_FILE, Key, StudyClip, Trial
from v2v.images import Picture
from v2v.pipelines.provenance import TAG
from v2v.progress import Reporter, Silent

LARGEST = 720  # maximum default height in pixels: two clips fit side by side on a screen
CRF = 16.0  # nearly lossless: compression artefacts must not influence the answers


def clip_size(clip: ComparedVideo, height: int | None) -> tuple[int, int]:
    """(width, height) of one content's clips, both even, with the aspect ratio of `clip`."""
    full_w, full_h = clip.size
    factor = (height or min(full_h, LARGEST)) / full_h
    return max(round(full_w * factor / 2) * 2, 2), max(round(full_h * factor / 2) * 2, 2)


def undisclosed(marked: bool) -> dict[str, str]:
    """Identical tags for all clips of a study, so that they do not reveal which are synthetic."""
    if not marked:
        return {}
    note = (
        "Part of a blind study: some of its videos are synthetic, rendered by a model, not filmed."
        " The key of the study records which."
    )
    return {
        TAG: json.dumps({"synthetic": "undisclosed", "note": note, "tool": f"v2v {__version__}"})
    }


class ClipMaker:
    """Encodes the clips and records their origin."""

    def __init__(self, folder: Path, methods: list[str], generator: random.Random | None) -> None:
        self.folder, self.methods = folder, methods
        self.random = generator or secrets.SystemRandom()
        self.clips: dict[str, StudyClip] = {}
        self.trials: list[Trial] = []
        self.used: set[str] = set()

    def make(
        self,
        aligned: dict[str, Aligned],
        size: int | None,
        checks: int,
        tags: dict[str, str],
        report: Reporter,
    ) -> None:
        wanted = [(name, index, False) for name in aligned for index in range(len(self.methods))]
        good = self.random.sample(wanted, min(checks, len(wanted)))
        good = [good[i % len(good)] for i in range(checks)]
        # Encode in random order: otherwise file times would reveal the methods.
        jobs = wanted + [(name, index, True) for name, index, _ in good]
        self.random.shuffle(jobs)
        made: dict[tuple[str, int, bool], list[str]] = {}
        report.start("clips", len(jobs))
        for name, index, spoil in jobs:
            one = aligned[name]
            shape, identity = clip_size(one.clips[0], size), self._identity()
            frames = map(View.whole(one.clips[index].size, *shape), one.pictures(index))
            write_video(
                spoiled(frames, self.random.randrange(1 << 30)) if spoil else frames,
                self.folder / "clips" / f"{identity}.mp4", size=shape, rate=one.rate,
                count=one.count, crf=CRF, tags=tags, report=Silent(), stage="clip",
            )  # fmt: skip
            report.advance("clips")
            clip = one.clips[index]
            self.clips[identity] = StudyClip(
                method=self.methods[index], content=name, file=clip.path.name, spoiled=spoil,
                mark=clip.mark,
            )  # fmt: skip
            made.setdefault((name, index, spoil), []).append(identity)
        report.finish("clips")
        for name in aligned:
            for a, b in combinations(range(len(self.methods)), 2):
                self._pair(made[name, a, False][0], made[name, b, False][0])
        for name, index, _ in good:
            self._pair(made[name, index, False][0], made[name, index, True].pop())
        self.random.shuffle(self.trials)

    def _pair(self, a: str, b: str) -> None:
        clips = (a, b) if self.random.random() < 0.5 else (b, a)
        self.trials.append(Trial(id=self._identity(), clips=clips))

    def _identity(self) -> str:
        """A random id of six hexadecimal digits, not used before."""
        while (found := f"{self.random.getrandbits(24):06x}") in self.used:
            pass
        self.used.add(found)
        return found

    def write(self, question: str, notes: Sequence[str]) -> None:
        key = Key(
            tool=f"v2v {__version__}", study=self._identity() + self._identity(),
            question=question, methods=tuple(self.methods), trials=tuple(self.trials),
            clips=dict(sorted(self.clips.items())), notes=tuple(notes),
        )  # fmt: skip
        with writing(self.folder):
            (self.folder / KEY_FILE).write_text(key.model_dump_json(indent=1) + "\n", "utf-8")
            (self.folder / PAGE_FILE).write_text(page(key), "utf-8")


def spoiled(frames: Iterator[Picture], seed: int) -> Iterator[Picture]:
    """Blur the frames heavily and shuffle them in groups of 12 (about half a second).

    Blur alone could pass for soft focus, and shuffling is invisible where little moves.
    """
    generator = np.random.default_rng(seed)
    held: list[Picture] = []

    def shuffled() -> Iterator[Picture]:
        for place in generator.permutation(len(held)):
            yield held[place]
        held.clear()

    for frame in frames:
        sigma = max(frame.shape[0] / 24, 2)
        held.append(np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma), np.uint8))
        if len(held) == 12:
            yield from shuffled()
    yield from shuffled()
