"""What every benchmark shares: where it ran, timing in turn, spreads, and a JSON file beside the printed figures."""

import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import tailfin
from tailfin.compute.device import device_name
from tailfin.run.versions import source

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")
PEERS = (
    *("lightly", "stable-pretraining", "solo-learn", "lightning", "kornia", "faiss-cpu", "scikit-learn"),
    *("spdl", "nvidia-dali-cuda120", "nvidia-dali-cuda130"),
)
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""Of the processor's instructions, those that decide how fast a matrix product is."""
LEAST_SECONDS = 0.2
"""An arm that is shorter is repeated until it takes that long: a single short run measures what ran before it."""
FEWEST_FOR_QUARTILES = 5


class Transformed(Dataset[Any]):
    """What `transform` makes of each picture; the picture itself where none is given."""

    def __init__(
        self, pictures: Dataset[Any], transform: Callable[[Any], Any] = lambda picture: picture
    ) -> None:
        self.pictures, self.transform = pictures, transform

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    def __getitem__(self, place: int) -> Any:
        return self.transform(self.pictures[place])


def where(device: torch.device) -> dict[str, Any]:
    """The command, hardware, versions and date; what is not installed is left out."""
    processor, flags = _processor()
    versions = {"python": platform.python_version(), "tailfin": tailfin.__version__, "source": source()}
    for name in (*PACKAGES, *PEERS):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "date": date.today().isoformat(),
        "command": " ".join([Path(sys.argv[0]).name, *said(sys.argv[1:])]),
        "device": device_name(device),
        "processor": processor,
        "flags": flags,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def said(words: Sequence[str]) -> list[str]:
    """The words of a command line with the last name of each absolute path alone."""
    short = []
    for word in words:
        name, equals, value = word.rpartition("=")
        short.append(name + equals + (Path(value).name if Path(value).is_absolute() else value))
    return short


def _processor() -> tuple[str, list[str]]:
    """The CPU's model name and those of its flags that matter."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    return name, [flag for flag in FLAGS if flag in flags]


def in_turn(
    arms: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, warm: int = 2
) -> dict[str, list[float]]:
    """Seconds of each arm, once a round: what slows the machine for a while slows all of them alike.

    The arms' order is drawn anew each round, from a fixed seed, so that none always follows another, whose threads
    may still spin. An arm shorter than `LEAST_SECONDS` is run once before its clock and repeated while it runs.

    Args:
        arms: What to time. One that returns a float keeps its own clock: that is its seconds, and it is not repeated.
        rounds: That are timed.
        device: Waited for at both ends of the clock.
        warm: Rounds before them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    repeats = dict.fromkeys(arms, 1)
    order = random.Random(0)
    names = list(arms)
    for turn in range(warm + rounds):
        order.shuffle(names)
        for name in names:
            spent, own = _timed(arms[name], repeats[name], device)
            if turn >= warm:
                seconds[name].append(spent)
            elif not own:
                repeats[name] = max(1, math.ceil(LEAST_SECONDS / spent))
    return seconds


def _timed(run: Callable[[], Any], repeats: int, device: torch.device) -> tuple[float, bool]:
    """Seconds of one run, the mean of `repeats`; and whether they are by the run's own clock."""
    if repeats > 1:
        run()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        found = run()
    wait(device)
    mean = (time.perf_counter() - start) / repeats
    return (found, True) if isinstance(found, float) else (mean, False)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, what lies around it, and the values: least and most of fewer than 5, quartiles of 5 and more."""
    row: dict[str, Any] = {"median": statistics.median(values), "n": len(values)}
    if len(values) < FEWEST_FOR_QUARTILES:
        row |= {"min": min(values), "max": max(values)}
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        row |= {"lower_quartile": low, "upper_quartile": high}
    return {**row, "rounds": list(values)}


def ratio(arm: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Of two arms timed in turn: the spread of the rounds' ratios."""
    return spread([one / other for one, other in zip(arm, base, strict=True)])


def words(row: Mapping[str, Any], form: str = ".2f") -> str:
    """A spread, as in "1.02 (min 0.98, max 1.10)"."""
    kinds = {"min": "min", "max": "max", "lower_quartile": "quartiles", "upper_quartile": "and"}
    around = [f"{word} {row[key]:{form}}" for key, word in kinds.items() if key in row]
    return f"{row['median']:{form}} ({(' ' if 'lower_quartile' in row else ', ').join(around)})"


def save(name: str, device: torch.device, figures: Any, out: Path | None) -> None:
    """Write figures and where they were taken to OUT/NAME-DEVICE.json."""
    folder = out or Path("benchmarks") / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{device.type}.json"
    path.write_text(json.dumps({"where": where(device), "figures": figures}, indent=1) + "\n")
    print(f"saved {path}")
