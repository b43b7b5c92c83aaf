"""The footage report: findings, the verdicts derived from them, and advice.

`v2v.preprocess.doctor` measures the findings. Shares are fractions of the sampled frames, in
[0, 1]; left and right are in image coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

Range = tuple[float, float]
Level = Literal["good", "usable", "poor"]
Reasons = list[tuple[Level, str]]


@dataclass(frozen=True)
class Facts:
    """Facts from the container; for a store, about its frames and their source."""

    path: str
    kind: Literal["video", "images", "store"]
    duration: float  # seconds
    fps: float
    frames: int
    width: int  # upright pixels
    height: int
    variable_rate: bool
    rotation: int  # degrees clockwise in the metadata; width and height are already upright
    audio: str | None
    hdr: bool
    lost: int  # frames that cannot be decoded
    notes: tuple[str, ...] = ()  # repairs and assumptions made when reading the file


@dataclass(frozen=True)
class CameraFindings:
    state: Literal["still", "moving", "unclear"]  # unclear: too little background
    moving: float  # share of samples in which the background moves
    speed: float  # median shift of the background, in longer sides per second
    # For a store with the `camera` signal: the share of frames in which the camera was tracked,
    # and whether one image, moved with the camera, explains the background.
    followed: float | None = None
    explained: bool | None = None


@dataclass(frozen=True)
class PersonFindings:
    """The main person."""

    seen: float  # share with any body keypoints
    whole: float  # share with shoulders, hips, knees and ankles in view
    feet_cut: float  # of the frames with a body: feet below the frame's edge
    feet_hidden: float  # feet inside the frame, but occluded or unclear
    hands_cut: float  # a hand beyond the left or right edge
    others: float  # share with other people in view
    height: float  # median, fraction of the frame's height
    height_px: int  # the same in source pixels
    coverage: float  # share of the bins of arm, leg and facing directions that occur
    # Degrees of the upper arms from hanging (0) to straight up (180); None: no torso in view.
    arms: Range | None
    legs: Range | None  # degrees of the thighs from the vertical
    missing: tuple[str, ...]  # descriptions of poses that never occur


@dataclass(frozen=True)
class FaceFindings:
    seen: float
    width_px: int  # median, in source pixels
    yaw: Range  # degrees, positive to the right; 2nd to 98th percentile as all ranges here
    pitch: Range  # degrees, positive down
    mouth: Range  # 0 closed to about 1
    eyes: Range  # 0 closed to about 0.35


@dataclass(frozen=True)
class Suitability:
    task: str
    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FootageReport:
    facts: Facts
    sampled: int  # number of sampled frames
    blurred: float  # share of the sampled frames
    cuts: tuple[float, ...]  # seconds at which a new shot begins
    activity: float  # mean change of grey levels (of 255) from frame to frame, at 32x18
    camera: CameraFindings
    person: PersonFindings | None
    face: FaceFindings | None
    verdicts: tuple[Suitability, ...] = ()
    advice: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def render(self, console: Console) -> None:
        """Print the findings, the verdicts and the advice."""
        from rich.markup import escape
        from rich.table import Table

        console.print(f"[bold]{escape(self.facts.path)}[/bold]", highlight=False, soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in self._lines():
            table.add_row(name, escape(text))
        console.print(table, highlight=False)
        console.print("[bold]good for[/bold]")
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for verdict in self.verdicts:
            colour = {"good": "green", "usable": "yellow", "poor": "red"}[verdict.level]
            level = f"[bold {colour}]{verdict.level}[/]"
            table.add_row(verdict.task, level, escape("; ".join(verdict.reasons)))
        console.print(table, highlight=False)
        if self.advice:
            console.print("[bold]what to do[/bold]")
            table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
            for sentence in self.advice:
                table.add_row("-", escape(sentence))
            console.print(table, highlight=False)

    def _lines(self) -> Iterator[tuple[str, str]]:
        f = self.facts
        extras = [
            "variable rate" if f.variable_rate else "",
            f"rotated by {f.rotation} degrees" if f.rotation else "",
            "HDR" if f.hdr else "",
            f"{f.lost} damaged frames" if f.lost else "",
            f"sound: {f.audio}" if f.audio else "no sound",
        ]
        size = f"{f.width}x{f.height}, {f.fps:.4g} fps, {f.frames} frames, {f.duration:.1f} s"
        yield f.kind, ", ".join([size, *filter(None, extras)])
        cuts = ", ".join(f"{t:.2f} s" for t in self.cuts[:6]) + (" ..." * (len(self.cuts) > 6))
        yield "shots", f"{len(self.cuts) + 1}" + (f" (cuts at {cuts})" if self.cuts else "")
        c = self.camera
        detail = f", in {c.moving:.0%} of the samples" if c.state == "moving" else ""
        if c.followed is not None:
            how = "explained by one image" if c.explained else "not explained by one image"
            detail += f"; tracked in {c.followed:.0%} of the frames, background {how}"
        yield (
            "camera",
            "unclear, too little background detail to tell"
            if c.state == "unclear"
            else (c.state + detail),
        )
        yield "sharpness", f"{self.blurred:.0%} of {self.sampled} sampled frames blurred"
        if p := self.person:
            yield (
                "person",
                f"in {p.seen:.0%} of the frames, whole body in {p.whole:.0%},"
                f" {p.height:.0%} of the frame's height ({p.height_px} pixels)",
            )
            yield "others", f"found in {p.others:.0%} of the frames" if p.others else "nobody else"
            if p.arms and p.legs:
                arms, legs = (f"{low:.0f} to {high:.0f}" for low, high in (p.arms, p.legs))
                yield (
                    "poses",
                    f"{p.coverage:.0%} of the pose space; upper arms {arms} degrees from"
                    f" hanging, thighs {legs} from the vertical",
                )
                yield "missing", ", ".join(p.missing) or "none: all directions were seen"
            else:
                yield "poses", "the torso is not in view"
        else:
            yield "person", "nobody found"
        if a := self.face:
            yield "face", f"in {a.seen:.0%} of the frames, {a.width_px} pixels wide"
            yield (
                "head",
                f"yaw {a.yaw[0]:+.0f} to {a.yaw[1]:+.0f}, pitch {a.pitch[0]:+.0f} to"
                f" {a.pitch[1]:+.0f} degrees; mouth {a.mouth[0]:.2f} to {a.mouth[1]:.2f},"
                f" eyes {a.eyes[0]:.2f} to {a.eyes[1]:.2f} open",
            )
        else:
            yield "face", "none found"


def rate_suitability(report: FootageReport) -> FootageReport:
    """Add the verdicts and advice that follow from the measurements."""

    tasks = {
        "pose motion transfer": _for_pose(report),
        "face re-enactment": _for_face(report),
        "frame prediction": _for_prediction(report),
    }
    verdicts = []
    for task, reasons in tasks.items():
        levels = [level for level, _ in reasons]
        level: Level = "poor" if "poor" in levels else "usable" if "usable" in levels else "good"
        decisive = [text for kind, text in reasons if kind == level]
        verdicts.append(Suitability(task, level, tuple(decisive)))
    return replace(report, verdicts=tuple(verdicts), advice=tuple(_advice(report)))


def _grade(value: float, usable: float, good: float) -> Level:
    """The level of `value`; `good` and `usable` are the minimum values of these levels."""
    return "good" if value >= good else "usable" if value >= usable else "poor"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _common(report: FootageReport) -> Reasons:
    facts = report.facts
    reasons: Reasons = [
        (_grade(facts.duration, 5, 60), f"{_seconds(facts.duration)} long"),
    ]
    if report.blurred > 0.2:
        text = f"{report.blurred:.0%} of the frames blurred"
        reasons.append((_grade(1 - report.blurred, 0.4, 0.8), text))
    if facts.fps < 15:
        reasons.append(("usable", f"only {facts.fps:.3g} frames per second"))
    if facts.lost:
        intact = 1 - facts.lost / facts.frames
        reasons.append((_grade(intact, 0.8, 0.99), f"{facts.lost} frames are damaged"))
    return reasons


def _for_pose(report: FootageReport) -> Reasons:
    person = report.person
    if person is None or person.seen < 0.1:
        return [("poor", "nobody in view" if person is None else "a person in almost no frame")]
    reasons: Reasons = [
        (_grade(person.seen, 0.5, 0.9), f"a person in {person.seen:.0%} of the frames"),
        (_grade(person.whole, 0.3, 0.8), f"whole body in {person.whole:.0%}"),
        (_grade(person.height_px, 150, 400), f"the person is {person.height_px} pixels tall"),
    ]
    if person.arms:
        text = f"{person.coverage:.0%} of the pose space"
        reasons.append((_grade(person.coverage, 0.2, 0.4), text))
    if report.camera.state == "moving":
        fine = report.camera.explained
        reasons.append(
            ("good", "the camera moves and is tracked") if fine else ("usable", "the camera moves")
        )
    if person.others > 0.2:
        reasons.append(("usable", f"other people in {person.others:.0%} of the frames"))
    return reasons + _common(report)


def _for_face(report: FootageReport) -> Reasons:
    face = report.face
    if face is None or face.seen < 0.1:
        return [("poor", _NO_FACE if face is None else "a face in almost no frame")]
    turns = max(np.ptp(face.yaw), np.ptp(face.pitch))
    return [
        (_grade(face.seen, 0.5, 0.95), f"a face in {face.seen:.0%} of the frames"),
        (_grade(face.width_px, 64, 160), f"the face is {face.width_px} pixels wide"),
        (_grade(float(np.ptp(face.mouth)), 0.05, 0.2), _opens(face)),
        (_grade(turns, 0, 15), f"the head turns by {turns:.0f} degrees"),
        (
            _grade(report.camera.state != "moving" or bool(report.camera.explained), 0, 1),
            f"camera {report.camera.state}",
        ),
        *_common(report),
    ]


_NO_FACE = "no face found: too small, turned away or absent"


def _opens(face: FaceFindings) -> str:
    return f"mouth {face.mouth[0]:.2f} to {face.mouth[1]:.2f} open"


def _for_prediction(report: FootageReport) -> Reasons:
    facts = report.facts
    longest = round(max(np.diff([0.0, *report.cuts, facts.duration])) * facts.fps)
    reasons: Reasons = [(_grade(facts.frames, 60, 600), f"{facts.frames} frames")]
    if report.cuts:
        reasons.append((_grade(longest, 16, 60), f"the longest shot has {longest} frames"))
    if report.activity < 0.1:
        reasons.append((_grade(report.activity, 0.02, 0.1), "almost nothing moves"))
    return reasons + _common(report)[1:]  # length is rated in frames instead


def _advice_on_camera(camera: CameraFindings) -> Iterator[str]:
    if camera.followed is None:
        yield (
            f"the camera moves in {camera.moving:.0%} of the samples: add --signal camera to track"
            " it (v2v run does), which keeps the background sharp; a tripod is even better"
        )
    elif camera.followed < 0.9:
        yield (
            f"the camera was tracked in only {camera.followed:.0%} of the frames: pan more slowly,"
            " and keep more of the background in view"
        )
    elif not camera.explained:
        yield (
            "no single image explains the background: other things move in it, or the camera"
            " travels past several depths; stand still and only turn the camera, or film in front"
            " of a wall"
        )


def _advice(report: FootageReport) -> Iterator[str]:
    facts, person, face = report.facts, report.person, report.face
    fills_face = face is not None and (person is None or person.arms is None)
    if person is None and face is None:
        yield (
            "nobody was found: use --signal segmentation,flow (label maps, frame prediction), or"
            " film a person at least a tenth of the frame high"
        )
    if facts.duration < 60:
        yield (
            f"3 minutes are better than {_seconds(facts.duration)}: a model learns only from what"
            " it sees; you can train on several clips of the same scene together"
        )
    if report.cuts:
        cuts = "1 cut" if len(report.cuts) == 1 else f"{len(report.cuts)} cuts"
        yield f"the footage has {cuts}; fine, no training window crosses a cut"
    if facts.variable_rate:
        yield f"the frame rate varies; preprocessing resamples it to {facts.fps:.4g} fps"
    yield from facts.notes
    if facts.lost:
        yield (
            f"{facts.lost} frames cannot be decoded and repeat the previous one; export the"
            " file again"
        )
    if report.camera.state == "moving" and (person or face):
        yield from _advice_on_camera(report.camera)
    if report.blurred > 0.2:
        yield (
            f"{report.blurred:.0%} of the frames are blurred: use more light, a shutter time of"
            " 1/250 s and a locked focus"
        )
    if person and not fills_face:
        yield from _advice_on_person(report, person)
    if face and fills_face:
        yield from _advice_on_face(face)


def _advice_on_person(report: FootageReport, person: PersonFindings) -> Iterator[str]:
    facts = report.facts
    if person.others > 0.2:
        yield (
            f"other people are in view in {person.others:.0%} of the frames, and only the tallest"
            " near the middle is tracked: film alone, or use --crop person"
        )
    if person.height < 0.55:
        yield (
            f"use --crop person: the person is only {person.height:.0%} of the frame's height"
            + (", or step closer" if person.height_px < 400 else "")
        )
    if person.feet_cut > 0.1:
        yield f"stand back: the feet are cut off in {person.feet_cut:.0%} of the frames"
    if person.feet_hidden > 0.1:
        yield f"the feet are occluded or unclear in {person.feet_hidden:.0%} of the frames"
    if person.hands_cut > 0.1:
        how = "film in landscape, or stand back" if facts.width < facts.height else "stand back"
        yield f"{how}: a hand leaves the frame in {person.hands_cut:.0%} of the frames"
    if person.missing:
        missing = ", ".join(person.missing)
        yield f"never seen: {missing}; the footage should show the poses of the source video"


def _advice_on_face(face: FaceFindings) -> Iterator[str]:
    if face.width_px < 160:
        yield f"use --crop face and film closer: the face is {face.width_px} pixels wide"
    for name, (low, high), ways in (
        ("turn", face.yaw, ("left", "right")),
        ("nod", face.pitch, ("up", "down")),
    ):
        lacking = [way for way, value in zip(ways, (-low, high), strict=True) if value < 10]
        if lacking:
            yield f"{name} the head further {' and '.join(lacking)}, by 20 degrees or more"
    if np.ptp(face.mouth) < 0.2:
        yield "open the mouth wide sometimes: speak, smile, say ah"
    if face.eyes[0] > 0.15:
        yield "blink, and close the eyes sometimes: closed eyes are almost never seen"
