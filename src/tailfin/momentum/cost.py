"""What a placement costs: forward FLOPs of each part counted, and the target path's time measured."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tailfin.momentum.encoder import MomentumEncoder


def part_flops(encoder: MomentumEncoder, example: Tensor) -> dict[str, int]:
    """Forward FLOPs of each part for `example` [N, C, H, W], by name (matrix products and convolutions)."""
    flops = {}
    x = example
    with _evaluating(encoder), torch.no_grad():
        for name in encoder.names:
            with FlopCounterMode(display=False) as counter:
                x = encoder.part(name)(x)
            flops[name] = int(counter.get_total_flops())
    return flops


def measured_cost(encoder: MomentumEncoder, example: Tensor, *, repeats: int = 5) -> float:
    """Time of the target path from the fork on, over the time of one whole forward: the median of `repeats` pairs.

    Both run without gradient in eval mode on the same `example` [N, C, H, W], in turn. 0 where nothing is placed.
    """
    if not encoder.placement.placed:
        return 0.0
    ratios = []
    with _evaluating(encoder), torch.no_grad():
        for attempt in range(repeats + 1):
            whole = _seconds(lambda: encoder.encode(example), example)
            both = _seconds(lambda: encoder([example]), example)
            if attempt:  # the first pair warms up
                ratios.append((both - whole) / whole)
    return max(0.0, median(ratios))


def _seconds(call: Callable[[], object], example: Tensor) -> float:
    _wait(example)
    start = time.perf_counter()
    call()
    _wait(example)
    return time.perf_counter() - start


def _wait(example: Tensor) -> None:
    if example.device.type == "cuda":
        torch.cuda.synchronize(example.device)


@contextmanager
def _evaluating(encoder: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode after."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
