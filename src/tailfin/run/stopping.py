"""Stopping in good order: signals are collected, and the work is ended where it can be taken up again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks for a stop in good order: Ctrl-C, a batch system, a closed terminal."""


@contextmanager
def catch_signals(*, every: bool = False) -> Iterator[list[int]]:
    """Collects `STOPS` instead of dying of them.

    Args:
        every: Collect a second one too, which otherwise interrupts at once.
    """
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1 and not every:
            raise KeyboardInterrupt(number)

    try:
        # Who starts a run by nohup has the hang-up ignored.
        numbers = [n for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN]
        old = {number: signal.signal(number, handle) for number in numbers}
    except ValueError:  # not in the main thread: signals are the caller's business
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
