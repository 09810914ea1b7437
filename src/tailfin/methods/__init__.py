"""Self-supervised methods: one file each, found by its name and imported when asked for."""

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, cast

from tailfin.errors import unknown

if TYPE_CHECKING:
    from tailfin.methods.base import Method

_SHARED = "base"
"""Modules here that are no method: this one, and those whose names begin with an underscore."""


def names() -> tuple[str, ...]:
    """Every method's name, which is that of its file."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name != _SHARED and not name.startswith("_")))


def load(name: str) -> "type[Method]":
    """The method called `name`: the one `Method` that its file defines.

    Raises:
        UserError: If there is no such method.
    """
    if name not in names():
        raise unknown("method", name, names())
    module = import_module(f"{__name__}.{name}")
    base = import_module(f"{__name__}.{_SHARED}").Method
    [found] = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    return cast("type[Method]", found)
