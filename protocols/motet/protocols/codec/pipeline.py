"""Work on chunks in a few threads, in order, with a bounded number of them in memory.

for result in ordered(job, jobs, workers=2):      # numpy, zlib and the native kernels let go of the interpreter's lock
    ...
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

WORKERS = 2


def ordered(work: Callable[[Job], Result], jobs: Iterable[Job], *, workers: int = WORKERS) -> Iterator[Result]:
    """The results in the order of the jobs; at most `workers` + 1 are under way or waiting to be taken.

    Whatever `work` raises is raised here; jobs not begun by then are dropped, and those under way are waited for.
    """
    if workers <= 1:
        yield from map(work, jobs)
        return
    under_way: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="codec") as pool:
        try:
            for job in jobs:
                under_way.append(pool.submit(work, job))
                if len(under_way) > workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
