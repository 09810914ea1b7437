"""The final figures of a run, beside baselines measured the same way: its result.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch

from tailfin.compute.device import Execution, device_name
from tailfin.data.split import random_subset
from tailfin.data.types import Dataset, ImageSet
from tailfin.files import write_json
from tailfin.judging.compare import mcnemar
from tailfin.judging.pictures import pictures
from tailfin.judging.scores import Answers, Scores
from tailfin.judging.subject import Subject, answers, judging_seed
from tailfin.judging.validation import Validation
from tailfin.momentum import MomentumEncoder
from tailfin.momentum.cost import measured_cost, part_flops
from tailfin.run.folder import RunFolder
from tailfin.run.seeds import generator
from tailfin.stability import collapse, verdict
from tailfin.stability.signs import Sign
from tailfin.training.model import build
from tailfin.training.monitors import summarise
from tailfin.training.setup import Setup
from tailfin.views.augment import Augment

COLLAPSE_IMAGES = 2000
LIDAR_IMAGES, LIDAR_PAIRS = 256, 5
"""Pairs of views of each image; the paper takes 10 views and more (arXiv 2312.04000, section 5)."""
BACKBONE = "backbone_online"

Row = Mapping[str, Any]


def judge(
    setup: Setup, folder: RunFolder, validation: Validation | None, versions: Mapping[str, str]
) -> dict[str, Any]:
    """Judge a trained run; writes its encoder, its pictures and result.json, whose content is returned.

    Args:
        setup: What was trained.
        folder: Where its logs lie and the figures go.
        validation: What was looked at meanwhile; None where nothing was.
        versions: What it was trained with, see `run.versions`.
    """
    config, data, encoder = setup.config, setup.data, setup.encoder
    subject, seed = Subject.of(setup), judging_seed(setup.config.seed)
    folder.save_encoder(
        encoder,
        {
            "backbone": config.backbone,
            "image_size": subject.size,
            "channels": data.train.images.shape[1],
            "mean": data.mean,
            "std": data.std,
        },
    )
    metrics, timing = folder.read_metrics(), folder.read_timing()
    unjudged = _unjudged(config.judge, data)
    answered: Mapping[str, Answers | None] = {}
    if data.test is not None and not unjudged:
        answered = answers(
            subject, _untrained(setup, subject), data.train, data.test, seed, pixels=config.judge == "all"
        )
    drawn = pictures(subject, setup.augment, data.train, data.test, config.seed)
    if drawn is not None:
        folder.save_pictures(drawn.views, drawn.neighbours)
    seen = summarise(folder.read_stability(), encoder, total_steps=setup.total_steps, width=setup.method.out)
    found = {name: Scores.of(each) for name, each in answered.items()}
    result = {
        "knn": found[BACKBONE].knn if found else None,
        "linear": found[BACKBONE].linear if found else None,
        "untrained": asdict(found["untrained"]) if found else None,
        "raw_pixels": asdict(found["raw_pixels"]) if "raw_pixels" in found else None,
        "scores": {name: asdict(each) for name, each in found.items()},
        "validation_knn": next((row["knn"] for row in reversed(metrics) if "knn" in row), None),
        "verdict": asdict(_verdict(subject, data, answered, seen.signs, metrics, timing, validation, seed)),
        "fluctuation": {name: asdict(each) for name, each in seen.fluctuation.items()},
        "lags": {name: asdict(each) for name, each in seen.lags.items()},
        "lidar": _lidar(encoder, setup.augment, setup.execution, data.train, config.seed),
        "unjudged": unjudged,
        "placement": config.momentum,
        "momentum_parts": list(encoder.placement.placed),
        **_cost(subject, data.train),
        **_speed(timing, config.batch_size),
        "seed": config.seed,
        "parameters": sum(p.numel() for p in encoder.parts.parameters()),
        "train_images": len(data.train),
        "labelled_images": len(data.train.labelled()),
        "test_images": 0 if data.test is None else len(data.test),
        "skipped": len(data.skipped),
        "neighbour_names": None if drawn is None else drawn.names,
        "device": device_name(setup.execution.device),
        "versions": dict(versions),
    }
    write_json(folder.result, result)
    return result


def _unjudged(asked: str, data: Dataset) -> list[str]:
    """Why kNN and linear probe judge nothing; empty where they do."""
    what = "accuracy of kNN and linear probe"
    if asked == "nothing":
        return [f"{what}: --judge nothing"]
    if not len(data.train.labelled()):
        return [f"{what}: the images have no labels"]
    return [f"{what}: no image could be held out"] if data.test is None else []


def _untrained(setup: Setup, subject: Subject) -> Subject:
    """The same with the weights that the run began with."""
    train = setup.data.train
    encoder, _ = build(setup.config, type(setup.method), train.images.shape[1], len(train), setup.total_steps)
    setup.execution.place(encoder)
    return replace(subject, encoder=encoder)


def _lidar(
    encoder: MomentumEncoder, augment: Augment, execution: Execution, images: ImageSet, seed: int
) -> float | None:
    """LiDAR of the projections of some training images in their augmented views; None where it is not finite."""
    some = images.subset(random_subset(len(images), LIDAR_IMAGES, judging_seed(seed)))
    if len(some) < 2:
        return None
    draws = generator(seed, "lidar views")
    projections = []
    training = encoder.training
    encoder.eval()
    with torch.no_grad(), execution.autocast():
        for _ in range(LIDAR_PAIRS):
            views = augment(some.images.to(execution.device), draws, some.aspect)
            projections += [encoder.encode(execution.images(view))[1].float() for view in views]
    encoder.train(training)
    value = collapse.lidar(torch.stack(projections, dim=1))
    return value if math.isfinite(value) else None


def _verdict(
    subject: Subject,
    data: Dataset,
    answered: Mapping[str, Answers | None],
    signs: Sequence[Sign],
    metrics: Sequence[Row],
    timing: Sequence[dict[str, Any]],
    validation: Validation | None,
    seed: int,
) -> verdict.Verdict:
    images = data.train if data.test is None else data.test
    ours, theirs = (answered.get(name) for name in (BACKBONE, "untrained"))
    chance = missed = None
    if ours is not None and theirs is not None and (images.classes is None or len(images.classes) > 1):
        chance = mcnemar(ours.knn, theirs.knn), mcnemar(ours.linear, theirs.linear)
        missed = int((~theirs.knn).sum()), int((~theirs.linear).sum())
    some = images.subset(random_subset(len(images), COLLAPSE_IMAGES, seed))
    projections = subject.features(some)[1]
    return verdict.judge(
        spread=collapse.normalised_std(projections),
        effective_rank=collapse.effective_rank(projections),
        width=min(projections.shape),
        trained=_both(ours),
        untrained=_both(theirs),
        chance=chance,
        missed=missed,
        losses=[(row["step"], row["loss"]) for row in metrics if "loss" in row],
        timing=timing,
        signs=signs,
        validation=[row["knn"] for row in metrics if "knn" in row],
        validation_images=0 if validation is None else len(validation.queries),
    )


def _both(each: Answers | None) -> tuple[float, float] | None:
    scores = Scores.of(each)
    return None if scores.knn is None or scores.linear is None else (scores.knn, scores.linear)


def _cost(subject: Subject, images: ImageSet) -> dict[str, Any]:
    """What the target path repeats, as predicted and as measured under the run's own precision and batch; by part."""
    encoder, placement = subject.encoder, subject.encoder.placement
    flops = part_flops(encoder, subject.example(images, 1))
    with subject.execution.autocast():
        measured = measured_cost(encoder, subject.example(images, subject.batch_size))
    return {
        "target_cost": {"predicted": placement.cost(flops), "measured": measured},
        "parts": [
            {
                "name": name,
                "share": flops[name] / sum(flops.values()),
                "momentum": name in placement.placed,
                "on_target_path": index >= placement.fork,
            }
            for index, name in enumerate(placement.names)
        ],
    }


def _speed(timing: Sequence[Row], batch_size: int) -> dict[str, float]:
    """Images a second (median of the log rows), and seconds of training in all sessions of the run."""
    seconds, last = 0.0, 0
    for row in timing:
        seconds += (row["step"] - last) * batch_size / row["images_per_second"]
        last = row["step"]
    rate = median(row["images_per_second"] for row in timing) if timing else 0.0
    return {"images_per_second": rate, "seconds": seconds}
