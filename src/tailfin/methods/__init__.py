"""Self-supervised methods: one file each, found by its name and imported when asked for."""

import pkgutil
from dataclasses import fields
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast, get_args, get_type_hints

from tailfin.errors import UserError, unknown

if TYPE_CHECKING:
    from tailfin.methods.base import Method

_SHARED = ("base", "gap")
"""Modules here that are no method: these, and those whose names begin with an underscore."""

_trusted: dict[str, "type[Method]"] = {}


def names() -> tuple[str, ...]:
    """Every method's name, which is that of its file."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in found if name not in _SHARED and not name.startswith("_")))


def is_file(name: str) -> bool:
    """Whether `name` is a method of the user's own, FILE.py:CLASS."""
    return ".py:" in name


def whole(name: str) -> str:
    """FILE.py:CLASS with the file's whole path."""
    file, _, attribute = name.rpartition(":")
    return f"{Path(file).expanduser().resolve()}:{attribute}"


def trust(name: str) -> str:
    """Run the code of FILE.py:CLASS, so that `load` knows the method from then on.

    Call it with what a person typed, never with what a run folder says: a checkpoint is no way to run code.

    Returns:
        The name by which `load` knows it, with the file's whole path.

    Raises:
        UserError: The file cannot be run, or defines no such method, or one that lacks something.
    """
    full = whole(name)
    if full not in _trusted:
        file, _, attribute = full.rpartition(":")
        if not attribute:
            raise _without_class(name.removesuffix(":"))
        path = Path(file)
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
        _check(found[attribute], f"--method {name}: {attribute}")
        _trusted[full] = found[attribute]
    return full


def load(name: str) -> "type[Method]":
    """The method called `name`.

    Raises:
        UserError: If there is no such method, or it is a file that nobody has said to `trust`.
    """
    if is_file(name):
        full = whole(name)
        if full not in _trusted:
            raise UserError(
                f"this run's method is in a file of yours; its code runs only if you name it: add --method {name}"
            )
        return _trusted[full]
    if name.endswith(".py"):
        raise _without_class(name)
    if name not in names():
        raise unknown("method", name, (*names(), "FILE.py:CLASS"))
    [found] = _defined(import_module(f"{__name__}.{name}")).values()
    return found


def _defined(module: ModuleType) -> dict[str, "type[Method]"]:
    """The methods that a module defines itself, by class name."""
    base = import_module(f"{__name__}.base").Method
    return {
        key: cast("type[Method]", value)
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    }


def _without_class(file: str) -> UserError:
    return UserError(f"--method {file}: name the class too: {file}:CLASS")


def _check(method: "type[Method]", who: str) -> None:
    """Find what a user's own method lacks, before a run that would fail on it begins.

    Args:
        method: The class.
        who: The beginning of a message.

    Raises:
        UserError: No recipe, or a value in it of the wrong type; no `stop_gradient`; no loss.
    """
    base = import_module(f"{__name__}.base")
    if not isinstance(getattr(method, "recipe", None), base.Recipe):
        raise UserError(f"{who} has no recipe; see tailfin.methods.base.Recipe")
    for recipe in (method.recipe, *([] if method.large is None else [method.large])):
        for field in fields(recipe):
            given = getattr(recipe, field.name)
            kinds = (int, float) if field.type is float else field.type
            if isinstance(field.type, type) and not isinstance(given, cast("type", kinds)):
                raise UserError(
                    f"{who}'s recipe has {field.name} {given!r}; it must be of type {field.type.__name__}"
                )
        optimizers = get_args(get_type_hints(base.Recipe)["optimizer"])
        if recipe.optimizer not in optimizers:
            raise UserError(f"{who}'s recipe: {unknown('optimizer', str(recipe.optimizer), optimizers)}")
    if not isinstance(getattr(method, "stop_gradient", None), bool):
        raise UserError(
            f"{who} has no stop_gradient = True or False: whether it never backpropagates through its target"
        )
    if method.loss is base.Method.loss:
        raise UserError(f"{who} has no loss; define loss(self, online, target)")
