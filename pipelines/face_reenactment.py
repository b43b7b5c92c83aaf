"""Face re-enactment: one face driven by another (Deep Video Portraits, arXiv 1805.11714).

>>> reenact = FaceReenactment.from_pretrained("runs/talk")
>>> frames = reenact("other.mp4", strengths={"rotation": 0.5})
>>> frames.save("out.mp4")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from v2v.data.store import ClipStore
from v2v.errors import NothingFound, UnknownName, UsageError
from v2v.homography import Matrices
from v2v.pipelines.camera_path import camera_path, check_camera_path, filmed, steadied, still_views
from v2v.pipelines.model import LoadedModel
from v2v.pipelines.rendering.frames import ConditioningSource
from v2v.pipelines.rendering.rendering import Rendering
from v2v.pipelines.retarget.face import FaceTransfer, Strengths
from v2v.pipelines.retarget.face_profile import MEASURES, FaceProfile, measures
from v2v.pipelines.retarget.face_range import out_of_distribution
from v2v.pipelines.segments import format_segments
from v2v.pipelines.source import Source, check_finite, open_source
from v2v.progress import Reporter, Silent, with_progress
from v2v.signals import Track
from v2v.signals.face import FaceTrack

__all__ = ["FaceReenactment", "Strengths"]

SIGNAL = "face"
CHUNK = 512  # frames of the mesh in memory
MARGIN = 0.04  # fraction of the frame's side by which the head may leave the trained area
PERCENTILE = 98  # percentile of the head's offset that must stay inside


@dataclass(frozen=True)
class FaceReenactment:
    """Renders the face that a model was trained on, driven by another."""

    trained: LoadedModel

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str = "auto") -> FaceReenactment:
        """Raises `CheckpointInvalid`, and `UsageError` for a model of another signal."""
        trained = LoadedModel.open(path, device=device)
        trained.expect(SIGNAL, "re-enactment")
        return cls(trained)

    def target(self, clip: int = 0) -> FaceProfile:
        """The profile of the face in one training clip, from the model's stored points."""
        use = self.trained.model.record.clips[clip]
        points, depth = (self.trained.remembered(clip, SIGNAL, n) for n in ("points", "depth"))
        return FaceProfile.remembered(points, depth, use.width, use.height)

    @with_progress
    def __call__(
        self,
        source: str | Path | ClipStore,
        *,
        start: float | None = None,
        end: float | None = None,
        absolute: bool = False,
        strengths: Strengths | Mapping[str, float] | None = None,
        parts: Mapping[str, float] | None = None,
        neutral: float | None = None,
        stay: bool = True,
        clip: str | None = None,
        camera: str = "still",
        report: Reporter | None = None,
    ) -> Rendering:
        """The model's face, driven by the one in `source`.

        Args:
            source: footage or a clip store.
            start, end: the range to render, in seconds.
            absolute: use the driver's head rotation, position and size as they are; by default
                motion is relative to a neutral frame, found in each clip.
            strengths: the strength of each kind of motion, 0 to 2: rotation, translation, scale,
                expression, gaze, blink; those that are not given are 1.
            parts: scale of parts of the face, of `PARTS`: {"face": 0.9} is a slimmer face.
            neutral: time of the driver's neutral frame in seconds of the source; by default it is
                found automatically.
            stay: reduce the translation if the head would leave the area of the frame that
                training covered.
            clip: training clip that sets the appearance.
            camera: of `CAMERA_PATHS`: the camera path.

        Raises what `open_source` raises; `ConfigError`, `UnknownName` for strengths and parts.
        """
        report, strengths = report or Silent(), _strengths(strengths)
        number = self.trained.clip_number(clip)
        appearance = self.trained.appearance(number)
        target = self.target(number)
        check_camera_path(self.trained, number, camera)
        wanted = [SIGNAL, "camera"] if camera == "source" else [SIGNAL]
        driven = open_source(source, wanted, start=start, end=end, report=report)
        path = camera_path(self.trained, number, driven, camera)
        views = still_views(driven)
        driver = FaceProfile.measure(
            lambda: _meshes(driven.store, 0, len(driven.store), views),
            neutral=self._neutral(driven, target, number, neutral),
        )
        rate = float(driven.rate)
        notes = [f"neutral: {driven.seconds(driver.neutral):.2f} s of {driven.name}"]
        motion = _Motion(
            driven, FaceTransfer(driver, target, strengths, absolute=absolute, parts=parts), views
        )
        if stay and not absolute and (factor := motion.within(target)) < 1:
            notes.append(
                "the head would leave the area of the frame that training covered: its"
                f" translation is reduced to {factor:.0%}"
            )
            strengths = replace(strengths, translation=factor * strengths.translation)
            motion = _Motion(
                driven,
                FaceTransfer(driver, target, strengths, absolute=absolute, parts=parts),
                views,
            )
        notes += motion.gaps()
        notes += path.notes
        beyond = out_of_distribution(motion.pieces, target, rate)
        notes += format_segments(beyond, lambda frame: driven.seconds(driven.start + frame))
        placement = self.trained.placement(number)

        def tracks(first: int, stop: int) -> Sequence[Track]:
            return [path.track(placement.track(motion(first, stop)), first)]

        conditioning = ConditioningSource(
            pipeline="face re-enactment", count=len(driven), rate=driven.rate, tracks=tracks,
            settings={
                "start": driven.start, "neutral": driver.neutral, "absolute": absolute,
                "strengths": asdict(strengths), "parts": dict(parts or {}), "clip": number,
                "camera": camera,
                "signal": driven.store.record.signals[SIGNAL].model_dump(mode="json"),
                **filmed(driven),
            },
            source=driven.name, source_sha256=driven.sha256, pictures=driven.pictures,
            sound=driven.sound, notes=tuple(notes), behind=path.behind,
        )  # fmt: skip
        return Rendering(self.trained, conditioning, appearance)

    def _neutral(
        self, driven: Source, target: FaceProfile, clip: int, seconds: float | None
    ) -> int | None:
        """The driver's neutral frame if it is given or known from training, else None."""
        if seconds is not None:
            check_finite("--neutral", seconds)
            frame, count = driven.frame(seconds), len(driven.store)
            if not 0 <= frame < count:
                raise UsageError(
                    f"--neutral {seconds:g} is outside the extracted range of {driven.name}",
                    hint=f"give {driven.seconds(0):.2f} s to {driven.seconds(count):.2f} s, or"
                    " widen the range with --start and --end",
                )
            return frame
        frames = self.trained.remembered_frames(clip, driven.store)
        if frames is None:
            return None
        # The training clip itself: using the same neutral frame reproduces the clip.
        frame = int(frames[target.neutral])
        present = driven.store.track(SIGNAL, frame, frame + 1).present()[0]
        return frame if present else None


def _strengths(given: Strengths | Mapping[str, float] | None) -> Strengths:
    """Raises `UnknownName`, `ConfigError`."""
    if isinstance(given, Strengths):
        return given
    known = [field.name for field in fields(Strengths)]
    for name in given or {}:
        if name not in known:
            raise UnknownName.among("kind of motion", name, known)
    return Strengths(**(given or {}))


@dataclass(frozen=True)
class _Motion:
    """The target's face driven by a source; each frame depends only on itself."""

    driven: Source
    transfer: FaceTransfer
    views: Matrices | None  # to a still camera

    def __call__(self, first: int, stop: int) -> FaceTrack:
        frames = self._last_seen[first:stop]
        return self.transfer.apply(
            cast(FaceTrack, steadied(_at(self.driven, frames), self.views, frames))
        )

    def pieces(self) -> Iterator[FaceTrack]:
        for first in range(0, len(self.driven), CHUNK):
            yield self(first, min(first + CHUNK, len(self.driven)))

    @cached_property
    def _last_seen(self) -> NDArray[np.int64]:
        """[frames] the store's frame shown in each frame: the last one with a face."""
        return _last_seen(self.driven)

    def gaps(self) -> list[str]:
        lost = int((self._last_seen != np.arange(self.driven.start, self.driven.stop)).sum())
        if not lost:
            return []
        return [f"no face in {lost} of {len(self.driven)} frames: the previous face is held"]

    def within(self, target: FaceProfile) -> float:
        """The factor for the translation that keeps the head inside the trained area."""
        numbers = np.concatenate([measures(piece) for piece in self.pieces()])
        factor = 1.0
        for axis, (name, side) in enumerate((("x", target.width), ("y", target.height))):
            offsets = numbers[:, MEASURES.index(name)] - target.centre[axis]
            low, high = np.nanpercentile(offsets, (100 - PERCENTILE, PERCENTILE))
            least, most = (limit - target.centre[axis] for limit in target.ranges[name])
            margin = MARGIN * side
            for offset, space in ((-low, margin - least), (high, margin + most)):
                if offset > space:
                    factor = min(factor, max(float(space / offset), 0.0))
        return factor


def _meshes(
    store: ClipStore, start: int, stop: int, views: Matrices | None = None
) -> Iterator[FaceTrack]:
    for first in range(start, stop, CHUNK):
        end = min(first + CHUNK, stop)
        yield cast(FaceTrack, steadied(store.track(SIGNAL, first, end), views, slice(first, end)))


def _last_seen(driven: Source) -> NDArray[np.int64]:
    """[frames] the store's frame shown in each frame: the last one with a face.

    Raises `NothingFound` if no frame has a face.
    """
    seen = np.concatenate(
        [track.present() for track in _meshes(driven.store, driven.start, driven.stop)]
    )
    if not seen.any():
        raise NothingFound(
            f"no face in {driven.name} between {driven.seconds(driven.start):.2f} s and"
            f" {driven.seconds(driven.stop):.2f} s",
            hint="choose another range with --start and --end; v2v doctor reports where faces are",
        )
    newest = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), -1))
    newest[newest < 0] = np.flatnonzero(seen)[0]  # before the first face, hold that one
    return newest + driven.start


def _at(driven: Source, frames: NDArray[np.int64]) -> FaceTrack:
    """The faces of frames in ascending order; a frame may occur more than once."""
    first = int(frames[0])
    track = cast(FaceTrack, driven.store.track(SIGNAL, first, int(frames[-1]) + 1))
    return track[frames - first]  # type: ignore[index]
