"""A few steps of some runs, measured: `python -m tailfin.study.execution.probe ASKED TOLD [FILE.py:CLASS ...]`.

ASKED and TOLD are JSON files.
It is a process of its own, so that what it allocates is gone before the first cell starts.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tailfin import methods
from tailfin.compute.device import find_device, keep_freed_memory, peak_resident
from tailfin.data.split import random_subset
from tailfin.data.types import Dataset, ImageSet
from tailfin.errors import UserError
from tailfin.judging.subject import Subject, answers, judging_seed
from tailfin.judging.validation import Validation
from tailfin.run.config import Config
from tailfin.study.spec import cells
from tailfin.training.model import build
from tailfin.training.setup import Setup, load_data, prepare

WARM_UP = 2
"""Steps before the clock runs: the first ones allocate."""
CUDA_CONTEXT = 600 * 2**20
"""Bytes that a process takes on a GPU beside its tensors, an estimate on the safe side."""
JUDGED = 1000
"""Images, training and test together, that judging is measured on; its time is taken to grow with their number."""


def measure(config: Config, data: Dataset, steps: int, judging: bool) -> dict[str, Any]:
    """What one run takes.

    Returns:
        `precision` and `memory_format` as chosen; `training`, `validating` and `judging`, the seconds of the whole
        run; `memory` in bytes, on a GPU of this run, on a CPU the most that this process ever had.
    """
    cuda = config.device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    setup = prepare(config, data)
    step = setup.step()
    times = []
    for number, batch in enumerate(setup.feed().batches(0, min(WARM_UP + steps, setup.total_steps))):
        start = time.perf_counter()
        step(batch, number).item()
        times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_reserved() + CUDA_CONTEXT if cuda else peak_resident()
    return {
        "precision": setup.execution.precision,
        "memory_format": setup.execution.memory_format,
        "memory": memory,
        "training": median(times[WARM_UP:] or times) * setup.total_steps,
        "validating": _validating(setup) if judging else 0.0,
        "judging": _judging(setup) if judging else 0.0,
    }


def _validating(setup: Setup) -> float:
    """Seconds of all looks during training."""
    validate = Validation.of(Subject.of(setup), setup.data.train, judging_seed(setup.config.seed))
    if validate is None:
        return 0.0
    start = time.perf_counter()
    validate()
    return (time.perf_counter() - start) * min(setup.config.knn_evaluations, setup.config.epochs)


def _judging(setup: Setup) -> float:
    """Seconds of the final figures, extrapolated from a part of the images."""
    data, config = setup.data, setup.config
    if data.train.labels is None or data.test is None:
        return 0.0
    fresh, _ = build(config, type(setup.method), data.train.images.shape[1], len(data.train), 1)
    setup.execution.place(fresh)
    ours = Subject.of(setup)
    untrained = replace(ours, encoder=fresh)
    share = min(1.0, JUDGED / (len(data.train) + len(data.test)))
    train, test = _some(data.train, share), _some(data.test, share)
    start = time.perf_counter()
    answers(ours, untrained, train, test, judging_seed(config.seed), pixels=False)
    return (time.perf_counter() - start) * (len(data.train) + len(data.test)) / (len(train) + len(test))


def _some(images: ImageSet, share: float) -> ImageSet:
    # kNN and the probe need a handful, whatever the share.
    return images.subset(random_subset(len(images), max(50, round(share * len(images))), 0, images.labels))


def main(asked: Path, told: Path, own: Sequence[str]) -> None:
    """Measure what the file `asked` names and write it to `told`; `own` are methods of the user's to trust."""
    keep_freed_memory()
    for name in own:
        methods.trust(name)
    content = json.loads(asked.read_text())
    found, held = [], None
    for values in content["configs"]:
        config = cells.from_settings(values)
        if config is None:
            raise ValueError(f"settings {values} cannot be read back")
        source = (config.data, config.limit, config.image_size, config.seed)
        if held is None or held[0] != source:
            held = None  # two data sets at once may not fit
            held = (source, load_data(config, find_device(config.device)))
        found.append(measure(config, held[1], content["steps"], content["judging"]))
    told.write_text(json.dumps(found))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except UserError as error:
        sys.exit(f"tailfin: {error}")
