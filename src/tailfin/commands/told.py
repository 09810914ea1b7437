"""What commands tell on the way: values, which whoever called may say, keep or pass over."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tailfin.data.types import Skipped
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.training.feed import Place

Tell = Callable[[object], object]
"""Takes what happens, each a value of this module or an `Advice`."""


@dataclass(frozen=True)
class Note:
    """What was met while the images were loaded."""

    line: str


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
