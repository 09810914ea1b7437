"""`pretrain` as a function: from settings to a judged run in its folder; what happens is told as values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tailfin import methods
from tailfin.commands.report import write_report
from tailfin.compute.device import find_compiler, find_device, is_memory_full, keep_freed_memory
from tailfin.data.types import Dataset, Skipped
from tailfin.errors import Diverged, MemoryFull, UserError
from tailfin.files import write_json
from tailfin.judging.result import judge
from tailfin.judging.subject import Subject, judging_seed
from tailfin.judging.validation import Validation
from tailfin.measuring.advice import advise
from tailfin.momentum.cost import part_flops
from tailfin.momentum.placement import Placement
from tailfin.run import config as settings
from tailfin.run import layers
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder, holds_a_run
from tailfin.run.versions import versions
from tailfin.training import misfits
from tailfin.training.feed import Place
from tailfin.training.listeners import Progress
from tailfin.training.loop import Stopped
from tailfin.training.misfits import AUTO
from tailfin.training.setup import Setup, load_data, prepare
from tailfin.training.start import start

MOVING = ("decay", "decay_end", "buffers")
"""Settings that say how momentum moves, and do nothing where no part has any."""

Tell = Callable[[object], object]
"""Takes what happens, each a value of this module or an `Advice`; a line of text is said as it is."""


@dataclass(frozen=True)
class Removed:
    """A killed run had left `size` bytes in `folder`, which are gone."""

    folder: Path
    size: int


@dataclass(frozen=True)
class Choices:
    """What is about to train.

    Attributes:
        folder: Its run folder.
        config: Settings with nothing left open.
        images, test_images: How many; None without test images.
        size: Side of the views in pixels.
        skipped: Images that could not be read.
        steps: Optimizer steps of the run.
        doubts: Of the method about these settings, a line each.
        placed: Parts with momentum weights.
        stops_gradient: Whether the method itself stops the target's gradient.
        cost: Share of the forward FLOPs that the target path repeats.
        idle: Settings that were asked for and have no effect.
        images_on: Where the training images are kept.
        left_out: Precisions and memory formats that are unsound here, a line each.
    """

    folder: RunFolder
    config: Config
    images: int
    test_images: int | None
    size: int
    skipped: list[Skipped]
    steps: int
    doubts: list[str]
    placed: tuple[str, ...]
    stops_gradient: bool
    cost: float
    idle: list[str]
    images_on: Place
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class GoesOn:
    """A resumed run goes on after `step` of `total`."""

    step: int
    total: int


@dataclass(frozen=True)
class Trained:
    """The last step was taken; judging begins on `device`."""

    device: str


@dataclass(frozen=True)
class Interrupted:
    """The run was stopped: `words` say when; it can be resumed from `folder`."""

    folder: Path
    words: str


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: Its run folder.
        result: The content of its result.json.
        before: Whether it had been finished before.
    """

    folder: RunFolder
    result: Mapping[str, Any]
    before: bool = False


def pretrain(
    typed: Mapping[str, Any],
    *,
    file: str | Path | None = None,
    resume: str | Path | None = None,
    tell: Tell = lambda _: None,
    decoding: Callable[[int, int], None] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train an encoder, judge it, and write its report.

    Args:
        typed: Settings, by their names in `Config`; the others are as usual, or those of `file` or `resume`.
        file: A TOML file of settings.
        resume: The run folder of a run to go on with; settings that matter may not change.
        tell: Takes what happens, as values.
        decoding: Told how many of how many images are decoded.
        progress: Told how the training comes on.

    Raises:
        UserError: Settings that are wrong or do not fit each other or the data.
        Stopped: A signal asked for it; the run can be resumed.
        Diverged: The loss is not finite; the report says so.
        MemoryFull: On the device or the host.
    """
    base = layers.base(file, resume)
    config = layers.layered(base, typed)
    if methods.is_file(config.method):
        # The run folder keeps the whole path: the run may be resumed from elsewhere.
        config = replace(config, method=methods.whole(config.method))
    if resume is None:
        check(config)
        folder = RunFolder.create(config)
    else:
        if changed := settings.differences(base, config):
            raise UserError(f"--resume continues the same run, but {'; '.join(changed)}")
        folder = RunFolder.open(Path(base.out or ""))
        if config.out != base.out:
            raise UserError(f"--resume goes on in {folder.path}; --out {config.out} cannot move the run")
        if folder.result.exists():
            if not folder.report.exists():
                write_report(folder)
            return Outcome(folder, folder.read_result(), before=True)
    with folder.writing() as freed:
        if resume is None and folder.config.exists():
            raise holds_a_run(folder.path)  # made by another process since it was looked for
        if freed:
            tell(Removed(folder.path, freed))
        try:
            with memory_of(config):
                setup = _prepared(config, folder, tell, decoding)
                tell(_choices(setup, folder, [name for name in MOVING if name in typed]))
                return Outcome(
                    folder, _train(setup, folder, tell, progress or Progress(), resumed=resume is not None)
                )
        except Stopped as stop:
            tell(Interrupted(folder.path, str(stop)))
            raise
        except (
            KeyboardInterrupt
        ):  # outside the loop, or the second one in it; judging is done again as a whole
            if folder.config.exists():
                tell(Interrupted(folder.path, "stopped"))
            raise
        except Diverged as error:
            write_report(folder, {"verdict": {"state": "diverged", "words": str(error), "evidence": []}})
            raise


def check(config: Config) -> None:
    """Find wrong names before any image is read.

    Raises:
        UserError: An unknown method, device, backbone or part.
    """
    device = find_device(config.device)
    if config.compile:
        find_compiler(device)
    misfits.find(config, image_size=64)


@contextmanager
def memory_of(config: Config) -> Iterator[None]:
    """Say what to change where memory is full.

    Raises:
        MemoryFull: It is.
    """
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
        raise MemoryFull(f"the device's memory is full at --batch-size {size}; {advice}") from None


def _prepared(
    config: Config, folder: RunFolder, tell: Tell, decoding: Callable[[int, int], None] | None
) -> Setup:
    keep_freed_memory()
    data = load_data(config, find_device(config.device), progress=decoding, say=tell)
    if config.momentum == AUTO:
        config = replace(config, momentum=_advised(config, data, folder, tell))
    setup = prepare(config, data, check=True)
    settings.save(setup.config, folder.config)
    folder.save_skipped(setup.data.skipped)
    return setup


def _advised(config: Config, data: Dataset, folder: RunFolder, tell: Tell) -> str:
    advice = advise(config, data)
    tell(advice)
    misfits.through(config, Placement.parse(advice.placement, [part.name for part in advice.parts]))
    write_json(folder.advice, asdict(advice))
    return advice.placement


def _train(
    setup: Setup,
    folder: RunFolder,
    tell: Tell,
    progress: Progress,
    *,
    resumed: bool,
) -> Mapping[str, Any]:
    computed_with = versions()
    subject = Subject.of(setup)
    validation = Validation.of(subject, setup.data.train, judging_seed(setup.config.seed))
    loop = start(setup, folder, validation, progress)
    if resumed:
        tell(GoesOn(loop.done, setup.total_steps))
    progress.begin(loop.done, setup.total_steps)
    try:
        loop.run()
    finally:
        progress.close()
    tell(Trained(setup.config.device))
    result = judge(setup, folder, validation, computed_with)
    write_report(folder)
    return result


def _choices(setup: Setup, folder: RunFolder, moving: list[str]) -> Choices:
    config, encoder, data = setup.config, setup.encoder, setup.data
    example = Subject.of(setup).example(data.train, 1)
    placed = encoder.placement.placed
    return Choices(
        folder,
        config,
        len(data.train),
        None if data.test is None else len(data.test),
        setup.augment.size,
        list(data.skipped),
        setup.total_steps,
        list(setup.method.doubts(config.batch_size // config.accumulate)),
        placed,
        setup.method.stop_gradient,
        encoder.placement.cost(part_flops(encoder, example)),
        [] if placed else [settings.option(name) for name in moving],
        setup.images_on,
        setup.left_out,
    )
