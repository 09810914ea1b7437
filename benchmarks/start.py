"""How long `tailfin --help` and the first step take, each in a process of its own.

python benchmarks/start.py

A default first step leaves precision and memory format open, so that they are tried first, or remembered from an
earlier run; with both given they are neither, and what is between is the price of the choice.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import save, spread, words

from tailfin.compute.device import find_device

FIRST_STEP = """
import sys
from tailfin.run.config import Config
from tailfin.training.setup import prepare
device, batch, *given = sys.argv[1:]
chosen = dict(zip(("precision", "memory_format"), given))
setup = prepare(Config(limit=2 * int(batch), batch_size=int(batch), momentum="projector", device=device, **chosen))
setup.step()(next(setup.feed().batches(0, 1)), 0).item()
print(setup.config.precision, setup.config.memory_format)
"""


def main() -> None:
    """Measure and print one row a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    step = [sys.executable, "-c", FIRST_STEP, str(device), str(asked.batch_size)]
    given = ("bf16" if device.type == "cuda" else "fp32", "channels_last")
    commands = {
        "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        "tailfin --help": [sys.executable, "-m", "tailfin", "--help"],
        "first step, both open, never tried": step,
        "first step, both open, remembered": step,
        f"first step, {' and '.join(given)} given": [*step, *given],
    }
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in commands.items():
            times, said = [], []
            for _ in range(asked.rounds):
                fresh = {"XDG_CACHE_HOME": tempfile.mkdtemp(dir=scratch)} if "never" in name else {}
                environment = os.environ | {"XDG_CACHE_HOME": f"{scratch}/kept"} | fresh
                if "remembered" in name and not times:
                    subprocess.run(command, check=True, capture_output=True, env=environment)
                start = time.perf_counter()
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                times.append(time.perf_counter() - start)
                said.append(done.stdout.split("\n")[-2] if done.stdout else "")
            figures[name] = row = {"seconds": spread(times)}
            chose = ""
            if "step" in name:
                row["chose"] = said
                chose = f": {', '.join(sorted(set(said)))}"
            print(f"{name:<46}{words(row['seconds'])} s, n = {len(times)}{chose}", flush=True)
    save("start", device, figures, asked.out)


if __name__ == "__main__":
    main()
