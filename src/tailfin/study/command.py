"""The command `study`: from a study file to a table and a report."""

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tailfin.compute.device import find_device
from tailfin.errors import UserError
from tailfin.files import write_atomically
from tailfin.run.config import Config
from tailfin.run.versions import versions
from tailfin.study.execution import compute, plan
from tailfin.study.execution.compute import Kept
from tailfin.study.execution.runner import CellFolders, Outcome, Runner
from tailfin.study.results import markdown, origins, summary, table
from tailfin.study.spec import file
from tailfin.study.spec.cells import Cell, Compute
from tailfin.study.spec.design import Design, Progress, Row


@dataclass(frozen=True)
class Options:
    """The command's options, as they were given.

    Attributes:
        file: The study file.
        out: The study's folder; None for results/ and the file's name.
        data: Where the images lie: a path, or NAME=PATH for each data set.
        jobs: Cells side by side; None for as many as fit.
        seeds: This many seeds instead of the listed ones.
        limit_minutes: Stop in good order after so long.
        plan: Print what there is to do and what it takes, and do nothing.
        reuse: Folders of other studies whose finished cells count where this study asks for the same.
        method: The user's own method that they trust, FILE.py:CLASS.
    """

    file: Path
    out: Path | None
    data: Sequence[str]
    jobs: int | None
    seeds: int | None
    limit_minutes: float | None
    plan: bool
    reuse: Sequence[str] = ()
    method: str | None = None

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path("results") / self.file.stem if self.out is None else self.out

    @property
    def command(self) -> str:
        """The command that goes on with the study."""
        words = ["tailfin", "study", str(self.file)]
        given = (
            ("--out", self.out),
            ("--jobs", self.jobs),
            ("--seeds", self.seeds),
            ("--method", self.method),
        )
        for name, value in given:
            words += [] if value is None else [name, str(value)]
        for name, values in (("--data", self.data), ("--reuse", self.reuse)):
            words += [name, *values] if values else []
        return shlex.join(words)

    @property
    def repeated(self) -> str:
        """The command that repeats the study elsewhere, where the images lie somewhere else."""
        words = ["tailfin", "study", str(self.file)]
        for name, value in (("--seeds", self.seeds), ("--method", self.method)):
            words += [] if value is None else [name, str(value)]
        return shlex.join(words)


Tell = Callable[[object], object]
"""Takes what happens: lines of text, and a `Plan` where that is asked for."""


def study(options: Options, tell: Tell = lambda _: None) -> int:
    """Run what a study file asks for and is not there yet, and write the table and the report.

    Returns:
        The exit code of `tailfin study`.

    Raises:
        UserError: Anything wrong with the options, the file, the folder or the place of the images.
    """
    began = time.monotonic()
    for name, value in (("--jobs", options.jobs), ("--seeds", options.seeds)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    if options.limit_minutes is not None and not options.limit_minutes > 0:
        raise UserError(f"--limit-minutes is {options.limit_minutes}; it must be above 0")
    return Study(options, tell).run(began)


class Study:
    """A study and its folder.

    Args:
        options: See `Options`.
        tell: Takes what happens.

    Raises:
        UserError: Anything wrong with the file, the folder or the place of the images.
    """

    def __init__(self, options: Options, tell: Tell) -> None:
        self.options, self.out, self.tell = options, options.folder, tell
        self.file = file.read(options.file)
        self.folders = CellFolders(self.out)
        self.rows: dict[str, Row] = table.read(self.out)
        others = [Path(folder) for folder in options.reuse]
        self.borrowed = {key: row for folder in others for key, row in table.read(folder).items()}
        kept = Kept.read(self.out) or _kept_by(self.rows) or self._begun_elsewhere(others)
        device = self._device(kept)
        known = kept.compute if kept else Compute(device)
        self.kept = kept or Kept(known)
        self.design = Design(self.file, known, options.seeds)
        names = list(dict.fromkeys(each.data for each in self.design.variants))
        self.locate = compute.locations(options.data, names)
        if options.data:
            self._identify()

    def run(self, began: float) -> int:
        """Run what is not finished, write the table and the report; returns the exit code."""
        for note in self.design.notes:
            self.tell(note)
        fixed = all(c.precision and c.memory_format for c in self.design.variants)
        outcome = Outcome()
        if not fixed or self._pending(outcome):
            find_device(self.kept.compute.device)
            self._identify()
            first = replace(self.design.variants[0], data=self._location(self.design.variants[0]))
            device = self.kept.compute.device
            self.kept = compute.settle(self.kept, first, device=device, jobs=self.options.jobs, say=self.tell)
            self.design = Design(self.file, self.kept.compute, self.options.seeds)
        found = self._collect()
        self.rows |= found
        self._say_other_versions(outcome)
        jobs = self.options.jobs or compute.usual_jobs(self.kept.compute.device, self.kept.memory)
        if self.options.plan:
            progress = self.design.progress(self.rows)
            on = self.kept.compute
            self.tell(plan.plan(progress, self.rows, self.folders, self.locate, jobs, on, self.tell))
            return 0
        self.folders.make()
        self.kept.write(self.out)
        if found:
            self.rows = table.add(self.out, found)
        if pending := self._pending(outcome):
            done = len(self._progress(outcome).cells) - len(pending)
            self.tell(
                f"{self.out}: {len(pending)} cells to do, {done} done; {jobs} side by side on "
                f"{self.kept.compute.device}, {self.kept.compute.precision}, {self.kept.compute.memory_format}"
            )
            minutes = self.options.limit_minutes
            deadline = None if minutes is None else began + 60 * minutes
            runner = Runner(self.folders, self.locate, self._slots(jobs), deadline, self.tell)
            outcome = runner.run(lambda: self._pending(runner.outcome), self._finished)
        self._report(outcome)
        return self._end(outcome)

    def _say_other_versions(self, outcome: Outcome) -> None:
        """Before cells are added to those of other code or libraries, so that nobody mixes them without knowing."""
        known = self._progress(outcome).cells
        done = [self.rows[cell.fingerprint] for cell in known if cell.fingerprint in self.rows]
        words = origins.other_than(versions(), done) if len(done) < len(known) else None
        if words:
            self.tell(words)

    @staticmethod
    def _begun_elsewhere(folders: Sequence[Path]) -> Kept | None:
        """What the studies to reuse remember: cells of two count together only where images and computing agree.

        Raises:
            UserError: They do not agree with each other, or one is no study's folder.
        """
        found: Kept | None = None
        for folder in folders:
            other = Kept.read(folder)
            if other is None:
                raise UserError(f"--reuse {folder}: no study was begun there")
            if found is None:
                found = replace(other, memory=None)
            elif found.compute != other.compute:
                raise UserError(f"--reuse {folder} was computed otherwise than {folders[0]}")
            found = replace(found, images=compute.same_images(found.images, dict(other.images), folder))
        return found

    def _device(self, kept: Kept | None) -> str:
        asked = str(self.file.settings.get("device", "auto"))
        if kept is None:
            return find_device("auto").type if asked == "auto" else asked
        if asked not in ("auto", kept.compute.device):
            raise UserError(
                f"{self.file.where('device', 'settings')}: device is {asked}, but {self.out} was begun on "
                f"{kept.compute.device}; choose another --out"
            )
        return kept.compute.device

    def _identify(self) -> None:
        """Make sure that the images are those that finished cells were trained on."""
        found = {name: compute.identify(name, location) for name, location in self.locate.items()}
        self.kept = replace(self.kept, images=compute.same_images(self.kept.images, found, self.out))

    def _location(self, config: Config) -> str:
        return self.locate[config.data]

    def _slots(self, jobs: int) -> list[dict[str, str]]:
        gpus = compute.gpus() if self.kept.compute.device == "cuda" else []
        return [
            compute.environment(jobs, gpus[index % len(gpus)] if len(gpus) > 1 else None)
            for index in range(jobs)
        ]

    def _progress(self, outcome: Outcome) -> Progress:
        return self.design.progress(self.rows, outcome.failures)

    def _pending(self, outcome: Outcome) -> list[Cell]:
        return [
            cell
            for cell in self._progress(outcome).cells
            if cell.fingerprint not in self.rows and cell.fingerprint not in outcome.failures
        ]

    def _collect(self) -> dict[str, Row]:
        """Results in run folders or of other studies, round by round: a selection makes known what follows."""
        found: dict[str, Row] = {}
        while True:
            known = self.design.progress({**self.rows, **found}).cells
            new = {
                cell.fingerprint: self._row(cell)
                for cell in known
                if cell.fingerprint not in found and self.folders.of(cell).result.exists()
            }
            taken = {**self.rows, **found, **new}
            new |= {
                cell.fingerprint: self.borrowed[cell.fingerprint]
                for cell in known
                if cell.fingerprint in self.borrowed and cell.fingerprint not in taken
            }
            if not new:
                return found
            found |= new

    def _row(self, cell: Cell) -> Row:
        folder = self.folders.of(cell)
        try:
            return table.row(cell, folder.read_result())
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder.result} is damaged ({error!r}); delete {folder.path} to run the cell again"
            ) from None

    def _finished(self, cell: Cell) -> None:
        row = self._row(cell)
        self.rows = table.add(self.out, {cell.fingerprint: row})
        judged = " ".join(
            f"{name} {row[name]:.1f} %" for name in ("knn", "linear") if row.get(name) is not None
        )
        self.tell(f"done    {cell.folder}: {judged or 'not judged'}, {row['state']}")

    def _report(self, outcome: Outcome) -> None:
        from tailfin.report import study_page

        failures = [(each.cell.name, each.reason) for each in outcome.failures.values()]
        progress = self._progress(outcome)
        content = summary.content(self.design, progress, self.rows, failures, self.options.repeated)
        write_atomically(self.out / "report.html", study_page.render(content).encode())
        write_atomically(self.out / "report.md", markdown.render(content).encode())
        for problem in progress.problems:
            self.tell(problem)
        for claim in content.claims:
            self.tell(f"{claim.id} {claim.state}: {claim.words}")
        self.tell(f"report: {self.out / 'report.html'}")

    def _end(self, outcome: Outcome) -> int:
        left = len(self._pending(outcome))
        if outcome.stopped is not None:
            self.tell(f"stopped with {left} cells to do; go on with: {self.options.command}")
            return 128 + outcome.stopped
        if outcome.timed_out and left:
            self.tell(f"the time is up with {left} cells to do; go on with: {self.options.command}")
        for failure in outcome.failures.values():
            self.tell(f"failed: {failure.cell.name}: {failure.reason}; log: {failure.log}")
        return 1 if outcome.failures or self._progress(outcome).problems else 0


def _kept_by(rows: dict[str, Row]) -> Kept | None:
    """What a table without its compute.json tells of how its cells were computed."""
    for row in rows.values():
        with contextlib.suppress(KeyError):
            settings = row["settings"]
            return Kept(Compute(settings["device"], settings["precision"], settings["memory_format"]))
    return None
