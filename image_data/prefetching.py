"""The next results of slow work, made in a thread while the last one is used.

for batch in prefetched(read, parts): ...       # read(part) for each part, in their order
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AHEAD = 2  # results that wait

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    make: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[Result, None, None]:
    """Yield `make(item)` of each item in order. An exception there is raised here.

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
