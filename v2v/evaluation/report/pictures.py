"""Pictures and the video of a report, as data URIs."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from v2v.evaluation.methods import REAL
from v2v.evaluation.metrics import all_metrics
from v2v.evaluation.rendered import REAL_FRAMES
from v2v.evaluation.results import Evaluation
from v2v.images import Picture
from v2v.video.stored import read_range, read_stored
from v2v.video.write import VideoWriter

TALLEST = 256  # maximum shorter side of shown frames in pixels
SECONDS = 20.0  # maximum length of the video
MOMENTS = 6  # frames of the contact sheet


@dataclass(frozen=True)
class Embedded:
    """A picture or video inside the page."""

    source: str  # data URI
    text: str  # caption


def video(found: Evaluation, rendered: Mapping[str, Path]) -> Embedded:
    """The real and the rendered video side by side."""
    clip = found.clips[0]
    count = min(len(clip.order), max(round(SECONDS * float(clip.store.rate)), 1))
    pairs = zip(read_stored(rendered[REAL_FRAMES]), read_stored(rendered[found.name]), strict=True)

    def panels() -> Iterator[Picture]:
        for real, ours in islice(pairs, count):
            whole = np.hstack(
                [_captioned(_shown(real), REAL), _captioned(_shown(ours), found.name)]
            )
            yield whole[: whole.shape[0] // 2 * 2, : whole.shape[1] // 2 * 2]  # even, for H.264

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "panels.mp4"
        _write_video(path, panels(), clip.store.rate)
        source = _data_uri("video/mp4", path.read_bytes())
    text = f"real and {found.name}, the first {count / float(clip.store.rate):.1f} s"
    if count > clip.count:
        text += (
            f"; after {clip.count / float(clip.store.rate):.1f} s the same frames back and forth,"
            " rendered without a restart"
        )
    return Embedded(source, text)


def contact_sheet(found: Evaluation, rendered: Mapping[str, Path]) -> Embedded:
    """One row per method, one column per frame."""
    clip = found.clips[0]
    moments = np.unique(np.linspace(0, clip.count - 1, MOMENTS).round().astype(int))
    lines = []
    for name in [REAL_FRAMES, *(method.name for method in found.methods if method.name != REAL)]:
        cells = []
        for t in moments:
            picture = _frame(rendered[name], int(t))
            if picture is None:
                picture = np.zeros((*clip.placement.size, 3), np.uint8)
            cells.append(_captioned(_shown(picture), f"{name or REAL}  {clip.order[t]}"))
        lines.append(np.hstack(cells))
    return _jpeg(np.vstack(lines), f"{clip.name}: evenly spread frames of each method")


def extremes(found: Evaluation, rendered: Mapping[str, Path]) -> Embedded | None:
    """The model's best, typical and worst frame below the real ones; None without scores."""
    clip, scores = found.clips[0], found.frame_scores[0][found.name]
    name = next((n for n in ("lpips", "ssim", "psnr") if n in scores), None)
    if name is None:
        return None
    metric = all_metrics()[name]
    values = np.asarray(scores[name][: clip.count])
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None
    ranked = known[np.argsort(values[known], kind="stable")]
    if metric.better == "higher":
        ranked = ranked[::-1]
    columns = []
    for word, t in (("best", ranked[0]), ("typical", ranked[len(ranked) // 2]),
                    ("worst", ranked[-1])):  # fmt: skip
        real = read_range(rendered[REAL_FRAMES], int(t), int(t) + 1)[0]
        ours = read_range(rendered[found.name], int(t), int(t) + 1)[0]
        caption = f"{word} {clip.order[t]}: {metric.format(float(values[t]))}"
        columns.append(
            np.vstack([_captioned(_shown(real), f"{REAL}  {clip.order[t]}"),
                       _captioned(_shown(ours), caption)])
        )  # fmt: skip
    text = f"best, typical and worst frame of {found.name} by {metric.title}, below the real one"
    return _jpeg(np.hstack(columns), text)


def _shown(picture: Picture) -> Picture:
    """Resize for the report: enlarge small frames by an integer factor, shrink large ones."""
    shorter = min(picture.shape[:2])
    if shorter > TALLEST:
        factor = TALLEST / shorter
        small = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.uint8)
    times = TALLEST // shorter
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _captioned(picture: Picture, text: str) -> Picture:
    head = np.full((18, picture.shape[1], 3), 24, np.uint8)
    cv2.putText(head, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (235,) * 3, 1, cv2.LINE_AA)
    return np.vstack([head, picture])


def _jpeg(picture: Picture, text: str) -> Embedded:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    return Embedded(_data_uri("image/jpeg", data.tobytes()), text)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _frame(path: Path, index: int) -> Picture | None:
    frames = list(islice(read_stored(path, first=index), 1))
    return frames[0] if frames else None


def _write_video(path: Path, panels: Iterable[Picture], rate: Fraction) -> None:
    writer: VideoWriter | None = None
    for panel in panels:
        if writer is None:
            height, width = panel.shape[:2]
            writer = VideoWriter(path, width=width, height=height, rate=rate, crf=20)
        writer.write(panel)
    assert writer is not None
    writer.close()
