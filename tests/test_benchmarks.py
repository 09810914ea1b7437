"""Benchmarks that wait for a GPU run at a tiny size on the CPU, so that they are known to work when there is one."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_from_raw_files_to_an_accuracy(tmp_path: Path) -> None:
    words = (
        "--data shapes --backbone resnet10w4 --limit 200 --batch-size 50 --epochs 1 --target 100 --device cpu"
    )
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "to_accuracy.py"), *words.split(), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100 % not reached" in done.stdout
    [saved] = tmp_path.glob("to-accuracy-*.json")
    figures = json.loads(saved.read_text())["figures"]
    row = figures["runs"]["1"]
    assert row["seconds"] > row["training_seconds"] > 0
    assert 0 < row["linear"] < 100
    assert figures["profile"]["phases"]["backward"] > 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(saved.read_text())["figures"]["runs"]["1"] == row, again.stdout  # a finished run stands
