"""One optimizer step over all tensors of a model: ours against the other forms that torch and timm have.

python benchmarks/optimizer_step.py
"""

import argparse
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from common import in_turn, ratio, save, spread, words
from timm.optim import Lars

from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.run.config import OptimizerName
from tailfin.training import optimizers

MODELS = ("resnet18", "vit_small_patch16_224")
KINDS: tuple[OptimizerName, ...] = ("sgd", "lars", "adamw")
FORMS = ("loop", "foreach", "fused")
RATE, DECAY = 1e-6, 1e-4


def main() -> None:
    """Measure and print one row a model and an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, help="of timm")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = find_device(asked.device)
    keep_freed_memory()
    figures: dict[str, Any] = {}
    for name in asked.models:
        model = timm.create_model(name, num_classes=0).to(device)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        arms = {f"{kind}, {form}": step for kind in KINDS for form, step in forms(kind, model).items()}
        seconds = in_turn(arms, asked.rounds, device)
        figures[name] = rows = {}
        print(name)
        for arm, times in seconds.items():
            ours = seconds[f"{arm.split(',')[0]}, ours"]
            rows[arm] = {"seconds": spread(times), "over_ours": ratio(times, ours)}
            print(
                f"  {arm:<16}{1e3 * rows[arm]['seconds']['median']:>8.2f} ms, "
                f"{words(rows[arm]['over_ours'])} of ours, n = {len(times)}",
                flush=True,
            )
    save("optimizer-step", device, figures, asked.out)


def forms(kind: OptimizerName, model: torch.nn.Module) -> dict[str, Callable[[], Any]]:
    """A step of each form of one optimizer: as a run builds it, tensor by tensor, all at once, fused."""
    ours = optimizers.build(kind, [model], lr=RATE, weight_decay=DECAY)
    made: dict[str, torch.optim.Optimizer] = {"ours": ours}
    for form in FORMS:
        # Anew for each form: an optimizer keeps its settings in the groups that it is given.
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in ours.param_groups]
        how = {"fused": True} if form == "fused" else {"foreach": form == "foreach"}
        if kind == "adamw":
            made[form] = torch.optim.AdamW(groups, lr=RATE, **how)
        elif kind == "sgd":
            made[form] = torch.optim.SGD(groups, lr=RATE, momentum=0.9, **how)
        elif "foreach" in signature(Lars).parameters and form != "fused":
            made[form] = Lars(groups, lr=RATE, momentum=0.9, **how)
        elif form == "loop":  # all that timm has up to 1.0.28
            made[form] = Lars(groups, lr=RATE, momentum=0.9)
    return {form: optimizer.step for form, optimizer in made.items()}


if __name__ == "__main__":
    main()
