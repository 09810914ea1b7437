"""What kinds of operation a training step is made of: each kind's own time, as torch's profiler sees it.

python benchmarks/step_profile.py                       # ResNet-18 at 32 px, bf16, channels_last

Beside them the step by the clock, without the profiler: a GPU may be idle for a share of it.
"""

import argparse
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import save, wait
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tailfin.compute.device import keep_freed_memory
from tailfin.run.config import Config
from tailfin.training.setup import prepare

KINDS = {
    "convolution, forward": r"aten::(mkldnn_|cudnn_|_?slow_|thnn_)?\w*conv\w*(?<!backward)$",
    "convolution, backward": r"aten::\w*conv\w*backward$",
    "batch norm, forward": r"aten::\w*batch_norm(?!\w*backward)\w*$",
    "batch norm, backward": r"aten::\w*batch_norm\w*backward\w*$",
    "matrix products": r"aten::(\w*mm|\w*linear\w*|matmul|dot)$",
    "momentum update": r"aten::_foreach_lerp_$",
    "optimizer": r"aten::_(fused|foreach)_\w+$",
    "copies and casts": r"aten::(\w*copy\w*|_to_copy|to|contiguous|clone|cat|\w*index_select|fill_|zero_)$",
    "activations and sums": r"aten::(relu\w*|clamp_min\w*|threshold_backward|add_?|sum|mean|\w*pool\w*)$",
}
OTHER = "other"
WARM_STEPS = 3


def main() -> None:
    """Profile some steps and print one row a kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--momentum", default="projector")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    keep_freed_memory()
    config = Config(
        method=asked.method,
        momentum=asked.momentum,
        backbone=asked.backbone,
        batch_size=asked.batch_size,
        precision=asked.precision,
        memory_format="channels_last",
        image_size=32,
        limit=asked.batch_size * 4,
        device=asked.device,
    )
    setup = prepare(config)
    step, device = setup.step(), setup.execution.device
    batch = next(setup.feed().batches(0, 1))
    for number in range(WARM_STEPS):
        step(batch, number).item()
    wait(device)
    start = time.perf_counter()
    for number in range(WARM_STEPS, WARM_STEPS + asked.steps):
        step(batch, number)
    wait(device)
    wall = (time.perf_counter() - start) / asked.steps
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as seen:
        for number in range(WARM_STEPS, WARM_STEPS + asked.steps):
            step(batch, number).item()
    seconds: dict[str, float] = defaultdict(float)
    rest: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        if event.device_type != DeviceType.CPU:
            continue  # a kernel, whose time its operation has already
        spent = 1e-6 * (event.self_device_time_total if cuda else event.self_cpu_time_total) / asked.steps
        kind = next((kind for kind, form in KINDS.items() if re.fullmatch(form, event.key)), OTHER)
        seconds[kind] += spent
        if kind == OTHER:
            rest[event.key] += spent
    total = sum(seconds.values())
    figures: dict[str, Any] = {
        "batch_size": asked.batch_size,
        "wall_seconds": wall,
        "idle": idle(total, wall) if cuda else None,
        "seconds": total,
        "shares": {},
        "other": {},
    }
    for kind, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        figures["shares"][kind] = spent / total
        print(f"{kind:<24}{1e3 * spent:>10.1f} ms{100 * spent / total:>8.1f} %")
    for key, spent in sorted(rest.items(), key=lambda item: -item[1])[:5]:
        figures["other"][key] = spent / total
    print(f"{'a step':<24}{1e3 * total:>10.1f} ms; most of {OTHER}: {', '.join(figures['other'])}")
    waits = f"; the device is idle for {100 * figures['idle']:.1f} % of it" if cuda else ""
    print(f"{'by the clock':<24}{1e3 * wall:>10.1f} ms{waits}")
    save(f"step-profile-{asked.backbone}", device, figures, asked.out)


def idle(busy: float, wall: float) -> float:
    """Share of a step in which the device has no kernel, given the seconds of its kernels and of the whole step."""
    return max(0.0, 1.0 - busy / wall)


if __name__ == "__main__":
    main()
