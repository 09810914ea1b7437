"""Errors that are told to a user: one line saying what, where, what is allowed and the nearest right spelling."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2."""


class OfProcess(UserError):
    """What only one process of several met, which its message names. What all meet, the first one says."""


class AlreadySaid(UserError):
    """What all processes met, and the first one says."""


class Failed(Exception):
    """A run that cannot go on, by no mistake in its input. The command line prints one line and exits with code 1."""


class Diverged(Failed):
    """The loss, or something that a checkpoint would keep, is not finite: what, where and since when."""


class MemoryFull(Failed):
    """The memory of the device or of the host is full: what to change."""


class Lost(Failed):
    """Another process of the run has ended; who started them says which one and why."""


def unknown(kind: str, value: str, allowed: Iterable[str], where: str = "") -> UserError:
    """An error for a `value` that is none of `allowed`, naming the nearest spelling.

    Args:
        kind: What the value names, such as "method".
        value: What was given.
        allowed: Every legal value, in the order to show them.
        where: The option, file or key that held the value.
    """
    names = list(allowed)
    place = f" in {where}" if where else ""
    return UserError(f"unknown {kind} {value!r}{place}; allowed: {', '.join(names)}{nearest(value, names)}")


def nearest(value: str, names: Iterable[str]) -> str:
    """The end of a message: a question after the name nearest to `value`; empty where none is near."""
    written = {name.lower(): name for name in names}
    near = difflib.get_close_matches(value.lower(), list(written), n=1, cutoff=0.5)
    return f"; did you mean {written[near[0]]!r}?" if near else ""


def printable(text: str) -> str:
    r"""`text` on one line, without anything that a terminal obeys: what is not printable is escaped, such as `\x1b`.

    File names, and messages of libraries that quote a file, are a stranger's words.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
