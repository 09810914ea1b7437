"""From a command's words to its options, once; a mistake becomes one line."""

import argparse
import ast
import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from tailfin.errors import UserError, unknown

NUMBERS = {int: "a whole number", float: "a number"}
PAIRS = "takes names and numbers in turn, such as temperature 0.1 hidden 512"

Command = TypeVar("Command")


def positional(default: Any = MISSING) -> Any:
    """A field of a command's dataclass that is given without a name."""
    return field(default=default, metadata={"positional": True})


def parse(kind: type[Command], words: Sequence[str], command: str, description: str) -> Command:
    """The command's options, those that were not typed as `kind` has them.

    Args:
        kind: The dataclass of its options.
        words: What the user typed after the command.
        command: Its name.
        description: The text above the options in its help.

    Raises:
        UserError: A mistake, in one line.
    """
    typed = given(kind, words, command, description)
    lacking = [each.name.upper() for each in _fields(kind) if _is_needed(each) and each.name not in typed]
    if lacking:
        whole = [
            each.name.upper()
            for each in _fields(kind)
            if each.metadata.get("positional") and _is_needed(each)
        ]
        verb = "is" if len(lacking) == 1 else "are"
        raise UserError(
            f"{command}: {' and '.join(lacking)} {verb} missing: tailfin {command} {' '.join(whole)}"
        )
    return kind(**typed)


def given(kind: type, words: Sequence[str], command: str, description: str) -> dict[str, Any]:
    """The options that were typed, each of its field's type; where help is asked for, it is printed instead.

    Args:
        kind: The dataclass of all options.
        words: What the user typed after the command.
        command: Its name.
        description: The text above the options in its help.

    Raises:
        UserError: A mistake, in one line.
    """
    parser, hints = _Parser(kind, command, description), get_type_hints(kind)
    words = _joined(words)
    try:
        found, more = parser.parse_known_args(words)
        if more:
            raise UserError(_superfluous(more, words, hints))
        raw = vars(found)
        return {
            name: _converted(name, raw[name], hints[name], parser.named(name))
            for name in hints
            if name in raw
        }
    except argparse.ArgumentError as error:  # the one that is left: a flag with a value after an equals sign
        option = str(error.argument_name).partition("/")[0]
        raise UserError(f"{command}: {option} takes no value") from None
    except UserError as error:
        raise UserError(f"{command}: {error}") from None


class _Parser(argparse.ArgumentParser):
    """Tells the words of one option from another's; what they mean, and mistakes, are not its business."""

    def __init__(self, kind: type, command: str, description: str) -> None:
        self.positionals = [each.name for each in _fields(kind) if each.metadata.get("positional")]
        super().__init__(
            prog=f"tailfin {command}",
            usage=" ".join((f"tailfin {command}", *map(str.upper, self.positionals), "[OPTIONS]")),
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
            exit_on_error=False,
        )
        hints, told = get_type_hints(kind), _Texts(kind)
        for each in _fields(kind):
            takes = _takes(hints[each.name])
            options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": told.of(each)}
            if takes == (bool,):
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["nargs"] = "*" if _is_several(hints[each.name]) else "?"
                options["metavar"] = _metavar(each.name, takes, self.named(each.name))
            self.add_argument(self.named(each.name) or each.name, **options)

    def named(self, name: str) -> str:
        """The option of a field; empty for one that has no name."""
        return "" if name in self.positionals else "--" + name.replace("_", "-")

    def error(self, message: str) -> NoReturn:
        """Whatever else argparse finds."""
        raise UserError(message)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Values without the brackets that say that argparse itself would not miss them."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if isinstance(action.metavar, str):
            return action.metavar
        return super()._format_args(action, default_metavar)


class _Texts:
    """What the strings below a dataclass's fields say of them."""

    def __init__(self, kind: type) -> None:
        self.found: dict[str, str] = {}
        for each in reversed(kind.__mro__[:-1]):
            body = ast.parse(textwrap.dedent(inspect.getsource(each))).body[0]
            assert isinstance(body, ast.ClassDef)
            for line, after in zip(body.body, body.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    text = after.value if isinstance(after, ast.Expr) else None
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        self.found[line.target.id] = " ".join(text.value.split())

    def of(self, each: Field[Any]) -> str:
        """The text of a field, and its value where it says nothing of what is chosen without one."""
        text = self.found.get(each.name, "")
        plain = each.default not in (None, MISSING, (), "") and not isinstance(each.default, bool)
        return (f"{text} (default: {each.default})" if plain else text).replace("%", "%%")


def _is_needed(each: Field[Any]) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _fields(kind: type) -> tuple[Field[Any], ...]:
    return fields(kind)


def _joined(words: Sequence[str]) -> list[str]:
    """The words with `-` for `_` in options' names, and numbers below 0 joined to their option."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            found.append(name.replace("_", "-") + equals + value)
        elif re.match(r"-[\d.]", word) and found and found[-1].startswith("--") and "=" not in found[-1]:
            found[-1] += f"={word}"  # argparse takes -1e-3 for an option
        else:
            found.append(word)
    return found


def _converted(name: str, raw: Any, hint: Any, option: str) -> Any:
    if _is_several(hint):
        return _pairs(option, raw) if issubclass(get_origin(hint), Mapping) else tuple(raw)
    takes = _takes(hint)
    if takes == (bool,):
        return raw
    if raw is None:
        raise UserError(f"{option or name.upper()} needs a value")
    if get_origin(hint) is Literal or any(not isinstance(each, type) for each in takes):
        if raw not in takes:
            raise unknown("value", raw, takes, where=option)
        return raw
    (kind,) = takes
    try:
        return kind(raw)
    except ValueError:
        raise UserError(f"{option} is {raw!r}; it must be {NUMBERS[kind]}") from None


def _pairs(option: str, raw: Sequence[str]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in zip(raw[::2], raw[1::2], strict=True)}
    except ValueError:
        raise UserError(f"{option} {PAIRS}") from None


def _is_several(hint: Any) -> bool:
    origin = get_origin(hint)
    return isinstance(origin, type) and issubclass(origin, tuple | Mapping)


def _takes(hint: Any) -> tuple[Any, ...]:
    """What an option takes: its type, or the values that are allowed."""
    kinds = [hint]
    if get_origin(hint) in (Union, UnionType):
        kinds = [each for each in get_args(hint) if each is not NoneType]
    return get_args(kinds[0]) if get_origin(kinds[0]) is Literal else tuple(kinds)


def _metavar(name: str, takes: tuple[Any, ...], option: str) -> str:
    if not isinstance(takes[0], type):
        if get_origin(takes[0]) is tuple:
            return "[STR ...]"
        return "[NAME NUMBER ...]" if get_origin(takes[0]) else "{" + ",".join(takes) + "}"
    return takes[0].__name__.upper() if option else name.upper()


def _superfluous(more: Sequence[str], words: Sequence[str], hints: Mapping[str, Any]) -> str:
    """What to say of words that belong to no option."""
    stray = more[0]
    if stray.startswith("-"):
        options = ["--" + name.replace("_", "-") for name in hints]
        near = difflib.get_close_matches(stray.partition("=")[0], options, n=1)
        return f"Unrecognized options: {', '.join(more)}" + (f"; did you mean {near[0]}?" if near else "")
    before = words[words.index(stray) - 1] if words.index(stray) else ""
    flags = [name for name, hint in hints.items() if _takes(hint) == (bool,)]
    if before.removeprefix("--").removeprefix("no-").replace("-", "_") in flags:
        return f"{before} takes no value; leave out {stray!r}"
    return f"unexpected {stray!r}" + (f"; did you mean --data {stray}?" if "data" in hints else "")
