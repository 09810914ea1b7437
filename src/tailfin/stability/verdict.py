"""What a run's figures say, in words, with the evidence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from tailfin.stability.signs import COLLAPSED_SPREAD, Sign, few_dimensions

Accuracies = tuple[float, float]

FALL = 4.0
"""Percentage points of validation kNN that a fall has at the least."""
LEVEL = 0.025
"""How often a test may call something a difference that is none."""
LOADER_BOUND = 0.2
"""Share of the time of a step that was spent waiting for images."""


FEWEST_MISSED = 6
"""Even if each of 5 images that the untrained encoder misses is gained and none lost, chance does as much in 1 of 32
cases, which is above `LEVEL`."""


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
    chance: tuple[float, float] | None = None,
    missed: tuple[int, int] | None = None,
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
        chance: How often chance alone makes kNN and linear accuracy as much better than the untrained encoder's, one
            p-value each (`mcnemar`); None where that cannot be told.
        missed: How many test images the untrained encoder gets wrong, by kNN and by linear probe; None where that is
            not known. Fewer than `FEWEST_MISSED` leave no room in which an improvement could be told from chance.
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
        for name, ours, theirs, p in zip(
            ("kNN", "linear probe"), trained, untrained, chance or (None, None), strict=True
        ):
            told = "" if p is None else f": by chance alone in {_share(p)} of cases"
            evidence.append(f"{name} {ours:.1f} %, untrained encoder {theirs:.1f} %{told}")
    learnt: tuple[str, ...] | None = None
    if chance is not None:
        learnt = tuple(name for name, p in zip(("kNN", "the linear probe"), chance, strict=True) if p < LEVEL)
    signs = [*signs, *_past_its_best(validation, validation_images)]
    evidence += [sign.evidence for sign in signs]
    room = missed is None or max(missed) >= FEWEST_MISSED
    state, words = _state(spread, effective_rank, width, learnt, wait, signs, room=room)
    return Verdict(state, words, tuple(evidence))


def _state(
    spread: float,
    rank: float,
    width: int,
    learnt: tuple[str, ...] | None,
    wait: float | None,
    signs: Sequence[Sign],
    *,
    room: bool,
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
    if learnt is not None and len(learnt) < 2 and not room:
        return "no better than untrained", (
            f"The untrained encoder gets all but {FEWEST_MISSED - 1} or fewer of the test images right, so that no "
            "improvement could be told from chance: judge on more or harder images (tailfin evaluate --data)."
        )
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
    # The best of many lies above the last by chance too: each of the others may be it.
    errors = NormalDist().inv_cdf(1 - LEVEL / max(1, len(validation) - 1))
    if best - last <= max(0.1 * best, FALL, errors * error):
        return []
    return [
        Sign(
            "past its best",
            f"The validation kNN has fallen from {best:.1f} % to {last:.1f} %: the training has gone on too long, or "
            "with too high a learning rate.",
            f"validation kNN {best:.1f} % at its best, {last:.1f} % at the end",
        )
    ]


def _share(p: float) -> str:
    return "under 0.1 %" if p < 0.001 else f"{100 * p:.1f} %"


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
