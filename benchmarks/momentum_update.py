"""The momentum update of a whole encoder: ours against timm's ModelEmaV3, torch's AveragedModel and a plain loop.

python benchmarks/momentum_update.py
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from statistics import median

import timm
import torch
from common import in_turn, ratio, save
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tailfin.momentum import MomentumEncoder, split
from tailfin.training.device import find_device

DECAY = 0.99
MODELS = ("resnet50", "vit_base_patch16_224")


def main() -> None:
    """Measure and print one row a model and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    figures = {}
    for name in MODELS:
        model = timm.create_model(name, num_classes=0).to(device)
        seconds = in_turn(arms_of(model, device), asked.rounds, device)
        for arm, times in seconds.items():
            row = {"milliseconds": 1e3 * median(times), "over_ours": ratio(times, seconds["ours"])}
            figures[f"{name}, {arm}"] = row
            spread = row["over_ours"]
            print(
                f"{name:<22}{arm:<22}{row['milliseconds']:>8.2f} ms, {spread['median']:.2f} "
                f"({spread['low']:.2f} to {spread['high']:.2f}) of ours",
                flush=True,
            )
    save("momentum-update", device, figures, asked.out)


def arms_of(model: nn.Module, device: torch.device) -> dict[str, Callable[[], None]]:
    """An update of a copy of `model`, by arm."""
    encoder = MomentumEncoder(split(copy.deepcopy(model)), placement="all", decay=DECAY).to(device)
    timm_ema = ModelEmaV3(model, decay=DECAY)
    timm_plain = ModelEmaV3(model, decay=DECAY, foreach=False)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    own = copy.deepcopy(model)

    @torch.no_grad()
    def plain() -> None:
        for ours, theirs in zip(own.parameters(), model.parameters(), strict=True):
            ours.mul_(DECAY).add_(theirs, alpha=1 - DECAY)

    return {
        "ours": encoder.update,
        "timm ModelEmaV3": lambda: timm_ema.update(model),
        "timm, foreach off": lambda: timm_plain.update(model),
        "torch AveragedModel": lambda: averaged.update_parameters(model),
        "plain loop": plain,
    }


if __name__ == "__main__":
    main()
