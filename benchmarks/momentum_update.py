"""The momentum update of a whole encoder: ours against timm's ModelEmaV3, torch's AveragedModel and a plain loop.

python benchmarks/momentum_update.py

Each is beside the one of ours that does the same to BatchNorm's statistics: leave them alone (`batch`, a plain loop
over parameters), average them (`ema`, timm) or copy them (`copy`, torch). Beside all of them: a plain copy of the
same bytes, and forward and backward of a small batch, which an update is a share of.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from common import in_turn, ratio, save, spread, words
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.momentum import MomentumEncoder, split

DECAY = 0.99
MODELS = ("resnet50", "vit_base_patch16_224")
LIKE = {
    "plain loop": "ours, batch",
    "timm ModelEmaV3": "ours, ema",
    "timm, foreach off": "ours, ema",
    "torch AveragedModel": "ours, copy",
}
"""Which of ours does the same work."""
COPY = "a plain copy"
SIZE = 224


def main() -> None:
    """Measure and print one row a model and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="of timm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--step-rounds", type=int, default=3)
    parser.add_argument("--step-batch", type=int, help="images of the step; 64 on a GPU, 8 on a CPU if open")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    batch = asked.step_batch or (64 if device.type == "cuda" else 8)
    figures: dict[str, Any] = {}
    for name in asked.models:
        model = timm.create_model(name, num_classes=0).to(device)
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        seconds = in_turn(arms_of(model, device), asked.rounds, device)
        step = in_turn({"step": partial(train_step, model, batch)}, asked.step_rounds, device, warm=1)["step"]
        figures[name] = row = {"bytes": size, "step_seconds": spread(step), "step": said(batch, device)}
        print(f"{name}: {size / 1e6:.0f} MB; {row['step']} {words(row['step_seconds'], '.3f')} s")
        for arm, times in seconds.items():
            row[arm] = figures_of(arm, seconds, size, spread(step)["median"])
            over = ""
            if arm in LIKE:
                over = f", {words(row[arm]['over_ours'])} of {LIKE[arm]}, n = {len(times)}"
            print(
                f"  {arm:<22}{1e3 * row[arm]['seconds']['median']:>8.2f} ms, {row[arm]['gigabytes_per_second']:.1f} "
                f"GB/s, {100 * row[arm]['share_of_step']:.2f} % of it{over}",
                flush=True,
            )
    save("momentum-update", device, figures, asked.out)


def said(batch: int, device: torch.device) -> str:
    """The step in words."""
    precision = "bf16" if device.type == "cuda" else "fp32"
    return f"forward and backward of {batch} images of {SIZE} px in {precision}"


def figures_of(arm: str, seconds: dict[str, list[float]], size: int, step: float) -> dict[str, Any]:
    """Of one arm: an update reads two tensors and writes one, a copy reads and writes one."""
    times = spread(seconds[arm])
    row = {
        "seconds": times,
        "gigabytes_per_second": (2 if arm == COPY else 3) * size / times["median"] / 1e9,
        "share_of_step": times["median"] / step,
    }
    if arm in LIKE:
        row |= {"like": LIKE[arm], "over_ours": ratio(seconds[arm], seconds[LIKE[arm]])}
    return row


def arms_of(model: nn.Module, device: torch.device) -> dict[str, Callable[[], Any]]:
    """An update of a copy of `model`, by arm."""
    timm_ema = ModelEmaV3(model, decay=DECAY)
    timm_plain = ModelEmaV3(model, decay=DECAY, foreach=False)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    own = copy.deepcopy(model)
    whole = torch.cat([tensor.flatten().view(torch.uint8) for tensor in model.state_dict().values()])
    other = torch.empty_like(whole)

    @torch.no_grad()
    def plain() -> None:
        for ours, theirs in zip(own.parameters(), model.parameters(), strict=True):
            ours.mul_(DECAY).add_(theirs, alpha=1 - DECAY)

    return {
        "ours, batch": ours_of(model, device, "batch"),
        "ours, ema": ours_of(model, device, "ema"),
        "ours, copy": ours_of(model, device, "copy"),
        "timm ModelEmaV3": lambda: timm_ema.update(model),
        "timm, foreach off": lambda: timm_plain.update(model),
        "torch AveragedModel": lambda: averaged.update_parameters(model),
        "plain loop": plain,
        COPY: lambda: other.copy_(whole),
    }


def ours_of(model: nn.Module, device: torch.device, buffers: str) -> Callable[[], None]:
    """Our update of a copy of `model`."""
    encoder = MomentumEncoder(split(copy.deepcopy(model)), placement="all", decay=DECAY, buffers=buffers).to(
        device
    )
    return encoder.update  # type: ignore[no-any-return]


def train_step(model: nn.Module, batch: int) -> None:
    """Forward and backward, without an optimizer."""
    device = next(model.parameters()).device
    images = torch.randn(batch, 3, SIZE, SIZE, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = model(images).float().square().mean()
    loss.backward()
    model.zero_grad()


if __name__ == "__main__":
    main()
