"""Runs cells as processes of their own, side by side, and stops them in good order."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

from tailfin import methods
from tailfin.errors import UserError
from tailfin.files import lock, make_folder, open_to_append, write_atomically
from tailfin.run import config as settings
from tailfin.run.folder import RunFolder
from tailfin.run.stopping import catch_signals
from tailfin.study.spec.cells import Cell

POLL_SECONDS = 0.2
PROGRAM = (sys.executable, "-P", "-m", "tailfin", "pretrain")
"""Without -P, a statistics.py in the folder that a study is started in would run in place of Python's own."""

State = Literal["to do", "interrupted", "done", "running"]


class CellFolders:
    """The run folders of a study, found by fingerprint whatever their readable name was when they were made."""

    def __init__(self, out: Path) -> None:
        self.path = out / "cells"

    def make(self) -> None:
        """Make the folder of folders, which git shall leave out.

        Raises:
            UserError: It cannot be made.
        """
        make_folder(self.path)
        ignore = self.path.parent / ".gitignore"
        if not ignore.exists():
            write_atomically(ignore, b"/cells/\n")

    def of(self, cell: Cell) -> RunFolder:
        """The cell's run folder, which need not exist."""
        found = next(self.path.glob(f"*-{cell.fingerprint}"), self.path / cell.folder)
        if found.is_symlink():
            raise UserError(f"{found} is a link; nothing is written through links, so remove it")
        return RunFolder(found)

    def lock(self, cell: Cell) -> Path:
        """The file whose lock says that some process works on the cell."""
        return self.path / f".{cell.fingerprint}.lock"

    def state(self, cell: Cell) -> State:
        """How far the cell has come."""
        folder = self.of(cell)
        if folder.result.exists():
            return "done"
        if lock.is_held(self.lock(cell)):
            return "running"
        return "interrupted" if folder.config.exists() else "to do"


@dataclass
class Failure:
    """A cell that came to no result.

    Attributes:
        cell: The cell.
        reason: The last line that it wrote to its standard error, or the signal that ended it.
        log: Where all its lines are.
    """

    cell: Cell
    reason: str
    log: Path


@dataclass
class Outcome:
    """What a session of the runner came to.

    Attributes:
        failures: Cells without a result, by fingerprint.
        stopped: The signal that ended it; None where none did.
        timed_out: Whether the time was up.
    """

    failures: dict[str, Failure] = field(default_factory=dict)
    stopped: int | None = None
    timed_out: bool = False


@dataclass
class _Child:
    cell: Cell
    process: subprocess.Popen[bytes]
    slot: int
    started: float
    errors: Path
    errors_from: int


class Runner:
    """Runs cells.

    Args:
        folders: Where.
        locate: Where each data set lies, by its name in the study file.
        slots: The environment of each cell that runs at a time.
        deadline: When to stop, as `time.monotonic()` tells it; None for never.
        say: Takes lines for the user.
    """

    def __init__(
        self,
        folders: CellFolders,
        locate: Mapping[str, str],
        slots: Sequence[Mapping[str, str]],
        deadline: float | None,
        say: Callable[[str], object],
    ) -> None:
        self.folders, self.locate, self.slots = folders, locate, slots
        self.deadline, self.say = deadline, say
        self.children: list[_Child] = []
        self.waiting = False
        self.outcome = Outcome()

    def run(self, pending: Callable[[], Sequence[Cell]], finished: Callable[[Cell], None]) -> Outcome:
        """Run until nothing is pending, all else has failed, or it is told to stop.

        Args:
            pending: The cells that are known and neither finished nor failed, in order.
            finished: Called with each cell that has a result.
        """
        with catch_signals(every=True) as caught:
            passed_on, todo = 0, list(pending())
            while True:
                changed = self._reap(finished, stopping=bool(caught) or self.outcome.timed_out)
                if len(caught) > passed_on:
                    # Each of the user's signals once, as if they ran the cell by hand: a second one means "now".
                    passed_on = len(caught)
                    self.outcome.stopped = _as_told(caught[0])
                    self._stop(_as_told(caught[-1]))
                elif not caught and not self.outcome.timed_out and self._time_is_up():
                    self.outcome.timed_out = True
                    self._stop(signal.SIGTERM)
                if caught or self.outcome.timed_out:
                    if not self.children:
                        return self.outcome
                else:
                    if changed:
                        todo = list(pending())
                    if self._start(todo, finished):
                        todo = list(pending())
                    if not todo and not self.children:
                        return self.outcome
                time.sleep(POLL_SECONDS)

    def _time_is_up(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _start(self, todo: Sequence[Cell], finished: Callable[[Cell], None]) -> bool:
        """Start what fits; returns whether a cell turned out to be finished by another process."""
        if len(self.children) == len(self.slots):
            return False
        own = {child.cell.fingerprint for child in self.children}
        others = [cell for cell in todo if cell.fingerprint not in own]
        held = {cell.fingerprint for cell in others if lock.is_held(self.folders.lock(cell))}
        # Cells of another study on this folder, or of one that was killed, count too: they use the same machine.
        room = len(self.slots) - len(self.children) - len(held)
        if held and not self.children and not self.waiting:
            self.waiting = True
            self.say(f"waiting for {len(held)} cells that another process is running")
        any_finished = False
        for cell in others:
            if room <= 0:
                break
            if cell.fingerprint in held:
                continue
            handle = lock.acquire(self.folders.lock(cell))
            if handle is None:
                continue
            try:
                # Under the lock: another process may have finished it a moment ago.
                if self.folders.of(cell).result.exists():
                    finished(cell)
                    any_finished = True
                else:
                    self.children.append(self._spawn(cell, handle))
                    room -= 1
            finally:
                lock.release(handle)
        return any_finished

    def _spawn(self, cell: Cell, handle: int) -> _Child:
        folder = self.folders.of(cell)
        make_folder(folder.path)
        words = [*PROGRAM]
        taken = {child.slot for child in self.children}
        slot = next(index for index in range(len(self.slots)) if index not in taken)
        if folder.config.exists():
            words += ["--resume", str(folder.path)]
        else:
            threads = int(self.slots[slot].get("OMP_NUM_THREADS", "1"))
            asked = folder.path / "asked.toml"
            location = self.locate.get(cell.config.data, cell.config.data)
            judge: Literal["encoder", "nothing"] = "nothing" if cell.selects else "encoder"
            workers = cell.config.workers or threads
            settings.save(replace(cell.config, data=location, workers=workers, judge=judge), asked)
            words += ["--config", str(asked), "--out", str(folder.path)]
        # The study's own command line named it, or no cell of it would be known.
        words += ["--method", cell.config.method] if methods.is_file(cell.config.method) else []
        errors = folder.path / "stderr.log"
        with open_to_append(folder.path / "stdout.log") as out, open_to_append(errors) as err:
            start = err.tell()
            process = _popen(words, self.slots[slot], out, err, handle)
        self.say(f"start   {folder.path.name}" + (" (goes on)" if "--resume" in words else ""))
        return _Child(cell, process, slot, time.monotonic(), errors, start)

    def _reap(self, finished: Callable[[Cell], None], *, stopping: bool) -> bool:
        """Take note of the children that ended; returns whether there were any."""
        ended = [child for child in self.children if child.process.poll() is not None]
        self.children = [child for child in self.children if child not in ended]
        for child in ended:
            code = child.process.returncode
            if self.folders.of(child.cell).result.exists():
                finished(child.cell)
            elif not stopping:
                reason = _last_line(child.errors, child.errors_from) if code >= 0 else _signal_words(code)
                self.outcome.failures[child.cell.fingerprint] = Failure(child.cell, reason, child.errors)
                self.say(f"failed  {child.cell.folder}: {reason}; log: {child.errors}")
        return bool(ended)

    def _stop(self, number: int) -> None:
        for child in self.children:
            child.process.send_signal(number)
        if self.children:
            self.say(f"stopping what runs ({len(self.children)}); it saves what it has")


def _popen(
    words: Sequence[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes], handle: int
) -> subprocess.Popen[bytes]:
    # A session of its own: a terminal sends Ctrl-C to all of a group, and a cell takes a second one for "at once".
    return subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        pass_fds=(handle,),
        start_new_session=True,
    )


def _last_line(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it ended without a word")
    return last.removeprefix("tailfin: ")


def _signal_words(code: int) -> str:
    name = signal.Signals(-code).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _as_told(number: int) -> int:
    """A closed terminal asks as politely as SIGTERM; the cells know only that one."""
    return signal.SIGTERM if number == signal.SIGHUP else number
