"""Files that others wrote: whatever a reader meets is one line with the file's name and what is wrong."""

import json
import os
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tailfin.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def read_bytes(path: Path) -> bytes:
    """The content of a plain file; a pipe would be waited for.

    Raises:
        UserError: It is missing, cannot be read, or is no plain file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise UserError(f"cannot read {path}: no plain file")
            return file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        UserError: As `read_bytes`, or it is not UTF-8.
    """
    content = read_bytes(path)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is damaged: line {line} is not UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: As `read_text`, or it is not one.
    """
    return json_object(read_text(path), str(path))


def json_object(text: str, where: str) -> dict[str, Any]:
    """A JSON object from its text.

    Raises:
        UserError: It is not one; `where` says whose text it is.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: not valid JSON: {_words(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{where} is damaged: a JSON {type(found).__name__}, not an object")
    return found


def read_json_lines(path: Path, lost: list[str] | None = None) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where it does not exist. A last line cut short is left out.

    Args:
        path: The file.
        lost: Takes a line that says what could not be read, where the rest is wanted all the same.

    Raises:
        UserError: Something could not be read, and `lost` is None.
    """
    if not path.exists():
        return []
    rows, wrong = [], []
    for number, line in enumerate(_whole_lines(path, lost), start=1):
        try:
            rows.append(json_object(line.decode(), f"line {number}"))
        except (UserError, UnicodeDecodeError):
            wrong.append(number)
    if wrong:
        words = (
            f"{path} is damaged: {len(wrong)} of its lines are no JSON objects, the first is line {wrong[0]}"
        )
        if lost is None:
            raise UserError(words)
        lost.append(words)
    return rows


def _whole_lines(path: Path, lost: list[str] | None) -> list[bytes]:
    try:
        return read_bytes(path).split(b"\n")[:-1]
    except UserError as error:
        if lost is None:
            raise
        lost.append(str(error))
        return []


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The values of a TOML file, and its text.

    Raises:
        UserError: As `read_text`, or it is not TOML.
    """
    text = read_text(path)
    try:
        return tomllib.loads(text), text
    # Some ten thousand brackets in one another are a RecursionError, a date of the year 0 a ValueError.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {_words(error)}") from None


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        UserError: It is missing, no plain file, or damaged.
    """
    from safetensors import safe_open

    # It is opened by its name, so that what it is must be found out before.
    if path.exists() and not path.is_file():
        raise UserError(f"cannot read {path}: no plain file")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or 'no such file'}") from None
    # SafetensorError, but also what types and shapes that torch does not know bring.
    except Exception as error:
        raise UserError(f"{path} is damaged or not safetensors: {_words(error)}") from None


def understand(where: str, make: Callable[[], T]) -> T:
    """What `make` makes of the content of a file; what it stumbles over is a line.

    Raises:
        UserError: The content is not what it should be.
    """
    try:
        return make()
    except (KeyError, IndexError) as error:
        raise UserError(f"{where} is damaged: it lacks {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        if type(error) is RuntimeError and "memory" in str(error):  # torch's, and not the file's fault
            raise
        raise UserError(f"{where} is damaged: {_words(error)}") from None


def _words(error: Exception) -> str:
    return printable(" ".join((str(error) or type(error).__name__).split()))[:300]
