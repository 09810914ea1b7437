"""`tailfin study` as a user types it: with made-up training where that does, and with real runs that are killed."""

import errno
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tailfin import cli
from tailfin.files import writing
from tailfin.study.execution import compute, runner
from tailfin.study.execution.compute import Kept
from tailfin.study.results import table
from tailfin.study.spec.cells import Compute
from tailfin.study.spec.design import Design
from tailfin.study.spec.file import read as read_study

from .execution.test_runner import FAKE
from .synthetic import HEAD

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    '[settings]\nbackbone = "resnet10w2"\nprecision = "fp32"\nmemory_format = "contiguous"\ndevice = "cpu"\n'
)
GRID = '\n[grid]\nmomentum = ["projector", "all"]\nseed = [0, 1]\n'

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tailfin(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process and an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "PROGRAM", FAKE)
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("FAKE_SECONDS", "0.05")

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        output = capfd.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


def write(folder: Path, text: str = SETTINGS + GRID, name: str = "s.toml") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return Path(name)


@pytest.mark.draws
def test_from_a_file_to_a_table_and_a_report(tailfin: Run, tmp_path: Path) -> None:
    code, said, err = tailfin("study", write(tmp_path))
    assert (code, err) == (0, "")
    assert "added the controls simclr none, simclr stopgrad: 4 cells" in said
    assert "results/s: 8 cells to do, 0 done; " in said
    out = tmp_path / "results" / "s"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "cells",
        "compute.json",
        "report.html",
        "report.md",
        "table.csv",
        "table.parquet",
        ".gitignore",
    }
    assert len(table.read(out)) == 8
    page, words = (out / "report.html").read_text(), (out / "report.md").read_text()
    for text in (page, words):
        assert "A question?" in text
        assert "tailfin study s.toml" in text
    assert "| simclr | projector | healthy | 2 | 59.50 | [53.15, 65.85] |" in words  # t(0.975, 1) / 2 is 6.35
    assert "| simclr | projector - none | higher | 2 | 0 | +5.00 |" in words
    assert re.search(r"C5 supported: simclr: the projector alone is better", said)

    code, said, _ = tailfin("study", "s.toml")
    assert code == 0
    assert "start" not in said


def test_a_committed_table_counts_as_done_without_run_folders(tailfin: Run, tmp_path: Path) -> None:
    import shutil

    tailfin("study", write(tmp_path))
    out = tmp_path / "results" / "s"
    before = (out / "table.csv").read_bytes()
    shutil.rmtree(out / "cells")
    for kept in ("compute.json", "report.html", "report.md"):
        (out / kept).unlink()
    code, said, _ = tailfin("study", "s.toml")
    assert (code, "start" in said) == (0, False)
    assert (out / "table.csv").read_bytes() == before
    assert (out / "report.html").exists()
    # Fewer seeds are asked for, and no row is lost; more are run.
    assert tailfin("study", "s.toml", "--seeds", 1)[0] == 0
    assert (out / "table.csv").read_bytes() == before
    assert "1 of" not in (out / "report.md").read_text().splitlines()[4]
    code, said, _ = tailfin("study", "s.toml", "--seeds", 3)
    assert said.count("start ") == 4
    assert len(table.read(out)) == 12


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc that tells the names of open files")
@pytest.mark.parametrize(
    "name", ["compute.json", ".gitignore", "table.parquet", "table.csv", "report.html", "report.md"]
)
def test_a_disk_that_fills_costs_one_line_and_no_finished_cell(
    tailfin: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SETTINGS + '\n[grid]\nmomentum = ["none"]\nseed = [0]\n'
    tailfin("study", write(tmp_path, text), "--out", "whole")
    write_all = writing._write_all

    def full(file: io.FileIO, content: bytes) -> None:
        if f"/.{name}." in os.readlink(f"/proc/self/fd/{file.fileno()}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_all(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_write_all", full)
        code, _, said = tailfin("study", "s.toml")
    assert (code, said.count("\n")) == (2, 1), said
    assert "No space left on device" in said
    assert name in said
    assert not [path for path in (tmp_path / "results").rglob("*") if path.name.startswith(f".{name}.")]
    assert tailfin("study", "s.toml")[0] == 0
    one, other = (table.read(tmp_path / folder) for folder in ("results/s", "whole"))
    assert [row["knn"] for row in one.values()] == [row["knn"] for row in other.values()]


def test_a_cell_that_is_a_link_is_not_written_through(tailfin: Run, tmp_path: Path) -> None:
    tailfin("study", write(tmp_path))
    cells = tmp_path / "results" / "s" / "cells"
    cell = next(path for path in cells.iterdir() if path.is_dir())
    cell.rename(tmp_path / "elsewhere")
    cell.symlink_to(tmp_path / "elsewhere")
    for kept in ("table.parquet", "table.csv"):
        (tmp_path / "results" / "s" / kept).unlink()
    code, _, said = tailfin("study", "s.toml")
    assert (code, said.count("\n")) == (2, 1)
    assert "is a link; nothing is written through links" in said


def test_failed_cells_are_told_at_the_end_and_tried_again(tailfin: Run, tmp_path: Path) -> None:
    file = write(tmp_path, SETTINGS + GRID.replace("[0, 1]", "[0, 13]"))
    for _ in range(2):
        code, said, _ = tailfin("study", file)
        assert code == 1
        failed = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert len(failed) == 4
        assert "the loss is nan since step 3; log: results/s/cells/" in failed[0]
    assert "Cells without a result" in (tmp_path / "results/s/report.md").read_text()
    assert len(table.read(tmp_path / "results" / "s")) == 4


def test_a_selection_is_run_then_the_final_arms(tailfin: Run, tmp_path: Path) -> None:
    text = '\n[select]\nsetting = "decay"\nvalues = [0.9, 0.99]\nseeds = [7]\n'
    code, said, _ = tailfin("study", write(tmp_path, SETTINGS + GRID + text))
    assert code == 0
    rows = table.read(tmp_path / "results" / "s").values()
    assert sorted((r["stage"], r["seed"]) for r in rows if r["settings"]["decay"]) == [
        *[("final", 0)] * 2, *[("final", 1)] * 2, *[("selection", 7)] * 4
    ]  # fmt: skip
    words = (tmp_path / "results/s/report.md").read_text()
    # All values are equally good here: the first one is taken.
    assert "| simclr-projector | 66.0 | 66.0 | 0.9 |" in words
    assert "simclr, at its best decay" in words
    first = next(line for line in said.splitlines() if line.startswith("start"))
    assert "seed7" in first
    assert tailfin("study", "s.toml")[0] == 0
    asked = [path.read_text() for path in (tmp_path / "results").glob("*/cells/*/asked.toml")]
    assert len(asked) == len(rows)
    for text in asked:  # what only chooses never looks at the test images
        assert ('judge = "nothing"' in text) == ("seed = 7" in text)
        assert ('judge = "encoder"' in text) == ("seed = 7" not in text)


def test_the_time_is_up(tailfin: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "30")
    code, said, _ = tailfin("study", write(tmp_path), "--limit-minutes", 0.01, "--jobs", 2, "--out", "a b")
    assert code == 0
    assert "the time is up with 8 cells to do; go on with: tailfin study s.toml --out 'a b' --jobs 2" in said
    assert "0 of 8 cells are finished" in (tmp_path / "a b" / "report.md").read_text()
    monkeypatch.setenv("FAKE_SECONDS", "0.05")
    code, said, _ = tailfin("study", "s.toml", "--out", "a b")
    assert (code, said.count("(goes on)")) == (0, 2)


def test_the_place_of_the_images_is_no_part_of_a_cell_but_their_content_is(
    tailfin: Run, tmp_path: Path
) -> None:
    for name, content in (("one", b"1"), ("two", b"1"), ("three", b"12")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(content)
    text = SETTINGS + 'data = "photos"\nimage_size = 32\n' + GRID
    code, _, err = tailfin("study", write(tmp_path, text))
    assert (code, "no data at 'photos', which the study calls 'photos'" in err) == (2, True)
    assert not (tmp_path / "results").exists()
    assert tailfin("study", "s.toml", "--data", "one")[0] == 0
    assert 'data = "one"' in next((tmp_path / "results/s/cells").glob("*/asked.toml")).read_text()
    assert {row["settings"]["data"] for row in table.read(tmp_path / "results/s").values()} == {"photos"}
    code, said, _ = tailfin("study", "s.toml", "--data", "two")
    assert (code, "start" in said) == (0, False)
    code, _, err = tailfin("study", "s.toml", "--data", "three")
    assert (code, "images of 'photos' are not those that results/s was begun with" in err) == (2, True)
    assert tailfin("study", "s.toml")[0] == 0  # finished, it needs no images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study"], "study: FILE is missing: tailfin study FILE"),
        (["study", "none.toml"], "cannot read none.toml: No such file"),
        (["study", "s.toml", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["study", "s.toml", "--seeds", "0"], "--seeds is 0; it must be at least 1"),
        (["study", "s.toml", "--limit-minutes", "0"], "--limit-minutes is 0.0; it must be above 0"),
        (["study", "s.toml", "--data", "nowhere"], "no data at 'nowhere', which the study calls 'shapes'"),
        (["study", "s.toml", "--out", "/proc/x"], "cannot make the folder /proc/x"),
        (["study", "s.toml", "--job", "2"], "Unrecognized options: --job"),
        (["study", "bad.toml"], "bad.toml, line 5, .settings.: --epochs is 0"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tailfin: Run, tmp_path: Path, words: list[str], message: str
) -> None:
    write(tmp_path)
    write(tmp_path, "[settings]\nepochs = 0\n" + GRID, "bad.toml")
    code, _, err = tailfin(*words)
    assert (code, err.count("\n")) == (2, 1), err
    assert re.search(message, err), err
    assert not (tmp_path / "results").exists()


def test_a_folder_begun_on_another_device_is_refused(tailfin: Run, tmp_path: Path) -> None:
    tailfin("study", write(tmp_path))
    write(tmp_path, SETTINGS.replace('"cpu"', '"cuda"') + GRID)
    code, _, err = tailfin("study", "s.toml")
    assert (code, "line 8, [settings]: device is cuda, but results/s was begun on cpu" in err) == (2, True)


def test_help_explains_by_examples(tailfin: Run) -> None:
    code, said, _ = tailfin("study", "--help")
    assert code == 0
    assert "tailfin study studies/cpu-placement.toml --plan" in said


REAL = (
    '[settings]\ndata = "photos"\nimage_size = 16\nbackbone = "resnet10w2"\nbatch_size = 8\nepochs = 6\n'
    'optimizer = "sgd"\nlr = 0.5\n'
    'device = "cpu"\nmethod_options = { hidden = 16, out = 8 }\ncheckpoint_minutes = 0.002\nknn_evaluations = 1\n'
)
FIXED = 'precision = "fp32"\nmemory_format = "contiguous"\n'


def start(folder: Path) -> subprocess.Popen[str]:
    # One thread a cell, as this process has: the same sums in the same order.
    words = ("--jobs", str(compute.processors()), "--out", "s")
    return subprocess.Popen(
        [sys.executable, "-m", "tailfin", "study", "s.toml", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(600)
@pytest.mark.ci
def test_killed_at_random_moments_it_ends_with_the_same_table(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path, REAL + FIXED + '[grid]\nmomentum = ["projector"]\nmethod = ["simclr"]\nseed = [0, 1]\n'
    )
    moments, cells = random.Random(2), tmp_path / "s" / "cells"
    kills, finished = 0, set()
    process = start(tmp_path)
    while kills < 2:
        files = progress(cells)
        while process.poll() is None and progress(cells) == files:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.kill()
        kills += 1
        if kills == 1:  # once the cells die with it, once they live on
            for pid in (pid for lock in cells.glob(".*.lock") for pid in holders(lock)):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        finished |= {path.parent.name for path in cells.glob("*/result.json")}
        process = start(tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert kills > 0
    assert not finished & set(re.findall(r"start +(\S+)", out))
    for log in cells.glob("*/stdout.log"):
        # Training says this once, at its end, however often the cell was started.
        assert log.read_text().count("verdict: ") == 1
    # The same cells as runs of their own, never interrupted, one after the other.
    monkeypatch.chdir(tmp_path)
    found = table.read(tmp_path / "s")
    study = Design(read_study(file), Kept.read(tmp_path / "s").compute)  # type: ignore[union-attr]
    for cell in study.progress({}).cells:
        run = tmp_path / cell.folder
        with pytest.raises(SystemExit) as stop:
            cli.main(["pretrain", "--config", str(cells / cell.folder / "asked.toml"), "--out", str(run)])
        assert not stop.value.code
        whole = table.row(cell, json.loads((run / "result.json").read_text()))
        steady = whole.keys() - set(table.TIMINGS)
        assert {key: found[cell.fingerprint][key] for key in steady} == {key: whole[key] for key in steady}
    assert len(found) == len(study.variants) == 2


def progress(cells: Path) -> int:
    """Grows with every row of a log and every result."""
    return sum(path.stat().st_size for path in [*cells.glob("*/timing.jsonl"), *cells.glob("*/result.json")])


def holders(path: Path) -> list[int]:
    """Processes that have a file open."""
    found = []
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.path.samefile(link, path) for link in folder.iterdir() if link.exists()):
                found.append(int(folder.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def test_a_plan_measures_and_runs_nothing(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    write(tmp_path, REAL + FIXED + '[grid]\nmomentum = ["projector"]\nseed = [0, 1, 2, 3]\n')
    code, said, err = tailfin("study", "s.toml", "--plan", "--jobs", "3")
    assert (code, err) == (0, "")
    assert len(re.findall(r"^simclr-projector-seed\d +to do +[\d.]+ s$", said, re.MULTILINE)) == 4
    total = re.search(
        r"4 of 4 cells to do, ([\d.]+) s one by one, about ([\d.]+) s with 3 side by side", said
    )
    assert total is not None
    # Four equal cells on three places take as long as two one after the other.
    assert float(total[2]) == pytest.approx(float(total[1]) / 2, abs=0.11)
    assert said.startswith("measures 1 kind of cells for a few steps\n")
    assert re.search(r"memory: up to 0\.\d GiB a cell, ", said)
    assert not (tmp_path / "results").exists()


@pytest.mark.ci
def test_a_cell_that_chooses_its_placement_is_measured_as_all(
    tailfin: Run, photos: Path, tmp_path: Path
) -> None:
    # The precision is open and auto comes first: both what settles it and the plan have to measure it.
    write(tmp_path, REAL + 'through = true\n[grid]\nmomentum = ["auto"]\nseed = [0]\n')
    code, said, err = tailfin("study", "s.toml", "--plan", "--jobs", "1")
    assert (code, err) == (0, "")
    assert re.search(r"^simclr-auto-seed0 +to do +\d", said, re.MULTILINE), said


def test_compute_is_settled_once(
    tailfin: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(groups: Any, jobs: int, **_: Any) -> list[dict[str, Any]]:
        asked.append(groups[0][0])
        return [{"precision": "bf16", "memory_format": "channels_last", "memory": 10**9}]

    monkeypatch.setattr(compute, "measure", measure)
    write(tmp_path, REAL + '[grid]\nmomentum = ["projector"]\nseed = [0, 1]\n')
    assert tailfin("study", "s.toml", "--data", "photos")[0] == 0
    assert tailfin("study", "s.toml", "--seeds", "3")[0] == 0
    assert len(asked) == 1
    assert (asked[0].data, asked[0].device) == ("photos", "cpu")
    kept = json.loads((tmp_path / "results/s/compute.json").read_text())
    assert (kept["device"], kept["precision"], kept["memory_format"], kept["memory"]) == (
        "cpu", "bf16", "channels_last", 10**9
    )  # fmt: skip
    assert {row["settings"]["precision"] for row in table.read(tmp_path / "results/s").values()} == {"bf16"}


def test_the_file_in_the_documentation_is_sound(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    block = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    (tmp_path / "s.toml").write_text(block[1])
    study = Design(read_study(tmp_path / "s.toml"), Compute("cpu", "fp32", "contiguous"))
    assert len(study.progress({}).selection) == 2 * 3 * 4 * 3  # methods, placements, values and seeds
    assert {each.momentum for each in study.control_of(study.variants[0])} == {"stopgrad"}


def test_every_study_in_the_repository_is_sound() -> None:
    files = sorted((ROOT / "studies").glob("*.toml"))
    assert files
    for path in files:
        design = Design(read_study(path), Compute("cpu", "fp32", "contiguous"))
        momenta = {each.momentum for each in design.variants}
        assert len(momenta) == 1 or {"none", "stopgrad"} <= momenta
        assert path.read_text().startswith("# ")
        assert f"tailfin study studies/{path.name}" in path.read_text()


def test_what_another_study_finished_is_not_run_again(tailfin: Run, tmp_path: Path) -> None:
    tailfin("study", write(tmp_path))
    wider = GRID.replace('"projector", "all"', '"projector", "all", "layer4:"')
    code, said, _ = tailfin("study", write(tmp_path, SETTINGS + wider, "w.toml"), "--reuse", "results/s")
    assert code == 0
    assert "results/w: 2 cells to do, 8 done; " in said
    # The made-up training says torch 2, and nothing of the code.
    assert re.search(
        r"^finished cells were not computed with what .* source not recorded in 8, now ", said, re.M
    )
    assert re.search(r"torch 2 in 8, now 2\.\d", said)
    first, second = (table.read(tmp_path / "results" / name) for name in "sw")
    assert first.items() <= second.items()
    code, said, _ = tailfin("study", "w.toml")  # the rows are its own from then on
    assert (code, "start" in said) == (0, False)


@pytest.mark.parametrize(("change", "words"), [("folder", "no study"), ("images", "the images of 'cifar10'")])
def test_a_study_that_cannot_be_reused_is_refused(
    tailfin: Run, tmp_path: Path, change: str, words: str
) -> None:
    kept = Kept(Compute("cpu", "fp32", "contiguous"), {"cifar10": "some"})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    kept.write(tmp_path / "a")
    if change == "images":
        Kept(kept.compute, {"cifar10": "others"}).write(tmp_path / "b")
    code, _, err = tailfin("study", write(tmp_path), "--reuse", "a", "b")
    assert code == 2
    assert words in err
