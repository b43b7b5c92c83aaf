"""The schedule: resolution and window length grow in turn."""

from __future__ import annotations

import pytest

from v2v.config import load_config
from v2v.training.schedule import ScheduleSettings, Stage, build_schedule, stage_at
from v2v.training.settings import TrainSettings

SETTINGS = ScheduleSettings(
    lengths=(1, 2, 4, 8),
    single_frame_share=0.4,
    freeze_share=0.15,
    scale_time_ratio=2.0,
    rate_decay=0.5,
    frames=4,
)


def schedule(scales: int = 3, bptt_steps: int = 2) -> tuple[Stage, ...]:
    return build_schedule(SETTINGS, height=512, width=256, scales=scales, bptt_steps=bptt_steps)


def test_sizes_double_up_to_the_last() -> None:
    sizes = [(s.height, s.width) for s in schedule()]
    assert list(dict.fromkeys(sizes)) == [(128, 64), (256, 128), (512, 256)]
    assert sizes == sorted(sizes)


def test_windows_double_within_each_size() -> None:
    for scale in range(3):
        lengths = [s.length for s in schedule() if s.scale == scale and not s.freeze_lower]
        assert lengths == ([1, 2, 4, 8] if scale == 0 else [2, 4, 8])


def test_it_starts_with_single_frames() -> None:
    first = schedule(scales=1)[0]
    assert (first.length, first.until) == (1, pytest.approx(0.4))


def test_each_new_scale_trains_alone_first() -> None:
    for scale in range(3):
        stages = [s for s in schedule() if s.scale == scale]
        assert [s.freeze_lower for s in stages] == [scale > 0] + [False] * (len(stages) - 1)


def test_fractions_add_up_and_larger_sizes_get_more_time() -> None:
    ends = [s.until for s in schedule()]
    assert ends == sorted(ends) and ends[-1] == 1
    begins = [0.0, *ends]
    time = [
        sum(e - b for b, e, s in zip(begins, ends, schedule(), strict=False) if s.scale == scale)
        for scale in range(3)
    ]
    assert time[1] == pytest.approx(2 * time[0]) and time[2] == pytest.approx(4 * time[0])


def test_each_size_has_its_own_learning_rate() -> None:
    assert [dict.fromkeys(s.rate for s in schedule() if s.scale == k) for k in range(3)] == [
        {1.0: None}, {0.5: None}, {0.25: None},
    ]  # fmt: skip


def test_each_update_renders_the_same_number_of_frames() -> None:
    assert [s.batch * min(s.length, 2) for s in schedule()] == [4] * len(schedule())


def test_stage_at_a_fraction_of_the_budget() -> None:
    stages = schedule(scales=1)
    assert stage_at(stages, 0) == 0
    assert stage_at(stages, 0.3999) == 0
    assert stage_at(stages, 0.4001) == 1
    assert stage_at(stages, 1.5) == len(stages) - 1


def test_one_length_is_one_stage() -> None:
    settings = SETTINGS.model_copy(update={"lengths": (3,), "freeze_share": 0.0})
    stages = build_schedule(settings, height=64, width=64, scales=2, bptt_steps=2)
    assert [(s.scale, s.length) for s in stages] == [(0, 3), (1, 3)]


@pytest.mark.parametrize("task", ["pose", "face", "street"])
def test_the_default_settings_are_valid(task: str) -> None:
    settings = load_config(TrainSettings, "train", f"train-{task}", values={"task": task})
    assert settings.task == task
    assert settings.schedule.lengths[0] == 1, "windows must grow from single frames"
