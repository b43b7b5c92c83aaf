"""Cost of appearance references per rendered frame: with and without, in one run.

python benchmarks/reference_cost.py --data data/dance            # 256 px, one thread
python benchmarks/reference_cost.py --data data/talk --size 128

The weights are random: time does not depend on them. Each pass renders the same frames with and
without references in turn; prints the medians in milliseconds and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from v2v.config import load_config
from v2v.data.dataset import ClipDataset
from v2v.models import build_generator
from v2v.models.rollout import rollout
from v2v.training.prepare import open_windows, plan_run
from v2v.training.settings import TrainSettings
from v2v.types import Condition

FRAMES, PASSES = 24, 5


def conditions(windows: ClipDataset, size: tuple[int, int]) -> Iterator[Condition]:
    """Signals, background plate and warped references of the clip's last frames."""
    stop = windows.clips[0].count
    for batch in windows.sequence(0, stop - FRAMES, stop, size=size, chunk=4):
        for t in range(batch.length):
            yield batch.condition(t)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="a clip store with pose or face")
    parser.add_argument("--task", default="pose", choices=["pose", "face"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = {}
    for name in ("off", "auto"):
        values = {"task": chosen.task, "data.size": chosen.size, "generator.references": name}
        defaults = f"train-{chosen.task}"
        settings = load_config(TrainSettings, "train", defaults, values=values)
        windows = open_windows(settings, [chosen.data])
        plan = plan_run(settings, windows)
        models[name] = (
            windows,
            build_generator(**plan.generator).eval(),
            (plan.height, plan.width),
        )
    times: dict[str, list[float]] = {"off": [], "auto": []}
    with torch.inference_mode():
        for _ in range(PASSES + 1):
            for name, (windows, generator, size) in models.items():
                start = time.perf_counter()
                for _ in rollout(generator, conditions(windows, size)):
                    pass
                times[name].append((time.perf_counter() - start) / FRAMES * 1000)
    without, with_references = (statistics.median(times[name][1:]) for name in ("off", "auto"))
    print(
        f"without {without:.1f} ms per frame, with references {with_references:.1f} ms:"
        f" {with_references / without:.2f}"
    )


if __name__ == "__main__":
    main()
