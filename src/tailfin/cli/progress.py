"""What a person sees of a running training: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta

from tailfin.training.listeners import Progress

QUIET_SECONDS = 10.0
"""Least time between plain lines."""


class Lines(Progress):
    """Plain lines, at most one every ten seconds and one at the end."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.begin(0, 0)

    def begin(self, first: int, total: int) -> None:
        """Start the clock."""
        self.first, self.total = first, total
        self._start = self._last = time.monotonic()

    def step(
        self, step: int, loss: float, images_per_second: float, data_wait: float, knn: float | None
    ) -> None:
        """After each log row."""
        now = time.monotonic()
        if now - self._last < QUIET_SECONDS and step < self.total:
            return
        self._last = now
        left = (now - self._start) / max(1, step - self.first) * (self.total - step)
        judged = "" if knn is None else f"  kNN {knn:.1f} %"
        self.say(
            f"step {step}/{self.total}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
            f"data wait {100 * data_wait:.0f} %{judged}  left {timedelta(seconds=round(left))}"
        )


def decoding(word: str = "decoding") -> Callable[[int, int], None]:
    """Says how far a pass over images has come, at most every ten seconds; quick sets pass in silence."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            print(f"{word:<11} {done} of {total} images", flush=True)

    return tell


class Bar(Progress):
    """A progress bar by rich."""

    def begin(self, first: int, total: int) -> None:
        """Show it."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("training", total=total, completed=first, note="")
        self._bar.start()

    def step(
        self, step: int, loss: float, images_per_second: float, data_wait: float, knn: float | None
    ) -> None:
        """After each log row."""
        judged = "" if knn is None else f"  kNN {knn:.1f} %"
        note = f"loss {loss:.4f}  {images_per_second:.0f} images/s  data wait {100 * data_wait:.0f} %{judged}"
        self._bar.update(self._task, completed=step, note=note)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def best() -> Bar | Lines:
    """A bar where standard output is a terminal, else lines."""
    return Bar() if sys.stdout.isatty() else Lines()
