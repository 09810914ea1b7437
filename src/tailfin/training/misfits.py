"""Settings that name what does not exist or do not fit each other, found before any image is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from tailfin import backbones, methods
from tailfin.errors import UserError
from tailfin.momentum.placement import PROJECTOR, Placement
from tailfin.run.config import Config
from tailfin.training.model import make_method
from tailfin.views import recipes

AUTO = "auto"
"""The placement that each run chooses for itself; what it chose is in its result."""


class Misfit(UserError):
    """Settings that do not go together: the one to name, and what is wrong."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Turn a user's error into the misfit of one setting."""
    try:
        yield
    except UserError as error:
        raise Misfit(key, str(error)) from None


@lru_cache
def part_names(backbone: str, image_size: int) -> tuple[str, ...]:
    """The encoder's parts from input to output, the projector last.

    Raises:
        UserError: No such backbone, or one that cannot be split.
    """
    return (*backbones.create_parts(backbone, image_size=image_size).names, PROJECTOR)


def find(config: Config, image_size: int) -> None:
    """Find an unknown method, backbone, part or method option, and `through` with nothing to go through to.

    The recipe of a user's own method may also name views that do not exist.

    Args:
        config: Settings of a run.
        image_size: Side in pixels to check with where the settings leave it open.

    Raises:
        Misfit: Naming the setting.
    """
    size = config.image_size or image_size
    with blaming("method"):
        method = methods.load(config.method)
        for recipe in (method.recipe, method.large or method.recipe):
            recipes.named(recipe.views, size, where=f"the recipe of {config.method}")
    with blaming("backbone"):
        names = part_names(config.backbone or backbones.NARROW, size)
    # What auto will choose is not known yet, and every tail but `all` leaves parts to go through to.
    if config.momentum != AUTO:
        published = config.momentum == "published"
        with blaming("momentum"):
            placement = Placement.parse(
                method.recipe_at(size).placement if published else config.momentum, names
            )
        through(config, placement)
    with blaming("method_options"):
        make_method(method, config, features=512, images=2)


def through(config: Config, placement: Placement) -> None:
    """Find a `through` that no part lies before the momentum of `placement` for.

    Args:
        config: Settings of a run; their placement is what the user wrote.
        placement: What it came to: published and auto stand for another.

    Raises:
        Misfit: Naming `through`.
    """
    if config.through and not 0 < placement.fork < len(placement.names):
        written = config.momentum
        meant = "" if written == placement.text else f" ({placement.text})"
        raise Misfit(
            "through",
            f"--through needs parts before the first one with momentum; --momentum {written}{meant} has none",
        )
