"""Processes of a run killed at random moments, under torchrun's restarts: it ends as one that was never hurt.

python benchmarks/kills.py --kills 20
python benchmarks/kills.py --kills 3 --devices 4 --seed 1

Exits with 1 where weights or metrics differ, something is lost, or a process is left.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

RUN = (
    "pretrain --method mocov2plus --momentum projector --limit 400 --batch-size 40 --backbone resnet10w4 "
    "--image-size 16 --precision fp32 --memory-format contiguous --device cpu --checkpoint-minutes 0.001 "
    "--judge nothing"
)


def start(out: Path, asked: argparse.Namespace, restarts: int) -> subprocess.Popen[str]:
    """A run by torchrun."""
    words = [*RUN.split(), "--epochs", str(asked.epochs), "--seed", str(asked.seed), "--out", str(out)]
    launch = f"--standalone --nproc-per-node {asked.devices} --max-restarts {restarts} --monitor-interval 0.1"
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *launch.split(), "-m", "tailfin", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            text=True,
        )


def workers(launcher: int) -> list[int]:
    """The processes that a launcher started and that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == launcher and words[0] != "Z":
            found.append(int(path.parent.name))
    return found


def hurt(process: subprocess.Popen[str], out: Path, asked: argparse.Namespace) -> int:
    """Kill now and then until the run has ended; returns how often."""
    moments, kills, seen = random.Random(asked.seed), 0, -1
    log = out / "metrics.jsonl"
    while process.poll() is None and kills < asked.kills:
        size = log.stat().st_size if log.exists() else 0
        if size == seen:  # it has not come on since the last kill
            time.sleep(0.02)
            continue
        time.sleep(moments.uniform(0, 0.5))
        if alive := workers(process.pid):
            os.kill(moments.choice(alive), signal.SIGKILL)
            kills, seen = kills + 1, log.stat().st_size if log.exists() else 0
            time.sleep(0.5)
    return kills


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = Path(scratch) / "whole", Path(scratch) / "parts"
        if start(whole, asked, 0).wait():
            sys.exit(whole.with_suffix(".log").read_text()[-2000:])
        process = start(parts, asked, asked.kills + 1)
        kills = hurt(process, parts, asked)
        code = process.wait()
        left = workers(process.pid)
        if code:
            sys.exit(parts.with_suffix(".log").read_text()[-4000:])
        first, second = (load_file(folder / "checkpoint.safetensors") for folder in (whole, parts))
        differing = [name for name in first if not first[name].equal(second[name])]
        same = (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
        print(
            f"{kills} kills of {asked.devices} processes, {len(first)} tensors: {len(differing)} differ, metrics "
            f"{'identical' if same else 'differ'}, {len(left)} processes left"
        )
        sys.exit(bool(differing or not same or left or first.keys() != second.keys()))


if __name__ == "__main__":
    main()
