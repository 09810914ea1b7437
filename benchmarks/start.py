"""How long `tailfin --help` and the first step take, each in a process of its own.

python benchmarks/start.py
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch
from common import save

FIRST_STEP = """
from tailfin.training.config import Config
from tailfin.training.setup import prepare
from tailfin.training.feed import Feed
from tailfin.training.step import Step
setup = prepare(Config(limit=512, momentum="projector", monitors="none", device="cpu", precision="fp32",
                       memory_format="channels_last"))
feed = Feed(setup.data.train, batch_size=256, seed=0, device=setup.execution.device)
Step(setup)(next(feed.batches(0, 1)), 0).item()
"""
COMMANDS = {
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "tailfin --help": [sys.executable, "-m", "tailfin", "--help"],
    "first step": [sys.executable, "-c", FIRST_STEP],
}


def main() -> None:
    """Measure and print one row a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    figures = {}
    for name, command in COMMANDS.items():
        times = []
        for _ in range(asked.rounds):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        figures[name] = {"median": median(times), "low": min(times), "high": max(times), "n": len(times)}
        print(f"{name:<28}{median(times):>7.2f} s ({min(times):.2f} to {max(times):.2f})", flush=True)
    save("start", torch.device("cpu"), figures, asked.out)


if __name__ == "__main__":
    main()
