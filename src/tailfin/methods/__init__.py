"""Self-supervised methods: one file each, found by its name and imported when asked for."""

import pkgutil
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from tailfin.errors import UserError, unknown

if TYPE_CHECKING:
    from tailfin.methods.base import Method

_SHARED = "base"
"""Modules here that are no method: this one, and those whose names begin with an underscore."""

_trusted: dict[str, "type[Method]"] = {}


def names() -> tuple[str, ...]:
    """Every method's name, which is that of its file."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name != _SHARED and not name.startswith("_")))


def is_file(name: str) -> bool:
    """Whether `name` is a method of the user's own, FILE.py:CLASS."""
    return ".py:" in name


def trust(name: str) -> str:
    """Run the code of FILE.py:CLASS, so that `load` knows the method from then on.

    Call it with what a person typed, never with what a run folder says: a checkpoint is no way to run code.

    Returns:
        The name by which `load` knows it, with the file's whole path.

    Raises:
        UserError: The file cannot be run, or defines no such method.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    full = f"{path}:{attribute}"
    if full not in _trusted:
        spec = spec_from_file_location(f"tailfin_method_{path.stem}", path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise UserError(f"--method {name}: there is no file {path}")
        module = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"--method {name}: {type(error).__name__}: {error}") from error
        found = _defined(module)
        if attribute not in found:
            raise unknown("method", attribute, found, where=str(path))
        if not hasattr(found[attribute], "recipe"):
            raise UserError(f"--method {name}: {attribute} has no recipe; see tailfin.methods.base.Recipe")
        _trusted[full] = found[attribute]
    return full


def load(name: str) -> "type[Method]":
    """The method called `name`.

    Raises:
        UserError: If there is no such method, or it is a file that nobody has said to `trust`.
    """
    if is_file(name):
        if name not in _trusted:
            raise UserError(f"the method is code of its own; say so again to run it: --method {name}")
        return _trusted[name]
    if name not in names():
        raise unknown("method", name, (*names(), "FILE.py:CLASS"))
    [found] = _defined(import_module(f"{__name__}.{name}")).values()
    return found


def _defined(module: ModuleType) -> dict[str, "type[Method]"]:
    """The methods that a module defines itself, by class name."""
    base = import_module(f"{__name__}.{_SHARED}").Method
    return {
        key: cast("type[Method]", value)
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    }
