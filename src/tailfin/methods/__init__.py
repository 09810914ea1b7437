"""Self-supervised methods: one file each, found by name and imported when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from tailfin.errors import unknown

if TYPE_CHECKING:
    from tailfin.methods.base import Method

_METHODS = {
    "simclr": "tailfin.methods.simclr:SimCLR",
    "byol": "tailfin.methods.byol:BYOL",
    "mocov2plus": "tailfin.methods.mocov2plus:MoCoV2Plus",
}


def names() -> tuple[str, ...]:
    """Every method's name."""
    return tuple(_METHODS)


def load(name: str) -> "type[Method]":
    """The method called `name`.

    Raises:
        UserError: If there is no such method.
    """
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    module, _, attribute = _METHODS[name].partition(":")
    return cast("type[Method]", getattr(import_module(module), attribute))
