"""Unblind and count the answers of a study."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from v2v import __version__
from v2v.errors import NotWritable, UsageError
from v2v.evaluation.study.answers import answer_files, read_answers, read_key, read_text
from v2v.evaluation.study.records import RESULTS, Answers, Key
from v2v.files import replacing_file

COVERAGE = 0.95


def wilson(wins: int, n: int) -> tuple[float, float]:
    """Wilson's (1927) 95 percent score interval of a proportion: `wins` of `n` independent answers.

    Unlike the normal approximation, it stays within [0, 1] and is valid for few answers.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # on first use: its import takes half a second

    found = binomtest(wins, n).proportion_ci(COVERAGE, method="wilson")
    return float(found.low), float(found.high)


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
        if path.exists() and not overwrite and f'"{RESULTS}"' not in read_text(path):
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
        ((read_answers(file, known), file) for file in answer_files(files)),
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
