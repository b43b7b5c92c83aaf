"""Prefetching in another thread: it decodes and draws while the network renders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    items: Iterator[T], depth: int = 1, *, prepare: Callable[[], None] | None = None
) -> Iterator[T]:
    """Yield `items`, producing up to `depth` of them ahead in another thread.

    An exception in producing an item is raised when that item is due. None ends the iteration.

    Args:
        prepare: called once in that thread, before the first item.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=prepare) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, items, None))
                yield item
        finally:  # a consumer that stops early does not wait for pending items
            for future in pending:
                future.cancel()
