"""The commands `pretrain`, `evaluate` and `report`, from settings to a finished run folder."""

import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from tailfin import methods
from tailfin.data.types import Dataset
from tailfin.errors import UserError
from tailfin.evaluation.judge import Scores
from tailfin.files import write_atomically, write_json
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import Placement
from tailfin.reading import understand
from tailfin.training import checkpoint, misfits
from tailfin.training import config as settings
from tailfin.training.advice import Advice, advise
from tailfin.training.config import Config
from tailfin.training.device import Execution, find_compiler, find_device, is_memory_full, keep_freed_memory
from tailfin.training.folder import RunFolder, holds_a_run
from tailfin.training.judging import Judge, Subject, answers, device_name, judging_seed
from tailfin.training.loop import Diverged, Loop, Stopped
from tailfin.training.misfits import AUTO
from tailfin.training.progress import best
from tailfin.training.setup import Setup, build, load_data, prepare

T = TypeVar("T")

MOST_NAMED = 20
"""Unreadable images that are named on the screen; the list in the run folder holds them all."""


def pretrain(config: Config, resumed: Config | None, moving: Collection[str] = ()) -> int:
    """`tailfin pretrain`: returns the exit code.

    Args:
        config: The settings, with the run folder of a resumed run in `out`.
        resumed: The settings that the run to resume began with; None for a new run.
        moving: Settings that the user asks for and that only momentum heeds.
    """
    if resumed is None:
        check(config)
        folder = RunFolder.create(config)
    else:
        changed = settings.differences(resumed, config)
        if changed:
            raise UserError(f"--resume continues the same run, but {'; '.join(changed)}")
        folder = RunFolder.open(Path(resumed.out or ""))
        if config.out != resumed.out:
            raise UserError(f"--resume goes on in {folder.path}; --out {config.out} cannot move the run")
        if folder.result.exists():
            if not folder.report.exists():
                write_report(folder)
            print(f"{folder.path} is finished; its report is {folder.report}")
            return 0
    with folder.writing() as freed:
        if resumed is None and folder.config.exists():
            raise holds_a_run(folder.path)  # made by another process since it was looked for
        if freed:
            print(f"removed {freed / 1e6:.1f} MB that a killed run had left in {folder.path}")
        return _write(config, folder, moving, resumed=resumed is not None)


def _write(config: Config, folder: RunFolder, moving: Collection[str], *, resumed: bool) -> int:
    """Train and judge, and say what ends that too early; returns the exit code."""
    try:
        with _memory_of(config):
            return _train(config, folder, moving, resumed=resumed)
    except Stopped as stop:
        _say_how_to_go_on(stop, folder)
        return 128 + stop.signal
    except KeyboardInterrupt:  # outside the loop, or the second one in it; judging is done again as a whole
        if folder.config.exists():
            _say_how_to_go_on("stopped", folder)
        raise
    except Diverged as error:
        write_report(folder, {"verdict": {"state": "diverged", "words": str(error), "evidence": []}})
        print(f"tailfin: {error}", file=sys.stderr)
        return 1


@contextmanager
def _memory_of(config: Config) -> Iterator[None]:
    """Where the device's memory is full, say what to change, and end."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_memory_full(error):
            raise
        size, more = config.batch_size, config.accumulate + 1
        finer = next((n for n in range(more, size // 2 + 1) if size % n == 0), None)
        advice = (
            f"cut it into micro-batches with --accumulate {finer}" if finer else "take a smaller --batch-size"
        ) + (", or leave the images to --images-on host" if config.images_on == "device" else "")
        print(f"tailfin: the device's memory is full at --batch-size {size}; {advice}", file=sys.stderr)
        raise SystemExit(1) from None


def _say_how_to_go_on(stopped: object, folder: RunFolder) -> None:
    print(f"{stopped}; go on with: tailfin pretrain --resume {shlex.quote(str(folder.path))}")


def check(config: Config) -> None:
    """Find wrong names before any image is read.

    Raises:
        UserError: An unknown method, device, backbone or part.
    """
    device = find_device(config.device)
    if config.compile:
        find_compiler(device)
    misfits.find(config, image_size=64)


def _train(config: Config, folder: RunFolder, moving: Collection[str], *, resumed: bool) -> int:
    keep_freed_memory()
    data = load_data(config, find_device(config.device))
    if config.momentum == AUTO:
        config = replace(config, momentum=_advised(config, data, folder))
    setup = prepare(config, data, check=True)
    settings.save(setup.config, folder.config)
    folder.save_skipped(setup.data.skipped)
    _say_choices(setup, folder, moving)
    judge = Judge(setup, folder)
    loop = Loop(setup, folder, judge.validate if judge.can_validate else None)
    if resumed:
        print(f"goes on     after step {loop.state.step} of {setup.total_steps}", flush=True)
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


def _advised(config: Config, data: Dataset, folder: RunFolder) -> str:
    advice = advise(config, data)
    _say_advice(advice)
    misfits.through(config, Placement.parse(advice.placement, [part.name for part in advice.parts]))
    write_json(folder.advice, asdict(advice))
    return advice.placement


def advise_only(config: Config) -> int:
    """`tailfin advise`: returns the exit code."""
    if config.momentum not in ("published", AUTO):
        raise UserError(f"advise chooses where momentum goes; leave out --momentum {config.momentum}")
    if config.out is not None:
        raise UserError(f"advise keeps nothing; leave out --out {config.out}")
    config = replace(config, momentum=AUTO)
    check(config)
    keep_freed_memory()
    data = load_data(config, find_device(config.device))
    print(f"trains a short phase on {len(data.train)} images, and measures each part ten times", flush=True)
    with _memory_of(config):
        _say_advice(advise(config, data))
    return 0


def bench_only(config: Config) -> int:
    """`tailfin bench`: returns the exit code."""
    from tailfin.training.bench import bench

    if config.momentum == AUTO:
        raise UserError("bench measures every placement; leave out --momentum, or name one")
    if config.out is not None:
        raise UserError(f"bench keeps nothing; leave out --out {config.out}")
    check(config)
    keep_freed_memory()
    data = load_data(config, find_device(config.device))
    print(
        f"measures steps on {len(data.train)} images: a minute or, where a step takes seconds, some 60 of them",
        flush=True,
    )
    with _memory_of(config):
        found = bench(config, data)
    execution, total = found.execution, sum(found.phases.values())
    print(
        f"{device_name(execution.device)}, {execution.precision}, {execution.memory_format}, "
        f"batch {found.batch_size}: "
        f"{found.images_per_second:,.0f} images/s, {100 * found.used / found.peak:.0f} % of the "
        f"{found.peak / 1e12:.2f} TFLOP/s of a matrix product"
    )
    print(f"\n{'phase':<16}{'ms a step':>10}{'share':>9}")
    for name, seconds in found.phases.items():
        print(f"{name:<16}{1e3 * seconds:>10.1f}{100 * seconds / total:>7.1f} %")
    print(f"\n{'placement':<16}{'time of a step over stopgrad':>30}")
    for name, ratio in found.placements.items():
        print(f"{name:<16}{ratio:>30.3f}")
    if found.compiled is not None:
        how = found.compiled
        after = f"pays after {how.pays_after:,} steps" if how.pays_after is not None else "never pays"
        print(
            f"\n--compile: a step is {how.faster:.2f} times as fast; compiling takes {how.seconds:.0f} s and {after}"
        )
    print()
    for line in found.advice:
        print(f"advice: {line}")
    return 0


def _say_advice(advice: Advice) -> None:
    print(f"{'':<14}{'':>14}{'':>17}{'momentum from here on':>25}")
    print(f"{'part':<14}{'of the FLOPs':>14}{'gradient varies':>17}{'holds off':>14}{'costs':>11}")
    for part in advice.parts:
        varies = "-" if part.variation is None else f"{100 * part.variation:.1f} %"
        print(
            f"{part.name:<14}{100 * part.share:>12.1f} %{varies:>17}{100 * part.held_off:>12.0f} %"
            f"{100 * part.cost:>9.1f} %"
        )
    if all(part.variation is None for part in advice.parts):
        print("how the gradient varies takes 20 steps to tell")
    print(f"advice: --momentum {advice.placement}. {advice.words}", flush=True)


def evaluate(run: Path, data: str | None, limit: int | None, device: str) -> int:
    """`tailfin evaluate`: returns the exit code."""
    folder = RunFolder.open(run)
    config = folder.read_config()
    held = checkpoint.load(folder.checkpoint)
    place = find_device(device)
    asked = replace(config, data=data or config.data, limit=config.limit if limit is None else limit)
    images = load_data(asked, place)
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
    print(f"{run} after step {held.progress.get('step')}, judged on {asked.data}: ", end="")
    print(f"{len(images.train)} training images, {len(images.test)} test images")
    _say_scores({name: asdict(Scores.of(each)) for name, each in found.items()})
    return 0


def _about(progress: Mapping[str, Any]) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    """Channels, number of images, mean and std of the images that a run was trained on."""
    mean, std = (tuple(float(value) for value in progress[name]) for name in ("mean", "std"))
    return int(progress["channels"]), int(progress["images"]), mean, std


def report(run: Path) -> int:
    """`tailfin report`: returns the exit code."""
    folder = RunFolder.open(run)
    lost: list[str] = []
    print(f"report: {write_report(folder, lost=lost)}")
    for line in lost:
        print(f"tailfin: not drawn: {line}", file=sys.stderr)
    return 0


def write_report(
    folder: RunFolder, unfinished: Mapping[str, Any] | None = None, lost: list[str] | None = None
) -> Path:
    """Build report.html from what the run folder holds, finished or not.

    Args:
        folder: The run.
        unfinished: Results of a run that came to no result.json, such as the verdict on one that diverged.
        lost: Takes a line for each thing that could not be read or drawn; the page tells them too.
    """
    from tailfin.report.page import PartRow, ReportContent, render

    lost = [] if lost is None else lost

    def readable(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except UserError as error:
            lost.append(str(error))
            return None

    result = unfinished or readable(folder.read_result) or {}
    pictures = readable(folder.read_pictures) or {}
    parts = readable(
        lambda: understand(
            f"{folder.result}: parts", lambda: [PartRow(**row) for row in result.get("parts", [])]
        )
    )
    content = ReportContent(
        config=settings.as_dict(folder.read_config()),
        metrics=folder.read_metrics(lost),
        timing=folder.read_timing(lost),
        stability=folder.read_stability(lost),
        result=result,
        parts=parts or [],
        placement=folder.read_config().momentum,
        views=pictures.get("views"),
        neighbours=pictures.get("neighbours"),
        neighbour_names=result.get("neighbour_names"),
        skipped=readable(folder.read_skipped) or [],
        command=f"tailfin pretrain --config {shlex.quote(str(folder.config))}",
    )
    write_atomically(folder.report, render(content, lost).encode(errors="backslashreplace"))
    return folder.report


def _say_choices(setup: Setup, folder: RunFolder, moving: Collection[str]) -> None:
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
    print(f"{_counted(config.epochs, 'epoch')}, {_counted(setup.total_steps, 'step')}")
    for doubt in setup.method.doubts(config.batch_size // config.accumulate):
        print(f"            {doubt}")
    if config.momentum == "none" and setup.method.stop_gradient:
        placed += "; the method itself stops the target's gradient"
    print(f"momentum    {config.momentum} ({placed})", end="")
    print(f", decay {config.decay:g} to {config.decay_end:g}" if encoder.placement.placed else "", end="")
    print(f"; the target path repeats {100 * cost:.1f} % of the forward FLOPs")
    if moving and not encoder.placement.placed:
        given = ", ".join(settings.option(name) for name in moving)
        print(f"            {given}: without effect, for no part has momentum weights")
    where = ""
    if setup.execution.device.type == "cuda":
        unfit = config.images_on == "device" and setup.images_on == "host"
        where = f"; images on the {setup.images_on}{', for they do not fit on the device' if unfit else ''}"
    print(
        f"compute     {config.backbone} on {config.device}, {config.precision}, {config.memory_format}, "
        f"{'compiled' if config.compile else 'not compiled'}{where}"
    )
    for line in setup.left_out:
        print(f"            unsound here: {line}")
    sys.stdout.flush()


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


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
        print(f"{_counted(result['skipped'], 'image')} could not be read: {folder.skipped}")
    print(f"backbone: {folder.encoder}")
    print(f"report: {folder.report}")


def _say_scores(found: dict[str, dict[str, Any]]) -> None:
    print(f"{'accuracy, %':<22}{'kNN':>8}{'linear':>8}")
    for name, each in found.items():
        cells = ("-" if value is None else f"{value:.1f}" for value in (each["knn"], each["linear"]))
        print(f"{name.replace('_', ' '):<22}" + "".join(f"{cell:>8}" for cell in cells))
