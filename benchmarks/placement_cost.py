"""What a placement costs: forward calls, FLOPs, seconds a step and peak memory, beside `stopgrad`.

python benchmarks/placement_cost.py                                     # narrow ResNet, SimCLR, CPU or GPU
python benchmarks/placement_cost.py --backbone resnet18 --batch-size 512
"""

import argparse
import gc
import subprocess
import sys
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch
from common import in_turn, ratio, save, spread, words

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.momentum.cost import part_flops
from tailfin.run.config import Config
from tailfin.training.feed import Batch
from tailfin.training.setup import Setup, load_data, prepare

HEADS = (("trunk calls", 13), ("target FLOPs", 14), ("s a step", 10), ("over stopgrad", 36), ("peak MiB", 10))
PLACEMENTS = ("none", "stopgrad", "projector", "layer4:", "layer3:", "layer2:", "layer1:", "all")


def main() -> None:
    """Measure and print one row a placement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backbone", default="resnet10w16")
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--placements", nargs="+", default=PLACEMENTS, help="stopgrad among them")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if "stopgrad" not in asked.placements:
        parser.error("--placements needs stopgrad, which the others are compared with")
    device = find_device(asked.device)
    keep_freed_memory()
    config = Config(
        backbone=asked.backbone,
        method=asked.method,
        batch_size=asked.batch_size,
        limit=2 * asked.batch_size,
        image_size=32,
        device=asked.device,
        memory_format="channels_last",
        precision="bf16" if device.type == "cuda" else "fp32",
        monitors="none",
    )
    if asked.memory_of:
        print(peak_memory(config, asked.memory_of))
        return
    # First, while nothing else is on a GPU.
    peaks = {name: memory_of(config, name, device) for name in asked.placements}
    setups = {name: build(config, name) for name in asked.placements}
    arms = {name: partial(setup.step(), first_batch(setup), 0) for name, setup in setups.items()}
    seconds = in_turn(arms, asked.rounds, device)
    rows = {}
    heads = "".join(f"{head:>{width}}" for head, width in HEADS)
    print(f"{'placement':<11}{heads}")
    for name, setup in setups.items():
        compared = ratio(seconds[name], seconds["stopgrad"])
        example = setup.execution.images(torch.zeros(1, 3, 32, 32, device=device))
        row = {
            "trunk_calls": trunk_calls(setup),
            "target_flops": setup.encoder.placement.cost(part_flops(setup.encoder, example)),
            "seconds": spread(seconds[name]),
            "over_stopgrad": compared,
            "peak_bytes": peaks[name],
        }
        rows[name] = row
        over = words(compared, ".3f")
        print(
            f"{name:<11}{row['trunk_calls']:>13}{100 * row['target_flops']:>12.1f} %{row['seconds']['median']:>10.3f}"
            f"{over:>36}{row['peak_bytes'] / 2**20:>10.0f}",
            flush=True,
        )
    save(f"placement-cost-{asked.method}-{asked.backbone}", device, rows, asked.out)


def build(config: Config, placement: str) -> Setup:
    """A setup under `placement`."""
    from dataclasses import replace

    changed = replace(config, momentum=placement)
    return prepare(changed, load_data(changed, find_device(changed.device)))


def first_batch(setup: Setup) -> Batch:
    """The first images, on the device: copying them is no part of a step's cost."""
    images = setup.data.train.images[: setup.config.batch_size].to(setup.execution.device)
    return Batch(images, torch.arange(len(images)), None, 0.0)


def trunk_calls(setup: Setup) -> int:
    """How often the first part runs in a step, online and momentum copy together."""
    name, calls = setup.encoder.names[0], [0]
    modules = [setup.encoder.part(name)]
    if name in setup.encoder.placement.placed:
        modules.append(setup.encoder.momentum_part(name))
    hooks = [m.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)) for m in modules]
    setup.step()(first_batch(setup), 0)
    for hook in hooks:
        hook.remove()
    return calls[0]


def memory_of(config: Config, placement: str, device: torch.device) -> int:
    """Peak bytes of tensors in a step; on a CPU over building and three steps, in a process that is profiled."""
    if device.type == "cuda":
        gc.collect()  # what was measured before
        setup = build(config, placement)
        three_steps(setup)  # cuDNN's search for kernels takes memory of its own
        torch.cuda.reset_peak_memory_stats(device)
        three_steps(setup)
        return torch.cuda.max_memory_allocated(device)
    command = [sys.executable, *sys.argv, "--memory-of", placement]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def peak_memory(config: Config, placement: str) -> int:
    """Peak bytes of tensors over building and three steps, on a CPU: resident memory is mostly chance there."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        three_steps(build(config, placement))
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


def three_steps(setup: Setup) -> None:
    """Enough for optimizer and averages to have their tensors."""
    train_step, batch = setup.step(), first_batch(setup)
    for _ in range(3):
        train_step(batch, 0)


if __name__ == "__main__":
    main()
