"""The encoder and the method of a run, with weights that follow from its seed alone."""

from inspect import Parameter, signature
from typing import Any, cast

import torch

from tailfin import backbones
from tailfin.errors import UserError, unknown
from tailfin.methods.base import Method
from tailfin.momentum import Decay, MomentumEncoder
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.run.config import Config
from tailfin.run.seeds import derive


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
