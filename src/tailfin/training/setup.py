"""From settings to everything a run needs: data, views, encoder, method; what was left open is chosen here."""

import copy
import math
import zlib
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from itertools import cycle, islice
from pathlib import Path
from typing import Any, cast

import torch

from tailfin import backbones, methods
from tailfin.data.load import load
from tailfin.data.store import SMALL_SIDE
from tailfin.data.types import Dataset, ImageSet
from tailfin.errors import UserError, unknown
from tailfin.files import cache_folder
from tailfin.methods.base import Method, Moment
from tailfin.momentum import Decay, MomentumEncoder
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.training import config as settings
from tailfin.training import progress, trials
from tailfin.training.config import Config
from tailfin.training.device import Execution, find_device, search_kernels
from tailfin.training.feed import Feed, Place, place_for
from tailfin.training.seeds import derive
from tailfin.views import recipes
from tailfin.views.augment import Augment
from tailfin.views.recipes import ViewRecipe

WITHOUT_BATCH_NORM: tuple[settings.OptimizerName, float, float] = ("adamw", 1.5e-4, 0.1)
"""Optimizer, learning rate at batch 256 and weight decay of backbones such as ViT and ConvNeXt, whatever the method:
MoCo v3's for ViT (arXiv 2104.02057, section 5). The methods' rows are for ResNets; on ViT LARS collapses."""


TIMED_IMAGES = 16


@dataclass(frozen=True)
class Setup:
    """A run ready to go.

    Attributes:
        config: Settings with nothing left open but what means "no limit".
        data: The images.
        encoder: Both branches.
        method: Loss and heads.
        augment: The views.
        local: The small crops of multi-crop; None for none.
        execution: Device, precision, memory format.
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
        )


def load_data(config: Config, device: torch.device) -> Dataset:
    """The images that `config` names."""
    return load(
        config.data,
        image_size=config.image_size or _usual_size(device),
        limit=config.limit,
        seed=config.seed,
        tolerate=config.tolerate,
        follow_links=config.follow_links,
        cache=cache_folder(config.cache),
        workers=config.workers,
        progress=progress.decoding(),
        say=progress.note,
    )


def prepare(config: Config, data: Dataset | None = None, *, check: bool = False) -> Setup:
    """Load data and build everything; choose what `config` leaves open.

    Args:
        config: Settings.
        data: Already loaded images, or None to load them.
        check: Hold the gradient against float64's also where precision and memory format are given.

    Raises:
        UserError: Settings that do not fit each other or the data.
    """
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
    execution, left_out = _execution(config, channels, device, check=check)
    config = replace(config, precision=execution.precision, memory_format=execution.memory_format)
    execution.place(encoder)
    method.to(device)
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
    return Setup(config, data, encoder, method, augment, local, execution, place, steps, left_out)


def _execution(
    config: Config, channels: int, device: torch.device, *, check: bool
) -> tuple[Execution, tuple[str, ...]]:
    """How to compute, and what was left out for being unsound here."""
    search_kernels(device)
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


def build(
    config: Config, method_type: type[Method], channels: int, images: int, total_steps: int
) -> tuple[MomentumEncoder, Method]:
    """The encoder and the method with initial weights that follow from the seed alone.

    Args:
        config: Resolved settings.
        method_type: The class of `config.method`.
        channels: Of the images.
        images: Size of the training set.
        total_steps: Length of the decay's schedule.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        size = cast(int, config.image_size)
        parts = backbones.create_parts(cast(str, config.backbone), image_size=size, channels=channels)
        features = backbones.feature_width(parts, image_size=size, channels=channels)
        method = make_method(method_type, config, features=features, images=images)
        projector = method.projector(features)
    placement = Placement.parse(config.momentum, (*parts.names, PROJECTOR))
    if placement.shares_gradient and method.stop_gradient:
        # Without momentum, a method whose target never had a gradient is itself with decay 0.
        placement = Placement.parse("stopgrad", placement.names)
    if config.gap and not placement.placed:
        raise UserError(
            f"--gap is {config.gap:g}, but under --momentum {placement.text} both branches are the same"
        )
    decay = Decay(cast(float, config.decay), config.decay_end, max(1, total_steps))
    encoder = MomentumEncoder(
        parts,
        projector=projector,
        placement=placement,
        decay=decay,
        buffers=config.buffers,
        through=config.through,
    )
    return encoder, method


def fingerprint(images: ImageSet) -> str:
    """Tells one training set from another: shape, and a checksum of 256 images spread over it."""
    step = max(1, len(images) // 256)
    content = images.images[::step][:256].contiguous().numpy().tobytes()
    return f"{'x'.join(map(str, images.images.shape))}-{zlib.crc32(content):08x}"


def resolved(config: Config, method_type: type[Method], images: ImageSet, device: torch.device) -> Config:
    """The settings with what was left open chosen for these images and this device, but precision and memory format.

    Raises:
        UserError: An optimizer that is not the usual one without a learning rate.
    """
    height, width = images.images.shape[-2:]
    own = images.aspect is None and max(height, width) <= SMALL_SIDE
    size = config.image_size or (min(height, width) if own else _usual_size(device))
    recipe = method_type.recipe_at(size)
    decay = recipe.decay if config.decay is None else config.decay
    published_end = recipe.decay_end if config.decay is None else decay
    warmup = min(recipe.warmup_epochs, config.epochs / 10)
    backbone = config.backbone or ("resnet18" if device.type == "cuda" else backbones.NARROW)
    usual: tuple[settings.OptimizerName, float, float] = (recipe.optimizer, recipe.lr, recipe.weight_decay)
    if not backbones.normalises_batches(backbone, size):
        usual = WITHOUT_BATCH_NORM
    if config.lr is None and config.optimizer not in (None, usual[0]):
        raise UserError(
            f"--optimizer {config.optimizer} is not the usual one here ({usual[0]}), whose learning rate does not "
            "fit it: give --lr"
        )
    return replace(
        config,
        data=str(Path(config.data).expanduser().resolve()) if Path(config.data).exists() else config.data,
        momentum=recipe.placement if config.momentum == "published" else config.momentum,
        decay=decay,
        decay_end=published_end if config.decay_end is None else config.decay_end,
        backbone=backbone,
        image_size=size,
        local_size=_local_size(size)
        if config.local_views and config.local_size is None
        else config.local_size,
        optimizer=config.optimizer or usual[0],
        lr=usual[1] if config.lr is None else config.lr,
        weight_decay=usual[2] if config.weight_decay is None else config.weight_decay,
        warmup_epochs=warmup if config.warmup_epochs is None else config.warmup_epochs,
        device=str(device),
    )


def _half(count: int) -> int:
    """The largest power of two up to half of `count`, at least 2: batches should differ from each other."""
    return int(max(2, 2 ** int(math.log2(max(4, count) / 2))))


def _local_size(size: int) -> int:
    """Side of small crops beside views of `size` pixels: 96 beside 224 (arXiv 2006.09882), even."""
    return max(8, round(size * 3 / 14) * 2)


def _usual_size(device: torch.device) -> int:
    """Side of the views, in pixels, of images that are not small and of one size."""
    return 224 if device.type == "cuda" else 64


def make_method(method_type: type[Method], config: Config, *, features: int, images: int) -> Method:
    """The method with its options, for a backbone and a training set of these sizes.

    Raises:
        UserError: An option that the method lacks, or a value that it cannot take.
    """
    options: dict[str, Any] = {**method_type.defaults(features, images, config.image_size or 32)}
    for name, value in options.items():
        if value is Parameter.empty:
            raise UserError(f"--method {config.method}: {name} of its constructor needs a default")
    for name, value in config.method_options.items():
        if name not in options:
            raise unknown("method option", name, options, where=f"--method-options of {config.method}")
        kind = type(options[name])
        if kind is int and not float(value).is_integer():
            raise UserError(f"--method-options {name} is {value}; it must be a whole number")
        options[name] = kind(value)
    try:
        signature(method_type).bind(**options)
    except TypeError as error:  # of a user's own method: its constructor takes other arguments
        raise UserError(f"--method {config.method} cannot be made: {error}") from None
    try:
        return method_type(**options)
    except ValueError as error:
        raise UserError(f"--method-options of {config.method}: {error}") from None


def _views(name: str, config: Config) -> tuple[ViewRecipe, ...]:
    published = recipes.named(name, cast(int, config.image_size), where=f"the recipe of {config.method}")
    if config.crop_min is None:
        return published
    smallest = config.crop_min
    return tuple(replace(view, scale=(smallest, max(smallest, view.scale[1]))) for view in published)
