"""Locks that no crash leaves behind: the system drops them with the last process that holds the file."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path) -> int | None:
    """Lock `path`; None where another process holds it.

    Returns:
        A file descriptor. A child that inherits it keeps the lock after this process has closed it or has died.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def release(handle: int) -> None:
    """Close this process's hold on a lock; a child that inherited it goes on holding it."""
    os.close(handle)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; nothing is created."""
    if not path.exists():
        return False
    handle = acquire(path)
    if handle is None:
        return True
    os.close(handle)
    return False


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the lock, waiting for it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
