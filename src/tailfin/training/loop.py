"""The loop: one step after another, and after each of them those who listen, in their order."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

from tailfin.run.stopping import catch_signals
from tailfin.training.feed import Feed
from tailfin.training.listeners import Listener, Taken
from tailfin.training.step import Step

LOG_STEPS = 10
"""Steps between log rows: reading a loss makes the host wait for the device."""


class Stopped(Exception):
    """The user asked to stop; everything is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


class Loop:
    """Takes the steps that are left of a run.

    Args:
        step: Takes one.
        feed: Gives its images.
        listeners: Told after each, in this order.
        done: Steps that were taken before.
    """

    def __init__(self, step: Step, feed: Feed, listeners: Sequence[Listener], done: int = 0) -> None:
        self.step, self.feed, self.listeners, self.done = step, feed, listeners, done

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: A signal asked for it; everything is saved.
            Diverged: The loss is not finite; the last checkpoint is from before.
        """
        total, epoch = self.step.schedule.total, self.step.steps_per_epoch
        batches = self.feed.batches(self.done, total)
        with self._closing(), catch_signals() as caught:
            for number in range(self.done, total):
                began = time.perf_counter()
                batch = next(batches)
                loss = self.step(batch, number)
                self.done = number + 1
                # Asked once a step, by who saves: a signal that comes after that is for the next step.
                stopping = cache(lambda: self.step.world.any(bool(caught)))
                epoch_ends = self.done % epoch == 0
                taken = Taken(
                    self.done,
                    loss,
                    batch.waited,
                    began,
                    epoch_ends=epoch_ends,
                    logged=epoch_ends or self.done % LOG_STEPS == 0,
                    last=self.done == total,
                    stopping=stopping,
                )
                for listener in self.listeners:
                    listener.after_step(taken)
                if stopping() or (taken.last and caught):
                    raise Stopped(self.done, caught[0] if caught else signal.SIGTERM)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        try:
            yield
        finally:
            for listener in self.listeners:
                listener.close()
