"""Batches of the training steps, made in this process or by workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
from torch.utils.data import DataLoader, Dataset

from v2v.data.dataset import ClipDataset
from v2v.data.sampling import Size, WindowRequest, shard
from v2v.errors import V2VError
from v2v.runtime import cores
from v2v.types import Batch


@dataclass(frozen=True)
class _Jobs(Dataset[Any]):
    """Batches by job, for workers; a job is (indices, length, size)."""

    windows: ClipDataset  # each worker gets a copy

    def __getitem__(self, job: tuple[Sequence[int], int, Size]) -> Batch | V2VError:
        try:
            return self.windows.batch(*job)
        except V2VError as error:
            # Returned, not raised: torch would replace its message with the worker's traceback.
            return error


def loader(
    windows: ClipDataset,
    steps: Iterable[WindowRequest],
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batch of each step, in order. To resume, start `steps` at the next step.

    Args:
        rank, world: index of this training process and number of processes; each gets its shard.
        workers: processes that prepare batches ahead and share the cache size; 0 makes batches in
            this process on demand. The batches are the same.

    Raises the errors of `ClipDataset.batch` and `shard`.
    """
    jobs = ((shard(s, rank=rank, world=world), s.length, s.size) for s in steps)
    if not workers:
        for job in jobs:
            yield windows.batch(*job)
        return
    from torch.multiprocessing import get_context

    # Never fork: the threads of decoders and of torch do not survive it.
    context = get_context("forkserver")
    context.set_forkserver_preload(["v2v.data.dataset"])
    workers = min(workers, max(cores(), 1))  # more would only compete for the cores
    prepared = DataLoader(
        _Jobs(windows), batch_size=None, sampler=_Stream(jobs), num_workers=workers,
        multiprocessing_context=context, collate_fn=_unchanged, worker_init_fn=_start_worker,
    )  # fmt: skip
    for batch in prepared:
        if isinstance(batch, V2VError):
            raise batch
        yield batch


@dataclass(frozen=True)
class _Stream(Iterable[Any]):
    """Jobs as a sampler for DataLoader: an iterable of unknown length."""

    jobs: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        return self.jobs


def _unchanged(batch: Any) -> Any:
    return batch


def _start_worker(worker: int) -> None:
    from torch.utils.data import get_worker_info

    info = get_worker_info()
    assert info is not None
    cv2.setNumThreads(1)  # the workers are the parallelism
    cast(_Jobs, info.dataset).windows.cache //= info.num_workers
