"""The commands `pretrain`, `evaluate` and `report`, from settings to a finished run folder."""

import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tailfin import backbones, methods
from tailfin.errors import UserError
from tailfin.files import write_atomically
from tailfin.momentum import split
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.training import checkpoint
from tailfin.training import config as settings
from tailfin.training.config import Config
from tailfin.training.device import Execution, find_device, keep_freed_memory
from tailfin.training.folder import RunFolder
from tailfin.training.judging import Judge, Subject, judging_seed, scores
from tailfin.training.loop import Diverged, Loop, Stopped
from tailfin.training.progress import best
from tailfin.training.setup import Setup, build, load_data, prepare

MOST_NAMED = 20
"""Unreadable images that are named on the screen; the list in the run folder holds them all."""


def command(config: Config, resumed: Config | None) -> int:
    """`tailfin pretrain`: returns the exit code.

    Args:
        config: The settings, with the run folder of a resumed run in `out`.
        resumed: The settings that the run to resume began with; None for a new run.
    """
    if resumed is None:
        check(config)
        folder = RunFolder.create(config)
    else:
        changed = settings.differences(resumed, config)
        if changed:
            raise UserError(f"--resume continues the same run, but {'; '.join(changed)}")
        folder = RunFolder.open(Path(resumed.out or ""))
        if folder.result.exists():
            print(f"{folder.path} is finished; its report is {folder.report}")
            return 0
    try:
        return _train(config, folder)
    except Stopped as stop:
        print(f"{stop}; go on with: tailfin pretrain --resume {shlex.quote(str(folder.path))}")
        return 128 + stop.signal
    except Diverged as error:
        print(f"tailfin: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            f"tailfin: the device's memory is full at --batch-size {config.batch_size}; cut it into micro-batches "
            f"with --accumulate {2 * config.accumulate}",
            file=sys.stderr,
        )
        return 1
    finally:
        with suppress(OSError):  # a folder that never became a run is not left behind
            folder.path.rmdir()


def check(config: Config) -> None:
    """Find wrong names before any image is read.

    Raises:
        UserError: An unknown method, device, backbone or part.
    """
    method = methods.load(config.method)
    find_device(config.device)
    name = config.backbone or backbones.NARROW
    model = backbones.create(name, image_size=config.image_size or 64)
    text = method.recipe.placement if config.momentum == "published" else config.momentum
    try:
        names = split(model).names
    except ValueError as error:
        raise UserError(f"--backbone {name}: {error}") from None
    placement = Placement.parse(text, (*names, PROJECTOR))
    if config.through and not placement.placed:
        raise UserError(f"--through needs a part with momentum; --momentum {text} has none")


def _train(config: Config, folder: RunFolder) -> int:
    keep_freed_memory()
    setup = prepare(config)
    settings.save(setup.config, folder.config)
    _say_choices(setup, folder)
    judge = Judge(setup, folder)
    loop = Loop(setup, folder, judge.validate if judge.can_validate else None)
    progress = best(loop.state.step, setup.total_steps)
    try:
        loop.run(progress)
    finally:
        progress.close()
    print(f"trained; judging on {setup.config.device}", flush=True)
    result = judge.finish()
    write_report(folder)
    _say_result(result, folder)
    return 0


def evaluate_command(run: Path, data: str | None, limit: int | None, device: str) -> int:
    """`tailfin evaluate`: returns the exit code."""
    folder = RunFolder.open(run)
    config = folder.read_config()
    held = checkpoint.load(folder.checkpoint)
    place = find_device(device)
    asked = replace(config, data=data or config.data, limit=config.limit if limit is None else limit)
    images = load_data(asked, place)
    if images.test is None:
        raise UserError(f"{asked.data} has no labels to judge with")
    channels, count = held.progress["channels"], held.progress["images"]
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
        mean, std = tuple(held.progress["mean"]), tuple(held.progress["std"])
        subjects.append(Subject(encoder, execution, config.image_size or 0, mean, std))
    found = scores(subjects[0], subjects[1], images.train, images.test, judging_seed(config.seed))
    print(f"{run} after step {held.progress['step']}, judged on {asked.data}: ", end="")
    print(f"{len(images.train)} training images, {len(images.test)} test images")
    _say_scores({name: asdict(each) for name, each in found.items()})
    return 0


def report_command(run: Path) -> int:
    """`tailfin report`: returns the exit code."""
    folder = RunFolder.open(run)
    print(f"report: {write_report(folder)}")
    return 0


def write_report(folder: RunFolder) -> Path:
    """Build report.html from what the run folder holds, finished or not."""
    from tailfin.report.page import PartRow, ReportContent, render

    result = folder.read_result()
    pictures = folder.read_pictures()
    content = ReportContent(
        config=settings.as_dict(folder.read_config()),
        metrics=folder.read_metrics(),
        timing=folder.read_timing(),
        result=result,
        parts=[PartRow(**row) for row in result.get("parts", [])],
        placement=folder.read_config().momentum,
        views=pictures.get("views"),
        neighbours=pictures.get("neighbours"),
        neighbour_names=result.get("neighbour_names"),
        skipped=folder.read_skipped(),
        command=f"tailfin pretrain --config {shlex.quote(str(folder.config))}",
    )
    write_atomically(folder.report, render(content).encode())
    return folder.report


def _say_choices(setup: Setup, folder: RunFolder) -> None:
    config, encoder = setup.config, setup.encoder
    channels, size = setup.data.train.images.shape[1], setup.augment.size
    example = setup.execution.images(torch.zeros(1, channels, size, size, device=setup.execution.device))
    cost = encoder.placement.cost(part_flops(encoder, example))
    placed = ", ".join(encoder.placement.placed) or "no part"
    test = len(setup.data.test) if setup.data.test is not None else "no"
    print(f"run folder  {folder.path}")
    print(
        f"data        {config.data}: {len(setup.data.train)} training images, {test} test images, {size} px",
        end="",
    )
    print(f", {len(setup.data.skipped)} unreadable" if setup.data.skipped else "")
    for lost in setup.data.skipped[:MOST_NAMED]:
        print(f"            skipped {lost.name}: {lost.reason}")
    if len(setup.data.skipped) > MOST_NAMED:
        print(f"            and {len(setup.data.skipped) - MOST_NAMED} more, all in {folder.skipped}")
    print(
        f"method      {config.method}, {config.optimizer}, lr {config.lr:g} at 256, batch {config.batch_size}, ",
        end="",
    )
    print(f"{config.epochs} epochs, {setup.total_steps} steps")
    print(f"momentum    {config.momentum}: {placed}", end="")
    print(f", decay {config.decay:g} to {config.decay_end:g}" if encoder.placement.placed else "", end="")
    print(f"; the target path repeats {100 * cost:.1f} % of the forward FLOPs")
    print(
        f"compute     {config.backbone} on {config.device}, {config.precision}, {config.memory_format}",
        flush=True,
    )


def _say_result(result: dict[str, Any], folder: RunFolder) -> None:
    if result["scores"]:
        _say_scores(result["scores"])
    for missing in result["unjudged"]:
        print(f"not judged: {missing}")
    cost = result["target_cost"]
    print(
        f"target cost: {100 * cost['predicted']:.1f} % of a forward predicted, "
        f"{100 * cost['measured']:.1f} % measured; "
        f"{result['images_per_second']:.0f} images/s"
    )
    print(f"verdict: {result['verdict']['words']}")
    if result["skipped"]:
        print(f"{result['skipped']} images could not be read: {folder.skipped}")
    print(f"backbone: {folder.encoder}")
    print(f"report: {folder.report}")


def _say_scores(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'accuracy, %':<22}{'kNN':>8}{'linear':>8}")
    for name, each in found.items():
        cells = ("-" if value is None else f"{value:.1f}" for value in (each["knn"], each["linear"]))
        print(f"{name.replace('_', ' '):<22}" + "".join(f"{cell:>8}" for cell in cells))
