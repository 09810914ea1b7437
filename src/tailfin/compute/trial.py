"""A trial of precisions and memory formats, run as a process of its own: its work may crash or hang.

Candidates are timed in turn; of the one that a run would choose, the gradient is held against float64's. What happens
is told as JSON lines on standard output, so that `trials` knows which candidate was under way when this process died.
"""

import copy
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tailfin.compute.device import Execution, find_device, is_memory_full, search_kernels

# A lower precision has to earn its rounding, and two runs of one study must not differ in it by noise: with 1.15, one
# of two runs side by side on a CPU without AMX, where bf16 gains nothing, was given bf16.
GAIN = 1.4
HOPELESS = 4.0
"""A candidate whose first run took so many times as long as the fastest one's is not run again: without AMX and
AVX-512, a step of a ResNet-50 in bf16 takes 90 s where fp32 takes 4."""
ROUNDS = 3
CHECKED_PIXELS, FEWEST_CHECKED = 16 * 64 * 64, 4
"""Size of the batch that is held against float64, and the fewest images of it: float64 costs twice fp32 and more."""
WRONG, WRONG_REDUCED = 0.1, 2.0
"""Error of a gradient that is no rounding. In fp32 11 untrained nets had .00001 in a parameter, and up to .01 (.04
for MobileNetV2) where an activation near 0 fell on the other side of a ReLU; oneDNN's broken kernels have .05 to 1.
In bf16 rounding alone brings the whole gradient of such a net off by .01 (ViT), .1 to .4 (ResNets) and 1
(MobileNetV2), so that only gross errors can be told from it."""

Say = Callable[[Mapping[str, Any]], None]


def run(
    model: nn.Module, images: Tensor, candidates: Sequence[Execution], say: Say, rounds: int = ROUNDS
) -> None:
    """Try candidates, of which the first is preferred where two are equally fast, and say which one is best.

    Says `{"trying": n}` before anything is done with candidate n, `{"full": n}` where memory is too small for it,
    `{"wrong": n, "by": share}` where its gradient is wrong, and at last `{"best": n}`, None where none is left.

    Args:
        model: From images to a tensor; it is copied.
        images: float32 [N, C, H, W].
        candidates: What to choose from. A single one is not timed.
        say: Takes what happens.
        rounds: In which each candidate runs once, in turn, after one to warm up; its fastest counts.
    """
    seconds = dict.fromkeys(range(len(candidates)), 0.0)
    if len(candidates) > 1:
        seconds = _times(model, images, candidates, say, rounds)
    while seconds:
        best = preferred(candidates, seconds)
        say({"trying": best})
        by = gradient_error(model, images, candidates[best])
        if by < (WRONG_REDUCED if _reduced(candidates[best]) else WRONG):
            say({"best": best})
            return
        say({"wrong": best, "by": min(by, 1e9)})  # JSON knows no infinity
        del seconds[best]
    say({"best": None})


def preferred(candidates: Sequence[Execution], seconds: Mapping[int, float]) -> int:
    """The fastest candidate that has a time; a tie within 2 % goes to the first, and to fp32 within `GAIN`."""
    best = min(seconds)
    for n in sorted(seconds):
        gain = GAIN if candidates[n].precision != candidates[best].precision else 1.02
        if seconds[n] * gain < seconds[best]:
            best = n
    return best


def _times(
    model: nn.Module, images: Tensor, candidates: Sequence[Execution], say: Say, rounds: int
) -> dict[int, float]:
    models: dict[int, nn.Module] = {}
    first: dict[int, float] = {}
    # Contiguous fp32 first: it hardly ever hangs, and how long it takes bounds the wait for the others.
    for n in sorted(range(len(candidates)), key=lambda n: candidates[n].memory_format != "contiguous"):
        say({"trying": n})
        try:
            models[n] = candidates[n].place(copy.deepcopy(model))
            first[n] = _seconds(candidates[n], models[n], images)
        except (MemoryError, RuntimeError) as error:
            if not is_memory_full(error):
                raise
            models.pop(n, None)
            say({"full": n})
    hopeful = [n for n in first if first[n] < HOPELESS * min(first.values())]
    best = dict.fromkeys(sorted(hopeful), math.inf)
    for _ in range(rounds):
        for n in best:
            say({"trying": n})
            best[n] = min(best[n], _seconds(candidates[n], models[n], images))
    return best


def _seconds(execution: Execution, model: nn.Module, images: Tensor) -> float:
    """Of forward and backward."""
    placed = execution.images(images.to(execution.device))
    _wait(execution.device)
    start = time.perf_counter()
    _backward(model, placed, execution)
    _wait(execution.device)
    return time.perf_counter() - start


def gradient_error(model: nn.Module, images: Tensor, execution: Execution) -> float:
    """How far the gradient is from float64's: relative, of the parameter that is furthest off.

    In reduced precision (bf16, and TF32 on a GPU) it is relative to the whole gradient. Of two draws the better one
    counts: an activation near 0 that falls on the other side of a ReLU in one of them is no fault.

    Args:
        model: From images to a tensor; it is copied.
        images: float32 [N, C, H, W]; of the first few, no more than `CHECKED_PIXELS` in all.
        execution: Device, precision and memory format to check.
    """
    some = images[: max(FEWEST_CHECKED, CHECKED_PIXELS // images[0, 0].numel())].to(execution.device)
    errors: list[float] = []
    for draw in (some, some.roll(1, dims=-1).flip(0) * 0.9):
        own = execution.place(copy.deepcopy(model))
        exact = copy.deepcopy(model).to(execution.device).double()
        _backward(own, execution.images(draw), execution)
        _backward(exact, draw.double())
        errors.append(_furthest(own, exact, floor=1.0 if _reduced(execution) else 0.01))
        if errors[-1] < WRONG:
            break
    return min(errors)


def _reduced(execution: Execution) -> bool:
    """Whether products are rounded to less than fp32: in bf16, and in cuDNN's convolutions, which use TF32."""
    return execution.precision == "bf16" or execution.device.type == "cuda"


def _furthest(own: nn.Module, exact: nn.Module, floor: float) -> float:
    """Largest error of a parameter's gradient over its own norm, or `floor` of the whole one's where that is more."""
    right = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    whole = math.sqrt(sum(float(grad.square().sum()) for grad in right.values()))
    found = {name: p.grad for name, p in own.named_parameters() if p.grad is not None}
    if found.keys() != right.keys() or not all(bool(grad.isfinite().all()) for grad in found.values()):
        return math.inf
    least = max(floor * whole, 1e-30)
    return max(float((found[n].double() - g).norm()) / max(float(g.norm()), least) for n, g in right.items())


def _backward(model: nn.Module, images: Tensor, execution: Execution | None = None) -> None:
    """Of a loss that is linear in the output: the square's gradient nearly vanishes behind batch norm."""
    torch.manual_seed(0)  # for nets with dropout
    model.zero_grad()
    with execution.autocast() if execution is not None else nullcontext():
        output = model(images)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (output * weights.to(output.device)).sum().backward()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _end_with_the_parent() -> None:
    sys.stdin.buffer.read()  # ends when whoever holds the other end does
    os._exit(1)


def main() -> None:
    """Run the trial that the first argument describes, as JSON."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    asked = json.loads(sys.argv[1])
    from tailfin import backbones

    torch.set_num_threads(asked["threads"])
    device = find_device(asked["device"])
    search_kernels(device)
    torch.manual_seed(0)
    side, channels = asked["image_size"], asked["channels"]
    parts = backbones.create_parts(asked["backbone"], image_size=side, channels=channels)
    images = torch.rand(asked["images"], channels, side, side)
    candidates = [Execution(device, precision, layout) for precision, layout in asked["candidates"]]
    run(parts, images, candidates, lambda event: print(json.dumps(event), flush=True))


if __name__ == "__main__":
    main()
