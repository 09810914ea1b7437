"""Some hundred damaged files of each kind, always the same; benchmarks/fuzz.py reads as many as one likes."""

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tailfin.data import store
from tailfin.errors import UserError

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


FUZZ = script()


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        *((kind, 300) for kind in FUZZ.KINDS if kind not in ("reports", "images", "checkpoints", "encoders")),
        ("images", 600),
        ("checkpoints", 150),
        ("encoders", 150),
        ("reports", 100),
        pytest.param("reports", 20, marks=[pytest.mark.draws, pytest.mark.ci]),
    ],
)
def test_what_is_damaged_is_read_or_refused_in_one_line(
    kind: str, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "free_memory", store.free_memory)  # which one kind replaces
    (tmp_path / "scratch").mkdir()
    read, refused = FUZZ.KINDS[kind](tmp_path / "scratch"), []
    capfd.readouterr()
    for seed in range(inputs):
        folder = tmp_path / str(seed)
        folder.mkdir()
        try:
            read(folder, random.Random(f"{kind} {seed}"))
        except UserError as error:
            refused.append(str(error))
    assert 0 < len(refused) < inputs
    assert not any("\n" in words for words in refused)
    assert capfd.readouterr() == ("", "")


@pytest.mark.ci
def test_the_benchmark_counts_what_crashes_hangs_and_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    broken = tmp_path / "fuzz.py"
    text = SCRIPT.read_text().replace(
        "HANGS_SECONDS, START_SECONDS = 60.0", "HANGS_SECONDS, START_SECONDS = 5.0"
    )
    start = text.index("KINDS: Mapping")
    broken.write_text(
        text[:start]
        + """
def broken(scratch):
    def read(folder, draws):
        seed = int(folder.name.removeprefix("input"))
        if seed == 1:
            os._exit(7)
        if seed == 2:
            time.sleep(60)
        if seed == 3:
            raise KeyError("a")
        if seed == 4:
            refuse("no")
    return read

KINDS = {"broken": broken}
"""
        + text[text.index("def refuse") :]
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, str(broken), "--inputs", "6"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[1].split()[:5] == ["broken", "6", "2", "1", "3"]
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == ["crash", "hang", "traceback"]
