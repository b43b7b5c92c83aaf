"""What footage is good for: the findings, the verdicts that follow from them, and what to do.

`v2v.preprocess.doctor` measures; nothing here looks at a picture. Shares are of the sampled
frames, in [0, 1]; left and right are the picture's.
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
    """What the container says; for a store, of the frames it holds and the source they are from."""

    path: str
    kind: Literal["video", "images", "store"]
    duration: float  # seconds
    fps: float
    frames: int
    width: int  # upright pixels
    height: int
    variable_rate: bool
    rotation: int  # degrees clockwise in the metadata, already undone in width and height
    audio: str | None
    hdr: bool
    lost: int  # frames that cannot be decoded
    notes: tuple[str, ...] = ()  # what was repaired or decided in reading it


@dataclass(frozen=True)
class CameraFindings:
    state: Literal["still", "moving", "unclear"]  # unclear: too little of a background
    moving: float  # share of the samples in which the background moves
    speed: float  # median shift of the background, in widths (longer sides) a second
    # Of a store with the `camera` signal: the share of frames in which it was followed, and
    # whether one picture, moved with the camera, explains the background.
    followed: float | None = None
    explained: bool | None = None


@dataclass(frozen=True)
class PersonFindings:
    """The main person."""

    seen: float  # share with any of the body
    whole: float  # share with shoulders, hips, knees and ankles in view
    feet_cut: float  # of the frames with a body: feet below the picture's edge
    feet_hidden: float  # feet inside the picture, but covered or unclear
    hands_cut: float  # a hand beyond the left or right edge
    others: float  # share with other people in view
    height: float  # median, share of the picture's height
    height_px: int  # the same in the footage's own pixels
    coverage: float  # share of the bins of arm, leg and facing directions that were visited
    # Degrees of the upper arms from hanging (0) to straight up (180); None: no torso in view.
    arms: Range | None
    legs: Range | None  # degrees of the thighs from the vertical
    missing: tuple[str, ...]  # what was never seen, in words


@dataclass(frozen=True)
class FaceFindings:
    seen: float
    width_px: int  # median, in the footage's own pixels
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
    sampled: int  # frames looked at closely
    blurred: float  # share of them
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
        """Print what is in the footage, the verdicts and the advice."""
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
            f"turned by {f.rotation} degrees" if f.rotation else "",
            "HDR" if f.hdr else "",
            f"{f.lost} frames broken" if f.lost else "",
            f"sound: {f.audio}" if f.audio else "no sound",
        ]
        size = f"{f.width}x{f.height}, {f.fps:.4g} fps, {f.frames} frames, {f.duration:.1f} s"
        yield f.kind, ", ".join([size, *filter(None, extras)])
        cuts = ", ".join(f"{t:.2f} s" for t in self.cuts[:6]) + (" ..." * (len(self.cuts) > 6))
        yield "shots", f"{len(self.cuts) + 1}" + (f" (cuts at {cuts})" if self.cuts else "")
        c = self.camera
        detail = f", in {c.moving:.0%} of the samples" if c.state == "moving" else ""
        if c.followed is not None:
            how = "explained" if c.explained else "not explained by one picture"
            detail += f"; followed in {c.followed:.0%} of the frames, background {how}"
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
                f" {p.height:.0%} of the picture's height ({p.height_px} pixels)",
            )
            yield "others", f"found in {p.others:.0%} of the frames" if p.others else "nobody else"
            if p.arms and p.legs:
                arms, legs = (f"{low:.0f} to {high:.0f}" for low, high in (p.arms, p.legs))
                yield (
                    "poses",
                    f"{p.coverage:.0%} of the space of poses; upper arms {arms} degrees from"
                    f" hanging, thighs {legs} from the vertical",
                )
                yield "never", ", ".join(p.missing) or "all directions were seen"
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


def rate_suitability(seen: FootageReport) -> FootageReport:
    """The report with its verdicts and advice, which follow from what was measured."""

    tasks = {
        "pose motion transfer": _for_pose(seen),
        "face re-enactment": _for_face(seen),
        "frame prediction": _for_prediction(seen),
    }
    verdicts = []
    for task, reasons in tasks.items():
        levels = [level for level, _ in reasons]
        level: Level = "poor" if "poor" in levels else "usable" if "usable" in levels else "good"
        telling = [text for kind, text in reasons if kind == level]
        verdicts.append(Suitability(task, level, tuple(telling)))
    return replace(seen, verdicts=tuple(verdicts), advice=tuple(_advice(seen)))


def _grade(value: float, usable: float, good: float) -> Level:
    """`good` and `usable` are the least values for it."""
    return "good" if value >= good else "usable" if value >= usable else "poor"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def _common(seen: FootageReport) -> Reasons:
    facts = seen.facts
    reasons: Reasons = [
        (_grade(facts.duration, 5, 60), f"{_seconds(facts.duration)} long"),
    ]
    if seen.blurred > 0.2:
        text = f"{seen.blurred:.0%} of the frames blurred"
        reasons.append((_grade(1 - seen.blurred, 0.4, 0.8), text))
    if facts.fps < 15:
        reasons.append(("usable", f"only {facts.fps:.3g} frames a second"))
    if facts.lost:
        sound = 1 - facts.lost / facts.frames
        reasons.append((_grade(sound, 0.8, 0.99), f"{facts.lost} frames are broken"))
    return reasons


def _for_pose(seen: FootageReport) -> Reasons:
    person = seen.person
    if person is None or person.seen < 0.1:
        return [("poor", "nobody in view" if person is None else "hardly anybody in view")]
    reasons: Reasons = [
        (_grade(person.seen, 0.5, 0.9), f"a person in {person.seen:.0%} of the frames"),
        (_grade(person.whole, 0.3, 0.8), f"whole body in {person.whole:.0%}"),
        (_grade(person.height_px, 150, 400), f"the person is {person.height_px} pixels high"),
    ]
    if person.arms:
        text = f"{person.coverage:.0%} of the space of poses"
        reasons.append((_grade(person.coverage, 0.2, 0.4), text))
    if seen.camera.state == "moving":
        fine = seen.camera.explained
        reasons.append(
            ("good", "the camera moves and is followed") if fine else ("usable", "the camera moves")
        )
    if person.others > 0.2:
        reasons.append(("usable", f"other people in {person.others:.0%} of the frames"))
    return reasons + _common(seen)


def _for_face(seen: FootageReport) -> Reasons:
    face = seen.face
    if face is None or face.seen < 0.1:
        return [("poor", _NO_FACE if face is None else "hardly any face found")]
    turns = max(np.ptp(face.yaw), np.ptp(face.pitch))
    return [
        (_grade(face.seen, 0.5, 0.95), f"a face in {face.seen:.0%} of the frames"),
        (_grade(face.width_px, 64, 160), f"the face is {face.width_px} pixels wide"),
        (_grade(float(np.ptp(face.mouth)), 0.05, 0.2), _opens(face)),
        (_grade(turns, 0, 15), f"the head turns by {turns:.0f} degrees"),
        (
            _grade(seen.camera.state != "moving" or bool(seen.camera.explained), 0, 1),
            f"camera {seen.camera.state}",
        ),
        *_common(seen),
    ]


_NO_FACE = "no face found: too small, turned away or not there"


def _opens(face: FaceFindings) -> str:
    return f"mouth {face.mouth[0]:.2f} to {face.mouth[1]:.2f} open"


def _for_prediction(seen: FootageReport) -> Reasons:
    facts = seen.facts
    longest = round(max(np.diff([0.0, *seen.cuts, facts.duration])) * facts.fps)
    reasons: Reasons = [(_grade(facts.frames, 60, 600), f"{facts.frames} frames")]
    if seen.cuts:
        reasons.append((_grade(longest, 16, 60), f"the longest shot has {longest} frames"))
    if seen.activity < 0.1:
        reasons.append((_grade(seen.activity, 0.02, 0.1), "almost nothing moves"))
    return reasons + _common(seen)[1:]  # its length is judged by frames


def _advice_on_camera(camera: CameraFindings) -> Iterator[str]:
    if camera.followed is None:
        yield (
            f"the camera moves in {camera.moving:.0%} of the samples: have it followed, with"
            " --signal camera beside the others (v2v run does), and the background stays sharp;"
            " a tripod is better still"
        )
    elif camera.followed < 0.9:
        yield (
            f"the camera could be followed in {camera.followed:.0%} of the frames only: pan more"
            " slowly, and keep more of the background in view"
        )
    elif not camera.explained:
        yield (
            "no single picture explains the background: others move in it, or it lies at several"
            " depths and the camera travels; stand still and only turn the camera, or film before"
            " a wall"
        )


def _advice(seen: FootageReport) -> Iterator[str]:
    facts, person, face = seen.facts, seen.person, seen.face
    fills_face = face is not None and (person is None or person.arms is None)
    if person is None and face is None:
        yield (
            "nobody was found: use --signal segmentation,flow (label maps, frame prediction), or"
            " film a person at least a tenth of the picture high"
        )
    if facts.duration < 60:
        yield (
            f"3 minutes are better than {_seconds(facts.duration)}: a model learns only what it was"
            " shown; several clips of the same scene can be trained on together"
        )
    if seen.cuts:
        cuts = "1 cut" if len(seen.cuts) == 1 else f"{len(seen.cuts)} cuts"
        yield f"the footage has {cuts}; fine, training will not cross them"
    if facts.variable_rate:
        yield f"the frame rate varies; preprocessing lays the frames on {facts.fps:.4g} fps"
    yield from facts.notes
    if facts.lost:
        yield f"{facts.lost} frames cannot be decoded and are held over; export the file again"
    if seen.camera.state == "moving" and (person or face):
        yield from _advice_on_camera(seen.camera)
    if seen.blurred > 0.2:
        yield (
            f"{seen.blurred:.0%} of the frames are blurred: use more light, a shutter of 1/250 s"
            " and a locked focus"
        )
    if person and not fills_face:
        yield from _advice_on_person(seen, person)
    if face and fills_face:
        yield from _advice_on_face(face)


def _advice_on_person(seen: FootageReport, person: PersonFindings) -> Iterator[str]:
    facts = seen.facts
    if person.others > 0.2:
        yield (
            f"other people are in view in {person.others:.0%} of the frames; the tallest near the"
            " middle is followed: film alone, or use --crop person"
        )
    if person.height < 0.55:
        yield (
            f"use --crop person: the person is only {person.height:.0%} of the picture's height"
            + (", or step closer" if person.height_px < 400 else "")
        )
    if person.feet_cut > 0.1:
        yield f"stand back: the feet are cut off in {person.feet_cut:.0%} of the frames"
    if person.feet_hidden > 0.1:
        yield f"the feet are covered or unclear in {person.feet_hidden:.0%} of the frames"
    if person.hands_cut > 0.1:
        how = "film in landscape, or stand back" if facts.width < facts.height else "stand back"
        yield f"{how}: a hand leaves the picture in {person.hands_cut:.0%} of the frames"
    if person.missing:
        never = ", ".join(person.missing)
        yield f"never seen: {never}; the footage should show what the source will do"


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
        yield "open the mouth wide now and then: speak, smile, say ah"
    if face.eyes[0] > 0.15:
        yield "blink, and close the eyes now and then: closed eyes were hardly seen"
