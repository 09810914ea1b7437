"""What the processes of a run send each other in a step: collectives and bytes, by method and placement.

torchrun --nproc-per-node 2 benchmarks/collectives.py
torchrun --nproc-per-node 2 benchmarks/collectives.py --methods simclr byol --backbone resnet18 --batch-size 64

Counted on the CPU, where torch dispatches each collective; bytes are those that one process hands in. No figure hangs
on the machine.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailfin import methods
from tailfin.compute.several import joined
from tailfin.data.types import Dataset, ImageSet
from tailfin.run.config import Config
from tailfin.training.setup import prepare


class Sent(TorchDispatchMode):
    """Counts collectives, and the bytes that this process hands in, by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.__name__.split(".")[0].rstrip("_")
            inputs = args[1] if name == "allgather" else args[0]
            self.calls[name] += 1
            self.bytes[name] += sum(each.nbytes for each in tree_leaves(inputs) if isinstance(each, Tensor))
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="*", default=list(methods.names()))
    parser.add_argument("--momentum", nargs="*", default=["none", "projector", "all"])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    count = 2 * asked.batch_size
    pixels = torch.randint(0, 255, (count, 3, 32, 32), dtype=torch.uint8)
    train = ImageSet(pixels, torch.arange(count) % 2, ("a", "b"))
    data = Dataset("random", train, None, (0.5,) * 3, (0.2,) * 3)
    figures: dict[str, dict[str, Any]] = {}
    with joined(torch.device("cpu")) as world:
        if world.leads:
            heads = f"{'method':<18}{'momentum':<11}{'gather':>7}{'MB':>8}{'reduce':>8}{'MB':>8}"
            print(f"{heads}{'of them, gradients':>20}")
        for method in asked.methods:
            for momentum in asked.momentum:
                config = Config(
                    method=method,
                    momentum=momentum,
                    backbone=asked.backbone,
                    batch_size=asked.batch_size,
                    precision="fp32",
                    memory_format="contiguous",
                    device="cpu",
                    epochs=1,
                )
                setup = prepare(config, data, world=world)
                step = setup.step()
                batches = setup.feed().batches(0, 2)
                step(next(batches), 0)  # the first step settles the buckets
                with Sent() as sent:
                    step(next(batches), 1)
                weights = sum(p.nbytes for p in step.parameters)
                row = {"calls": dict(sent.calls), "bytes": dict(sent.bytes), "gradients": weights}
                figures[f"{method} {momentum}"] = row
                if world.leads:
                    print(
                        f"{method:<18}{momentum:<11}{sent.calls['allgather']:>7}{sent.bytes['allgather'] / 1e6:>8.2f}"
                        f"{sent.calls['allreduce']:>8}{sent.bytes['allreduce'] / 1e6:>8.2f}{weights / 1e6:>17.2f} MB",
                        flush=True,
                    )
        if world.leads and asked.out is not None:
            asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
