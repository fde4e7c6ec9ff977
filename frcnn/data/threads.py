"""Work a little ahead of the consumer, in threads: OpenCV lets go of the interpreter while it decodes and resizes."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from frcnn.machine import processor_cores

_MOST_WORKERS = 8  # where nobody says how many: each holds a picture or a batch


def map_in_threads(function, items, workers, ahead):
    """Yield `function(item)` of every item, in order, computed in threads a bounded number of items ahead.

    Closing, exhausting or dropping the generator ends the threads; an exception is raised at its item's turn.

    Args:
        function: called with one item.
        items: iterable, read lazily.
        workers: threads; 0: one for each core, at most 8.
        ahead: results that may wait for the consumer.
    """
    items, workers = iter(items), workers or min(processor_cores(), _MOST_WORKERS)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="frcnn-data")
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, workers + ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
