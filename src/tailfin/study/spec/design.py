"""A study's design: from grids to cells, the controls that belong to them, and the choice of a setting."""

import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from tailfin.errors import UserError
from tailfin.run.config import Config, from_dict
from tailfin.study.spec import cells
from tailfin.study.spec.cells import Cell, Compute
from tailfin.study.spec.file import StudyFile
from tailfin.training.misfits import Misfit

Row = dict[str, Any]
"""A finished cell's row of the table."""

BEST, COMMON = "at its best", "at one"
"""Sets of final runs after a selection: each arm with its own value, and all with the same."""

CONTROLS: tuple[Mapping[str, Any], ...] = ({"momentum": "none"}, {"momentum": "stopgrad"})


@dataclass(frozen=True)
class Entry:
    """A cell in its place within the study.

    Attributes:
        frame: Which set of final runs: "at its best ..." or "at one ..." after a selection; "" without one, and for a
            run that the selected setting does not touch.
        variant: Its settings, the selected one left open.
        cell: The run; None while the selected setting is not known.
    """

    frame: str
    variant: Config
    cell: Cell | None


@dataclass(frozen=True)
class Choice:
    """What the selection found for one arm.

    Attributes:
        arm: The arm, for people.
        scores: Mean validation kNN by value; only values all of whose runs are finished.
        value: The best one.
    """

    arm: str
    scores: Mapping[Any, float]
    value: Any


@dataclass(frozen=True)
class Progress:
    """What a study consists of, as far as the finished cells tell.

    Attributes:
        selection: Cells that decide.
        entries: The final runs.
        choices: What was decided.
        problems: What could not be decided, and why.
    """

    selection: Sequence[Cell]
    entries: Sequence[Entry]
    choices: Sequence[Choice]
    problems: Sequence[str]

    @property
    def cells(self) -> list[Cell]:
        """All known cells, each once, in the order to run them."""
        final = sorted((e for e in self.entries if e.cell), key=lambda e: e.variant.seed)
        every = [*self.selection, *(e.cell for e in final if e.cell)]
        return list({cell.fingerprint: cell for cell in every}.values())


class Design:
    """The cells of a study file.

    Args:
        study: The file.
        compute: What all cells are computed with.
        seeds: This many seeds instead of the listed ones: the first of them, then counting on.

    Attributes:
        notes: What was added or united by itself, for people.
        differing: Settings that the file varies and that tell its runs apart.

    Raises:
        UserError: Settings that do not go together, a duplicate cell or a control without a cell, with the line.
    """

    def __init__(self, study: StudyFile, compute: Compute, seeds: int | None = None) -> None:
        self.study, self.compute = study, compute
        self.notes: list[str] = []
        variants: dict[str, Config] = {}
        united = 0
        written = list(_written(study, seeds))
        for config in written:
            whole = cells.canonical(config, compute)
            united += _key(whole) in variants
            variants.setdefault(_key(whole), whole)
        if united:
            self.notes.append(f"{united} cells are others by another name, and run once")
        self._check_controls(list(variants.values()))
        usual = self._usual_controls(list(variants.values()))
        self.controls = list(study.controls) or usual
        self._add_controls(variants, usual)
        self.variants = list(variants.values())
        # The file's order with the seed outermost: whole comparisons come first, then more seeds of them.
        self.variants.sort(key=lambda config: config.seed)
        compared = {key for control in self.controls for key in control}
        told = {*cells.telling(written, cells.varying(written)), *compared}
        self.differing = tuple(key for key in cells.MATTERING if key in told)

    def control_of(self, variant: Config) -> list[Config]:
        """The variants that `variant` is compared with, itself left out."""
        return self._changed(variant, self.controls)

    def progress(self, rows: Mapping[str, Row], failed: Collection[str] = ()) -> Progress:
        """What there is to run, given the rows of finished cells by fingerprint and the failed fingerprints."""
        select = self.study.select
        if select is None:
            return Progress([], [Entry("", each, self._cell(each)) for each in self.variants], [], [])
        selection: dict[str, Cell] = {}
        choices: dict[str, Choice] = {}
        problems = []
        arms = {arm_key(each): each for each in self.variants if self._is_selected(each)}
        open_arms = set()
        for key, variant in arms.items():
            runs = {
                value: [
                    self._cell(self._with(replace(variant, seed=seed), value), selects=True)
                    for seed in select.seeds
                ]
                for value in select.values
            }
            selection |= {cell.fingerprint: cell for group in runs.values() for cell in group}
            every = [cell.fingerprint for group in runs.values() for cell in group]
            if any(each not in rows and each not in failed for each in every):
                open_arms.add(key)
                continue
            scores = _scores(runs, rows)
            arm = re.sub(r"-seed\d+$", "", cells.name(variant, self.differing))
            if scores:
                choices[key] = Choice(arm, scores, max(scores, key=lambda value: scores[value]))
            else:
                problems.append(f"{arm}: no value of {select.setting} has a validation kNN to choose by")
        common = select.common
        if common is None and not open_arms:
            common = _common(choices, select.values)
        entries = []
        for variant in self.variants:
            key = arm_key(variant)
            if key not in arms:
                entries.append(Entry("", variant, self._cell(variant)))
                continue
            best = choices[key].value if key in choices else None
            waits = {BEST: key in open_arms, COMMON: select.common is None and bool(open_arms)}
            for frame, value in ((BEST, best), (COMMON, common)):
                named = f"{frame} {select.setting}"
                if value is not None:
                    entries.append(Entry(named, variant, self._cell(self._with(variant, value))))
                elif waits[frame]:
                    entries.append(Entry(named, variant, None))
        return Progress(list(selection.values()), entries, list(choices.values()), problems)

    def _check_controls(self, variants: Sequence[Config]) -> None:
        for index, control in enumerate(self.study.controls):
            for variant in {arm_key(each): each for each in variants}.values():
                try:
                    cells.check(replace(variant, **dict(control)))
                except Misfit as error:
                    raise UserError(f"{self.study.where(error.key, 'control', index)}: {error}") from None
                except UserError as error:
                    raise UserError(f"{self.study.where('', 'control', index)}: {error}") from None

    def _usual_controls(self, variants: Sequence[Config]) -> list[Mapping[str, Any]]:
        placements: dict[str, set[str]] = {}
        for each in variants:
            placements.setdefault(_rest(each), set()).add(each.momentum)
        return list(CONTROLS) if any(len(found) > 1 for found in placements.values()) else []

    def _changed(self, variant: Config, controls: Sequence[Mapping[str, Any]]) -> list[Config]:
        found = [cells.canonical(replace(variant, **dict(each)), self.compute) for each in controls]
        return list({_key(each): each for each in found if _key(each) != _key(variant)}.values())

    def _add_controls(self, variants: dict[str, Config], usual: Sequence[Mapping[str, Any]]) -> None:
        added = {}
        for variant in list(variants.values()):
            for control in self._changed(variant, [*self.controls, *usual]):
                if _key(control) not in variants:
                    added[_key(control)] = control
        if not added:
            return
        names = sorted({f"{each.method} {each.momentum}" for each in added.values()})
        self.notes.append(f"added the controls {', '.join(names)}: {len(added)} cells")
        variants |= added

    def _cell(self, config: Config, *, selects: bool = False) -> Cell:
        return cells.make(config, dict.fromkeys((*self.differing, *self._selected())), selects=selects)

    def _selected(self) -> tuple[str, ...]:
        return (self.study.select.setting,) if self.study.select else ()

    def _with(self, variant: Config, value: Any) -> Config:
        assert self.study.select is not None
        changed = {self.study.select.setting: value}
        if self.study.select.setting == "decay":
            # Unless the file says where the decay ends, a chosen decay is constant, as on the command line.
            places = (self.study.settings, *self.study.grids)
            changed["decay_end"] = variant.decay_end if any("decay_end" in each for each in places) else None
        return cells.canonical(replace(variant, **changed), self.compute)

    def _is_selected(self, variant: Config) -> bool:
        """Whether the selected setting changes what the variant computes: a decay does nothing without momentum."""
        assert self.study.select is not None
        first, *others = (_key(self._with(variant, value)) for value in self.study.select.values)
        return any(each != first for each in others)


def _written(study: StudyFile, seeds: int | None) -> Iterator[Config]:
    """Every cell that the file lists, as it is written."""
    seen: dict[str, int] = {}
    checked = set()
    for index, grid in enumerate(study.grids):
        axes = dict(grid)
        if seeds is not None:
            axes["seed"] = _seeds(study, axes.get("seed"), seeds)
        for combination in itertools.product(*axes.values()):
            values = {**study.settings, **dict(zip(axes, combination, strict=True))}
            at = study.where("", "grid", index)
            try:
                config = from_dict(values, at)
                # No seed makes another setting wrong, and a check builds the method's heads.
                if arm_key(config) not in checked:
                    cells.check(config)
                    checked.add(arm_key(config))
            except Misfit as error:
                raise UserError(f"{study.where_set(error.key, index)}: {error}") from None
            except UserError as error:
                raise UserError(f"{_blamed(study, str(error), index)}: {error}") from None
            if (key := _key(config)) in seen:
                raise UserError(
                    f"{at}: the cell {json.dumps(values, sort_keys=True)} is in an earlier grid already, "
                    f"{study.where('', 'grid', seen[key])}"
                )
            seen[key] = index
            yield config


def _seeds(study: StudyFile, listed: Sequence[int] | None, count: int) -> list[int]:
    own = list(listed or [study.settings.get("seed", 0)])
    taken = set(study.select.seeds) if study.select else set()
    more = (seed for seed in itertools.count(max(own) + 1) if seed not in taken)
    return (own + list(itertools.islice(more, max(0, count - len(own)))))[:count]


def _blamed(study: StudyFile, message: str, grid: int) -> str:
    """The line of the first option in a message that is a setting of the file."""
    for word in re.findall(r"--([a-z][a-z-]*)", message):
        key = word.replace("-", "_")
        if key in study.grids[grid] or key in study.settings:
            return study.where_set(key, grid)
    return study.where("", "grid", grid)


def _key(config: Config) -> str:
    """What makes a cell itself."""
    return json.dumps(cells.settings(config), sort_keys=True)


def arm_key(config: Config) -> str:
    """What an arm is told by: all that makes a cell but the seed."""
    return _key(replace(config, seed=0))


def _rest(config: Config) -> str:
    """What placements are compared in."""
    plain = Config()
    return _key(
        replace(
            config, **{f.name: getattr(plain, f.name) for f in fields(Config) if f.name in cells.MOMENTUM}
        )
    )


def _scores(runs: Mapping[Any, Sequence[Cell]], rows: Mapping[str, Row]) -> dict[Any, float]:
    """Mean validation kNN of the values all of whose runs have one."""
    scores = {}
    for value, group in runs.items():
        found = [rows.get(cell.fingerprint, {}).get("validation_knn") for cell in group]
        known = [float(each) for each in found if each is not None]
        if len(known) == len(found):
            scores[value] = fmean(known)
    return scores


def _common(choices: Mapping[str, Choice], values: Sequence[Any]) -> Any:
    """The value with the highest mean score over all arms that have a score for it in common; None without any."""
    if not choices:
        return None
    shared = [value for value in values if all(value in choice.scores for choice in choices.values())]
    means = {value: fmean(choice.scores[value] for choice in choices.values()) for value in shared}
    return max(means, key=lambda value: means[value]) if means else None
