"""A page for blind pairwise preference studies.

    study/index.html      the page: opens from disk or any web server, makes no network requests
    study/clips/*.mp4     all encoded alike, under anonymous names
    study/key.json        which clip is what; the page does not read it: keep it from participants

Everyone sees the same pairs; the participant's code seeds their order and sides (`deal`, here and
in the page). An answer file can therefore be checked against what the page must have shown. Only
the key records which pairs are attention checks, because anyone can read the page;
`evaluate_answers` decides who passed.
"""

from __future__ import annotations

import json
import math
import random
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from v2v import __version__
from v2v.errors import MediaNotFound, NotWritable, UsageError, writing
from v2v.evaluation.compare import (
    Aligned,
    ComparedVideo,
    Picture,
    View,
    align,
    open_all,
    size_notes,
    write_video,
)
from v2v.files import discard, partial_of, replacing_file, workplace
from v2v.listing import is_hidden, visible_files
from v2v.pipelines.provenance import TAG, Provenance
from v2v.progress import Reporter, Silent
from v2v.video.probe import VIDEO_SUFFIXES

QUESTION = "Which looks more real?"
KEY_FILE, PAGE_FILE, RESULTS_FILE = "key.json", "index.html", "results.json"
RESULTS = "v2v study results"
LARGEST = 720  # maximum default height in pixels: two clips fit side by side on a screen
CRF = 16.0  # nearly lossless: compression artefacts must not influence the answers
CODE = re.compile(r"[A-Za-z0-9_-]{1,40}")  # participant code; the page uses the same pattern
Z95 = 1.959963984540054  # two-sided 95 percent quantile of the normal distribution


# ---------------------------------------------------------------- file formats


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StudyClip(_Record):
    """Origin of one clip of the page."""

    method: str
    content: str  # name shared by the clips of all methods
    file: str  # name of the source file
    spoiled: bool = False  # degraded for an attention check
    mark: Provenance | None = None  # provenance tag of the source, if it is synthetic


class Trial(_Record):
    """Two clips shown together, by their ids."""

    id: str
    clips: tuple[str, str]


class Key(_Record):
    kind: Literal["v2v study key"] = "v2v study key"
    version: Literal[1] = 1
    tool: str
    study: str
    question: str
    methods: tuple[str, ...]
    trials: tuple[Trial, ...]  # in the order of the page's data
    clips: dict[str, StudyClip]
    notes: tuple[str, ...] = ()

    def is_check(self, trial: Trial) -> bool:
        return any(self.clips[clip].spoiled for clip in trial.clips)


class Answer(_Record):
    trial: str
    left: str  # clip ids
    right: str
    answer: Literal["left", "right"]
    seconds: float = Field(ge=0, allow_inf_nan=False)  # from display to answer

    @property
    def chosen(self) -> str:
        return self.left if self.answer == "left" else self.right


class Answers(_Record):
    """The answer file that a participant downloads from the page."""

    kind: Literal["v2v study answers"]
    version: Literal[1]
    study: str
    participant: str
    started: datetime
    finished: datetime
    trials: tuple[Answer, ...]


# ---------------------------------------------------------------- order and sides


def deal(study: str, participant: str, trials: Sequence[Trial]) -> list[tuple[str, str, str]]:
    """(trial, left clip, right clip) in the order that this participant sees.

    Half of the trials show their first clip on the left (rounded up or down if odd).
    The page runs the same algorithm: `DEAL`.
    """
    below = _numbers(f"{study}/{participant}")
    order = list(trials)
    _shuffle(order, below)
    coin = below(2)
    sides = [(i + coin) % 2 for i in range(len(order))]
    _shuffle(sides, below)
    return [
        (trial.id, trial.clips[side], trial.clips[1 - side])
        for trial, side in zip(order, sides, strict=True)
    ]


def _shuffle(items: list[Any], below: Callable[[int], int]) -> None:
    """Fisher-Yates shuffle from the end, in place."""
    for last in range(len(items) - 1, 0, -1):
        other = below(last + 1)
        items[last], items[other] = items[other], items[last]


def _numbers(text: str) -> Callable[[int], int]:
    """`below(n)`: random integers from 0 to n - 1; mulberry32, seeded with the text's FNV-1a."""
    word = 0xFFFFFFFF
    state = 2166136261
    for byte in text.encode():
        state = (state ^ byte) * 16777619 & word

    def below(n: int) -> int:
        nonlocal state
        state = state + 0x6D2B79F5 & word
        t = (state ^ state >> 15) * (state | 1) & word
        t ^= t + ((t ^ t >> 7) * (t | 61) & word) & word
        return (t ^ t >> 14) * n >> 32

    return below


# ---------------------------------------------------------------- making a study


@dataclass(frozen=True)
class Made:
    """The result of `study`."""

    page: Path
    key: Path
    methods: tuple[str, ...]
    pairs: int
    checks: int
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "page": str(self.page), "key": str(self.key), "methods": list(self.methods),
            "pairs": self.pairs, "checks": self.checks, "notes": list(self.notes),
        }  # fmt: skip


def study(
    given: Sequence[str | Path],
    folder: str | Path,
    *,
    pairs: bool = False,
    labels: Sequence[str] | None = None,
    question: str = QUESTION,
    checks: int = 2,
    size: int | None = None,
    start: float | None = None,
    end: float | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    report: Reporter | None = None,
) -> Made:
    """Create a page for a blind pairwise preference study, completely or not at all.

    Args:
        given: one clip per method; with `pairs`, one folder per method, whose clips are matched
            by name. With three or more methods, all pairs of methods are shown.
        labels: names of the methods; default to the names of the files or folders.
        checks: number of attention checks: pairs with one blurred and shuffled clip.
        size: height of the clips in pixels; defaults to the first clip's, up to 720.
        start, end: the range of every clip in seconds, `end` excluded.
        seed: makes ids reproducible; by default they are random.
        overwrite: replace an existing study; answers to it can then no longer be evaluated.

    Raises `UsageError`, `NotWritable`, `DiskFull`, and what reading the clips raises.
    """
    home = Path(folder)
    if len(given) < 2:
        raise UsageError(
            f"a study needs at least two methods, not {len(given)}",
            hint="give one clip per method: v2v study a.mp4 b.mp4",
        )
    if not question.strip():
        raise UsageError("the question is empty", hint=f'give one: --question "{QUESTION}"')
    if not 0 <= checks <= 100:
        raise UsageError(f"--checks {checks} is out of range", hint="give 0 to 100")
    if size is not None and not 16 <= size <= 2160:
        raise UsageError(f"--size {size} is out of range", hint="give 16 to 2160 pixels")
    whole = home.resolve()  # "." has no name
    discard(partial_of(whole))
    _check_home(home, overwrite)
    notes: list[str] = []
    methods, contents = _contents(given, pairs, labels, notes)
    busy = NotWritable(
        f"another process is writing {home}", hint="wait for it to end, or choose another --output"
    )
    with workplace(partial_of(whole), busy) as work:
        _check_home(home, overwrite)  # another process may have created it meanwhile
        building = work / "study"
        with writing(home):
            (building / "clips").mkdir(parents=True)
        maker = _Maker(building, methods, random.Random(seed) if seed is not None else None)
        aligned = {
            name: align(clips, start=start, end=end) for name, clips in contents.items()
        }  # check every content before encoding any
        for name, one in aligned.items():
            where = f"{name}: " if len(aligned) > 1 else ""
            shape = _size(one.clips[0], size)
            notes += [where + note for note in (*one.notes, *size_notes(one.clips, shape))]
        marked = any(clip.mark for one in aligned.values() for clip in one.clips)
        maker.make(aligned, size, checks, undisclosed(marked), report or Silent())
        for one in aligned.values():
            notes += one.losses()
        maker.write(question.strip(), notes)
        with writing(home):
            if whole.exists():
                whole.replace(work / "old")
            building.replace(whole)
    pairs_made = len(maker.trials) - checks
    return Made(home / PAGE_FILE, home / KEY_FILE, tuple(methods), pairs_made, checks, tuple(notes))


def _check_home(home: Path, overwrite: bool) -> None:
    """Refuse a folder with other files, or with a study unless `overwrite` is set."""
    if not home.exists():
        return
    if not home.is_dir():
        raise NotWritable(f"{home} is a file", hint="give a folder, such as -o study")
    if all(map(is_hidden, home.iterdir())):
        return
    if not (home / KEY_FILE).is_file() or not (home / PAGE_FILE).is_file():
        raise UsageError(f"{home} contains other files", hint="choose another --output")
    if not overwrite:
        raise UsageError(
            f"{home} already contains a study",
            hint="replace it with --overwrite; answers to it can then no longer be evaluated",
        )


def _contents(
    given: Sequence[str | Path], pairs: bool, labels: Sequence[str] | None, notes: list[str]
) -> tuple[list[str], dict[str, list[ComparedVideo]]]:
    """The methods, and for each content one clip per method."""
    if not pairs:
        clips = open_all(given, labels)
        methods = [clip.label for clip in clips]
        contents = {"clip": clips}
    else:
        folders = [Path(folder) for folder in given]
        methods = list(labels or [folder.resolve().name for folder in folders])
        if len(methods) != len(folders):
            raise UsageError(
                f"{len(methods)} labels for {len(folders)} folders",
                hint="give one --label for each folder",
            )
        found = [_clips_in(folder) for folder in folders]
        common = [name for name in found[0] if all(name in one for one in found)]
        if not common:
            raise UsageError(
                f"{folders[0]} shares no clip name with {' and '.join(map(str, folders[1:]))}",
                hint="give clips of the same content the same name;"
                f" {folders[0]} contains {', '.join(found[0]) or 'no video'}",
            )
        left_out = sorted({name for one in found for name in one} - set(common))
        if left_out:
            notes.append(f"ignored because they are not in every folder: {', '.join(left_out)}")
        contents = {name: open_all([one[name] for one in found], methods) for name in common}
    if len(set(methods)) < len(methods):
        raise UsageError(
            f"two methods have the same name: {', '.join(methods)}",
            hint="give different names with --label",
        )
    return methods, contents


def _clips_in(folder: Path) -> dict[str, Path]:
    """The videos directly inside a folder, by name without suffix."""
    if not folder.is_dir():
        raise MediaNotFound(
            f"no such folder: {folder}", hint="with --pairs, give one folder of clips per method"
        )
    return {file.stem: file for file in visible_files(folder, VIDEO_SUFFIXES)}


def _size(clip: ComparedVideo, height: int | None) -> tuple[int, int]:
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


class _Maker:
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
            shape, identity = _size(one.clips[0], size), self._identity()
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


# ---------------------------------------------------------------- reading answers


def wilson(wins: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's (1927) score interval of a proportion: `wins` of `n` independent answers.

        centre = (p + z^2 / 2n) / (1 + z^2 / n),   p = wins / n
        half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)

    Unlike the normal approximation, it stays within [0, 1] and is valid for few answers.
    """
    if n == 0:
        return 0.0, 1.0
    share, more = wins / n, z * z / n
    centre = (share + more / 2) / (1 + more)
    half = z / (1 + more) * math.sqrt(share * (1 - share) / n + more / (4 * n))
    # With 0 or n wins, one bound is exactly 0 or 1; avoid its rounding error.
    return 0.0 if wins == 0 else centre - half, 1.0 if wins == n else centre + half


@dataclass(frozen=True)
class Preference:
    """How often each of two methods was preferred."""

    methods: tuple[str, str]
    wins: tuple[int, int]

    @property
    def n(self) -> int:
        return sum(self.wins)

    @property
    def sentence(self) -> str:
        if not self.n:
            return f"{self.methods[0]} and {self.methods[1]}: no answers"
        best = 0 if self.wins[0] >= self.wins[1] else 1
        low, high = wilson(self.wins[best], self.n)
        found = (
            f"{self.methods[best]} preferred to {self.methods[1 - best]} in"
            f" {100 * self.wins[best] / self.n:.0f} percent of {self.n}"
            f" answer{'s' if self.n > 1 else ''},"
            f" 95 percent interval {100 * low:.0f} to {100 * high:.0f}"
        )
        return found if low > 0.5 else found + "; this may be due to chance"

    def as_json(self) -> dict[str, Any]:
        both = list(zip(self.methods, self.wins, strict=True))
        return {
            "methods": list(self.methods),
            "n": self.n,
            "wins": dict(both),
            "share": {m: round(w / self.n, 4) if self.n else None for m, w in both},
            "interval": {m: [round(end, 4) for end in wilson(w, self.n)] for m, w in both},
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class StudyResult:
    """The preferences of all counted participants."""

    study: str
    question: str
    participants: tuple[str, ...]  # counted
    excluded: dict[str, str]  # file -> reason for its exclusion
    pairs: tuple[Preference, ...]
    contents: dict[str, tuple[Preference, ...]]  # pairs by content

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": RESULTS, "version": 1, "tool": f"v2v {__version__}",
            "study": self.study, "question": self.question,
            "participants": list(self.participants), "excluded": self.excluded,
            "interval": "Wilson, 95 percent; treats answers of one participant as independent",
            "pairs": [pair.as_json() for pair in self.pairs],
            "clips": {
                name: [pair.as_json() for pair in found] for name, found in self.contents.items()
            },
        }  # fmt: skip

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write JSON atomically. Replaces earlier results; other files only with `overwrite`."""
        if path.is_dir():
            raise NotWritable(f"{path} is a folder", hint="give a file, such as results.json")
        if path.exists() and not overwrite and f'"{RESULTS}"' not in _text(path):
            raise UsageError(f"{path} already exists", hint="replace it with --overwrite")
        with replacing_file(path) as partial:
            partial.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")


def evaluate_answers(files: Sequence[str | Path], key: str | Path) -> StudyResult:
    """Unblind and count the answers in files and folders.

    Participants who failed an attention check and repeated participations are excluded.

    Raises `UsageError` for a file that does not answer this study or was changed.
    """
    known = read_key(Path(key))
    # Sort by time: only the first participation of a participant counts.
    given = sorted(
        ((read_answers(file, known), file) for file in _files(files)),
        key=lambda found: (found[0].finished.timestamp(), str(found[1])),
    )
    counted: dict[str, Answers] = {}
    seen: set[str] = set()
    excluded: dict[str, str] = {}
    for answers, file in given:
        failed = _failed(answers, known)
        if answers.participant in seen:
            excluded[str(file)] = (
                f"{answers.participant} took part before; only the first answers count"
            )
        elif failed:
            checks = sum(known.is_check(trial) for trial in known.trials)
            excluded[str(file)] = (
                f"{answers.participant} failed {failed} of {checks} attention checks"
            )
        else:
            counted[answers.participant] = answers
        seen.add(answers.participant)
    contents = list(dict.fromkeys(clip.content for clip in known.clips.values()))
    return StudyResult(
        known.study, known.question, tuple(counted), excluded,
        _count(counted.values(), known, contents),
        {name: _count(counted.values(), known, [name]) for name in sorted(contents)},
    )  # fmt: skip


def _failed(answers: Answers, key: Key) -> int:
    """The number of attention checks in which the spoiled clip was chosen."""
    return sum(key.clips[answer.chosen].spoiled for answer in answers.trials)


def _count(given: Iterable[Answers], key: Key, contents: Sequence[str]) -> tuple[Preference, ...]:
    """Count wins for every pair of methods over these contents, without attention checks."""
    wins: dict[tuple[str, str], int] = {}  # (preferred, other) -> answers
    checks = {trial.id for trial in key.trials if key.is_check(trial)}
    for answers in given:
        for answer in answers.trials:
            chosen = answer.chosen
            other = answer.right if chosen == answer.left else answer.left
            if answer.trial not in checks and key.clips[chosen].content in contents:
                pair = key.clips[chosen].method, key.clips[other].method
                wins[pair] = wins.get(pair, 0) + 1
    return tuple(
        Preference((a, b), (wins.get((a, b), 0), wins.get((b, a), 0)))
        for a, b in combinations(key.methods, 2)
    )


def _files(given: Sequence[str | Path]) -> list[Path]:
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
        key = Key.model_validate_json(_text(path))
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
    text = _text(path)
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


def _text(path: Path) -> str:
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


# ---------------------------------------------------------------- the page


def page(key: Key) -> str:
    """Build the page. It does not reveal the methods of the clips."""
    trials = [{"id": trial.id, "clips": list(trial.clips)} for trial in key.trials]
    data = json.dumps({"study": key.study, "question": key.question, "trials": trials})
    # Escape "<": a question could contain "</script>".
    return PAGE.replace("@SCRIPT@", DEAL + SCRIPT).replace("@DATA@", data.replace("<", "\\u003c"))


# A line-by-line port of `deal` and `_numbers`.
DEAL = """
"use strict";

function numbers(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) {
    state = Math.imul(state ^ byte, 16777619) >>> 0;
  }
  return function below(n) {
    state = (state + 0x6D2B79F5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1) >>> 0;
    t = (t ^ (t + Math.imul(t ^ (t >>> 7), t | 61))) >>> 0;
    t = (t ^ (t >>> 14)) >>> 0;
    return Math.floor(t * n / 4294967296);
  };
}

function shuffle(items, below) {
  for (let last = items.length - 1; last > 0; last--) {
    const other = below(last + 1);
    [items[last], items[other]] = [items[other], items[last]];
  }
}

function deal(study, participant, trials) {
  const below = numbers(study + "/" + participant);
  const order = trials.slice();
  shuffle(order, below);
  const coin = below(2);
  const sides = order.map((_, i) => (i + coin) % 2);
  shuffle(sides, below);
  return order.map((trial, i) => ({
    trial: trial.id, left: trial.clips[sides[i]], right: trial.clips[1 - sides[i]],
  }));
}
"""

SCRIPT = """
const part = (id) => document.getElementById(id);
const plan = JSON.parse(part("plan").textContent);
const videos = [part("left-video"), part("right-video")];
const buttons = [part("left"), part("right")];
const answers = [];
let participant = "", started = "", dealt = [], shownAt = 0, playing = false, saved = false;

// ---- start

part("question").textContent = plan.question;
part("count").textContent = plan.trials.length;
part("code").value = "p" + crypto.getRandomValues(new Uint32Array(1))[0].toString(36);
part("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  participant = part("code").value.trim();
  started = new Date().toISOString();
  dealt = deal(plan.study, participant, plan.trials);
  show("trial");
  next();
});

function show(name) {
  for (const section of ["welcome", "trial", "thanks"]) part(section).hidden = section !== name;
}

// ---- a pair

function next() {
  if (answers.length === dealt.length) return finish();
  const pair = dealt[answers.length];
  part("problem").textContent = "";
  videos[0].src = "clips/" + pair.left + ".mp4";
  videos[1].src = "clips/" + pair.right + ".mp4";
  part("place").textContent = (answers.length + 1) + " of " + dealt.length;
  part("progress").max = dealt.length;
  part("progress").value = answers.length;
  shownAt = performance.now();
  playing = true;
  update();
}

// Seconds actually played; seeking does not count.
function played(video) {
  let sum = 0;
  for (let i = 0; i < video.played.length; i++) sum += video.played.end(i) - video.played.start(i);
  return sum;
}

function watched() {
  return videos.every((video) => video.duration > 0 && played(video) >= 0.9 * video.duration);
}

function answer(side) {
  if (part("trial").hidden || !watched()) return;
  const seconds = Math.round(performance.now() - shownAt) / 1000;
  const pair = dealt[answers.length];
  answers.push({trial: pair.trial, left: pair.left, right: pair.right, answer: side, seconds});
  next();
}

// Both videos play, pause and restart together; the right one follows the left one.
function keepInStep() {
  if (part("trial").hidden) return;
  const [leader, follower] = videos;
  if (playing && videos.every((video) => video.ended && !video.seeking)) seek(0);
  const ready = videos.every((video) => video.ended || video.readyState >= 3);
  for (const video of videos) {
    if (playing && ready && video.paused && !video.ended) video.play().catch(stop);
    if (!(playing && ready) && !video.paused) video.pause();
  }
  const apart = Math.abs(leader.currentTime - follower.currentTime);
  if (apart > 0.08 && !follower.seeking && !leader.ended && !follower.ended) {
    follower.currentTime = leader.currentTime;
  }
  update();
}

function update() {
  const enabled = watched();
  for (const button of buttons) button.disabled = !enabled;
  part("hint").textContent = enabled ? "Choose with a button or with the arrow keys."
    : "Watch both to the end once, then choose.";
  part("play").textContent = playing ? "Pause" : "Play";
  if (videos[0].duration > 0) part("seek").value = videos[0].currentTime / videos[0].duration;
}

function seek(share) {
  for (const video of videos) {
    if (video.duration > 0) video.currentTime = share * video.duration;
  }
}

function toggle() {
  playing = !playing;
  keepInStep();
}

function stop(problem) {
  if (problem.name === "AbortError") return;  // paused or replaced before playback began
  playing = false;
  update();
}

part("play").addEventListener("click", toggle);
part("seek").addEventListener("input", () => seek(Number(part("seek").value)));
part("left").addEventListener("click", () => answer("left"));
part("right").addEventListener("click", () => answer("right"));
for (const video of videos) {
  video.addEventListener("error", () => {
    part("problem").textContent = "A video cannot be played. Try another browser and report this.";
  });
}
document.addEventListener("keydown", (event) => {
  if (part("trial").hidden || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    if (!event.repeat) answer(event.key === "ArrowLeft" ? "left" : "right");
  } else if (event.key === " " && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    if (!event.repeat) toggle();
  }
});
setInterval(keepInStep, 40);

// ---- the end

function results() {
  return {
    kind: "v2v study answers", version: 1, study: plan.study, participant, started,
    finished: new Date().toISOString(), trials: answers,
  };
}

function finish() {
  playing = false;
  for (const video of videos) video.pause();
  show("thanks");
  const text = JSON.stringify(results(), null, 1);
  part("download").href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  part("download").download = "answers-" + participant + ".json";
}

part("download").addEventListener("click", () => { saved = true; });
window.addEventListener("beforeunload", (event) => {
  if (answers.length && !saved) event.preventDefault();
});
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Two videos</title>
<style>
[hidden] { display: none !important }
body { font: 17px/1.5 system-ui, sans-serif; margin: 0; color: #222; background: #f4f4f2 }
main { max-width: 90rem; margin: 0 auto; padding: 1.5rem 1rem; text-align: center }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem }
.pair video { width: 100%; height: 62vh; object-fit: contain; background: #000 }
button, .button { font: inherit; padding: .5em 1.4em; border: 1px solid #888; border-radius: 6px;
  background: #fff; color: #222; cursor: pointer; text-decoration: none }
button:disabled { color: #aaa; border-color: #ccc; cursor: default }
.pair button { width: 100%; margin-top: .6rem; padding: .8em }
.controls { display: flex; gap: 1rem; margin: 1rem auto; max-width: 40rem }
.controls input { flex: 1 }
input[type=text] { font: inherit; padding: .4em; width: 16em }
progress { width: 14rem; vertical-align: middle }
#problem { color: #b00020 }
</style>
<main>
<section id="welcome">
<h1>Two videos, side by side</h1>
<p>You will see <span id="count"></span> pairs. Watch each pair to its end once, then choose one of
the two. Some of the videos may have been generated by a computer. There is no sound.</p>
<form id="begin">
<p><label>Your code <input type="text" id="code" required maxlength="40" pattern="[A-Za-z0-9_\\-]+"
 title="letters, digits, - and _" autocomplete="off"></label></p>
<p>Keep this code, or type the one that you were given.</p>
<p><button>Begin</button></p>
</form>
</section>
<section id="trial" hidden>
<p><progress id="progress" value="0" max="1"></progress> <span id="place"></span></p>
<h1 id="question"></h1>
<div class="pair">
<div><video id="left-video" muted playsinline preload="auto"></video>
<button id="left" disabled>&larr; Left</button></div>
<div><video id="right-video" muted playsinline preload="auto"></video>
<button id="right" disabled>Right &rarr;</button></div>
</div>
<div class="controls"><button id="play">Pause</button>
<input id="seek" type="range" min="0" max="1" step="any" value="0" aria-label="Position"></div>
<p id="hint"></p>
<p id="problem" role="alert"></p>
</section>
<section id="thanks" hidden>
<h1>Thank you</h1>
<p>Save this file with your answers and send it to the person who invited you.</p>
<p><a id="download" class="button">Save the answers</a></p>
</section>
</main>
<script type="application/json" id="plan">@DATA@</script>
<script>@SCRIPT@</script>
</html>
"""
