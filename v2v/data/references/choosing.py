"""References chosen for the parts of each frame, by the distance of their poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from v2v.data.references.cutting import part_patch
from v2v.data.references.memory import References
from v2v.signals import Track, find
from v2v.signals.traits import ReferenceSignal

MISSING = 1.0  # body sizes: cost of a point that is seen in only one of two poses
CROWDED = 0.3  # body sizes: cost of a part that has other parts beside it along all its bones
KEEP = 0.75  # the distance of a reference in use is scaled by this, so that choices do not flicker
FADE = 4  # frames over which one reference fades into the next
ALL = -1  # index of what is derived from all references

# For one frame: `Choice.used`, `before` and `fading`, and the encoded distances [P, R] in [0, 1].
FrameChoice = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Choice:
    """The references chosen for the parts of T frames.

    Attributes:
        used: [T, P, K] the reference of each part of each candidate; -1: none.
        before: [T, P, K] the reference that fades out; -1: none.
        fading: float32 [T, P, K] blending weight of `before`, below 1.
        distances: float32 [T, P, R] distance of each part's pose from that in each reference.
    """

    used: NDArray[np.int64]
    before: NDArray[np.int64]
    fading: NDArray[np.float32]
    distances: NDArray[np.float32]

    def only(self, kept: NDArray[np.bool_]) -> Choice:
        """Empty the candidates [K] that are not kept."""
        used, before = (np.where(kept, which, -1) for which in (self.used, self.before))
        return replace(self, used=used, before=before)


class Chooser:
    """Chooses the reference of each part of each candidate, frame by frame.

    A reference in use stays until another is clearly nearer, keeps its candidate and fades into
    its successor, so that choices neither flicker nor pop. Choices depend on the previous frames.
    """

    def __init__(self, references: References, count: int, *, banned: Any = ()) -> None:
        """`count` is K; `banned` references are never chosen."""
        self.references, self.count = references, count
        self.usable = np.setdiff1d(np.arange(len(references)), np.asarray(banned, np.int64))
        shape = (len(references.parts), count)
        self.last, self.before = np.full((2, *shape), -1, np.int64)
        self.age = np.zeros(shape, np.int64)  # frames since it changed

    def __call__(self, track: Track) -> Choice:
        """The choice for T frames, which must follow those of the previous call."""
        apart = distances(self.references, track)
        used = np.empty((len(track), *self.last.shape), np.int64)
        before, fading = used.copy(), np.empty(used.shape, np.float32)
        costs = apart + np.float32(CROWDED) * crowded(self.references)
        for t, cost in enumerate(costs):
            now = np.stack([self._next(*row) for row in zip(self.last, cost, strict=True)])
            changed = now != self.last
            self.before = np.where(changed, self.last, self.before)
            self.age = np.where(changed, 1, self.age + 1)
            self.last = now
            used[t], before[t] = now, self.before
            fading[t] = np.where(self.before >= 0, np.maximum(1 - self.age / FADE, 0), 0)
        return Choice(used, before, fading, apart)

    def _next(self, last: NDArray[np.int64], cost: NDArray[np.float32]) -> NDArray[np.int64]:
        favoured = cost.copy()
        favoured[last[last >= 0]] *= KEEP
        best = self.usable[np.argsort(favoured[self.usable], kind="stable")[: self.count]].tolist()
        kept = [r if r in best else -1 for r in last.tolist()]
        new = [r for r in best if r not in kept]
        return np.array([r if r >= 0 or not new else new.pop(0) for r in kept])


def distances(references: References, track: Track) -> NDArray[np.float32]:
    """[T, P, R] distance of each part's pose from that in each reference, in body sizes.

    Poses are compared after centring the part's points. The hidden fraction of a part in a
    reference (occluded or outside the picture) adds to the distance.
    """
    known = references.derived("poses", ALL, lambda: part_poses(references.track))
    apart = np.stack(
        [
            np.stack([pose_distance(now, reference_poses) for now in poses])
            for poses, reference_poses in zip(part_poses(track), known, strict=True)
        ],
        axis=1,
    )[:, _compared_part(references)]
    apart += np.float32(MISSING) * hidden(references)
    return apart


def _compared_part(references: References) -> NDArray[np.intp]:
    """[P] the part whose pose is compared instead: the frontmost part of a group."""
    last = {part.group: p for p, part in enumerate(references.parts)}
    return np.array([last[q.group] if q.group else p for p, q in enumerate(references.parts)])


def hidden(references: References) -> NDArray[np.float32]:
    """[P, R] fraction of the points along a part's bones at which the part is not visible.

    All parts of a group get the value of the most hidden one.
    """
    return references.derived("hidden", ALL, lambda: _hidden_fractions(references))


def _hidden_fractions(references: References) -> NDArray[np.float32]:
    found = np.zeros((len(references.parts), len(references)), np.float32)
    for r in range(len(references)):
        for p, part in enumerate(references.parts):
            if part.motion == "dense":
                continue
            patch, left, top = part_patch(references, p, r)
            points = _along_bones(references, p, r)
            x, y = (points - (left, top)).astype(int).T
            inside = (x >= 0) & (y >= 0) & (x < patch.shape[1]) & (y < patch.shape[0])
            visible = patch[y[inside], x[inside], 3] > 0.5
            found[p, r] = 1 - visible.sum() / max(len(points), 1)
    compared = _compared_part(references)
    return np.stack([found[compared == p].max(axis=0) for p in compared])


def crowded(references: References) -> NDArray[np.float32]:
    """[P, R] fraction of the points along a part's bones with an unconnected part beside them.

    A cut-out there contains pixels of the other part: cloth behind a hand, a hand over a face.
    """
    return references.derived("crowded", ALL, lambda: _crowded_fractions(references))


def _crowded_fractions(references: References) -> NDArray[np.float32]:
    found = np.zeros((len(references.parts), len(references)), np.float32)
    connected = [{*part.fit, *part.base, *np.ravel(part.bones)} for part in references.parts]
    for r in range(len(references)):
        points = [_along_bones(references, p, r) for p in range(len(references.parts))]
        for p, part in enumerate(references.parts):
            beside = np.zeros(len(points[p]), np.bool_)
            for q, other in enumerate(references.parts):
                if connected[p] & connected[q] or part.motion == "dense" or not len(points[q]):
                    continue
                gaps = np.linalg.norm(points[p][:, None] - points[q], axis=-1)
                room = (part.radius + other.radius) * float(references.sizes[r])
                beside |= (gaps < room).any(axis=1)
            found[p, r] = beside.sum() / max(len(beside), 1)
    return found[_compared_part(references)]


def _along_bones(references: References, part: int, reference: int) -> NDArray[np.float32]:
    """[n, 2] points along the bones of a part whose ends are known."""
    bones = np.array(references.parts[part].bones, np.intp).reshape(-1, 2)
    ends = references.points[reference][bones]
    ends = ends[np.isfinite(ends).all(axis=(1, 2))]
    steps = np.linspace(0.1, 0.9, 5, dtype=np.float32)[:, None]
    points: NDArray[np.float32] = ends[:, :1] + steps * (ends[:, 1:] - ends[:, :1])
    return points.reshape(-1, 2)


def part_poses(track: Track) -> list[NDArray[np.float32]]:
    """For each part [T, n, 2] its `fit` and `compare` points, centred, in body sizes."""
    points, size = track.part_points(), track.body_size()
    found = []
    for part in track.parts:
        chosen = points[:, [*part.fit, *part.compare]]
        with np.errstate(all="ignore"):
            seen = np.isfinite(chosen[..., :1])
            count = np.maximum(seen.sum(axis=1, keepdims=True), 1)
            middle = np.where(seen, chosen, 0).sum(axis=1, keepdims=True) / count
            found.append(((chosen - middle) / size[:, None, None]).astype(np.float32))
    return found


def pose_distance(now: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """[R] mean distance of points [n, 2] from those of R references [R, n, 2]."""
    visible = np.isfinite(now[:, 0])
    if not visible.any():
        return np.full(len(references), np.float32(MISSING))
    distances = np.linalg.norm(references[:, visible] - now[visible], axis=-1)
    mean: NDArray[np.float32] = np.nan_to_num(distances, nan=MISSING).mean(axis=1)
    return mean


def reference_signal(signals: Sequence[str]) -> ReferenceSignal | None:
    """The first of a model's signals that chooses and warps references."""
    return find(ReferenceSignal, signals)
