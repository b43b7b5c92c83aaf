"""Make a page for a blind pairwise preference study.

    study/index.html      the page: opens from disk or any web server, makes no network requests
    study/clips/*.mp4     all encoded alike, under anonymous names
    study/key.json        which clip is what; the page does not read it: keep it from participants

Everyone sees the same pairs; the participant's code seeds their order and sides (`deal`, in Python
and in the page). An answer file can therefore be checked against what the page must have shown.
Only the key records which pairs are attention checks, because anyone can read the page;
`evaluate_answers` decides who passed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2v.errors import MediaNotFound, NotWritable, UsageError, writing
from v2v.evaluation.compare.align import ComparedVideo, align, open_all
from v2v.evaluation.compare.view import size_notes
from v2v.evaluation.study.clips import ClipMaker, clip_size, undisclosed
from v2v.evaluation.study.records import KEY_FILE, PAGE_FILE
from v2v.files import discard, partial_of, workplace
from v2v.listing import is_hidden, visible_files
from v2v.progress import Reporter, Silent
from v2v.video.probe import VIDEO_SUFFIXES

QUESTION = "Which looks more real?"


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
        maker = ClipMaker(building, methods, random.Random(seed) if seed is not None else None)
        aligned = {
            name: align(clips, start=start, end=end) for name, clips in contents.items()
        }  # check every content before encoding any
        for name, one in aligned.items():
            where = f"{name}: " if len(aligned) > 1 else ""
            shape = clip_size(one.clips[0], size)
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
        found = [clips_in(folder) for folder in folders]
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


def clips_in(folder: Path) -> dict[str, Path]:
    """The videos directly inside a folder, by name without suffix."""
    if not folder.is_dir():
        raise MediaNotFound(
            f"no such folder: {folder}", hint="with --pairs, give one folder of clips per method"
        )
    return {file.stem: file for file in visible_files(folder, VIDEO_SUFFIXES)}
