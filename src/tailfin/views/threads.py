"""Chunks of a batch worked on side by side by threads of a CPU, each with one thread of torch's own."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from threading import Barrier

import torch


def each(work: Callable[[slice], None], chunks: Sequence[slice], device: torch.device) -> None:
    """Call `work` on every chunk; on a CPU as many at once as torch has threads.

    A chunk is small enough for a cache, and so too small for torch to share each of its many operations out. After an
    error or an interruption no chunk is worked on any more.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or min(threads, len(chunks)) < 2:
        for chunk in chunks:
            work(chunk)
        return
    inference = torch.is_inference_mode_enabled()  # which a thread does not take over from its caller

    def one(chunk: slice) -> None:
        with torch.inference_mode(inference):
            work(chunk)

    pool = _pool(threads)
    pending = [pool.submit(one, chunk) for chunk in chunks]
    try:
        for done in pending:
            done.result()
    finally:
        for left in pending:
            left.cancel()
        wait(pending)


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that torch gives no others to."""
    barrier = Barrier(threads)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first look takes the number that was set last, by any thread
        torch.set_num_threads(1)
        barrier.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="views", initializer=begin)
    for ready in [pool.submit(barrier.wait) for _ in range(threads)]:
        ready.result()
    torch.set_num_threads(threads)  # for threads that start later
    return pool
