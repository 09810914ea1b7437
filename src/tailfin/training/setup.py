"""From settings to everything a run needs: data, views, encoder, method; what was left open is chosen here."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import cast

import torch
from torch import Tensor

from tailfin import methods
from tailfin.compute import trials
from tailfin.compute.device import Execution, find_device, search_kernels
from tailfin.compute.world import World, check_share
from tailfin.data.load import load
from tailfin.data.types import Dataset
from tailfin.errors import UserError
from tailfin.files import cache_folder
from tailfin.methods.base import Method, Moment
from tailfin.momentum import MomentumEncoder
from tailfin.run.config import Config
from tailfin.stability import GradientMonitor, Probe
from tailfin.training import optimizers
from tailfin.training.feed import Feed, Place, place_for
from tailfin.training.model import build
from tailfin.training.monitors import probe_of
from tailfin.training.resolve import resolved, usual_size
from tailfin.training.step import Step
from tailfin.views import recipes
from tailfin.views.augment import Augment
from tailfin.views.recipes import ViewRecipe

TIMED_IMAGES = 16


@dataclass(frozen=True)
class Setup:
    """A run ready to go; what takes part in it is handed the pieces that it needs.

    Attributes:
        config: Settings with nothing left open but what means "no limit".
        data: The images.
        encoder: Both branches.
        method: Loss and heads.
        augment: The views.
        local: The small crops of multi-crop; None for none.
        execution: Device, precision, memory format.
        world: The processes of the run.
        images_on: Where the training images are kept: what the settings ask for, where they fit.
        steps_per_epoch: Optimizer steps an epoch; the last, incomplete batch is left out.
        left_out: Precisions and memory formats that are not sound on this machine, a line each.
    """

    config: Config
    data: Dataset
    encoder: MomentumEncoder
    method: Method
    augment: Augment
    local: Augment | None
    execution: Execution
    world: World
    images_on: Place
    steps_per_epoch: int
    left_out: tuple[str, ...] = ()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def feed(self) -> Feed:
        """The training images, a batch a step."""
        config = self.config
        return Feed(
            self.data.train,
            batch_size=config.batch_size,
            seed=config.seed,
            device=self.execution.device,
            place=self.images_on,
            own=self._own_rows() if self.world.size > 1 else None,
        )

    def _own_rows(self) -> Tensor:
        """The rows of a batch that are this process's: its share of each micro-batch."""
        micro = torch.arange(self.config.batch_size).view(self.config.accumulate, -1)
        return micro[:, self.world.share(micro.shape[1])].flatten()

    def step(self, phase: Callable[[str], AbstractContextManager[object]] = nullcontext) -> Step:
        """What takes the run's steps, with an optimizer of its own that starts anew.

        Args:
            phase: See `Step`.
        """
        config = self.config
        schedule = optimizers.Schedule.of(config, self.steps_per_epoch)
        return Step(
            self.encoder,
            self.method,
            augment=self.augment,
            local=self.local,
            execution=self.execution,
            world=self.world,
            optimizer=optimizers.of(config, self.encoder, self.method, schedule.peak),
            schedule=schedule,
            config=config,
            steps_per_epoch=self.steps_per_epoch,
            labels=self.data.train.labels,
            phase=phase,
        )

    def gradient_monitor(self) -> GradientMonitor:
        """What hears the gradient at each part's output from now on."""
        return GradientMonitor(self.encoder.online_parts())

    def probe(self) -> Probe:
        """What looks at a fixed batch, see `probe_of`."""
        return probe_of(
            self.encoder,
            self.method,
            augment=self.augment,
            execution=self.execution,
            images=self.data.train,
            seed=self.config.seed,
            total_steps=self.total_steps,
            steps_per_epoch=self.steps_per_epoch,
        )


def load_data(
    config: Config,
    device: torch.device,
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Dataset:
    """The images that `config` names.

    Args:
        config: The run's settings.
        device: Where it trains, which decides about the size where nothing else does.
        progress: Told how many of how many images are decoded.
        say: Told what was met on the way.
    """
    return load(
        config.data,
        image_size=config.image_size or usual_size(device),
        limit=config.limit,
        seed=config.seed,
        tolerate=config.tolerate,
        follow_links=config.follow_links,
        cache=cache_folder(config.cache),
        workers=config.workers,
        progress=progress,
        say=say,
    )


def prepare(
    config: Config, data: Dataset | None = None, *, check: bool = False, world: World | None = None
) -> Setup:
    """Load data and build everything; choose what `config` leaves open.

    Args:
        config: Settings.
        data: Already loaded images, or None to load them.
        check: Hold the gradient against float64's also where precision and memory format are given.
        world: The processes of the run, all of which call this; None for this one alone.

    Raises:
        UserError: Settings that do not fit each other or the data.
    """
    world = world or World()
    method_type = methods.load(config.method)
    device = find_device(config.device)
    if data is None:
        data = load_data(config, device)
    if "labels" in method_type.about.needs and data.train.labels is None:
        raise UserError(f"--method {config.method} needs labels, and the images of {config.data!r} have none")
    config = resolved(config, method_type, data.train, device)
    steps = len(data.train) // config.batch_size
    if len(data.train) < 2:
        raise UserError(f"{config.data!r} has {len(data.train)} training image; at least 2 are needed")
    if steps == 0:
        raise UserError(
            f"--batch-size {config.batch_size} is larger than the {len(data.train)} training images of "
            f"{config.data!r}; --batch-size {_half(len(data.train))} would fit"
        )
    size, channels = cast(int, config.image_size), data.train.images.shape[1]
    encoder, method = build(config, method_type, channels, len(data.train), steps * config.epochs)
    chosen = config
    world.first(lambda: check_share(chosen.batch_size, chosen.accumulate, world.size))
    execution, left_out = world.first(lambda: _execution(chosen, channels, device, check=check))
    device = world.place(device)
    search_kernels(device)
    execution = replace(execution, device=device)
    config = replace(config, precision=execution.precision, memory_format=execution.memory_format)
    execution.place(encoder)
    method.to(device)
    world.ready(encoder, config.batch_norm)
    views = _views(method_type.recipe_at(size).views, config)
    augment = Augment(views, size=size, mean=data.mean, std=data.std)
    local = None
    if config.local_views:
        side = cast(int, config.local_size)
        small = [recipes.local(view, side) for view in islice(cycle(views), config.local_views)]
        local = Augment(small, size=side, mean=data.mean, std=data.std)
        _check_local(encoder, method, channels, size, side, config)
    if config.compile:
        encoder.compile_parts()
    place = place_for(data.train, device, config.images_on)
    return Setup(config, data, encoder, method, augment, local, execution, world, place, steps, left_out)


def _execution(
    config: Config, channels: int, device: torch.device, *, check: bool
) -> tuple[Execution, tuple[str, ...]]:
    """How to compute, and what was left out for being unsound here."""
    precision, memory_format = config.precision, config.memory_format
    if precision and memory_format and not check:
        return Execution(device, precision, memory_format), ()
    # A GPU is timed on what it will be given: with a few images it would time its launches. On CPUs a few suffice.
    micro = config.batch_size // config.accumulate
    answer = trials.fastest(
        trials.Question(
            backbone=cast(str, config.backbone),
            image_size=cast(int, config.image_size),
            channels=channels,
            images=micro if device.type == "cuda" else min(micro, TIMED_IMAGES),
            device=str(device),
            precision=precision,
            memory_format=memory_format,
        ),
        cache_folder(config.cache),
    )
    return Execution(device, answer.precision, answer.memory_format), answer.left_out


def _check_local(
    encoder: MomentumEncoder, method: Method, channels: int, size: int, side: int, config: Config
) -> None:
    """Find a backbone of one size alone, or a method of two views alone, before the first step.

    Raises:
        UserError: Either.
    """
    encoder, method = copy.deepcopy(encoder).cpu(), copy.deepcopy(method).cpu()
    with torch.random.fork_rng(devices=[]):
        views = [torch.randn(2, channels, side_, side_) for side_ in (size, size, side)]
        try:
            online, target = encoder(views, 2)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--local-views: {config.backbone} takes no views of {side} px: {reason}"
            ) from None
        index = torch.arange(2)
        method.begin(Moment(0, 1, 1, index, index))
        try:
            method.loss(online, target)
        except ValueError as error:
            raise UserError(f"--local-views does not go with --method {config.method}: {error}") from None


def _half(count: int) -> int:
    """The largest power of two up to half of `count`, at least 2: batches should differ from each other."""
    return int(max(2, 2 ** int(math.log2(max(4, count) / 2))))


def _views(name: str, config: Config) -> tuple[ViewRecipe, ...]:
    published = recipes.named(name, cast(int, config.image_size), where=f"the recipe of {config.method}")
    if config.crop_min is None:
        return published
    smallest = config.crop_min
    return tuple(replace(view, scale=(smallest, max(smallest, view.scale[1]))) for view in published)
