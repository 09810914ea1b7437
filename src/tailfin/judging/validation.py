"""Validation during training, on held-out training images and never on those of the final judgement."""

from tailfin.data.split import random_subset, validation_split
from tailfin.data.types import ImageSet
from tailfin.judging.knn import knn_accuracy
from tailfin.judging.subject import Subject, labels_of

SHARE = 0.1
BANK, QUERIES = 2000, 1000
"""Most images for the kNN seen during training: it should cost no more than some per cent of an epoch."""


class Validation:
    """kNN accuracy of the online backbone on a validation split of the training images.

    Args:
        subject: What is judged.
        images: The training images.
        seed: Of the split.
    """

    def __init__(self, subject: Subject, images: ImageSet, seed: int) -> None:
        self.subject = subject
        images = images.labelled()
        fit, held = validation_split(labels_of(images), SHARE, seed)
        self.bank = images.subset(fit[random_subset(len(fit), BANK, seed)])
        self.queries = images.subset(held[random_subset(len(held), QUERIES, seed)])

    @classmethod
    def of(cls, subject: Subject, images: ImageSet, seed: int) -> "Validation | None":
        """That of some images; None where no labelled one can be held out."""
        if images.labels is None:
            return None
        found = cls(subject, images, seed)
        return found if len(found.queries) else None

    def __call__(self) -> float:
        """The accuracy in percent."""
        bank, queries = self.subject.features(self.bank)[0], self.subject.features(self.queries)[0]
        return knn_accuracy(bank, labels_of(self.bank), queries, labels_of(self.queries))
