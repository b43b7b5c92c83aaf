"""Work done ahead in another thread: decoding and drawing while the network renders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    items: Iterator[T], depth: int = 1, *, prepare: Callable[[], None] | None = None
) -> Iterator[T]:
    """The same items, up to `depth` of them made while earlier ones are worked on.

    What making one raises is raised where it would be wanted. None ends the items.

    Args:
        prepare: called in the thread that makes them, before the first.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch", initializer=prepare) as pool:
        pending = deque(pool.submit(next, items, None) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, items, None))
                yield item
        finally:  # whoever stops asking does not wait for what it will not take
            for future in pending:
                future.cancel()
