"""What is said on the screen: a value in, lines out."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from functools import singledispatch
from typing import Any

from tailfin import backbones
from tailfin.commands.cache import Checked, Cleared, Contents, DamagedEntry, Leftovers
from tailfin.commands.evaluate import Evaluation
from tailfin.commands.lists import ListedMethod, ListedPlacement
from tailfin.commands.measure import Measures
from tailfin.commands.pretrain import Outcome
from tailfin.commands.told import Choices, GoesOn, Interrupted, Note, Removed, Trained
from tailfin.compute.device import device_name
from tailfin.errors import printable
from tailfin.measuring.advice import Advice
from tailfin.measuring.timing import Bench
from tailfin.report.words import duration
from tailfin.study.execution.plan import STEPS, Plan, side_by_side

MOST_NAMED = 20
"""Unreadable images that are named; the list in the run folder holds them all."""


@singledispatch
def say(value: object) -> None:
    """Say a value of a command; nothing is known of others."""
    raise TypeError(f"nothing to say of {type(value).__name__}")


@say.register
def _(line: str) -> None:
    print(line, flush=True)


@say.register
def _(note: Note) -> None:
    print(f"note        {note.line}", flush=True)


@say.register
def _(found: Removed) -> None:
    print(f"removed {found.size / 1e6:.1f} MB that a killed run had left in {found.folder}")


@say.register
def _(choices: Choices) -> None:
    config = choices.config
    test = "no" if choices.test_images is None else choices.test_images
    unreadable = f", {len(choices.skipped)} unreadable" if choices.skipped else ""
    print(f"run folder  {choices.folder.path}")
    print(
        f"data        {config.data}: {choices.images} training images, {test} test images, {choices.size} px"
        f"{unreadable}"
    )
    for lost in choices.skipped[:MOST_NAMED]:
        print(f"            skipped {lost.name}: {lost.reason}")
    if len(choices.skipped) > MOST_NAMED:
        print(f"            and {len(choices.skipped) - MOST_NAMED} more, all in {choices.folder.skipped}")
    print(
        f"method      {config.method}, {config.optimizer}, lr {config.lr:g} at 256, batch {config.batch_size}, "
        f"{_counted(config.epochs, 'epoch')}, {_counted(choices.steps, 'step')}"
    )
    for doubt in choices.doubts:
        print(f"            {doubt}")
    placed = ", ".join(choices.placed) or "no part"
    if config.momentum == "none" and choices.stops_gradient:
        placed += "; the method itself stops the target's gradient"
    decay = f", decay {config.decay:g} to {config.decay_end:g}" if choices.placed else ""
    print(
        f"momentum    {config.momentum} ({placed}){decay}; the target path repeats {100 * choices.cost:.1f} % of the "
        "forward FLOPs"
    )
    if choices.idle:
        print(f"            {', '.join(choices.idle)}: without effect, for no part has momentum weights")
    where = ""
    if str(config.device).startswith("cuda"):
        unfit = config.images_on == "device" and choices.images_on == "host"
        where = f"; images on the {choices.images_on}{', for they do not fit on the device' if unfit else ''}"
    print(
        f"compute     {config.backbone} on {config.device}, {config.precision}, {config.memory_format}, "
        f"{'compiled' if config.compile else 'not compiled'}{where}"
    )
    for line in choices.left_out:
        print(f"            unsound here: {line}")
    print(end="", flush=True)


@say.register
def _(found: GoesOn) -> None:
    print(f"goes on     after step {found.step} of {found.total}", flush=True)


@say.register
def _(found: Trained) -> None:
    print(f"trained; judging on {found.device}", flush=True)


@say.register
def _(found: Interrupted) -> None:
    print(f"{found.words}; go on with: tailfin pretrain --resume {shlex.quote(str(found.folder))}")


@say.register
def _(outcome: Outcome) -> None:
    folder, result = outcome.folder, outcome.result
    if outcome.before:
        print(f"{folder.path} is finished; its report is {folder.report}")
        return
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


@say.register
def _(found: Measures) -> None:
    what = {
        "advise": f"trains a short phase on {found.images} images, and measures each part ten times",
        "bench": f"measures steps on {found.images} images: a minute or, where a step takes seconds, some 60 of them",
    }
    print(what[found.what], flush=True)


@say.register
def _(advice: Advice) -> None:
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


@say.register
def _(found: Bench) -> None:
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


@say.register
def _(found: Evaluation) -> None:
    print(
        f"{found.run} after step {found.step}, judged on {found.data}: {found.images} training images, "
        f"{found.test_images} test images"
    )
    _say_scores({name: asdict(each) for name, each in found.scores.items()})


@say.register
def _(found: Contents) -> None:
    if found.downloads:
        print(f"downloads   {_size(found.downloads)}")
    for size, words in found.decoded:
        print(f"decoded     {_size(size)}  {printable(words)}")
    for words in found.trials:
        print(f"trial       {printable(words)}")


@say.register
def _(found: DamagedEntry) -> None:
    print(f"damaged     {found.entry}: {found.reason}; its next reader makes it again", flush=True)


@say.register
def _(found: Checked) -> None:
    print(f"decoded     {found.entries} checked, {len(found.damaged)} damaged")


@say.register
def _(found: Cleared) -> None:
    busy = f"; {found.busy} are being written, and stay" if found.busy else ""
    print(f"            removed {_size(found.size)}{busy}")


@say.register
def _(plan: Plan) -> None:
    on, left = plan.on, plan.left
    print(f"on {on.device}, {on.precision}, {on.memory_format}")
    print(f"{'cell':<58}{'state':<13}{'time':>14}")
    for each in plan.cells:
        time = "" if each.seconds is None else duration(each.seconds)
        print(f"{each.name:<58}{each.state:<13}{time:>14}")
    if not left:
        print(f"all {len(plan.cells)} cells are done")
        return
    print(
        f"{len(left)} of {len(plan.cells)} cells to do, {duration(sum(left))} one by one, about "
        f"{duration(side_by_side(left, plan.jobs))} with {plan.jobs} side by side"
    )
    print(
        f"memory: up to {plan.memory / 2**30:.1f} GiB a cell, {plan.jobs * plan.memory / 2**30:.1f} GiB at a time; "
        f"measured on {STEPS} steps of each kind of cell and on judging a part of the images"
    )


@say.register
def _(found: Leftovers) -> None:
    if found.size:
        print(f"            removed {_size(found.size)} that killed runs had left")


def say_methods(listed: list[ListedMethod]) -> None:
    """A table of methods."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="methods (--method), momentum as published for CIFAR",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("name", "family", "year", "momentum, decay"):
        table.add_column(heading, no_wrap=True)
    table.add_column("needs", overflow="fold")
    for each in listed:
        table.add_row(each.name, each.family, str(each.year), each.momentum, ", ".join(each.needs) or "-")
    Console().print(table)


def say_backbones() -> None:
    """A table of the backbones' families."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="backbones (--backbone) that are split into parts by themselves")
    for heading in ("family", "examples", "parts before the projector"):
        table.add_column(heading, overflow="fold")
    for row in backbones.FAMILIES:
        table.add_row(*row)
    Console().print(table)


def say_placements(backbone: str, image_size: int, listed: list[ListedPlacement]) -> None:
    """A table of placements."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"placements (--momentum) of {backbone} at {image_size} px, SimCLR's projector")
    table.add_column("placement")
    table.add_column("parts with momentum weights", overflow="fold")
    table.add_column("target repeats, of the forward FLOPs", justify="right")
    for each in listed:
        table.add_row(each.text, ", ".join(each.placed) or "-", f"{100 * each.cost:.1f} %")
    Console().print(table)


def _say_scores(found: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'accuracy, %':<22}{'kNN':>8}{'linear':>8}")
    for name, each in found.items():
        cells = ("-" if value is None else f"{value:.1f}" for value in (each["knn"], each["linear"]))
        print(f"{name.replace('_', ' '):<22}" + "".join(f"{cell:>8}" for cell in cells))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
