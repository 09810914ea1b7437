"""From a command's words to its options; a mistake becomes one line."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from tailfin.errors import UserError, unknown

NUMBERS = {int: "a whole number", float: "a number"}

Command = TypeVar("Command")


def parse(
    kind: type[Command], words: list[str], command: str, description: str, default: Command | None = None
) -> Command:
    """The command's options.

    Args:
        kind: The dataclass of its options.
        words: What the user typed after the command.
        command: Its name.
        description: The text above the options in its help.
        default: Values of options that are not among the words; those of `kind` itself where None.

    Raises:
        UserError: A mistake, in one line.
    """
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            given = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(
                kind,
                args=words,
                prog=f"tailfin {command}",
                description=description,
                default=given,
                # Else every option that may be left out shows {None} as a value.
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as stop:
        if not stop.code:
            print(out.getvalue(), end="")
            raise
        message = _message(out.getvalue() + err.getvalue(), words, get_type_hints(kind))
        raise UserError(f"{command}: {message}") from None


def value(words: Sequence[str], name: str) -> str | None:
    """What follows an option, as it was typed; None where the option or its value is missing."""
    found = None  # of several the last one counts
    for place, word in enumerate(words):
        option, equals, given = word.partition("=")
        if option.replace("_", "-") == name:
            following = words[place + 1] if place + 1 < len(words) else "--"
            found = given if equals else None if following.startswith("--") else following
    return found


def _message(box: str, words: Sequence[str], hints: Mapping[str, Any]) -> str:
    """What is wrong, from the frame that tyro draws around an error.

    Args:
        box: The frame.
        words: What the user typed.
        hints: The options' types by their names.
    """
    sections = _sections(box)
    titles = ("Unrecognized options", "Value error", "Invalid choice", "Required options", "Missing argument")
    titled = len(sections) > 1 and sections[0] in titles
    message = sections[1 if titled else 0] if sections else "wrong usage"
    if "--method-options" in message:
        return "--method-options takes names and numbers in turn, such as temperature 0.1 hidden 512"
    if found := re.search(r"Missing value for argument '\W*(--[\w-]+)", message):
        return f"{found[1]} needs a value"
    if found := re.match(r"Error parsing (--[\w-]+):", message):
        kinds = [NUMBERS[each] for each in _values(hints, found[1]) if each in NUMBERS]
        if kinds:
            return f"{found[1]} is {value(words, found[1])!r}; it must be {kinds[0]}"
    if found := re.match(r"invalid choice '(.*)' for argument '[^\w-]*([\w-]+)", message):
        option = found[2] if found[2].startswith("--") else ""
        return str(unknown("value", found[1], _values(hints, found[2]), where=option))
    if found := re.match(r"Unrecognized options: (?!-)(.*)", message):
        return _stray(found[1], words, hints)
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(sections))
    return message + (f"; did you mean {near[1]}?" if near else "")


def _sections(box: str) -> list[str]:
    """The paragraphs inside a frame, each as one line."""
    sections = [""]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        line = line.strip(" │")
        if re.match(r"^[╭╰─]|^-{5,}", line):
            sections.append("")
        else:
            sections[-1] += f" {line}"
    return [re.sub(r"\s+", " ", section).strip() for section in sections if section.strip()]


def _values(hints: Mapping[str, Any], option: str) -> tuple[Any, ...]:
    """What an option takes: its type, or the values that are allowed."""
    hint = hints.get(option.removeprefix("--").replace("-", "_"))
    kinds = (
        [each for each in get_args(hint) if each is not NoneType] if NoneType in get_args(hint) else [hint]
    )
    return get_args(kinds[0]) if get_origin(kinds[0]) is Literal else tuple(kinds)


def _stray(told: str, words: Sequence[str], hints: Mapping[str, Any]) -> str:
    """What to say of a word that belongs to no option.

    Args:
        told: The word as tyro tells it, which breaks long ones, and those after it.
        words: What the user typed.
        hints: The options' types by their names.
    """
    whole = re.sub(r"\s", "", told)
    place, stray = next(
        (
            (place, word)
            for place, word in enumerate(words)
            if word and whole.startswith(re.sub(r"\s", "", word))
        ),
        (0, told),
    )
    before = words[place - 1] if place else ""
    if before.startswith("--") and bool in _values(hints, before.replace("--no-", "--")):
        return f"{before} takes no value; leave out {stray!r}"
    return f"unexpected {stray!r}" + (f"; did you mean --data {stray}?" if "data" in hints else "")
