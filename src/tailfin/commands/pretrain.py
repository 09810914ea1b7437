"""`pretrain` as a function: from settings to a judged run in its folder; what happens is told as values."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tailfin import methods
from tailfin.commands.checking import check, memory_of
from tailfin.commands.report import write_report
from tailfin.commands.several import check_agreement
from tailfin.commands.told import Choices, GoesOn, Interrupted, Note, Removed, Tell, Trained
from tailfin.compute.device import find_device, keep_freed_memory
from tailfin.compute.several import joined
from tailfin.compute.world import World, launch_id, restarted
from tailfin.data.types import Dataset
from tailfin.errors import Diverged, UserError
from tailfin.files import write_atomically, write_json
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
from tailfin.training.listeners import Progress
from tailfin.training.loop import Stopped
from tailfin.training.misfits import AUTO
from tailfin.training.setup import Setup, load_data, prepare
from tailfin.training.start import start

MOVING = ("decay", "decay_end", "buffers")
"""Settings that say how momentum moves, and do nothing where no part has any."""


@dataclass(frozen=True)
class Outcome:
    """A finished run.

    Attributes:
        folder: Its run folder.
        before: Whether it had been finished before.
    """

    folder: RunFolder
    before: bool = False

    @property
    def result(self) -> Mapping[str, Any]:
        """The content of its result.json."""
        return self.folder.read_result()


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
        if restarted() and (begun := RunFolder.latest(config, launch_id())) is not None:
            # A launcher repeats the words that it was given.
            return pretrain({}, resume=begun.path, tell=tell, decoding=decoding, progress=progress)
    with joined(find_device(config.device)) as world:
        tell = tell if world.leads else _silent
        folder = world.first(lambda: _folder(config, base, resumed=resume is not None))
        if folder.result.exists():
            return Outcome(folder, before=True)
        with folder.writing() if world.leads else nullcontext(0) as freed:
            if world.leads and resume is None and folder.config.exists():
                raise holds_a_run(folder.path)  # made by another process since it was looked for
            if freed:
                tell(Removed(folder.path, freed))
            if world.leads and world.size > 1:
                write_atomically(folder.launch, launch_id().encode())
            with _telling_the_end(folder, tell, leads=world.leads), memory_of(config):
                setup = _prepared(config, folder, world, tell, decoding)
                tell(_choices(setup, folder, [name for name in MOVING if name in typed]))
                _train(setup, folder, tell, progress or Progress(), resumed=resume is not None)
        return Outcome(folder)


def _silent(_: object) -> None:
    """The first process speaks."""


def _folder(config: Config, base: Config, *, resumed: bool) -> RunFolder:
    """The run folder: a new one, or that of a run to go on with; where a finished one lacks its page, it is drawn.

    Raises:
        UserError: There is none, or it is that of another run.
    """
    if not resumed:
        return RunFolder.create(config)
    if changed := settings.differences(base, config):
        raise UserError(f"--resume continues the same run, but {'; '.join(changed)}")
    folder = RunFolder.open(Path(base.out or ""))
    if config.out != base.out:
        raise UserError(f"--resume goes on in {folder.path}; --out {config.out} cannot move the run")
    if folder.result.exists() and not folder.report.exists():
        write_report(folder)
    return folder


@contextmanager
def _telling_the_end(folder: RunFolder, tell: Tell, *, leads: bool) -> Iterator[None]:
    """Tell how a run that ends too early goes on, and report on one that diverged."""
    try:
        yield
    except Stopped as stop:
        tell(Interrupted(folder.path, str(stop)))
        raise
    except KeyboardInterrupt:
        # Outside the loop, or the second one in it; judging is done again as a whole.
        if folder.config.exists():
            tell(Interrupted(folder.path, "stopped"))
        raise
    except Diverged as error:
        if leads:
            write_report(folder, {"verdict": {"state": "diverged", "words": str(error), "evidence": []}})
        raise


def _prepared(
    config: Config,
    folder: RunFolder,
    world: World,
    tell: Tell,
    decoding: Callable[[int, int], None] | None,
) -> Setup:
    keep_freed_memory()
    data = load_data(config, find_device(config.device), progress=decoding, say=lambda line: tell(Note(line)))
    if config.momentum == AUTO:
        asked = config
        config = replace(config, momentum=world.first(lambda: _advised(asked, data, folder, tell)))
    setup = prepare(config, data, check=True, world=world)
    check_agreement(setup)
    if world.leads:
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
) -> None:
    computed_with, validation = versions(), None
    if setup.world.leads:
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
    if not setup.world.leads:
        return
    tell(Trained(setup.config.device))
    judge(setup, folder, validation, computed_with)
    write_report(folder)


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
