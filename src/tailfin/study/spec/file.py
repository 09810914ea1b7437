"""The study file: what it may hold, and one line with file, line number and key for what it may not."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tailfin.errors import UserError, unknown
from tailfin.files.reading import read_toml
from tailfin.run.config import HARMLESS, Config, from_dict
from tailfin.study.spec import lines

FORMAT = 1
"""Raised when a study file changes its meaning."""

FIRST = "tailfin_study"
TOP = (FIRST, "title", "question", "settings", "grid", "control", "select")
SETTINGS = tuple(field.name for field in dataclasses.fields(Config))
SELECT = ("setting", "values", "seeds", "common")
SELECTABLE = ("decay", "lr", "weight_decay", "warmup_epochs", "crop_min", "clip_grad")


@dataclass(frozen=True)
class Select:
    """A setting that is chosen by validation kNN before the final runs.

    Attributes:
        setting: Its name.
        values: What to choose from.
        seeds: Seeds of the runs that decide, none of which the final runs use.
        common: The value of the second set of final runs, the same for all arms; None for the value that is best
            over all arms together.
    """

    setting: str
    values: tuple[Any, ...]
    seeds: tuple[int, ...]
    common: Any


@dataclass(frozen=True)
class StudyFile:
    """What a study file asks for.

    Attributes:
        path: The file.
        text: Its content, for line numbers.
        title, question: For people.
        settings: Shared by all runs.
        grids: Settings with their values; the runs are all combinations of each grid, united.
        controls: Settings that turn any arm into one that it is compared with; empty where the file names none.
        select: A setting to choose first.
    """

    path: Path
    text: str
    title: str
    question: str
    settings: Mapping[str, Any]
    grids: Sequence[Mapping[str, Sequence[Any]]]
    controls: Sequence[Mapping[str, Any]]
    select: Select | None

    def where(self, key: str, table: str = "", index: int = 0) -> str:
        """File, line number and key, for a message."""
        return where(self.path, self.text, key, table, index)

    def where_set(self, key: str, grid: int) -> str:
        """Where the `grid`-th grid has `key` from: itself, or the shared settings."""
        shared = key in self.settings and key not in self.grids[grid]
        return self.where(key, "settings") if shared else self.where(key, "grid", grid)


def where(path: Path, text: str, key: str, table: str = "", index: int = 0) -> str:
    """File, line number and table of a key, for a message."""
    return f"{path}, line {lines.find(text, key, table, index)}" + (f", [{table}]" if table else "")


def read(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        UserError: It is missing, is not TOML, has another format number, an unknown key or a wrong value; the line
            and the key are named.
    """
    values, text = read_toml(path)
    return _Reader(path, text).read(values)


class _Reader:
    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def where(self, key: str, table: str = "", index: int = 0) -> str:
        return where(self.path, self.text, key, table, index)

    def read(self, values: Mapping[str, Any]) -> StudyFile:
        first = next(iter(values), None)
        if first != FIRST:
            raise UserError(
                f"{self.path}, line 1: a study begins with {FIRST} = {FORMAT}, this one with {first or 'nothing'}"
            )
        if values[FIRST] != FORMAT:
            raise UserError(
                f"{self.where(FIRST)}: {FIRST} is {values[FIRST]!r}; this version of tailfin reads format {FORMAT}"
            )
        for key in values:
            if key not in TOP:
                is_table = isinstance(values[key], (dict, list))
                raise unknown("key", key, TOP, where=self.where("", key) if is_table else self.where(key))
        for key in ("title", "question"):
            if not isinstance(values.get(key), str):
                raise UserError(f"{self.where(key)}: {key} must be a text, got {values.get(key)!r}")
        settings = self.settings(values.get("settings", {}), "settings")
        grids = [self.grid(each, index) for index, each in enumerate(self.tables(values.get("grid"), "grid"))]
        if not grids:
            raise UserError(f"{self.path}, line 1: no [grid]; it lists the values of at least one setting")
        controls = self.tables(values.get("control"), "control")
        found = [self.settings(each, "control", index) for index, each in enumerate(controls)]
        for index, control in enumerate(found):
            if not control or "seed" in control:
                raise UserError(
                    f"{self.where('seed', 'control', index)}: a control holds settings other than the seed, "
                    'such as momentum = "stopgrad"'
                )
        select = self.select(values["select"], settings, grids) if "select" in values else None
        return StudyFile(
            self.path, self.text, values["title"], values["question"], settings, grids, found, select
        )

    def tables(self, value: Any, name: str) -> list[Mapping[str, Any]]:
        """One table or several as a list."""
        tables = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in tables):
            raise UserError(f"{self.where(name)}: {name} must be a table, [{name}] or several [[{name}]]")
        return tables

    def settings(self, values: Any, table: str, index: int = 0) -> dict[str, Any]:
        """Single settings."""
        if not isinstance(values, dict):
            raise UserError(f"{self.where(table)}: {table} must be a table, [{table}]")
        for key, value in values.items():
            self.check(key, value, self.where(key, table, index))
        return dict(values)

    def grid(self, values: Mapping[str, Any], index: int) -> dict[str, list[Any]]:
        """Lists of settings' values."""
        if not values:
            raise UserError(
                f"{self.where('', 'grid', index)}: the grid is empty; it lists the values of at least one setting"
            )
        for key, value in values.items():
            at = self.where(key, "grid", index)
            self.check(key, None, at)
            if key in HARMLESS or key == "device":
                raise UserError(f"{at}: {key} does not belong in a grid; put it into [settings]")
            if not isinstance(value, list) or not value:
                raise UserError(
                    f"{at}: {key} must be a list with at least one value, such as [{value!r}]"
                    if not isinstance(value, list)
                    else f"{at}: {key} is an empty list"
                )
            for place, item in enumerate(value):
                self.check(key, item, at)
                if item in value[:place]:
                    raise UserError(f"{at}: {key} holds {item!r} twice, which would be the same runs again")
        return dict(values)

    def check(self, key: str, value: Any, at: str) -> None:
        """The key exists, may be set by a study, and takes a value of this type; None is any value."""
        if key not in SETTINGS:
            raise unknown("setting", key, SETTINGS, where=at)
        if key == "out":
            raise UserError(f"{at}: out is given by the study; choose its folder with --out")
        if key == "device" and value not in (None, "auto", "cpu", "cuda"):
            raise UserError(
                f"{at}: device is {value!r}; allowed: auto, cpu, cuda (choose among GPUs by CUDA_VISIBLE_DEVICES)"
            )
        if value is None:
            return
        # Bounds that hang on other settings are left to the whole run: here the others are made to fit.
        even = key == "accumulate" and isinstance(value, int) and value > 0
        fitting = {"epochs": 2**31, "batch_size": 2 * value if even else 2}
        try:
            from_dict({**fitting, key: value}, at)
        except UserError as error:
            raise (error if at in str(error) else UserError(f"{at}: {error}")) from None

    def select(
        self, values: Any, settings: Mapping[str, Any], grids: Sequence[Mapping[str, Sequence[Any]]]
    ) -> Select:
        """The [select] table."""
        if not isinstance(values, dict):
            raise UserError(f"{self.where('select')}: select must be a table, [select]")
        at = {key: self.where(key, "select") for key in (*SELECT, "")}
        for key in values:
            if key not in SELECT:
                raise unknown("key", key, SELECT, where=self.where(key, "select"))
        for key in ("setting", "values", "seeds"):
            if key not in values:
                raise UserError(f"{at['']}: {key} is missing; needed: setting, values, seeds")
        setting, choices, seeds = values["setting"], values["values"], values["seeds"]
        if setting not in SELECTABLE:
            raise unknown("setting to select", str(setting), SELECTABLE, where=at["setting"])
        for key, items in (("values", choices), ("seeds", seeds)):
            if not isinstance(items, list) or not items:
                raise UserError(f"{at[key]}: {key} must be a list with at least one value, got {items!r}")
            if any(item in items[:place] for place, item in enumerate(items)):
                raise UserError(f"{at[key]}: {key} holds a value twice")
        for item in choices:
            self.check(setting, item, at["values"])
        for seed in seeds:
            self.check("seed", seed, at["seeds"])
        taken = [setting in settings, *(setting in grid for grid in grids)]
        if any(taken):
            raise UserError(
                f"{at['setting']}: {setting} is chosen here, so it cannot be set elsewhere as well"
            )
        finals = {seed for grid in grids for seed in grid.get("seed", [settings.get("seed", Config().seed)])}
        if both := sorted(finals & set(seeds)):
            raise UserError(
                f"{at['seeds']}: seed {both[0]} is also one of the final runs; selection needs seeds of its own"
            )
        common = values.get("common")
        if common is not None and common not in choices:
            raise unknown("value of common", str(common), map(str, choices), where=at["common"])
        return Select(setting, tuple(choices), tuple(seeds), common)
