"""Whether this CPU's convolutions have the right gradients: each shape in a process of its own, against float64.

python benchmarks/convolutions.py
ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/convolutions.py

The shape that oneDNN 3.12 (torch 2.14) gets wrong on some CPUs is a 1x1 convolution of stride 2 with few input
channels, fp32, channels_last. Each cell is the relative error of the weight's gradient, or how the process ended.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import save

ONE = """
import sys, torch
from torch.nn.functional import conv2d
channels, side, batch, stride = map(int, sys.argv[1:5])
layout = getattr(torch, sys.argv[5])
torch.manual_seed(0)
images = torch.randn(batch, channels, side, side).contiguous(memory_format=layout)
weight = torch.randn(2 * channels, channels, 1, 1).contiguous(memory_format=layout)
def gradient(images, weight):
    weight = weight.clone().requires_grad_()
    conv2d(images, weight, stride=stride).sin().sum().backward()
    return weight.grad.double()
right = gradient(images.double(), weight.double())
print(float((gradient(images, weight) - right).norm() / right.norm()))
"""
KINDS = (("channels_last", 2), ("channels_last", 1), ("contiguous_format", 2))


def main() -> None:
    """Try and print one row a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--limit-seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    print("".join(f"{words:>26}" for words in ("channels, side", *(f"{k}, stride {s}" for k, s in KINDS))))
    figures: list[dict[str, Any]] = []
    for channels in asked.channels:
        for side in asked.sides:
            found = [tried((channels, side, asked.batch_size, s, k), asked.limit_seconds) for k, s in KINDS]
            print("".join(f"{words:>26}" for words in (f"{channels}, {side}", *found)), flush=True)
            figures += [
                {"channels": channels, "side": side, "memory_format": k, "stride": s, "error": error}
                for (k, s), error in zip(KINDS, found, strict=True)
            ]
    save("convolutions", torch.device("cpu"), figures, asked.out)


def tried(shape: tuple[object, ...], limit_seconds: float) -> str:
    """The error of one shape, or how its process ended."""
    command = [sys.executable, "-c", ONE, *map(str, shape)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return "hangs"
    if done.returncode < 0:
        return signal.Signals(-done.returncode).name
    return f"{float(done.stdout):.0e}" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
