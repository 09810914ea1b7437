"""The linear probe: how much of the classes a hyperplane finds in frozen features."""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.data.split import validation_split
from tailfin.judging.logistic import Axes, Logistic, fit_logistic, principal_axes

# L2 weights of the mean loss, strong to weak in half decades; each solution starts the next.
SWEEP = tuple(10 ** (-exponent / 2) for exponent in range(11))
_VALIDATION_SHARE = 0.15
# Values without a better validation accuracy that end the sweep: the weak end is the slowest to fit.
_PATIENCE = 3
# Tolerances of `fit_logistic`. Beside exact minima 1e-4 changed the accuracy on 10,000 test samples by -.06 to +.02
# points in 11 fits of 400 to 20,000 samples and 2 to 12 classes at l2 from 1e-2 to 1e-5. 1e-3 takes half of the
# evaluations and ranks penalties as well: those that a sweep chose had 72.9, 55.1, 96.1 and 59.9 %, and 72.5, 55.0,
# 96.1 and 60.4 with a tenfold strictness.
_FINAL_GAP = 1e-4
_SWEEP_GAP = 1e-3
# Values of a float32 piece that fits in a cache of 2 MiB.
_PIECE = 2**19


@dataclass(frozen=True)
class LinearResult:
    """What a linear probe found.

    Attributes:
        accuracy: Test accuracy in percent, of the classifier fitted to all training samples.
        l2: The chosen L2 weight of the mean loss (scikit-learn's C is 1 / (N l2)).
        validation_accuracy: Percent on the validation split, at the chosen `l2`; None where there was one penalty
            only, or where no class had two samples, so that nothing could be held out and the middle of the sweep
            was taken.
        train_accuracy: Percent on all training samples.
        tried: Every (l2, validation accuracy) of the sweep, in order.
        predicted: int64 [M], the test images' labels.
    """

    accuracy: float
    l2: float
    validation_accuracy: float | None
    train_accuracy: float
    tried: tuple[tuple[float, float], ...]
    predicted: Tensor = field(compare=False, repr=False)


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    seed: int = 0,
    sweep: tuple[float, ...] = SWEEP,
) -> LinearResult:
    """Multinomial logistic regression on frozen features, its penalty chosen without the test set.

    Features are standardised by the training statistics. The penalty is swept from strong to weak on a
    stratified 15 % of the training samples until the validation accuracy has stopped improving; the classifier
    is then fitted to all training samples and sees the test set once. With one penalty nothing is held out.

    Args:
        train_x, train_y: [N, D] and int64 [N]; labels need not be contiguous.
        test_x, test_y: [M, D] and int64 [M], on the same device.
        seed: Seed of the validation split.
        sweep: L2 weights to try, strong to weak.

    Raises:
        ValueError: If a set or the sweep is empty, or features are not finite.
    """
    if not (len(train_x) and len(test_x) and sweep):
        raise ValueError(
            f"{len(train_x)} training samples, {len(test_x)} test samples, {len(sweep)} penalties; "
            "each must be 1 or more"
        )
    train_x, test_x = train_x.float(), test_x.float()
    largest = _largest(train_x)
    if not (math.isfinite(largest) and math.isfinite(_largest(test_x))):
        raise ValueError("features hold values that are not finite")
    # Their squares, too, are then values that float32 holds
    train_x, test_x = train_x / (largest or 1.0), test_x / (largest or 1.0)
    mean, inverse = _statistics(train_x)
    x = train_x.sub_(mean).mul_(inverse)
    labels, y = train_y.unique(return_inverse=True)
    axes = principal_axes(x)
    l2, start = sweep[len(sweep) // 2], None
    tried: tuple[tuple[float, float], ...] = ()
    if len(sweep) > 1:
        fit, held = validation_split(y.cpu(), _VALIDATION_SHARE, seed)
        if len(held):
            l2, start, tried = _sweep(x[fit], y[fit], x[held], y[held], len(labels), sweep, axes)
    final = fit_logistic(x, y, len(labels), l2, axes=axes, start=start, tolerance=_FINAL_GAP)
    predicted = labels[final.logits((test_x - mean) * inverse).argmax(dim=1)]
    return LinearResult(
        accuracy=_percent(predicted, test_y),
        l2=l2,
        validation_accuracy=dict(tried).get(l2),
        train_accuracy=_percent(final.logits(x).argmax(dim=1), y),
        tried=tried,
        predicted=predicted,
    )


def _sweep(
    x: Tensor,
    y: Tensor,
    held_x: Tensor,
    held_y: Tensor,
    classes: int,
    sweep: tuple[float, ...],
    axes: Axes,
) -> tuple[float, Logistic, tuple[tuple[float, float], ...]]:
    """The penalty with the best validation accuracy (of equals: cross entropy), its solution, and all tried."""
    solution: Logistic | None = None
    best: tuple[tuple[float, float], float, Logistic] | None = None
    tried: list[tuple[float, float]] = []
    stale = 0
    for l2 in sweep:
        solution = fit_logistic(x, y, classes, l2, axes=axes, start=solution, tolerance=_SWEEP_GAP)
        logits = solution.logits(held_x)
        accuracy = _percent(logits.argmax(dim=1), held_y)
        key = (accuracy, -float(F.cross_entropy(logits, held_y)))
        tried.append((l2, accuracy))
        stale = 0 if best is None or accuracy > best[0][0] else stale + 1
        if best is None or key > best[0]:
            best = (key, l2, solution)
        if stale == _PATIENCE:
            break
    if best is None:
        raise ValueError("no penalty to try")
    return best[1], best[2], tuple(tried)


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one. A tenth of the time of isfinite on a CPU."""
    low, high = torch.aminmax(x)
    return float(torch.maximum(-low, high))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and inverse deviation [D], 0 where it is constant, of x [N, D]."""
    mean = x.mean(dim=0)
    # Pieces that fit in a cache: torch.std over the rows takes as long as two evaluations on a CPU.
    pieces = x.split(max(1, _PIECE // x.shape[1]))
    std = (torch.stack([(piece - mean).square().sum(dim=0) for piece in pieces]).sum(dim=0) / len(x)).sqrt()
    # The rounding of the mean alone gives a constant a deviation of about 1e-7 of its value.
    return mean, torch.where(std > 1e-6 * mean.abs(), 1 / std, 0.0)


def _percent(predicted: Tensor, labels: Tensor) -> float:
    return 100 * float((predicted == labels).double().mean())
