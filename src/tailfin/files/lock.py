"""Locks that no crash leaves behind: the system drops them with the last process that holds the file."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, *, wait: bool = False) -> int | None:
    """Lock `path`; None where another process holds it, unless it is waited for.

    Returns:
        A file descriptor. A child that inherits it keeps the lock after this process has closed it or has died.

    Raises:
        OSError: The file cannot be made, or is a link.
    """
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            # Some network file systems know no locks: a run there is not guarded, and goes on.
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return handle
        if _is_at(path, handle):
            return handle
        os.close(handle)  # its last holder removed it in between: what is locked now is a file without a name


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
    handle = acquire(path, wait=True)
    assert handle is not None
    try:
        yield
    finally:
        release(handle)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def _is_at(path: Path, handle: int) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(handle))
