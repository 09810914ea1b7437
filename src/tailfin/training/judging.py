"""Judging a run: validation while it trains, and the final figures, beside baselines measured the same way."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tailfin.data.split import random_subset, validation_split
from tailfin.data.types import ImageSet
from tailfin.evaluation.compare import mcnemar
from tailfin.evaluation.features import extract
from tailfin.evaluation.judge import Answers, Scores, answer, raw_pixels
from tailfin.evaluation.knn import knn_accuracy, nearest
from tailfin.files import write_json
from tailfin.momentum import MomentumEncoder
from tailfin.momentum.cost import measured_cost, part_flops
from tailfin.momentum.placement import PROJECTOR
from tailfin.stability import collapse, verdict
from tailfin.stability.signs import Sign
from tailfin.training.device import Execution
from tailfin.training.folder import RunFolder
from tailfin.training.monitoring import summarise
from tailfin.training.seeds import derive, generator
from tailfin.training.setup import Setup, build
from tailfin.training.versions import versions
from tailfin.views.augment import denormalise, evaluate_view

VALIDATION_SHARE = 0.1
VALIDATION_BANK, VALIDATION_QUERIES = 2000, 1000
"""Most images for the kNN seen during training: it should cost no more than some per cent of an epoch."""
PICTURES, NEIGHBOURS, PICTURE_BANK = 8, 6, 5000
COLLAPSE_IMAGES = 2000
LIDAR_IMAGES, LIDAR_PAIRS = 256, 5
"""Pairs of views of each image; the paper takes 10 views and more (arXiv 2312.04000, section 5)."""


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
        self.encoder.train(
            training
        )  # a training that went on in eval mode would hardly learn, and say nothing
        return outputs


def answers(
    subject: Subject, untrained: Subject, train: ImageSet, test: ImageSet, seed: int, *, pixels: bool
) -> dict[str, Answers | None]:
    """What kNN and linear probe make of each output and weights, beside the untrained encoder and, if asked, raw
    pixels; None where features are not finite."""
    train = train.labelled()
    train_labels, test_labels = _labels(train), _labels(test)
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


class Judge:
    """Judges the encoder of a `Setup` and writes what it found to the run folder."""

    def __init__(self, setup: Setup, folder: RunFolder) -> None:
        self.setup, self.folder = setup, folder
        self.subject = Subject(
            setup.encoder,
            setup.execution,
            setup.augment.size,
            setup.data.mean,
            setup.data.std,
            setup.config.batch_size // setup.config.accumulate,
        )
        self.seed = judging_seed(setup.config.seed)
        self.versions = versions()
        train = setup.data.train
        self.can_validate = False
        if train.labels is not None:
            train = train.labelled()
            fit, held = validation_split(_labels(train), VALIDATION_SHARE, self.seed)
            self.bank = train.subset(fit[random_subset(len(fit), VALIDATION_BANK, self.seed)])
            self.queries = train.subset(held[random_subset(len(held), VALIDATION_QUERIES, self.seed)])
            self.can_validate = len(held) > 0

    def validate(self) -> float:
        """kNN accuracy (%) of the online backbone on a validation split of the training images."""
        bank, queries = self.subject.features(self.bank)[0], self.subject.features(self.queries)[0]
        return knn_accuracy(bank, _labels(self.bank), queries, _labels(self.queries))

    def finish(self) -> dict[str, Any]:
        """The final figures: writes the encoder, the pictures, the list of skipped files and result.json."""
        setup, folder = self.setup, self.folder
        train, test, encoder = setup.data.train, setup.data.test, setup.encoder
        folder.save_encoder(
            encoder,
            {
                "backbone": setup.config.backbone,
                "image_size": setup.augment.size,
                "channels": train.images.shape[1],
                "mean": setup.data.mean,
                "std": setup.data.std,
            },
        )
        answered: dict[str, Answers | None] = {}
        unjudged = []
        asked = setup.config.judge
        if asked == "nothing":
            unjudged.append("accuracy of kNN and linear probe: --judge nothing")
        elif len(train.labelled()) and test is not None:
            answered = answers(self.subject, self._untrained(), train, test, self.seed, pixels=asked == "all")
        else:
            reason = "no image could be held out" if len(train.labelled()) else "the images have no labels"
            unjudged.append(f"accuracy of kNN and linear probe: {reason}")
        found = {name: Scores.of(each) for name, each in answered.items()}
        names = self._pictures(train, train if test is None else test)
        seen = summarise(folder.read_stability(), setup)
        placement = encoder.placement
        flops = part_flops(encoder, self._example(1))
        result = {
            "knn": found["backbone_online"].knn if found else None,
            "linear": found["backbone_online"].linear if found else None,
            "untrained": asdict(found["untrained"]) if found else None,
            "raw_pixels": asdict(found["raw_pixels"]) if "raw_pixels" in found else None,
            "scores": {name: asdict(each) for name, each in found.items()},
            "validation_knn": self._last("knn"),
            "verdict": asdict(self._verdict(train if test is None else test, answered, seen.signs)),
            "fluctuation": {name: asdict(each) for name, each in seen.fluctuation.items()},
            "lags": {name: asdict(each) for name, each in seen.lags.items()},
            "lidar": self._lidar(train),
            "unjudged": unjudged,
            "placement": setup.config.momentum,
            "momentum_parts": list(placement.placed),
            "target_cost": {
                "predicted": placement.cost(flops),
                "measured": self._measured_cost(),
            },
            "parts": [
                {
                    "name": name,
                    "share": flops[name] / sum(flops.values()),
                    "momentum": name in placement.placed,
                    "on_target_path": index >= placement.fork,
                }
                for index, name in enumerate(placement.names)
            ],
            **self._speed(),
            "seed": setup.config.seed,
            "parameters": sum(p.numel() for p in encoder.parts.parameters()),
            "train_images": len(train),
            "labelled_images": len(train.labelled()),
            "test_images": 0 if test is None else len(test),
            "skipped": len(setup.data.skipped),
            "neighbour_names": names,
            "device": device_name(setup.execution.device),
            "versions": self.versions,
        }
        write_json(folder.result, result)
        return result

    def _untrained(self) -> Subject:
        config, train = self.setup.config, self.setup.data.train
        method = type(self.setup.method)
        encoder, _ = build(config, method, train.images.shape[1], len(train), self.setup.total_steps)
        self.setup.execution.place(encoder)
        return replace(self.subject, encoder=encoder)

    def _lidar(self, train: ImageSet) -> float | None:
        """LiDAR of the projections of some training images in their augmented views."""
        some = train.subset(random_subset(len(train), LIDAR_IMAGES, self.seed))
        if len(some) < 2:
            return None
        draws = generator(self.setup.config.seed, "lidar views")
        projections = []
        training = self.setup.encoder.training
        self.setup.encoder.eval()
        with torch.no_grad(), self.setup.execution.autocast():
            for _ in range(LIDAR_PAIRS):
                views = self.setup.augment(some.images.to(self.setup.execution.device), draws, some.aspect)
                projections += [
                    self.setup.encoder.encode(self.setup.execution.images(view))[1].float() for view in views
                ]
        self.setup.encoder.train(training)
        value = collapse.lidar(torch.stack(projections, dim=1))
        return value if math.isfinite(value) else None

    def _verdict(
        self, images: ImageSet, answered: Mapping[str, Answers | None], signs: Sequence[Sign]
    ) -> verdict.Verdict:
        ours, theirs = (answered.get(name) for name in ("backbone_online", "untrained"))
        chance = None
        if ours is not None and theirs is not None and (images.classes is None or len(images.classes) > 1):
            chance = mcnemar(ours.knn, theirs.knn), mcnemar(ours.linear, theirs.linear)
        some = images.subset(random_subset(len(images), COLLAPSE_IMAGES, self.seed))
        projections = self.subject.features(some)[1]
        rows = self.folder.read_metrics()
        return verdict.judge(
            spread=collapse.normalised_std(projections),
            effective_rank=collapse.effective_rank(projections),
            width=min(projections.shape),
            trained=_both(ours),
            untrained=_both(theirs),
            chance=chance,
            losses=[(row["step"], row["loss"]) for row in rows if "loss" in row],
            timing=self.folder.read_timing(),
            signs=signs,
            validation=[row["knn"] for row in rows if "knn" in row],
            validation_images=len(self.queries) if self.can_validate else 0,
        )

    def _pictures(self, train: ImageSet, queries: ImageSet) -> list[list[str]] | None:
        """Save a sheet of views and one of nearest neighbours; returns the names beneath the latter."""
        subject = self.subject
        order = torch.randperm(len(train), generator=generator(self.setup.config.seed, "pictures"))
        viewed = train.subset(order[:PICTURES])
        # Without held-out images, queries come from the training images, and are left out of the bank.
        own = queries is train
        asked = viewed if own else queries.subset(random_subset(len(queries), PICTURES, self.seed))
        bank = train.subset(order[PICTURES * own :][:PICTURE_BANK])
        if len(bank) < NEIGHBOURS:
            return None
        _, index = nearest(subject.features(bank)[0], subject.features(asked)[0], NEIGHBOURS)
        neighbours = torch.cat([self._plain(asked)[:, None], self._plain(bank)[index]], dim=1)
        draws = generator(self.setup.config.seed, "picture views")
        views = self.setup.augment(viewed.images.to(subject.execution.device), draws, viewed.aspect)
        plain = [denormalise(view, subject.mean, subject.std).cpu() for view in views]
        self.folder.save_pictures(torch.stack([self._plain(viewed), *plain], dim=1), neighbours)
        if asked.labels is None or bank.labels is None or train.classes is None:
            return None
        labels = torch.cat([asked.labels[:, None], bank.labels[index]], dim=1)
        return [[train.classes[label] if label >= 0 else "" for label in row] for row in labels.tolist()]

    def _plain(self, images: ImageSet) -> Tensor:
        subject = self.subject
        views = evaluate_view(
            images.images, size=subject.size, mean=subject.mean, std=subject.std, aspect=images.aspect
        )
        return denormalise(views, subject.mean, subject.std)

    def _example(self, count: int) -> Tensor:
        channels, size = self.setup.data.train.images.shape[1], self.subject.size
        images = torch.zeros(count, channels, size, size, device=self.subject.execution.device)
        return self.subject.execution.images(images)

    def _measured_cost(self) -> float:
        """Under the run's own precision and batch."""
        with self.subject.execution.autocast():
            return measured_cost(self.setup.encoder, self._example(self.subject.batch_size))

    def _speed(self) -> dict[str, float]:
        """Images a second (median of the log rows), and seconds of training in all sessions of the run."""
        timing, seconds, last = self.folder.read_timing(), 0.0, 0
        for row in timing:
            seconds += (row["step"] - last) * self.setup.config.batch_size / row["images_per_second"]
            last = row["step"]
        rate = median(row["images_per_second"] for row in timing) if timing else 0.0
        return {"images_per_second": rate, "seconds": seconds}

    def _last(self, key: str) -> float | None:
        return next((row[key] for row in reversed(self.folder.read_metrics()) if key in row), None)


def judging_seed(seed: int) -> int:
    """The seed of splits made for judging a run of `seed`."""
    return derive(seed, "judging") % 2**31


def device_name(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads ({platform.machine()})"


def _both(each: Answers | None) -> tuple[float, float] | None:
    scores = Scores.of(each)
    return None if scores.knn is None or scores.linear is None else (scores.knn, scores.linear)


def _labels(images: ImageSet) -> Tensor:
    if images.labels is None:
        raise ValueError("these images have no labels to judge with")
    return images.labels
