"""What image libraries say to the terminal by themselves, caught and turned into reasons."""

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

_STDERR: Final = 2


class Log(logging.Handler):
    """Keeps what Pillow logs from the terminal, each thread's own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._said = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message for `last`."""
        self._said.last = record.getMessage()

    def last(self) -> str:
        """What this thread's decoder logged last, since the last call."""
        words = getattr(self._said, "last", "")
        self._said.last = ""
        return str(words)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Be the one that Pillow logs to."""
        log = logging.getLogger("PIL")
        before = log.propagate
        log.addHandler(self)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(self)
            log.propagate = before


class Stderr:
    """Standard error's file descriptor, to which C libraries write, led into a file while any thread asks for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users, self._waiting, self._alone = 0, 0, False
        self._before = -1
        self._file: IO[bytes] | None = None

    @contextmanager
    def led_away(self) -> Iterator[None]:
        """What is written to it is lost."""
        self._enter(alone=False)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def heard(self, words: list[str]) -> Iterator[None]:
        """The same for one thread alone; the last line that is written is added to `words`."""
        self._enter(alone=True)
        try:
            yield
        finally:
            if self._file is not None:
                said = os.pread(self._file.fileno(), 2**16, 0).decode(errors="replace")
                words += [line.strip() for line in said.splitlines() if line.strip()][-1:]
            self._leave()

    def _enter(self, *, alone: bool) -> None:
        with self._changed:
            self._waiting += alone  # who would listen goes before who would not
            self._changed.wait_for(lambda: not (self._alone or (self._users if alone else self._waiting)))
            self._waiting -= alone
            self._users, self._alone = self._users + 1, alone
            if self._users == 1:
                with suppress(OSError):  # a process without a standard error has nothing to be kept from it
                    self._before = os.dup(_STDERR)
                    self._file = tempfile.TemporaryFile()  # noqa: SIM115
                    os.dup2(self._file.fileno(), _STDERR)

    def _leave(self) -> None:
        with self._changed:
            self._users, self._alone = self._users - 1, False
            if self._users == 0 and self._before >= 0:
                os.dup2(self._before, _STDERR)
                os.close(self._before)
                self._before = -1
                if self._file is not None:
                    self._file.close()
                    self._file = None
            self._changed.notify_all()
