"""The pictures of a run's page: some images in their views, and some beside their nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tailfin.data.split import random_subset
from tailfin.data.types import ImageSet
from tailfin.judging.knn import nearest
from tailfin.judging.subject import Subject, judging_seed
from tailfin.run.seeds import generator
from tailfin.views.augment import Augment, denormalise

PICTURES, NEIGHBOURS, BANK = 8, 6, 5000


@dataclass(frozen=True)
class Pictures:
    """Two sheets.

    Attributes:
        views: uint8 [n, views + 1, C, S, S]: images, each followed by its augmented views.
        neighbours: uint8 [n, neighbours + 1, C, S, S]: images, each followed by its nearest ones, best first.
        names: Classes of the latter; None without labels.
    """

    views: Tensor
    neighbours: Tensor
    names: list[list[str]] | None


def pictures(
    subject: Subject, augment: Augment, train: ImageSet, test: ImageSet | None, seed: int
) -> Pictures | None:
    """The pictures of a run; None where it has too few images.

    Args:
        subject: What is judged.
        augment: Its views.
        train: The training images.
        test: Images whose neighbours are looked for; None where there are none, and training images stand in for
            them and are left out of what is searched.
        seed: Of the run.
    """
    order = torch.randperm(len(train), generator=generator(seed, "pictures"))
    viewed = train.subset(order[:PICTURES])
    own = test is None
    asked = viewed if test is None else test.subset(random_subset(len(test), PICTURES, judging_seed(seed)))
    bank = train.subset(order[PICTURES * own :][:BANK])
    if len(bank) < NEIGHBOURS:
        return None
    _, index = nearest(subject.features(bank)[0], subject.features(asked)[0], NEIGHBOURS)
    neighbours = torch.cat([subject.plain(asked)[:, None], subject.plain(bank)[index]], dim=1)
    draws = generator(seed, "picture views")
    views = augment(viewed.images.to(subject.execution.device), draws, viewed.aspect)
    seen = [denormalise(view, subject.mean, subject.std).cpu() for view in views]
    return Pictures(
        torch.stack([subject.plain(viewed), *seen], dim=1), neighbours, _names(train, asked, bank, index)
    )


def _names(train: ImageSet, asked: ImageSet, bank: ImageSet, index: Tensor) -> list[list[str]] | None:
    if asked.labels is None or bank.labels is None or train.classes is None:
        return None
    labels = torch.cat([asked.labels[:, None], bank.labels[index]], dim=1)
    return [[train.classes[label] if label >= 0 else "" for label in row] for row in labels.tolist()]
