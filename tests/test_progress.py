"""Progress of worker processes arrives complete, in few messages."""

from __future__ import annotations

import queue

from v2v.progress import Relayed


def test_steps_are_batched_and_none_is_lost() -> None:
    events: queue.Queue[tuple[object, ...]] = queue.Queue()
    report = Relayed(events, "a.mp4: ")
    report.start("frames", 1000)
    report.start("pose", 1000)
    for _ in range(1000):
        report.advance("frames")
        report.advance("pose")
    report.finish("frames")
    received = [events.get_nowait() for _ in range(events.qsize())]
    assert received[:2] == [("start", "a.mp4: frames", 1000, 0), ("start", "a.mp4: pose", 1000, 0)]
    assert received[-1] == ("finish", "a.mp4: frames")
    steps = [event for event in received if event[0] == "advance"]
    assert len(steps) < 100
    for stage in ("frames", "pose"):
        assert sum(int(str(n)) for _, name, n in steps if name == f"a.mp4: {stage}") == 1000
