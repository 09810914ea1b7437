"""Several processes from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tailfin import cli
from tailfin.compute import launch
from tailfin.run import checkpoint

from .test_several import start

TINY = (
    "--batch-size 8 --epochs 3 --backbone resnet10w2 --image-size 16 --precision fp32 --memory-format contiguous "
    "--device cpu --knn-evaluations 1 --lr 0.05 --optimizer sgd --judge nothing"
).split()
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tailfin(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, error = capfd.readouterr()
        return int(stop.value.code or 0), out, error

    return run


def test_two_devices_train_the_run_of_one_and_the_first_process_speaks(
    tailfin: Run, photos: Path, tmp_path: Path
) -> None:
    options = ["pretrain", *TINY, "--data", photos]
    code, said, error = tailfin(*options, "--out", tmp_path / "two", "--devices", 2)
    assert (code, error) == (0, "")
    assert [line.split()[0] for line in said.splitlines()][:5] == [
        "run",
        "data",
        "method",
        "momentum",
        "compute",
    ]
    assert said.count("verdict:") == 1
    assert tailfin(*options, "--out", tmp_path / "one")[0] == 0
    for kind in ("metrics", "stability"):
        one, two = (
            [json.loads(line) for line in (tmp_path / name / f"{kind}.jsonl").read_text().splitlines()]
            for name in ("one", "two")
        )
        assert [sorted(row) for row in one] == [sorted(row) for row in two]
        if kind == "metrics":
            losses = [[row["loss"] for row in rows if "loss" in row] for rows in (one, two)]
            torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-3, atol=0.0)
        else:
            sizes = [
                [size for row in rows if "gradient" in row for size in row["gradient"]["stem"]]
                for rows in (one, two)
            ]
            torch.testing.assert_close(*map(torch.tensor, sizes), rtol=1e-2, atol=0.0)
    # A run of two goes on as one, and one as two.
    for name in ("one", "two"):
        assert tailfin("pretrain", "--resume", tmp_path / name)[1].startswith(
            f"{tmp_path / name} is finished"
        )


def test_a_run_of_two_devices_that_is_stopped_goes_on_with_one(
    photos: Path, tmp_path: Path, tailfin: Run
) -> None:
    options = [*TINY, "--data", str(photos), "--out", str(tmp_path / "run"), "--devices", "2"]
    options[options.index("3")] = "400"
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tailfin", "pretrain", *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=file,
        )
    while (
        not (tmp_path / "run" / "timing.jsonl").exists()
        or not (tmp_path / "run" / "timing.jsonl").stat().st_size
    ):
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, log.read_text()
    said = log.read_text()
    step = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").progress["step"]
    assert f"stopped after step {step}; go on with: tailfin pretrain --resume" in said
    assert "Traceback" not in said
    resumed = subprocess.Popen(
        [sys.executable, "-m", "tailfin", "pretrain", "--resume", str(tmp_path / "run")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert resumed.stdout is not None
    assert any(f"goes on     after step {step} of 2000" in line for line in resumed.stdout)
    resumed.kill()
    resumed.wait()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--devices", "0"), "--devices is 0; it must be at least 1"),
        (("--devices", "4000"), "--devices is 4000; this machine has"),
        (("--devices", "2", "--momentum", "layer9:"), "unknown part"),
        (
            ("--devices", "2", "--batch-size", "9"),
            "--batch-size 9 cannot be shared out among 2 processes; 8 or 10 can",
        ),
    ],
)
def test_devices_that_cannot_be_are_one_line(
    tailfin: Run, photos: Path, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    code, _, error = tailfin("pretrain", *TINY, "--data", photos, "--out", tmp_path / "run", *words)
    assert code == 2
    assert error.count("\n") == 1
    assert line in error


def test_devices_under_another_launcher_are_one_line(tailfin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, error = tailfin("pretrain", "--devices", "2")
    assert code == 2
    assert "--devices 2: 4 processes were started already, by torchrun" in error


def test_a_process_that_fails_is_named_and_the_others_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "tailfin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import os, sys, time\n"
        "if os.environ['RANK'] == '1':\n    sys.exit('RuntimeError: no such kernel')\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(launch, "PROGRAM", ("-m", "tailfin"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(
        launch.Failed, match="process 1 of 2 ended with 1: RuntimeError: no such kernel; all it said is in"
    ):
        launch.launch(["pretrain"], 2)
    assert time.monotonic() - began < 120


def test_nobody_at_the_first_processs_address_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tailfin: Run
) -> None:
    monkeypatch.setattr("tailfin.compute.several.FIRST_SECONDS", 0.5)
    for name, value in (
        ("WORLD_SIZE", "2"),
        ("RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    code, _, error = tailfin("pretrain", *TINY)
    assert code == 2
    assert error.count("\n") == 1
    assert "process 1: no first process at 127.0.0.1:1, where MASTER_ADDR and MASTER_PORT say" in error


DIFFERENT = """
import os, sys
from tailfin import cli
words = sys.argv[1:]
cli.main(words + (["--clip-grad", "7"] if os.environ["RANK"] == "1" else []))
"""


def test_processes_with_other_settings_are_found_before_the_first_step(photos: Path, tmp_path: Path) -> None:
    words = ["pretrain", *TINY, "--data", str(photos), "--out", str(tmp_path / "run")]
    processes = start(2, "-c", DIFFERENT, *words)
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "process 1 has other settings than the first one" in said[0]
    assert said[1] == ""
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
