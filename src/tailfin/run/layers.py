"""Settings in layers: the usual ones, those of a file or of a run to go on with, and what was asked for."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from tailfin.errors import UserError
from tailfin.run.config import Config, checked, read
from tailfin.run.folder import RunFolder


def base(file: str | Path | None = None, resume: str | Path | None = None) -> Config:
    """The settings that typed ones override: the defaults, a file's without its run folder, or those of a run.

    Args:
        file: A TOML file of settings.
        resume: A run folder.

    Raises:
        UserError: Both, or one that cannot be read.
    """
    for name, given, what in (("--resume", resume, "folder"), ("--config", file, "file")):
        if given is not None and not str(given).strip():
            raise UserError(f"{name} is empty; it names a {what}")
    if file is not None and resume is not None:
        raise UserError("--config and --resume exclude each other: a resumed run has its own settings")
    if resume is not None:
        return RunFolder.open(Path(resume)).read_config()
    return Config() if file is None else replace(read(Path(file)), out=None)


def layered(below: Config, typed: Mapping[str, Any]) -> Config:
    """Settings with what was asked for laid over them; paths may be `os.PathLike`.

    Args:
        below: See `base`.
        typed: Values by the names of `Config`, whatever asked for them.

    Raises:
        UserError: An unknown name, naming the nearest, or a value that is not of its setting's type.
    """
    plain = {name: str(value) if isinstance(value, PathLike) else value for name, value in typed.items()}
    return replace(below, **checked(plain, "the call"))
