"""Running cells: side by side, stopped, killed, failed, and by two studies at once."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tailfin.files import lock
from tailfin.study.execution import runner
from tailfin.study.execution.runner import CellFolders, Outcome, Runner
from tailfin.study.spec.cells import Cell

from ..synthetic import design

FAKE = (sys.executable, str(Path(__file__).with_name("fake_training.py")))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "3"}
GRID = '[grid]\nmomentum = ["none", "stopgrad", "projector"]\nseed = [0, 1]\n'


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PROGRAM", FAKE)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)


class Session:
    """A study's cells and what became of them."""

    def __init__(self, folder: Path, grid: str = GRID) -> None:
        self.cells = design(folder, grid).progress({}).cells
        self.folders = CellFolders(folder / "out")
        self.folders.make()
        self.finished: list[Cell] = []
        self.said: list[str] = []

    def run(self, jobs: int = 2) -> Outcome:
        it = Runner(self.folders, {}, [ENVIRONMENT] * jobs, None, self.said.append)
        return it.run(lambda: self.pending(it.outcome), self.finished.append)

    def pending(self, outcome: Outcome) -> Sequence[Cell]:
        done = {cell.fingerprint for cell in self.finished} | outcome.failures.keys()
        return [cell for cell in self.cells if cell.fingerprint not in done]

    def story(self, cell: Cell) -> list[str]:
        path = self.folders.of(cell).path / "story"
        return path.read_text().splitlines() if path.exists() else []


def test_every_cell_runs_once_with_its_threads(tmp_path: Path) -> None:
    session = Session(tmp_path)
    outcome = session.run(jobs=3)
    assert (outcome.failures, outcome.stopped, outcome.timed_out) == ({}, None, False)
    assert sorted(c.name for c in session.finished) == sorted(c.name for c in session.cells)
    assert all(session.story(cell) == ["begun 3", "finished"] for cell in session.cells)
    asked = (session.folders.of(session.cells[0]).path / "asked.toml").read_text()
    assert "workers = 3" in asked
    assert (tmp_path / "out" / ".gitignore").read_text() == "/cells/\n"
    assert not any(lock.is_held(session.folders.lock(cell)) for cell in session.cells)


def test_a_failed_cell_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    session = Session(tmp_path, '[grid]\nmomentum = ["none", "stopgrad"]\nseed = [13, 1]\n')
    outcome = session.run(jobs=1)
    assert sorted(c.config.seed for c in session.finished) == [1, 1]
    assert {f.reason for f in outcome.failures.values()} == {"the loss is nan since step 3"}
    failure = next(iter(outcome.failures.values()))
    assert "a warning" in failure.log.read_text()
    assert any(line.startswith("failed  simclr-") and str(failure.log) in line for line in session.said)


def test_a_killed_cell_is_a_failure_with_its_signal(tmp_path: Path) -> None:
    session = Session(tmp_path, '[grid]\nmomentum = ["none"]\n')
    it = Runner(session.folders, {}, [{**ENVIRONMENT, "FAKE_SECONDS": "30"}], None, session.said.append)

    def kill() -> None:
        while not it.children:
            time.sleep(0.01)
        it.children[0].process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = it.run(lambda: session.pending(it.outcome), session.finished.append)
    killer.join()
    assert [f.reason for f in outcome.failures.values()] == ["killed by SIGKILL (out of memory?)"]


def test_the_time_is_up_and_the_cells_go_on_where_they_were(tmp_path: Path) -> None:
    session = Session(tmp_path, '[grid]\nmomentum = ["none", "stopgrad"]\nseed = [0]\n')
    slow = {**ENVIRONMENT, "FAKE_SECONDS": "20"}
    it = Runner(session.folders, {}, [slow] * 2, float("inf"), session.said.append)

    def time_is_up() -> None:
        while len(list(session.folders.path.glob("*/checkpoint"))) < 2:
            time.sleep(0.01)
        it.deadline = time.monotonic()

    clock = threading.Thread(target=time_is_up)
    clock.start()
    outcome = it.run(lambda: session.pending(it.outcome), session.finished.append)
    clock.join()
    assert (outcome.timed_out, outcome.failures, session.finished) == (True, {}, [])
    assert all(session.folders.state(cell) == "interrupted" for cell in session.cells)
    assert all(session.story(cell)[-1] == "stopped 1" for cell in session.cells)
    before = [int((session.folders.of(cell).path / "checkpoint").read_text()) for cell in session.cells]
    assert all(0 < step < 10 for step in before)
    session.run(jobs=2)
    assert len(session.finished) == 2
    assert all(session.story(cell)[-2:] == ["resumed 3", "finished"] for cell in session.cells)


def test_a_cell_whose_name_changed_is_the_same_cell(tmp_path: Path) -> None:
    session = Session(tmp_path, '[grid]\nmomentum = ["none"]\nseed = [0]\n')
    session.run()
    more = Session(tmp_path, '[grid]\nmomentum = ["none"]\nseed = [0]\nepochs = [8, 9]\n')
    known = next(cell for cell in more.cells if cell.config.epochs == 8)
    assert known.name != session.cells[0].name
    assert more.folders.state(known) == "done"


def drive(folder: Path) -> multiprocessing.Process:
    """A study of GRID in a process and a session of its own; `ended` and what it said is in folder/said."""

    def work() -> None:
        os.setsid()
        session = Session(folder)
        outcome = session.run()
        said = [*session.said, f"ended {len(session.finished)} {outcome.stopped}"]
        (folder / f"said{os.getpid()}").write_text("\n".join(said))

    # Forked, it need not import torch anew, which takes longer than all else here.
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process  # type: ignore[return-value]


def said(folder: Path, process: multiprocessing.Process) -> list[str]:
    process.join(60)
    assert process.exitcode == 0
    return (folder / f"said{process.pid}").read_text().splitlines()


def test_two_studies_on_one_folder_share_the_cells(tmp_path: Path) -> None:
    session = Session(tmp_path)
    for process in [drive(tmp_path), drive(tmp_path)]:
        assert said(tmp_path, process)[-1] == f"ended {len(session.cells)} None"
    assert all(session.story(cell) == ["begun 3", "finished"] for cell in session.cells)


def test_killed_with_cells_running_it_goes_on_without_running_any_twice(tmp_path: Path) -> None:
    """SIGKILL leaves the cells running: the next start has to wait for them, not to run them beside themselves."""
    session, moments, kills = Session(tmp_path), random.Random(1), 0
    process = drive(tmp_path)
    while process.is_alive():
        time.sleep(moments.uniform(0.05, 0.35))
        if kills < 6 and process.is_alive():
            process.kill()
            process.join()
            kills += 1
            process = drive(tmp_path)
    assert said(tmp_path, process)[-1] == f"ended {len(session.cells)} None"
    assert kills > 2
    for cell in session.cells:
        assert session.story(cell).count("finished") == 1
        assert session.story(cell)[-1] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_the_cells_save(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "FAKE_SECONDS", "20")
    session = Session(tmp_path)
    process = drive(tmp_path)
    while len(list(session.folders.path.glob("*/checkpoint"))) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    os.killpg(process.pid or 0, number)  # as a terminal does: to the whole group
    lines = said(tmp_path, process)
    passed = signal.SIGTERM if number == signal.SIGHUP else number
    assert lines[-1] == f"ended 0 {int(passed)}"
    assert "stopping what runs (2); it saves what it has" in lines
    stories = [session.story(cell) for cell in session.cells]
    assert [story for story in stories if story] == [["begun 3", "stopped 1"]] * 2


def test_a_lock_lives_as_long_as_the_child_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    handle = lock.acquire(path)
    assert handle is not None
    assert lock.acquire(path) is None
    child = subprocess.Popen(["sleep", "60"], pass_fds=(handle,))
    lock.release(handle)
    assert lock.is_held(path)
    child.kill()
    child.wait()
    assert not lock.is_held(path)
    assert not lock.is_held(tmp_path / "none")
    assert not (tmp_path / "none").exists()
