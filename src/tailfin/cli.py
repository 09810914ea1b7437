"""The command line: `tailfin pretrain`, `advise`, `bench`, `evaluate`, `report`, `list`, `study`."""

import contextlib
import dataclasses
import io
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro

from tailfin.errors import UserError, unknown
from tailfin.training.config import Config, read

HELP = """\
tailfin: self-supervised pretraining of vision encoders, with momentum (EMA) on the parts where it pays.

usage: tailfin COMMAND [OPTIONS]

  pretrain   train an encoder on images without labels, judge it, write a report
  advise     say which tail momentum would steady most for its cost, from a short measured phase
  bench      say where a step's time goes on this machine, what each placement costs, and what to change
  evaluate   judge a run's encoder again, on its own data or on other data
  report     rebuild a run's report.html
  list       methods, backbones, and placements with their cost
  study      a grid of runs from a file, side by side, with statistics over seeds and what they say about the claims

examples:
  tailfin pretrain                                          generated images, some minutes on two cores
  tailfin pretrain --data photos/ --epochs 100              your own images, in folders or in one
  tailfin pretrain --data cifar10 --method byol --momentum projector
  tailfin pretrain --resume runs/shapes-simclr-published-seed0
  tailfin list methods
  tailfin list placements --backbone resnet50

tailfin COMMAND --help explains a command. tailfin --version prints the version."""

PRETRAIN = """\
Train an encoder on images without labels, judge it, and write a report.

examples:
  tailfin pretrain
  tailfin pretrain --data photos/ --epochs 100 --out runs/photos
  tailfin pretrain --data cifar10 --method mocov2plus --limit 20000
  tailfin pretrain --method byol --momentum projector          momentum on the projector alone
  tailfin pretrain --momentum layer3: --decay 0.99             from layer3 to the end
  tailfin pretrain --momentum stopgrad                         the control: stop-gradient without averaging
  tailfin pretrain --method mine.py:MyMethod                   a method of your own
  tailfin pretrain --method-options temperature 0.1 hidden 512
  tailfin pretrain --config runs/photos/config.toml --seed 1   the same settings, another seed
  tailfin pretrain --resume runs/photos                        go on with a run that was interrupted

An option that is left open is chosen by itself; the choice is printed and kept in the run's config.toml."""

EVALUATE = """\
Judge a run's encoder: kNN and linear probe of backbone and projector, online and momentum weights, beside baselines.

examples:
  tailfin evaluate runs/photos
  tailfin evaluate runs/photos --data cifar10                  its features on other labelled images"""

ADVISE = """\
Say where momentum would steady this training most: train for a short phase, measure each part, and stop there.

example:
  tailfin advise --data cifar10 --method byol --backbone resnet18

The options are those of pretrain; --momentum auto does the same before a run and goes on with the advice."""

BENCH = """\
Say where a step's time goes on this machine, what each placement costs on it, and what to change; about a minute.

example:
  tailfin bench --data photos/ --backbone resnet50 --batch-size 128

The options are those of pretrain; nothing is kept."""

REPORT = """\
Rebuild a run's report.html from what the run folder holds.

example:
  tailfin report runs/photos"""

STUDY = """\
Run every cell of a study file, side by side and resumable; write a table and a report with intervals and verdicts.

examples:
  tailfin study studies/cpu-placement.toml
  tailfin study studies/cpu-placement.toml --plan                      what there is to do, and how long it takes
  tailfin study studies/cpu-placement.toml --data photos/cifar10       where the images lie
  tailfin study studies/gpu-methods.toml --data cifar10=a/ cifar100=b/ --jobs 4
  tailfin study studies/cpu-decay.toml --seeds 1 --limit-minutes 60

Finished cells are never run again; the same command goes on with a study that was stopped or killed."""

LIST = """\
Name the methods, the backbones, or the placements of a backbone with their cost.

examples:
  tailfin list
  tailfin list backbones
  tailfin list methods
  tailfin list placements --backbone vit_small_patch16_224 --image-size 224"""


@dataclass(frozen=True)
class Pretrain(Config):
    """Settings of a run, and where to take them from."""

    config: str | None = None
    """Take settings from this TOML file; further options override it."""
    resume: str | None = None
    """Go on with the run in this folder; settings that matter may not change."""


@dataclass(frozen=True)
class Evaluate:
    """What to judge."""

    run: tyro.conf.Positional[str]
    """The run folder."""
    data: str | None = None
    """Labelled images to judge on. Open: the run's own."""
    limit: int | None = None
    """At most this many training images for kNN and probe. Open: as the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    method: str | None = None
    """FILE.py:CLASS, where the run's method is code of its own: it is run only if it is named again."""


@dataclass(frozen=True)
class Report:
    """What to report."""

    run: tyro.conf.Positional[str]
    """The run folder."""


@dataclass(frozen=True)
class Study:
    """What to run, and where."""

    file: tyro.conf.Positional[str]
    """The study file."""
    out: str | None = None
    """The study's folder. Open: results/ and the file's name."""
    data: tuple[str, ...] = ()
    """Where the images lie: a path, or NAME=PATH for each data set that the file names."""
    jobs: int | None = None
    """Cells side by side. Open: one a processor, or as many as fit in the GPU's memory."""
    plan: bool = False
    """Only print the cells, their state, and the time and memory that they will take, measured."""
    seeds: int | None = None
    """This many seeds instead of those that the file lists."""
    limit_minutes: float | None = None
    """Stop after so many minutes, in good order."""
    reuse: tuple[str, ...] = ()
    """Folders of other studies: what both ask for is taken from there."""


@dataclass(frozen=True)
class List:
    """What to list."""

    what: tyro.conf.Positional[Literal["all", "methods", "backbones", "placements"]] = "all"
    """methods, backbones, placements, or all of them."""
    backbone: str = "resnet18"
    """Whose placements."""
    image_size: int = 32
    """Side of the views in pixels, for the cost."""


Command = TypeVar("Command")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)  # so that what was begun is cleaned up
    try:
        sys.exit(_run(words))
    except UserError as error:
        print(f"tailfin: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        print("tailfin: interrupted", file=sys.stderr)
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))
    except BrokenPipeError:
        sys.exit(141)


def _interrupt(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(number)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    command, rest = words[0], words[1:]
    if command in ("-V", "--version"):
        from tailfin import __version__

        print(f"tailfin {__version__}")
        return 0
    commands = {
        "pretrain": _pretrain,
        "advise": _advise,
        "bench": _bench,
        "evaluate": _evaluate,
        "report": _report,
        "list": _list,
        "study": _study,
    }
    if command not in commands:
        raise unknown("command", command, commands)
    return commands[command](rest)


def _pretrain(words: list[str]) -> int:
    from_file, resumed = _value(words, "--config"), _value(words, "--resume")
    for name, value in (("--config", from_file), ("--resume", resumed)):
        if value is not None and not value.strip():
            raise UserError(f"{name} is empty; it names a file or a folder")
    if from_file and resumed:
        raise UserError("--config and --resume exclude each other: a resumed run has its own settings")
    base = Config()
    if from_file:
        base = dataclasses.replace(read(Path(from_file)), out=None)
    if resumed:
        from tailfin.training.folder import RunFolder

        base = RunFolder.open(Path(resumed)).read_config()
    own = _trusted_method(words)
    default = Pretrain(**{f.name: getattr(base, f.name) for f in dataclasses.fields(Config)})
    chosen = _parse(Pretrain, words, "pretrain", PRETRAIN, default)
    config = Config(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(Config)})
    if own:
        config = dataclasses.replace(config, method=own)

    from tailfin import commands

    return commands.pretrain(config, base if resumed else None)


def _advise(words: list[str]) -> int:
    chosen = settings_of(words, "advise", ADVISE)
    from tailfin import commands

    return commands.advise_only(chosen)


def _bench(words: list[str]) -> int:
    chosen = settings_of(words, "bench", BENCH)
    from tailfin import commands

    return commands.bench_only(chosen)


def settings_of(words: list[str], command: str, description: str) -> Config:
    """The settings of a run that is not made."""
    own = _trusted_method(words)
    chosen = _parse(Config, words, command, description, Config())
    return dataclasses.replace(chosen, method=own) if own else chosen


def _evaluate(words: list[str]) -> int:
    _trusted_method(words)
    chosen = _parse(Evaluate, words, "evaluate", EVALUATE)
    from tailfin import commands

    return commands.evaluate(Path(chosen.run), chosen.data, chosen.limit, chosen.device)


def _report(words: list[str]) -> int:
    chosen = _parse(Report, words, "report", REPORT)
    from tailfin import commands

    return commands.report(Path(chosen.run))


def _study(words: list[str]) -> int:
    chosen = _parse(Study, words, "study", STUDY)
    from tailfin.study.command import Options, study

    out = None if chosen.out is None else Path(chosen.out)
    options = Options(
        Path(chosen.file),
        out,
        chosen.data,
        chosen.jobs,
        chosen.seeds,
        chosen.limit_minutes,
        chosen.plan,
        chosen.reuse,
    )
    return study(options)


def _list(words: list[str]) -> int:
    chosen = _parse(List, words, "list", LIST)
    from tailfin import listing

    return listing.show(chosen.what, chosen.backbone, chosen.image_size)


def _trusted_method(words: list[str]) -> str | None:
    """The user's own method that the command line names, its code run; None where it names none."""
    from tailfin import methods

    named = _value(words, "--method")
    return methods.trust(named) if named is not None and methods.is_file(named) else None


def _value(words: list[str], name: str) -> str | None:
    """The value of an option that decides the defaults of all others, and so must be known before them."""
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _parse(
    kind: type[Command], words: list[str], command: str, description: str, default: Command | None = None
) -> Command:
    """The command's options; a mistake becomes one line."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            given = tyro.MISSING_NONPROP if default is None else default
            return tyro.cli(
                kind, args=words, prog=f"tailfin {command}", description=description, default=given
            )
    except SystemExit as stop:
        if not stop.code:
            print(out.getvalue(), end="")
            raise
        raise UserError(f"{command}: {_one_line(out.getvalue() + err.getvalue())}") from None


def _one_line(box: str) -> str:
    """The message inside the frame that tyro draws around an error, and the option that it holds for the nearest."""
    lines = [line.strip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    sections = [""]
    for line in lines:
        if re.match(r"^[╭╰─]|^-{5,}", line):
            sections.append("")
        else:
            sections[-1] += f" {line}"
    sections = [re.sub(r"\s+", " ", section).strip() for section in sections if section.strip()]
    titled = len(sections) > 1 and sections[0] in (
        "Unrecognized options",
        "Value error",
        "Invalid choice",
        "Required options",
    )
    message = sections[1 if titled else 0] if sections else "wrong usage"
    if "--method-options" in message:
        message = "--method-options takes names and numbers in turn, such as temperature 0.1 hidden 512"
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(sections))
    return message + (f"; did you mean {near[1]}?" if near else "")
