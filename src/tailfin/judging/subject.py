"""What is judged: an encoder and how its images are prepared; what kNN and linear probe make of its features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tailfin.compute.device import Execution
from tailfin.data.types import ImageSet
from tailfin.judging.features import extract
from tailfin.judging.scores import Answers, answer, raw_pixels
from tailfin.momentum import MomentumEncoder
from tailfin.momentum.placement import PROJECTOR
from tailfin.run.seeds import derive
from tailfin.training.setup import Setup
from tailfin.views.augment import denormalise, evaluate_view


@dataclass(frozen=True)
class Subject:
    """What is judged, and how its images are prepared.

    Attributes:
        encoder: Both branches.
        execution: Device, precision, memory format.
        size: Side of the images in pixels.
        mean, std: Statistics of the training images.
        batch_size: Images at a time; what fitted in memory to train does so without gradients too.
    """

    encoder: MomentumEncoder
    execution: Execution
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int

    @classmethod
    def of(cls, setup: Setup) -> "Subject":
        """The encoder of a run as it is now."""
        data, config = setup.data, setup.config
        micro = config.batch_size // config.accumulate
        return cls(setup.encoder, setup.execution, setup.augment.size, data.mean, data.std, micro)

    def features(self, images: ImageSet) -> tuple[Tensor, ...]:
        """Backbone and projector outputs of the deterministic view, float32 on the CPU."""
        return self._outputs(images, self.encoder.encode)

    def branches(self, images: ImageSet) -> dict[str, Tensor]:
        """The same of the online branch and the target path, at once: what lies before the fork is computed once.

        A backbone that both share is there once. Without momentum there is the online branch alone. All outputs are
        held in memory together: float32 [N, D] each.
        """
        placement = self.encoder.placement
        names = ["backbone_online", "projector_online"]
        if placement.placed:
            shared = placement.names[placement.fork] == PROJECTOR
            names += ["projector_momentum"] if shared else ["backbone_momentum", "projector_momentum"]

        def both(views: Tensor) -> tuple[Tensor, ...]:
            online, target = self.encoder(views)
            outputs = {
                "backbone_online": online.features[0],
                "projector_online": online.projections[0],
                "backbone_momentum": target.features[0],
                "projector_momentum": target.projections[0],
            }
            return tuple(outputs[name] for name in names)

        return dict(zip(names, self._outputs(images, both), strict=True))

    def plain(self, images: ImageSet) -> Tensor:
        """The deterministic view as it is looked at, uint8 [N, C, S, S]."""
        views = evaluate_view(
            images.images, size=self.size, mean=self.mean, std=self.std, aspect=images.aspect
        )
        return denormalise(views, self.mean, self.std)

    def example(self, images: ImageSet, count: int) -> Tensor:
        """`count` empty images of the run's channels and size, as the encoder takes them."""
        empty = torch.zeros(count, images.images.shape[1], self.size, self.size, device=self.execution.device)
        return self.execution.images(empty)

    def _outputs(
        self, images: ImageSet, encode: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        training = self.encoder.training
        self.encoder.eval()

        def run(views: Tensor) -> tuple[Tensor, ...]:
            with self.execution.autocast():
                return encode(self.execution.images(views))

        outputs = extract(
            run,
            images,
            size=self.size,
            mean=self.mean,
            std=self.std,
            device=self.execution.device,
            batch_size=self.batch_size,
        )
        # A training that went on in eval mode would hardly learn, and say nothing.
        self.encoder.train(training)
        return outputs


def answers(
    subject: Subject, untrained: Subject, train: ImageSet, test: ImageSet, seed: int, *, pixels: bool
) -> dict[str, Answers | None]:
    """What kNN and linear probe make of each output and weights, beside the untrained encoder and, if asked, raw
    pixels; None where features are not finite."""
    train = train.labelled()
    train_labels, test_labels = labels_of(train), labels_of(test)
    device = subject.execution.device

    def judge(one: Tensor, other: Tensor) -> Answers | None:
        return answer(one, train_labels, other, test_labels, seed, device=device)

    ours, theirs = subject.branches(train), subject.branches(test)
    found = {name: judge(ours.pop(name), theirs.pop(name)) for name in tuple(ours)}
    if "projector_momentum" in found and "backbone_momentum" not in found:  # both branches share the backbone
        slow = found.pop("projector_momentum")
        found |= {"backbone_momentum": found["backbone_online"], "projector_momentum": slow}
    found["untrained"] = judge(untrained.features(train)[0], untrained.features(test)[0])
    if pixels:
        plain = (raw_pixels(images, subject.mean, subject.std) for images in (train, test))
        found["raw_pixels"] = judge(*plain)
    return found


def labels_of(images: ImageSet) -> Tensor:
    """The labels of images that have some.

    Raises:
        ValueError: They have none.
    """
    if images.labels is None:
        raise ValueError("these images have no labels to judge with")
    return images.labels


def judging_seed(seed: int) -> int:
    """The seed of splits made for judging a run of `seed`."""
    return derive(seed, "judging") % 2**31
