"""Means, intervals and paired differences over seeds; plain numbers in, plain numbers out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: NaN where there is no value.
        low, high: Ends of the 95 % Student t interval; None below two values.
        n: Number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below zero, 0 where it holds zero, None without an interval."""
        if self.low is None or self.high is None:
            return None
        return int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference, paired by seed.

    Attributes:
        p: Two-sided p-value of the paired t-test; None below two pairs.
        left_out: Seeds that only one of both has.
    """

    p: float | None
    left_out: int

    @property
    def words(self) -> str:
        """What it shows."""
        if self.n == 0:
            return "no common seed"
        if self.n == 1:
            return "one seed: no interval"
        return {1: "higher", -1: "lower", 0: "no difference found", None: ""}[self.sign]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % Student t interval, mean ± t(0.975, n - 1) s / √n."""
    if not values:
        return Estimate(math.nan, None, None, 0)
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired(arm: Mapping[int, float], control: Mapping[int, float]) -> Difference:
    """The difference arm - control over the seeds that both have.

    Args:
        arm, control: Values by seed.
    """
    common = sorted(arm.keys() & control.keys())
    found = estimate([arm[seed] - control[seed] for seed in common])
    left_out = len(arm.keys() ^ control.keys())
    return Difference(found.mean, found.low, found.high, found.n, _p(found), left_out)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of p-values, in their order; None stays None and does not count.

    The i-th smallest of m is multiplied by m - i + 1, made monotone and capped at 1 (Holm 1979): calling those below
    0.05 different errs in any one of them with probability 0.05 at most.
    """
    order = sorted((value, place) for place, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    largest = 0.0
    for rank, (value, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * value))
        corrected[place] = largest
    return corrected


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """The least-squares slope of y on x; None where x does not vary."""
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((each - mean_x) ** 2 for each in x)
    if spread == 0:
        return None
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def _p(found: Estimate) -> float | None:
    if found.low is None or found.high is None:
        return None
    half = (found.high - found.low) / 2
    if half == 0:
        return 1.0 if found.mean == 0 else 0.0
    quantile = float(stdtrit(found.n - 1, 0.5 + CONFIDENCE / 2))
    return 2 * float(stdtr(found.n - 1, -abs(found.mean) * quantile / half))
