"""How long must the phase be in which `--momentum auto` measures? Its choice by length, over seeds.

python benchmarks/phase_length.py
python benchmarks/phase_length.py --data PATH --limit 20000
python benchmarks/phase_length.py --warmup-epochs 0 --lengths 50      a phase usually lies in the warm-up: without it
"""

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import save

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.measuring import advice
from tailfin.run.config import Config
from tailfin.training.setup import load_data

RECIPES: dict[str, dict[str, Any]] = {
    "simclr": {},
    "byol": {"optimizer": "sgd", "lr": 0.6, "weight_decay": 0.0005},
}


def main() -> None:
    """Print one row a method and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=40, help="of the run whose beginning the phase is")
    parser.add_argument("--warmup-epochs", type=float, help="0 for a phase at the full learning rate")
    parser.add_argument("--lengths", type=int, nargs="+", default=[12, 25, 50, 100, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    figures: dict[str, Any] = {}
    for method, recipe in RECIPES.items():
        base = Config(
            data=asked.data,
            limit=asked.limit,
            method=method,
            momentum="auto",
            batch_size=asked.batch_size,
            epochs=asked.epochs,
            device=asked.device,
            warmup_epochs=asked.warmup_epochs,
            **recipe,
        )
        for length in asked.lengths:
            advice.PHASE_STEPS = length
            choices, seconds = [], []
            for seed in asked.seeds:
                config = replace(base, seed=seed)
                images = load_data(config, device)
                start = time.perf_counter()
                choices.append(advice.advise(config, images).placement)
                seconds.append(time.perf_counter() - start)
            figures[f"{method} {length}"] = {"choices": choices, "seconds": seconds}
            counted = ", ".join(f"{name} {count}x" for name, count in Counter(choices).most_common())
            print(f"{method:<10}{length:>5} steps  {counted}", flush=True)
    warm = "" if asked.warmup_epochs is None else f"-warmup{asked.warmup_epochs:g}"
    save(f"phase-length-{Path(asked.data).name}{warm}", device, figures, asked.out)


if __name__ == "__main__":
    main()
