"""Prefetching: compute the next results in a thread while the caller uses the last one.

for batch in prefetched(read, parts): ...       # read(part) for each part, in their order
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 2  # results computed in advance

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    make: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield `make(item)` for each item in order. An exception in the thread is raised here.

    The thread ends with the last item, or when the iterator is closed.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1, "prefetching") as thread:
        try:
            for item in items:
                waiting.append(thread.submit(make, item))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
