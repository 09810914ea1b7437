"""What a whole study is computed with: device, precision, threads, how many cells side by side, which images."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tailfin import methods
from tailfin.compute.device import FORMATS
from tailfin.data.load import NAMES
from tailfin.errors import UserError
from tailfin.files import write_json
from tailfin.files.reading import read_json, understand
from tailfin.run.config import Config
from tailfin.study.spec import cells
from tailfin.study.spec.cells import Compute

MEMORY_SHARE = 0.9
"""Of the free memory that cells may fill: what else runs on the machine wants some too."""


@dataclass(frozen=True)
class Kept:
    """What is remembered in a study's folder from its first start on, so that later cells compute like the first.

    Attributes:
        compute: The device, precision and memory format of all cells.
        images: Which files each data set of the study was, by its name in the study file.
        memory: Bytes that one cell takes on the device, measured; None where it was not.
    """

    compute: Compute
    images: Mapping[str, str] = field(default_factory=dict)
    memory: int | None = None

    @classmethod
    def read(cls, out: Path) -> "Kept | None":
        """What the folder remembers; None where it is new.

        Raises:
            UserError: The file is damaged.
        """
        path = out / "compute.json"
        if not path.exists():
            return None
        values = read_json(path)

        def checked() -> "Kept":
            precision, memory_format = values["precision"], values["memory_format"]
            if precision not in (None, "fp32", "bf16") or memory_format not in (None, *FORMATS):
                raise ValueError(f"precision {precision!r}, memory format {memory_format!r}")
            memory = values["memory"]
            images = {str(name): str(found) for name, found in values["images"].items()}
            compute = Compute(str(values["device"]), precision, memory_format)
            return cls(compute, images, None if memory is None else int(memory))

        found: Kept = understand(str(path), checked)
        return found

    def write(self, out: Path) -> None:
        """Write compute.json."""
        compute = self.compute
        write_json(
            out / "compute.json",
            {
                "device": compute.device,
                "precision": compute.precision,
                "memory_format": compute.memory_format,
                "memory": self.memory,
                "images": dict(self.images),
            },
        )


def locations(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Where each of the study's data sets lies.

    Args:
        given: What followed --data: a path, where the study has one data set, or NAME=PATH for each.
        names: The data sets as the study file names them.

    Raises:
        UserError: A path that belongs to no data set, or one that does not exist.
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not (equals and name in names):
            name, path = names[0] if len(names) == 1 else "", each
        if name in found:
            raise UserError(f"--data {each}: {name} is said to lie in {found[name]} already")
        if not name:
            raise UserError(
                f"--data {each}: the study has {len(names)} data sets; say which one, as NAME=PATH with one of "
                f"{', '.join(names)}"
            )
        found[name] = path
    return {name: name for name in names} | found


def identify(name: str, location: str) -> str:
    """Tells the files of one data set from another's: the name of a named one, else a hash of their names and sizes.

    Raises:
        UserError: There is nothing at `location`.
    """
    path = Path(location).expanduser()
    if location in NAMES and not path.exists():
        return location
    if not path.exists():
        raise UserError(
            f"no data at {location!r}, which the study calls {name!r}; say where it lies with --data, as a path or "
            f"one of {', '.join(NAMES)}"
        )
    digest = hashlib.blake2b(digest_size=8)
    for each in [path] if path.is_file() else sorted(path.rglob("*")):
        inner = each.relative_to(path)
        if each.is_file() and not any(part.startswith(".") for part in inner.parts):
            digest.update(f"{inner.as_posix()}\0{each.stat().st_size}\n".encode())
    return digest.hexdigest()


def same_images(kept: Mapping[str, str], found: Mapping[str, str], out: Path) -> dict[str, str]:
    """What is known of the images now.

    Raises:
        UserError: The study's finished cells were trained on other images.
    """
    for name, identity in found.items():
        if kept.get(name, identity) != identity:
            if identity == name:
                raise UserError(
                    f"{out} was begun with files for {name!r}; say where they lie with --data, or take another --out"
                )
            raise UserError(
                f"the images of {name!r} are not those that {out} was begun with; take the old ones, or another --out"
            )
    return {**kept, **found}


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(jobs: int, gpu: str | None = None) -> dict[str, str]:
    """The environment of one of `jobs` cells side by side.

    Args:
        jobs: How many share the processors.
        gpu: The GPU to use, as CUDA_VISIBLE_DEVICES names it; None for what is visible.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, processors() // jobs))}
    return {**os.environ, **threads, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}


def gpus() -> list[str]:
    """The visible GPUs, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return visible.split(",")[:count] if visible else [str(index) for index in range(count)]


def usual_jobs(device: str, memory: int | None) -> int:
    """How many cells to run side by side: one a processor, and no more than the device's free memory holds.

    Args:
        device: "cpu" or "cuda".
        memory: Bytes that one cell takes there; None where it was not measured.
    """
    if device == "cpu":
        free = _free_memory()
        return _fitting(processors(), free, memory)
    return min(
        processors(), sum(_fitting(processors(), free, memory) if memory else 1 for free in _free_on_gpus())
    )


def _fitting(most: int, free: int | None, memory: int | None) -> int:
    return most if not (free and memory) else max(1, min(most, int(MEMORY_SHARE * free / memory)))


def _free_on_gpus() -> list[int]:
    """Free bytes of each visible GPU, asked in a process of its own: the question leaves a context on the GPU."""
    program = (
        "import torch; print(*(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())))"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True
    ).stdout
    return [int(word) for word in told.split()]


def _free_memory() -> int | None:
    """Bytes that new processes can have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def measure(
    groups: Sequence[Sequence[Config]],
    jobs: int,
    *,
    steps: int,
    judging: bool,
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """Run a few steps of each configuration in processes of their own, one a group, side by side.

    Returns:
        For each configuration, in order: what `tailfin.study.execution.probe` tells.

    Raises:
        UserError: A configuration that cannot run, with its own words.
    """
    kinds = sum(map(len, groups))
    say(f"measures {kinds} kind{'s' if kinds > 1 else ''} of cells for a few steps")
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for index, group in enumerate(groups):
            asked, told = Path(folder) / f"{index}.asked", Path(folder) / f"{index}.told"
            asked.write_text(
                json.dumps(
                    {
                        "configs": [cells.settings(cells.dearest(c)) for c in group],
                        "steps": steps,
                        "judging": judging,
                    }
                )
            )
            own = sorted({config.method for config in group if methods.is_file(config.method)})
            words = [sys.executable, "-P", "-m", "tailfin.study.execution.probe", str(asked), str(told), *own]
            process = subprocess.Popen(
                words, env=environment(jobs), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            running.append((process, told))
        try:
            said = [process.communicate()[1] for process, _ in running]
        except BaseException:
            for process, _ in running:
                process.kill()
                process.wait()
            raise
        found = []
        for (process, told), errors in zip(running, said, strict=True):
            if process.returncode:
                last = next((line for line in reversed(errors.splitlines()) if line.strip()), "no word of it")
                raise UserError(f"a cell cannot be measured: {last.removeprefix('tailfin: ')}")
            found += json.loads(told.read_text())
        return found


def settle(
    kept: Kept | None, config: Config, *, device: str, jobs: int | None, say: Callable[[str], object]
) -> Kept:
    """Device, precision and memory format for all cells, measured once where they are open.

    Args:
        kept: What an earlier start settled.
        config: A cell of the study, its `data` being where the images lie.
        device: What the study asks for, resolved.
        jobs: How many cells run side by side; None where their memory has to be known to tell.
        say: Takes lines for the user.
    """
    known = kept or Kept(Compute(device))
    # What the study file fixes stands before what was measured.
    precision = config.precision or known.compute.precision
    memory_format = config.memory_format or known.compute.memory_format
    if precision and memory_format and (known.memory or jobs or device == "cpu"):
        return replace(known, compute=Compute(known.compute.device, precision, memory_format))
    asked = replace(config, device=device, precision=precision, memory_format=memory_format)
    side_by_side = jobs or (1 if device == "cuda" else processors())
    [told] = measure([[asked]], side_by_side, steps=3, judging=False, say=say)
    return replace(
        known,
        compute=Compute(device, told["precision"], told["memory_format"]),
        memory=told["memory"],
    )
