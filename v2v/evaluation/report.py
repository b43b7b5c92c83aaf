"""The evaluation report as one self-contained HTML file with pictures, video and curves.

It needs no network and no scripts, so it also opens from an e-mail or an archive years later.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from html import escape
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from v2v.evaluation.measures import Values
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
SMOOTH = 0.5  # seconds, smoothing window of a curve
POINTS = 400  # maximum points of a curve
COLOURS = ("#777777", "#0b6bcb", "#d1495b", "#e3a008", "#2a9d57", "#8e5bd0", "#00838f", "#b05c1f")

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25em .7em;text-align:right;border-bottom:1px solid #e4e4e4;vertical-align:top}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #bbb}
td small,.dim{color:#777}.best{font-weight:700}.away{color:#999;font-style:italic}
video,img{max-width:100%}figure{margin:1em 0}figcaption{color:#555;font-size:.9em}
.curves{display:flex;flex-wrap:wrap;gap:1em}.curves figure{margin:0}
.fault{color:#b3261e}ul{padding-left:1.2em}.scroll{overflow-x:auto}
"""


def page(found: Evaluation, rendered: Sequence[Mapping[str, Path]]) -> str:
    """Build the report. `rendered` holds the lossless videos of all methods for each clip."""
    colours = {
        method.name: COLOURS[min(i, len(COLOURS) - 1)] for i, method in enumerate(found.methods)
    }  # fmt: skip
    title = f"{found.name} on {', '.join(clip.name for clip in found.clips)}"
    parts = [
        f"<h1>{escape(title)}</h1>", f"<p class=dim>{_about(found)}</p>",
        "<h2>Summary</h2>", _ranking(found), _notes(found),
        "<h2>Frames</h2>", _video(found, rendered[0]), _sheet(found, rendered[0]),
        _extremes(found, rendered[0]),
        "<h2>Measures</h2>", _table(found), _several_clips(found), _unavailable(found),
        "<h2>Over time</h2>", _curves(found, colours),
        "<h2>About the measures</h2>", _measures(found),
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f'<meta name=viewport content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


# ---------------------------------------------------------------- text


def _about(found: Evaluation) -> str:
    parts = []
    for clip in found.clips:
        which = "held out" if clip.held_out else "all"
        parts.append(
            f"{clip.name}, frames {clip.start} to {clip.start + clip.count} ({which})"
            f" at {float(clip.store.rate):.4g} fps"
        )
    height, width = found.clips[0].placement.size
    return escape(
        f"{'; '.join(parts)}. {width}×{height} pixels. The output's frames are synthetic."
    )


def _ranking(found: Evaluation) -> str:
    lines = []
    for place in found.order:
        faults = "; ".join(place.faults)
        remarks = f" <span class=fault>{escape(faults)}</span>" if faults else " no obvious fault"
        groups = ", ".join(f"{name} {rank:.1f}" for name, rank in sorted(place.groups.items()))
        lines.append(
            f"<li><b>{escape(place.method)}</b>:{remarks}"
            f" <small class=dim>(mean rank {place.rank:.1f}: {escape(groups)})</small></li>"
        )
    against = []
    for method in found.methods:
        if method.name in (found.name, REAL):
            continue
        better, worse, same = found.against(method.name)
        total = len(better) + len(worse) + len(same)
        what = [
            f"{word} in {len(names)} ({', '.join(all_metrics()[n].title for n in names)})"
            for word, names in (
                ("better", better),
                ("worse", worse),
                ("not significantly different", same),
            )
            if names
        ]
        hint = ", which uses real frames" if method.uses_ground_truth else ""
        against.append(
            f"<li>against <b>{escape(method.name)}</b>{hint}, of {total} measures:"
            f" {escape('; '.join(what))}</li>"
        )
    methods = "".join(
        f"<li><b>{escape(method.name)}</b>: {escape(method.what)}"
        + (" <small class=dim>(not ranked)</small>" if method.uses_ground_truth else "")
        + "</li>"
        for method in found.methods
    )
    return (
        f"<p>Methods from best to worst:</p><ol>{''.join(lines)}</ol>"
        "<p class=dim>Three groups of measures have equal weight: picture, motion, subject. A"
        " frozen, blurred or noisy video ranks below all others, however small its pixel error is;"
        " warping error does not count.</p>"
        f"<ul>{''.join(against)}</ul><p>Compared methods:</p><ul>{methods}</ul>"
    )


def _notes(found: Evaluation) -> str:
    if not found.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in found.notes)
    return f"<p>Notes:</p><ul>{items}</ul>"


def _unavailable(found: Evaluation) -> str:
    if not found.unavailable:
        return ""
    by_reason: dict[str, list[str]] = {}
    for name, why in found.unavailable.items():
        by_reason.setdefault(why, []).append(all_metrics()[name].title)
    items = "".join(
        f"<li><b>{escape(', '.join(names))}</b>: unavailable: {escape(why)}</li>"
        for why, names in by_reason.items()
    )
    return f"<p>Not measured:</p><ul>{items}</ul>"


def _measures(found: Evaluation) -> str:
    directions = {
        "higher": "higher is better", "lower": "lower is better",
        "one": "1 equals the real video", "real": "closer to the real video is better",
    }  # fmt: skip
    items = "".join(
        f"<li><b>{escape(measure.title)}</b> ({directions[measure.better]}):"
        f" {escape(measure.about)}</li>"
        for measure in all_metrics().values()
        if measure.name not in found.unavailable
    )
    return (
        f"<ul>{items}</ul><p class=dim>Below the means: 95 % confidence intervals over frames, by a"
        " moving-block bootstrap with blocks of one second (errors of neighbouring frames are"
        " correlated). They quantify the uncertainty of the mean on this footage, not on other"
        " footage: that needs several clips. Methods are compared frame by frame. Drift is the mean"
        " over the last fifth of the rendered frames, divided by the mean over the same frames when"
        " they were rendered first, or else over the second fifth: 1 means no drift.</p>"
    )


# ---------------------------------------------------------------- tables


def _table(found: Evaluation) -> str:
    names = [name for name in all_metrics() if any(name in s for s in found.summaries.values())]
    head = "".join(f"<th>{escape(method.name)}</th>" for method in found.methods)
    lines = []
    for name in names:
        measure = all_metrics()[name]
        best = _best(found, name)
        cells = []
        for method in found.methods:
            summary = found.summaries[method.name].get(name)
            if summary is None or summary.mean is None:
                cells.append("<td class=away>undefined</td>")
                continue
            text = measure.format(summary.mean)
            if summary.low is not None:
                low, high = measure.format(summary.low), measure.format(summary.high)
                text += f"<br><small>{low} – {high}</small>"
            if summary.drift is not None and measure.better != "one" and method.runs_on:
                text += f"<br><small>drift × {summary.drift:.2f}</small>"
            mark = " class=best" if method.name in best else ""
            cells.append(f"<td{mark}>{text}</td>")
        unit = f" <small>{escape(measure.unit)}</small>" if measure.unit else ""
        if name == "warping_error":
            unit += "<br><small>“real” is the floor; blur and freezing lower it</small>"
        lines.append(f"<tr><td>{escape(measure.title)}{unit}</td>{''.join(cells)}</tr>")
    return (
        f"<div class=scroll><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _best(found: Evaluation, name: str) -> set[str]:
    """The ranked methods with the best mean."""
    measure = all_metrics()[name]
    if measure.family is None:
        return set()
    means = {
        method.name: summary.mean
        for method in found.methods
        if not method.uses_ground_truth
        and (summary := found.summaries[method.name].get(name)) is not None
        and summary.mean is not None
    }
    if len(means) < 2:
        return set()
    pick = max if measure.better == "higher" else min
    costs = {n: abs(v - 1) if measure.better == "one" else v for n, v in means.items()}
    return {n for n, cost in costs.items() if cost == pick(costs.values())}


def _several_clips(found: Evaluation) -> str:
    """The model's mean per clip; empty if there is only one clip."""
    if len(found.clips) < 2:
        return ""
    head = "".join(f"<th>{escape(clip.name)}</th>" for clip in found.clips)
    lines = []
    for name, summary in found.summaries[found.name].items():
        if len(summary.clips) != len(found.clips):
            continue
        measure = all_metrics()[name]
        cells = "".join(f"<td>{measure.format(mean)}</td>" for mean in summary.clips)
        over = f"{measure.format(summary.clips_low)} – {measure.format(summary.clips_high)}"
        lines.append(f"<tr><td>{escape(measure.title)}</td>{cells}<td>{over}</td></tr>")
    return (
        f"<p>{escape(found.name)} per clip, with the 95 % interval over clips:</p>"
        f"<div class=scroll><table><thead><tr><th></th>{head}<th>over clips</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


# ---------------------------------------------------------------- curves


def _curves(found: Evaluation, colours: Mapping[str, str]) -> str:
    """A small plot for each measure, on the clip with the most rendered frames."""
    number = max(range(len(found.clips)), key=lambda i: len(found.clips[i].order))
    clip, frame_scores = found.clips[number], found.frame_scores[number]
    rate = float(clip.store.rate)
    plots = []
    for measure in all_metrics().values():
        series = {
            method.name: np.asarray(frame_scores[method.name][measure.name]) * measure.factor
            for method in found.methods
            if measure.name in frame_scores[method.name]
        }
        if not series or len(clip.order) < 5:
            continue
        unit = f", {measure.unit}" if measure.unit else ""
        caption = f"{measure.title}{unit}"
        drawn = _plot(series, colours, rate, clip.count if len(clip.order) > clip.count else None)
        if drawn:
            plots.append(f"<figure><figcaption>{escape(caption)}</figcaption>{drawn}</figure>")
    if not plots:
        return "<p class=dim>Too few frames for curves.</p>"
    legend = " ".join(
        f'<span style="color:{colours[method.name]}">■</span> {escape(method.name)}'
        for method in found.methods
    )
    line = (
        " Right of the dashed line the model renders the measured frames again, back and forth."
        if len(clip.order) > clip.count
        else ""
    )
    return (
        f"<p>{legend}</p><p class=dim>{escape(clip.name)} over seconds, smoothed over {SMOOTH:g} s."
        f"{line}</p><div class=curves>{''.join(plots)}</div>"
    )


def _plot(
    series: Mapping[str, Values], colours: Mapping[str, str], rate: float, mark: int | None
) -> str:
    """Curves over seconds as SVG; empty if no value is finite or all are equal."""
    smooth = {
        name: _smoothed(values, max(round(SMOOTH * rate), 1)) for name, values in series.items()
    }
    known = np.concatenate([values[np.isfinite(values)] for values in smooth.values()])
    if not known.size:
        return ""
    low, high = float(known.min()), float(known.max())
    if high - low < 1e-9:
        return ""  # constant, such as 0 % missed: the table suffices
    frames = max(len(values) for values in smooth.values())
    width, height, left, bottom, top = 330, 170, 46, 18, 6

    def x(frame: float) -> float:
        return left + (width - left - 6) * frame / max(frames - 1, 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = [
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img"'
        ' font-size="10" font-family="system-ui,sans-serif" fill="#666">'
    ]
    for value in (low, (low + high) / 2, high):
        parts.append(
            f'<line x1="{left}" x2="{width - 6}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
            f' stroke="#e6e6e6"/><text x="{left - 4}" y="{y(value) + 3:.1f}" text-anchor="end">'
            f"{value:.3g}</text>"
        )
    for share in (0, 0.5, 1):
        frame = share * (frames - 1)
        anchor = {0: "start", 0.5: "middle", 1: "end"}[share]
        parts.append(
            f'<text x="{x(frame):.1f}" y="{height - 5}" text-anchor="{anchor}">'
            f"{frame / rate:.1f} s</text>"
        )
    if mark is not None:
        parts.append(
            f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top}" y2="{height - bottom}"'
            ' stroke="#999" stroke-dasharray="3 3"/>'
        )
    for name, values in smooth.items():
        step = max(-(-len(values) // POINTS), 1)
        for line in _finite_runs(values[::step]):
            points = " ".join(f"{x(t * step):.1f},{y(v):.1f}" for t, v in line)
            parts.append(
                f'<polyline points="{points}" fill="none" stroke="{colours[name]}"'
                ' stroke-width="1.4"/>'
            )
    return "".join([*parts, "</svg>"])


def _smoothed(values: Values, window: int) -> Values:
    """Moving average over `window` frames, ignoring values that are not finite."""
    finite = np.isfinite(values)
    window = min(window, len(values))
    ones = np.ones(window)
    count = np.convolve(finite, ones, "same")[: len(values)]
    total = np.convolve(np.where(finite, values, 0.0), ones, "same")[: len(values)]
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _finite_runs(values: Values) -> Iterator[list[tuple[int, float]]]:
    line: list[tuple[int, float]] = []
    for t, value in enumerate(values):
        if np.isfinite(value):
            line.append((t, float(value)))
        elif line:
            yield line
            line = []
    if line:
        yield line


# ---------------------------------------------------------------- pictures


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


def _image(picture: Picture, text: str) -> str:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done
    coded = base64.b64encode(data.tobytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(text)}" src="data:image/jpeg;base64,{coded}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def _frame(path: Path, index: int) -> Picture | None:
    frames = list(islice(read_stored(path, first=index), 1))
    return frames[0] if frames else None


def _video(found: Evaluation, rendered: Mapping[str, Path]) -> str:
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
        coded = base64.b64encode(path.read_bytes()).decode("ascii")
    text = f"real and {found.name}, the first {count / float(clip.store.rate):.1f} s"
    if count > clip.count:
        text += (
            f"; after {clip.count / float(clip.store.rate):.1f} s the same frames back and forth,"
            " rendered without a restart"
        )
    return (
        '<figure><video controls loop muted playsinline src="data:video/mp4;base64,'
        f'{coded}"></video><figcaption>{escape(text)}</figcaption></figure>'
    )


def _write_video(path: Path, panels: Iterable[Picture], rate: Fraction) -> None:
    writer: VideoWriter | None = None
    for panel in panels:
        if writer is None:
            height, width = panel.shape[:2]
            writer = VideoWriter(path, width=width, height=height, rate=rate, crf=20)
        writer.write(panel)
    assert writer is not None
    writer.close()


def _sheet(found: Evaluation, rendered: Mapping[str, Path]) -> str:
    """A contact sheet: one row per method, one column per frame."""
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
    return _image(np.vstack(lines), f"{clip.name}: evenly spread frames of each method")


def _extremes(found: Evaluation, rendered: Mapping[str, Path]) -> str:
    """The model's best, typical and worst frame below the real ones."""
    clip, scores = found.clips[0], found.frame_scores[0][found.name]
    name = next((n for n in ("lpips", "ssim", "psnr") if n in scores), None)
    if name is None:
        return ""
    measure = all_metrics()[name]
    values = np.asarray(scores[name][: clip.count])
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return ""
    ranked = known[np.argsort(values[known], kind="stable")]
    if measure.better == "higher":
        ranked = ranked[::-1]
    columns = []
    for word, t in (("best", ranked[0]), ("typical", ranked[len(ranked) // 2]),
                    ("worst", ranked[-1])):  # fmt: skip
        real = read_range(rendered[REAL_FRAMES], int(t), int(t) + 1)[0]
        ours = read_range(rendered[found.name], int(t), int(t) + 1)[0]
        caption = f"{word} {clip.order[t]}: {measure.format(float(values[t]))}"
        columns.append(
            np.vstack([_captioned(_shown(real), f"{REAL}  {clip.order[t]}"),
                       _captioned(_shown(ours), caption)])
        )  # fmt: skip
    text = f"best, typical and worst frame of {found.name} by {measure.title}, below the real one"
    return _image(np.hstack(columns), text)
