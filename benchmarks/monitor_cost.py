"""What the monitors cost: a block of 50 steps with and without them, in turn.

python benchmarks/monitor_cost.py
python benchmarks/monitor_cost.py --backbone resnet18 --batch-size 512
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from common import in_turn, ratio, save, spread, words

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.run.config import Config
from tailfin.run.folder import Log
from tailfin.training.feed import Batch
from tailfin.training.listeners import Taken
from tailfin.training.loop import LOG_STEPS
from tailfin.training.monitors import PROBE_STEPS, Monitors
from tailfin.training.setup import Setup, load_data, prepare
from tailfin.training.start import monitors_of
from tailfin.training.step import Step


def main() -> None:
    """Measure and print one row a choice of monitors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="resnet10w16")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    base = Config(
        backbone=asked.backbone,
        batch_size=asked.batch_size,
        limit=2 * asked.batch_size,
        image_size=32,
        device=asked.device,
        momentum="projector",
        memory_format="channels_last",
        precision="bf16" if device.type == "cuda" else "fp32",
    )
    data = load_data(base, device)
    arms = {}
    with tempfile.TemporaryDirectory() as folder:
        for choice in ("none", "gradient", "probe", "gradient,probe"):
            setup = prepare(replace(base, monitors=choice), data)
            place = Path(folder) / choice
            place.mkdir()
            arms[choice] = partial(
                block, setup, setup.step(), monitors_of(setup, Log(place / "stability.jsonl"))
            )
        seconds = in_turn(arms, asked.rounds, device, warm=1)
    figures = {}
    for name, times in seconds.items():
        over = ratio(times, seconds["none"])
        figures[name] = {"seconds": spread(times), "over_none": over}
        print(f"{name:<16}{words(over, '.4f')} of the time without, n = {over['n']}", flush=True)
    save(f"monitor-cost-{asked.backbone}", device, figures, asked.out)


def block(setup: Setup, train_step: Step, monitors: Monitors) -> None:
    """As many steps as lie between two looks at the probe batch."""
    images = setup.data.train.images[: setup.config.batch_size].to(setup.execution.device)
    for step in range(1, PROBE_STEPS + 1):
        loss = train_step(Batch(images, torch.arange(len(images)), None, 0.0), step)
        logged = step % LOG_STEPS == 0
        monitors.after_step(Taken(step, loss, 0.0, 0.0, epoch_ends=False, logged=logged, last=False))


if __name__ == "__main__":
    main()
