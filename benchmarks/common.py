"""What every benchmark shares: where it ran, timing in turn, and a JSON file beside the printed figures."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tailfin.training.judging import device_name


def where(device: torch.device) -> dict[str, Any]:
    """Hardware, versions and date."""
    return {
        "date": date.today().isoformat(),
        "device": device_name(device),
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "tailfin")},
    }


def in_turn(
    arms: Mapping[str, Callable[[], None]], rounds: int, device: torch.device, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of each arm, each run once a round: what slows the machine for a while slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm + rounds):
        for name, run in arms.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if turn >= warm:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(arm: list[float], base: list[float]) -> dict[str, float]:
    """Of two arms timed in turn: median of the rounds' ratios, with their quartiles."""
    ratios = [one / other for one, other in zip(arm, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "low": low, "high": high, "n": len(ratios)}


def save(name: str, device: torch.device, figures: Any, out: Path | None) -> None:
    """Write figures and where they were taken to OUT/NAME.json."""
    folder = out or Path("benchmarks") / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{device.type}.json"
    path.write_text(json.dumps({"where": where(device), "figures": figures}, indent=1) + "\n")
    print(f"saved {path}")
