"""Compose the frames of a comparison from synchronised clips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from v2v.evaluation.compare.align import Aligned
from v2v.evaluation.compare.layout import Layout
from v2v.evaluation.compare.view import Box, View, keep_inside
from v2v.images import Picture
from v2v.prefetch import prefetch
from v2v.runtime import lower_thread_priority

DIMMED = 0.35  # brightness factor of a clip that has ended
OUTLINE = (255, 210, 0)  # of an enlarged region


def composed(aligned: Aligned, layout: Layout) -> Iterator[Picture]:
    """Yield the frames of the comparison, RGB uint8 of `layout.size`."""
    views = [View.whole(clip.size, layout.width, layout.height) for clip in aligned.clips]
    board = layout.board()
    for shown in prefetch(_synchronised(aligned), 2, prepare=lower_thread_priority):
        whole = board.copy()

        def put(block: str, index: int, panel: Picture, whole: Picture = whole) -> None:
            x, y, width, height = layout.place(block, index)
            whole[y : y + height, x : x + width] = panel

        panels = [view(picture) for view, (picture, _) in zip(views, shown, strict=True)]
        for index, (picture, ended) in enumerate(shown):
            if layout.gain is not None and index:
                still = ended or shown[0][1]  # nothing to compare with
                put("difference", index, _difference(panels, views, index, layout.gain, still))
            if layout.region is not None:
                view = views[index].part(layout.region, *layout.zoomed)
                put("zoom", index, _dimmed(view(picture)) if ended else view(picture))
        for index, (_, ended) in enumerate(shown):
            panel = _dimmed(panels[index]) if ended else panels[index]
            put("clip", index, _outlined(panel, layout.region) if layout.region else panel)
        yield whole


def _synchronised(aligned: Aligned) -> Iterator[list[tuple[Picture, bool]]]:
    """Yield, for every clip, its frame and whether the clip has ended (its last frame)."""
    readers = [aligned.pictures(index) for index in range(len(aligned.clips))]
    current: list[tuple[Picture, bool]] = []
    for _ in range(aligned.count):
        following = [next(reader, None) for reader in readers]
        current = [
            (picture, False) if picture is not None else (current[index][0], True)
            for index, picture in enumerate(following)
        ]
        yield current


def _difference(
    panels: Sequence[Picture], views: Sequence[View], index: int, gain: float, still: bool
) -> Picture:
    if still:
        return np.zeros_like(panels[index])
    difference = cv2.convertScaleAbs(cv2.absdiff(panels[index], panels[0]), alpha=gain)
    for view in (views[0], views[index]):  # ignore black bars
        keep_inside(difference, view.inner)
    return np.asarray(difference, np.uint8)


def _dimmed(picture: Picture) -> Picture:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=DIMMED), np.uint8)


def _outlined(picture: Picture, region: Box) -> Picture:
    """Outline the region that a zoom panel enlarges."""
    height, width = picture.shape[:2]
    x, y, w, h = region
    corners = (round(x * width), round(y * height)), (
        round((x + w) * width) - 1, round((y + h) * height) - 1,
    )  # fmt: skip
    lined = picture.copy()
    cv2.rectangle(lined, *corners, OUTLINE, max(height // 300, 1))
    return lined
