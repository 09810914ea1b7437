"""What a run's figures say, in words, with the evidence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailfin.stability.signs import COLLAPSED_SPREAD, Sign, few_dimensions

Accuracies = tuple[float, float]

FALL = 4.0
"""Percentage points of validation kNN, and at least two standard errors of a difference: 4.4 points at 40 % of 1,000
queries, 18 at 60 queries."""
LOADER_BOUND = 0.2
"""Share of the time of a step that was spent waiting for images."""


@dataclass(frozen=True)
class Verdict:
    """One state, a sentence, and the figures behind it.

    Attributes:
        state: The worst thing seen: collapsing, gradient not finite, unstable, gradient spikes, target stale, target
            too fast, past its best, no better than untrained, loader-bound; not judged where only images to judge on
            are missing; else healthy.
        words: One sentence.
        evidence: The figures, one a line.
    """

    state: str
    words: str
    evidence: tuple[str, ...]


def judge(
    *,
    spread: float,
    effective_rank: float,
    width: int,
    trained: Accuracies | None = None,
    untrained: Accuracies | None = None,
    judged_images: int = 0,
    losses: Sequence[tuple[int, float]] = (),
    timing: Sequence[Mapping[str, Any]] = (),
    signs: Sequence[Sign] = (),
    validation: Sequence[float] = (),
    validation_images: int = 1000,
) -> Verdict:
    """The verdict on a finished run; what is left out goes unjudged.

    Args:
        spread: `normalised_std` of the projections of held images.
        effective_rank: RankMe of the same.
        width: Of the projections.
        trained, untrained: kNN and linear accuracy of the backbone in percent; None without labels.
        judged_images: How many test images of two classes or more there were.
        losses: (step, loss) of each log row.
        timing: Rows of timing.jsonl.
        signs: What the monitors saw, the worst first.
        validation: kNN accuracies in percent during training, in order.
        validation_images: How many images each of them was measured on.
    """
    wait = _mean([row["data_wait"] for row in timing])
    evidence = [
        f"spread of the normalised projections {spread:.2f} (1 even, 0 one point)",
        f"effective rank of the projections {effective_rank:.1f} of {width}",
    ]
    if losses:
        evidence.append(
            f"loss {losses[0][1]:.3f} at step {losses[0][0]}, {losses[-1][1]:.3f} at step {losses[-1][0]}"
        )
    if wait is not None:
        evidence.append(f"{100 * wait:.0f} % of the time spent waiting for images")
    if trained and untrained:
        evidence.append(f"kNN {trained[0]:.1f} %, untrained encoder {untrained[0]:.1f} %")
        evidence.append(f"linear probe {trained[1]:.1f} %, untrained encoder {untrained[1]:.1f} %")
    learnt: tuple[str, ...] | None = None
    if trained and untrained and judged_images:
        better = [_better(a, b, judged_images) for a, b in zip(trained, untrained, strict=True)]
        learnt = tuple(name for name, yes in zip(("kNN", "the linear probe"), better, strict=True) if yes)
    signs = [*signs, *_past_its_best(validation, validation_images)]
    evidence += [sign.evidence for sign in signs]
    state, words = _state(spread, effective_rank, width, learnt, wait, signs)
    return Verdict(state, words, tuple(evidence))


def _state(
    spread: float,
    rank: float,
    width: int,
    learnt: tuple[str, ...] | None,
    wait: float | None,
    signs: Sequence[Sign],
) -> tuple[str, str]:
    if not math.isfinite(spread) or not math.isfinite(rank):
        return "collapsing", "The encoder's outputs are not finite."
    since = next((sign for sign in signs if sign.state == "collapsing"), None)
    if since is not None:
        return since.state, since.words
    if spread < COLLAPSED_SPREAD:
        return "collapsing", "The projections have collapsed completely: those of nearly all images are one."
    if few_dimensions(rank, width):
        return "collapsing", "The projections are collapsing: they use very few dimensions."
    if signs:
        also = f" Also: {', '.join(sign.state for sign in signs[1:])}." if len(signs) > 1 else ""
        return signs[0].state, signs[0].words + also
    if learnt is not None and len(learnt) < 2:
        by = {(): "kNN or linear probe", ("kNN",): "the linear probe"}.get(learnt, "kNN")
        though = f" (by {learnt[0]} it is better)" if learnt else ""
        return "no better than untrained", (
            f"By {by} no improvement over the untrained encoder can be told from chance{though}: train longer, with "
            "other views, or with another learning rate."
        )
    if wait is not None and wait > LOADER_BOUND:
        return "loader-bound", "The training is sound, but it waited for images much of the time."
    if learnt is None:
        return (
            "not judged",
            "No sign of collapse; without kNN and linear probe the features could not be judged further.",
        )
    return (
        "healthy",
        "The training is healthy: no sign of collapse, and features better than the untrained encoder's.",
    )


def _past_its_best(validation: Sequence[float], images: int) -> list[Sign]:
    """A validation accuracy that has fallen by a tenth of its best, and by more than its own noise."""
    if not validation or not images:
        return []
    best, last = max(validation), validation[-1]
    share = (best + last) / 200
    error = 100 * math.sqrt(2 * share * (1 - share) / images)
    if best - last <= max(0.1 * best, FALL, 2 * error):
        return []
    return [
        Sign(
            "past its best",
            f"The validation kNN has fallen from {best:.1f} % to {last:.1f} %: the training has gone on too long, or "
            "with too high a learning rate.",
            f"validation kNN {best:.1f} % at its best, {last:.1f} % at the end",
        )
    ]


def _better(trained: float, untrained: float, images: int) -> bool:
    """Whether `trained` (%) lies two standard errors above `untrained`, or takes half of what was left to 100 %."""
    share = min(max(untrained / 100, 0.5 / images), 1 - 0.5 / images)
    error = 100 * math.sqrt(share * (1 - share) / images)
    return trained - untrained > min(2 * error, (100 - untrained) / 2)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
