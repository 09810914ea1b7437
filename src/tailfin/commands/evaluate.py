"""`evaluate` as a function: a run's encoder judged again, on its own images or on others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tailfin import methods
from tailfin.commands.told import Note, Tell
from tailfin.compute.device import Execution, find_device
from tailfin.errors import UserError
from tailfin.files.reading import understand
from tailfin.judging.scores import Scores
from tailfin.judging.subject import Subject, answers, judging_seed
from tailfin.run import checkpoint
from tailfin.run.folder import RunFolder
from tailfin.training.model import build
from tailfin.training.setup import load_data


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        run: The run folder.
        step: Steps that the encoder had taken.
        data: What it was judged on.
        images, test_images: How many training and test images of it.
        scores: Accuracies by features.
    """

    run: Path
    step: int | None
    data: str
    images: int
    test_images: int
    scores: Mapping[str, Scores]


def evaluate(
    run: Path,
    data: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    *,
    tell: Tell = lambda _: None,
    decoding: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Judge a run's encoder by kNN and linear probe, beside an untrained one and raw pixels.

    Args:
        run: The run folder.
        data: Labelled images; None for the run's own.
        limit: At most this many training images; None as the run.
        device: auto, cpu, cuda or cuda:N.
        tell, decoding: As for `pretrain`.

    Raises:
        UserError: No such run, or images that cannot judge it.
    """
    folder = RunFolder.open(run)
    config = folder.read_config()
    held = checkpoint.load(folder.checkpoint)
    place = find_device(device)
    asked = replace(config, data=data or config.data, limit=config.limit if limit is None else limit)
    images = load_data(asked, place, progress=decoding, say=lambda line: tell(Note(line)))
    if images.test is None:
        raise UserError(f"{asked.data} has no labels to judge with, or no image could be held out")
    channels, count, mean, std = understand(f"checkpoint {folder.checkpoint}", lambda: _about(held.progress))
    if images.train.images.shape[1] != channels:
        raise UserError(
            f"{asked.data} has {images.train.images.shape[1]} channels, the encoder takes {channels}"
        )
    execution = Execution(place, config.precision or "fp32", config.memory_format or "contiguous")
    subjects = []
    for trained in (True, False):
        encoder, _ = build(config, methods.load(config.method), channels, count, 1)
        if trained:
            checkpoint.load_module("encoder", encoder, held.tensors)
        execution.place(encoder)
        micro = config.batch_size // config.accumulate
        subjects.append(Subject(encoder, execution, config.image_size or 0, mean, std, micro))
    found = answers(
        subjects[0], subjects[1], images.train, images.test, judging_seed(config.seed), pixels=True
    )
    return Evaluation(
        run,
        held.progress.get("step"),
        asked.data,
        len(images.train),
        len(images.test),
        {name: Scores.of(each) for name, each in found.items()},
    )


def _about(progress: Mapping[str, Any]) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    """Channels, number of images, mean and std of the images that a run was trained on."""
    mean, std = (tuple(float(value) for value in progress[name]) for name in ("mean", "std"))
    return int(progress["channels"]), int(progress["images"]), mean, std
