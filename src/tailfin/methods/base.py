"""What every method is: heads, a loss on two branches, and a row of published defaults."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.branch import Branch

# Norms below this count as zero, which bounds the gradient that reaches a dead embedding to 1e6 times the
# loss's; torch's own default of 1e-12 multiplies it by 1e12, and one dead sample then drowns the batch.
NORM_FLOOR = 1e-6

LARGEST_SMALL_IMAGE = 64
"""Up to this side, in pixels, a method's recipe is the one published for CIFAR."""

WIDE = 512
"""From so many features of the backbone on (ResNet-18 and wider), heads have their published widths."""

Family = Literal["contrastive", "prediction", "redundancy", "prototypes"]


@dataclass(frozen=True)
class About:
    """What people want to know of a method.

    Attributes:
        title: Its name as its authors write it.
        family: What its loss is made of.
        year: Of its first publication.
        source: The paper, as arXiv number.
        idea: What it does, in three sentences.
        equation: Its loss, in LaTeX.
        needs: What it needs beside images; "labels" is asked of the data, the rest is for the reader.
        expected: Linear accuracy (%) by data set, of others' long runs.
        expected_source: Whose, and how long.
    """

    title: str
    family: Family | None = None
    year: int | None = None
    source: str = ""
    idea: str = ""
    equation: str = ""
    needs: tuple[str, ...] = ()
    expected: Mapping[str, float] = field(default_factory=dict)
    expected_source: str = ""


@dataclass(frozen=True)
class Moment:
    """What a batch is beside its views, for the few methods that ask.

    Attributes:
        step: The optimizer step's number, counted from 0.
        total_steps: Steps of the whole run.
        steps_per_epoch: Steps of a pass over the images.
        indices: int64 [N] on the CPU, each image's place in the training set.
        labels: int64 [N] on the CPU, -1 for an image without one; None where no image has one.
    """

    step: int
    total_steps: int
    steps_per_epoch: int
    indices: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Recipe:
    """Published defaults of one method at one size of images.

    Attributes:
        optimizer: The optimiser.
        lr: Peak learning rate at batch 256; scale it linearly for other batches.
        weight_decay: L2 coefficient; norms and biases go without it, and without LARS, in every method.
        views: Name of the augmentation recipe.
        placement: Parts that carry momentum as published.
        decay: Weight of the old value in the momentum update, at the first step.
        decay_end: The same at the last step; the way there is a cosine, or constant where both are equal.
        hidden: Projector's (and predictor's) hidden width.
        out: Projector's output width.
        batch_norm: Whether the heads normalise their hidden layer.
        source: Where the row was read.
        momentum: The optimiser's own momentum (SGD, LARS).
        warmup_epochs: Linear warm-up before the cosine.
        trust_coefficient: LARS's eta; None for other optimisers.
        clip: Whether LARS caps its local rate at the global one.
        options: What the constructor takes beside the widths, where its own default is another.
    """

    optimizer: Literal["sgd", "lars", "adamw"]
    lr: float
    weight_decay: float
    views: str
    placement: str
    decay: float
    decay_end: float
    hidden: int
    out: int
    batch_norm: bool
    source: str
    momentum: float = 0.9
    warmup_epochs: int = 10
    trust_coefficient: float | None = None
    clip: bool = False
    options: Mapping[str, float] = field(default_factory=dict)


class Method(nn.Module):
    """A loss on the online and the target branch, with the heads and the state that the loss needs.

    The parameters are those of the online branch alone (a predictor); the projector is a part of the encoder,
    so it is built here and owned elsewhere. A method never asks where its target comes from.

    Attributes:
        stop_gradient: Whether the method as published never backpropagates through its target branch. The loop sees
            to it, by a placement `stopgrad` instead of `none`.
        about: What it is.
        recipe: Published defaults at CIFAR size (32 px, ResNet-18 with a 3x3 stem).
        large: Published defaults at ImageNet size (224 px, ResNet-50 unless it says so); None where none were found.
        hidden: Hidden width of the heads.
        out: Output width of the projector.
        moment: What the next loss is about; None where the loop does not say.
    """

    stop_gradient: bool
    about: ClassVar[About] = About("a method of your own")
    recipe: ClassVar[Recipe]
    large: ClassVar[Recipe | None] = None

    def __init__(self, hidden: int | None = None, out: int | None = None) -> None:
        """Widths default to the published ones; `defaults` suggests some for a narrow backbone.

        Raises:
            ValueError: If a width is below 1.
        """
        super().__init__()
        self.moment: Moment | None = None
        self.hidden = self.recipe.hidden if hidden is None else hidden
        self.out = self.recipe.out if out is None else out
        if self.hidden < 1 or self.out < 1:
            raise ValueError(f"head widths hidden={self.hidden}, out={self.out}; both must be 1 or more")

    @classmethod
    def recipe_at(cls, image_size: int) -> Recipe:
        """The published defaults nearest to images of this side in pixels."""
        return cls.recipe if cls.large is None or image_size <= LARGEST_SMALL_IMAGE else cls.large

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """What the constructor takes, by name, and its values for a backbone and a training set.

        From `WIDE` features on the published widths. Below that `hidden` is 4 times the features, SimCLR's
        proportion at ResNet-18, and `out` is 128: a narrow backbone would otherwise cost less than its head.

        Args:
            in_features: Of the backbone.
            images: Size of the training set.
            image_size: Side of the images in pixels, which `recipe_at` goes by.
        """
        recipe = cls.recipe_at(image_size)
        parameters = signature(cls).parameters.values()
        values = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        hidden, out = (recipe.hidden, recipe.out) if in_features >= WIDE else (4 * in_features, 128)
        return {**values, **recipe.options, "hidden": hidden, "out": out}

    def projector(self, in_features: int) -> nn.Module:
        """A new projector, [N, in_features] -> [N, out]."""
        return mlp(in_features, self.hidden, self.out, batch_norm=self.recipe.batch_norm)

    def doubts(self, count: int) -> list[str]:
        """Why the loss would not mean what it says with `count` images at a time, a line each; usually nothing."""
        return []

    def fixed_rate(self) -> Iterable[nn.Parameter]:
        """Own parameters whose learning rate stays at its peak; none, unless a method says so."""
        return ()

    def begin(self, moment: Moment | None) -> None:
        """Say which batch the next `loss` is about; most methods need not know."""
        self.moment = moment

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """The loss, a float32 scalar whatever the branches' dtype.

        Raises:
            ValueError: If the branches do not hold the number of views that the method compares.
        """
        raise NotImplementedError

    def after_step(self, taken: bool = True) -> None:
        """Commit the state that the losses since the last call gathered (such as keys for a queue).

        Call it once after each optimizer step, with `taken` false where the step was skipped: what was
        gathered is then dropped. A loss commits nothing itself, so micro-batches and retries are harmless.
        """


def mlp(in_features: int, hidden: int, out: int, *, batch_norm: bool) -> nn.Sequential:
    """Linear, (batch norm,) ReLU, linear: [N, in_features] -> [N, out]."""
    norm = [nn.BatchNorm1d(hidden)] if batch_norm else []
    return nn.Sequential(nn.Linear(in_features, hidden), *norm, nn.ReLU(), nn.Linear(hidden, out))


def predict(head: nn.Module, rows: Tensor) -> Tensor:
    """`head` of the rows, which are brought to its dtype; a head without parameters takes them as they are."""
    return head(rows.to(next(head.parameters(), rows).dtype))  # type: ignore[no-any-return]


def two_views(views: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The two views of a branch.

    Raises:
        ValueError: If there are not exactly two.
    """
    if len(views) != 2:
        raise ValueError(f"{len(views)} views in a branch; the loss compares exactly 2")
    return views[0], views[1]


def crossings(online: Branch, target: Branch) -> list[tuple[int, int]]:
    """Indices of every online view with every target view but its own; the target may have fewer views.

    Raises:
        ValueError: If there is no such pair.
    """
    views, targets = len(online.projections), len(target.projections)
    found = [(i, j) for i in range(views) for j in range(targets) if i != j]
    if not found:
        raise ValueError(
            f"{views} views in the online and {targets} in the target branch; a loss compares 2 or more"
        )
    return found


def pairs(online: Branch, target: Branch) -> list[tuple[Tensor, Tensor]]:
    """Projections of every online view with every target view of the same images but its own, as `crossings`."""
    return [(online.projections[i], target.projections[j]) for i, j in crossings(online, target)]


def mutual(online: Branch, target: Branch) -> list[tuple[Tensor, Tensor]]:
    """The pairs of a loss that is the same turned round: `pairs`, each once where the target is the online branch."""
    if target is not online:
        return pairs(online, target)
    return [(online.projections[i], online.projections[j]) for i, j in crossings(online, online) if i < j]


def unit(vectors: Tensor) -> Tensor:
    """Rows of [N, P] scaled to length 1, in float32; those shorter than NORM_FLOOR are divided by it."""
    return F.normalize(vectors.float(), dim=1, eps=NORM_FLOOR)


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of `like`.

    Similarities divided by a temperature need it: at logit 5, bfloat16 resolves only steps of 0.03.
    """
    return torch.autocast(like.device.type, enabled=False)


def check_temperature(temperature: float) -> float:
    """`temperature`, if it is above zero.

    Raises:
        ValueError: If it is not.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}; must be above 0")
    return temperature
