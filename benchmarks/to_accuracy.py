"""From raw files to a linear accuracy: SimCLR with momentum on the projector, by number of epochs.

Each number of epochs is a whole run, its clock going from the start of the command to the probe's answer. A run that
`--limit-minutes` or a signal stopped goes on with the same command, and its seconds add up. The profile of a step
comes first, at the settings of the runs, and its time counts towards the limit.

python benchmarks/to_accuracy.py --data CIFAR10 --device cuda --limit-minutes 9
python benchmarks/to_accuracy.py --data shapes --backbone resnet10w4 --limit 200 --epochs 1 2 --target 15   # tiny
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from common import said, save

from tailfin import methods
from tailfin.cli.parsing import given
from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.measuring.timing import bench
from tailfin.run.config import Config
from tailfin.training.setup import load_data


def main() -> None:
    """Run, print one row a run, and say which was the first to reach the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", type=float, default=90.0, help="linear accuracy in percent")
    parser.add_argument("--epochs", type=int, nargs="+", default=[100, 200, 400, 800])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--recipe", nargs=argparse.REMAINDER, default=[], help="more options of pretrain; last"
    )
    parser.add_argument("--limit-minutes", type=float, help="stop after so many, to go on later")
    parser.add_argument("--runs", type=Path, default=Path("runs/to-accuracy"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    deadline = time.monotonic() + 60 * (asked.limit_minutes or float("inf"))
    options = ["--data", asked.data, "--backbone", asked.backbone, "--device", asked.device]
    options += ["--momentum", "projector", "--judge", "encoder"]
    for name in ("batch_size", "limit"):
        if getattr(asked, name) is not None:
            options += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    device = find_device(asked.device)
    asked.runs.mkdir(parents=True, exist_ok=True)
    refuse_others(asked.runs, [*options, *asked.recipe])
    words = [*options, "--epochs", str(min(asked.epochs)), *asked.recipe]
    config = Config(**given(Config, words, "pretrain", ""))
    if methods.is_file(config.method):
        config = replace(config, method=methods.trust(config.method))
    figures: dict[str, Any] = {"options": said([*options, *asked.recipe]), "target": asked.target}
    figures["profile"] = profile(asked.runs / "profile.json", config, device)
    rows: dict[str, Any] = {}
    for epochs in sorted(asked.epochs):
        folder = asked.runs / f"epochs{epochs}"
        if not run(folder, [*options, "--epochs", str(epochs), *asked.recipe], deadline):
            print(f"{epochs} epochs: the time is up; the same command goes on with them")
            break
        result = json.loads((folder / "result.json").read_text())
        rows[str(epochs)] = row = {
            "seconds": sum(map(float, clock_of(folder).read_text().split())),
            "training_seconds": result["seconds"],
            "images_per_second": result["images_per_second"],
            "linear": result["linear"],
            "knn": result["knn"],
            "untrained": result["untrained"],
        }
        print(
            f"{epochs:>5} epochs: linear {row['linear']:.2f} %, kNN {row['knn']:.2f} %, {row['seconds']:.0f} s from "
            f"raw files to the probe's answer, {row['training_seconds']:.0f} of them training at "
            f"{row['images_per_second']:,.0f} images/s",
            flush=True,
        )
    reached = [epochs for epochs, row in rows.items() if row["linear"] >= asked.target]
    if reached:
        print(f"{asked.target:g} % first after {reached[0]} epochs, {rows[reached[0]]['seconds']:.0f} s")
    elif rows:
        best = max(row["linear"] for row in rows.values())
        print(f"{asked.target:g} % not reached: {best:.2f} % is the most")
    figures["runs"] = rows
    name = f"to-accuracy-{Path(asked.data).name}-{Path(config.method).name}-{config.backbone}"
    save(name, device, figures, asked.out)


def refuse_others(folder: Path, options: list[str]) -> None:
    """Stop where the folder holds runs of other options: a finished one would stand for one that was never made."""
    path = folder / "options.json"
    if not path.exists():
        path.write_text(json.dumps(options))
    elif (before := json.loads(path.read_text())) != options:
        sys.exit(f"--runs {folder} holds runs with other options: {' '.join(before)}")


def stop(number: int, _frame: FrameType | None) -> NoReturn:
    """End as by Ctrl-C, through each `finally`; once, for `timeout` signals its child and then the child's group."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def run(folder: Path, options: list[str], deadline: float) -> bool:
    """Run or go on with one run until it has its result; False where the deadline stopped it first."""
    while not (folder / "result.json").exists():
        if time.monotonic() >= deadline:
            return False
        started = (folder / "config.toml").exists()
        words = ["--resume", str(folder)] if started else [*options, "--out", str(folder)]
        start = time.perf_counter()
        # A signal between the run's start and the `try` would leave it running.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # In a session of its own no signal reaches the run but ours: a second one would keep it from saving.
        process = subprocess.Popen(
            [sys.executable, "-m", "tailfin", "pretrain", *words],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(signal.pthread_sigmask, signal.SIG_SETMASK, before),
        )
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            with suppress(subprocess.TimeoutExpired):
                process.wait(None if deadline == float("inf") else max(0.0, deadline - time.monotonic()))
        finally:
            process.terminate()
            code = process.wait()
            with clock_of(folder).open("a") as file:
                file.write(f"{time.perf_counter() - start}\n")
        if code and time.monotonic() < deadline:
            sys.exit(f"tailfin pretrain {' '.join(words)} ended with {code}")
    return True


def clock_of(folder: Path) -> Path:
    """Where the seconds of each command on a run are kept, one a line."""
    return folder.with_suffix(".seconds")


def profile(path: Path, config: Config, device: torch.device) -> dict[str, Any]:
    """Seconds of each phase of a step, measured once for the runs of a folder."""
    if not path.exists():
        keep_freed_memory()
        found = bench(config, load_data(config, device), seconds=2.0)
        row = {"phases": dict(found.phases), "images_per_second": found.images_per_second}
        path.write_text(json.dumps(row))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    row = json.loads(path.read_text())
    total = sum(row["phases"].values())
    shares = ", ".join(f"{name} {100 * seconds / total:.1f} %" for name, seconds in row["phases"].items())
    print(f"a step of {1e3 * total:.1f} ms: {shares}", flush=True)
    return row  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
