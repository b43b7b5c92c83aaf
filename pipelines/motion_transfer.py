"""Motion transfer from one person to another (Everybody Dance Now, arXiv 1808.07371).

>>> transfer = MotionTransfer.from_pretrained("runs/b")
>>> frames = transfer("dance.mp4")
>>> frames.save("out.mp4")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from v2v.checkpoint import ClipUse
from v2v.data.store import ClipStore
from v2v.errors import NothingFound, UnknownName
from v2v.pipelines.camera_path import camera_path, check_camera_path, filmed, steadied, still_views
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.rendering import Rendering
from v2v.pipelines.retarget.body import Body
from v2v.pipelines.retarget.pose import RETARGETS, kept_inside, retarget
from v2v.pipelines.retarget.pose_range import out_of_distribution
from v2v.pipelines.segments import format_segments
from v2v.pipelines.source import Source, open_source
from v2v.progress import Reporter, Silent, with_progress
from v2v.signals import Track
from v2v.signals.pose import MIN_SCORE, NAMES, PoseTrack

SIGNAL = "pose"


@dataclass(frozen=True)
class MotionTransfer:
    """Renders the person that a model was trained on, driven by another person's motion."""

    trained: LoadedModel

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto") -> MotionTransfer:
        """Raises `CheckpointInvalid`, and `UsageError` for a model of another signal."""
        trained = LoadedModel.open(path, device=device)
        trained.expect(SIGNAL, "motion transfer")
        return cls(trained)

    def remembered(self, clip: int = 0) -> NDArray[np.float32]:
        """[N, 75, 3] the model's training poses, in the stored pixels of the training clip."""
        return self.trained.remembered(clip, SIGNAL)

    @with_progress
    def __call__(
        self,
        source: str | Path | ClipStore,
        *,
        start: float | None = None,
        end: float | None = None,
        retarget: str = "limbs",
        clip: str | None = None,
        camera: str = "still",
        report: Reporter | None = None,
    ) -> Rendering:
        """The model's person, driven by the motion of the one in `source`.

        Args:
            source: footage or a clip store.
            start, end: the range to render, in seconds.
            retarget: of `RETARGETS`: limbs gives the source's skeleton the target's bone lengths,
                global only the target's size and position, none leaves it as filmed.
            clip: training clip that sets the appearance.
            camera: of `CAMERA_PATHS`: the camera path.

        Raises what `open_source` raises; `NothingFound` if there is no person in the range.
        """
        if retarget not in RETARGETS:
            raise UnknownName.among("--retarget", retarget, RETARGETS)
        report = report or Silent()
        number = self.trained.clip_number(clip)
        appearance = self.trained.appearance(number)
        check_camera_path(self.trained, number, camera)
        wanted = [SIGNAL, "camera"] if camera == "source" else [SIGNAL]
        driven = open_source(source, wanted, start=start, end=end, report=report)
        path = camera_path(self.trained, number, driven, camera)
        known, use = self.remembered(number), self.trained.model.record.clips[number]
        rate = float(driven.rate)
        moved = self.skeletons(driven, retarget, number)
        notes = [*_other_people_note(driven), *_missing_note(driven, moved)]
        if retarget != "none":
            moved, factor = kept_inside(moved, known, use.width, rate)
            if factor < 1:
                notes.append(
                    "the sideways motion is wider than the target's frame: it is reduced to"
                    f" {factor:.0%}"
                )
        placement = self.trained.placement(number)

        def tracks(first: int, stop: int) -> Sequence[Track]:
            points = moved[first:stop]
            filled = np.zeros(points.shape[:2], np.bool_)
            track = placement.track(PoseTrack(points, filled, use.width, use.height))
            return [path.track(track, first)]

        notes += path.notes
        beyond = out_of_distribution(moved, known, rate, width=use.width, height=use.height)
        notes += format_segments(beyond, lambda frame: driven.seconds(driven.start + frame))
        conditioning = ConditioningSource(
            pipeline="motion transfer", count=len(driven), rate=driven.rate, tracks=tracks,
            settings={
                "start": driven.start, "retarget": retarget, "clip": number,
                "camera": camera,
                "signal": driven.store.record.signals[SIGNAL].model_dump(mode="json"),
                **filmed(driven),
            },
            source=driven.name, source_sha256=driven.sha256, pictures=driven.pictures,
            sound=driven.sound, notes=tuple(notes), behind=path.behind,
        )  # fmt: skip
        return Rendering(self.trained, conditioning, appearance)

    def skeletons(self, driven: Source, mode: str, clip: int = 0) -> NDArray[np.float32]:
        """[frames, 75, 3] the source's poses retargeted to the target, in its stored pixels.

        Raises `NothingFound`.
        """
        use, size = self.trained.model.record.clips[clip], driven.size
        rate = float(driven.rate)
        # Measure the body on the whole source, not only the rendered range: more frames are more
        # reliable.
        seen = steadied(driven.store.track(SIGNAL), still_views(driven), slice(None))
        whole = cast(PoseTrack, seen).points
        known = self.remembered(clip)
        target = Body.measure(known, use.width, use.height, _rate(known, use))
        frames = self.trained.remembered_frames(clip, driven.store)
        if frames is not None:
            # The training clip itself: measuring the same frames leaves the poses unchanged.
            source = Body.measure(whole[frames], size[1], size[0], _rate(known, use))
        else:
            source = Body.measure(whole, size[1], size[0], rate)
        moved = np.empty((len(driven), len(NAMES), 3), np.float32)
        for first, stop in _shots(driven):
            part = slice(first - driven.start, stop - driven.start)
            moved[part] = retarget(whole[first:stop], source, target, mode, rate)
        if not _person_visible(moved).any():
            raise NothingFound(
                f"no person in {driven.name} between {driven.seconds(driven.start):.2f} s and"
                f" {driven.seconds(driven.stop):.2f} s",
                hint="choose another range with --start and --end; v2v doctor reports where people"
                " are detected",
            )
        return moved


def _rate(known: NDArray[np.float32], use: ClipUse) -> float:
    """Stored poses per second; the model keeps only some poses of a long clip."""
    first, stop = use.trained
    return float(Fraction(use.fps)) * min(len(known) / (stop - first), 1.0)


def _shots(driven: Source) -> Iterator[tuple[int, int]]:
    """The shots of the range, because nothing may be smoothed across a cut."""
    for first, stop in driven.store.shots:
        first, stop = max(first, driven.start), min(stop, driven.stop)
        if first < stop:
            yield first, stop


def _person_visible(points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[frames] True where any point is visible."""
    with np.errstate(invalid="ignore"):
        return np.asarray((points[:, :, 2] >= MIN_SCORE).any(axis=1))


def _missing_note(driven: Source, moved: NDArray[np.float32]) -> list[str]:
    missing = ~_person_visible(moved)
    if not missing.any():
        return []
    return [
        f"no person found in {int(missing.sum())} of {len(driven)} frames: only the background is"
        " rendered there"
    ]


def _other_people_note(driven: Source) -> list[str]:
    """A note if preprocessing found other people in the range; it says which person is tracked."""
    found = driven.store.record.signals[SIGNAL].measured.get("other_people", [])
    frames = [n for n in found if isinstance(n, int) and driven.start <= n < driven.stop]
    if not frames:
        return []
    index = frames[0]
    body = cast(PoseTrack, driven.store.track(SIGNAL, index, index + 1)).points[0]
    body = body[body[:, 2] >= MIN_SCORE]
    if not len(body):
        return []
    x = float(np.median(body[:, 0])) / driven.size[1]
    side = ("on the left", "in the middle", "on the right")[int(x > 0.4) + int(x > 0.6)]
    return [
        f"several people are in view (at {driven.seconds(index):.1f} s): the one {side} is tracked,"
        f" as shown in {driven.store.folder / 'preview.mp4'}; v2v preprocess --crop person excludes"
        " the others"
    ]
