"""How much a part's gradient fluctuates: statistics of the series that `GradientMonitor` records.

Two measures disagree about which part fluctuates most, and each hides something. The plain coefficient of variation
also counts the slow trend of training, which is no instability. The jump from step to step sees only what changes
faster than a step, so that a part swaying over ten steps looks calm. `variation` is therefore the measure of choice
here: the coefficient of variation after the trend over `TREND` steps is divided out. All of them are reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TREND = 51
"""Steps over which a change counts as the trend of training and not as fluctuation."""
SPIKE = 3.0
"""A spike is this many times the running median of the steps before it."""
SPIKE_STEPS = 50
FEWEST = 20
"""With fewer values nothing is said."""


@dataclass(frozen=True)
class Fluctuation:
    """One part's gradient norm over a stretch of steps; each is dimensionless and 0 for a constant series.

    Attributes:
        variation: Standard deviation around the trend, relative to the trend.
        plain_variation: Standard deviation over mean, trend included.
        jump: Median step-to-step change over the mean.
        spikes: Steps above `SPIKE` times the running median.
        steps: Values that went in.
    """

    variation: float
    plain_variation: float
    jump: float
    spikes: int
    steps: int


def fluctuation(series: ArrayLike) -> Fluctuation | None:
    """The statistics of a series of norms, one a step; None with fewer than `FEWEST` finite values."""
    values = np.asarray(series, dtype=np.float64)
    values = values[np.isfinite(values)]
    mean = values.mean() if len(values) >= FEWEST else 0.0
    if mean <= 0.0:
        return None
    return Fluctuation(
        variation=float(residuals(values).std()),
        plain_variation=float(values.std() / mean),
        jump=float(np.median(np.abs(np.diff(values))) / mean),
        spikes=int(spikes(values).sum()),
        steps=len(values),
    )


def residuals(values: Floats) -> Floats:
    """Relative deviations from the trend, [steps]: a local parabola over `TREND` steps (Savitzky and Golay, 1964).

    The trend follows white noise a little, by 4 % of its variance; that is left in.
    """
    from scipy.signal import savgol_filter

    window = min(TREND, len(values) - (len(values) + 1) % 2)
    trend = np.asarray(savgol_filter(values, window, polyorder=2), dtype=np.float64)
    # A parabola through values near 0 can dip below it; the smallest value above 0 bounds what is divided by.
    least = float(values.min(initial=np.inf, where=values > 0))
    return values / np.maximum(trend, max(least, 1e-30) if np.isfinite(least) else 1e-30) - 1.0


def spikes(values: Floats) -> NDArray[np.bool_]:
    """Which steps are above `SPIKE` times the median of up to `SPIKE_STEPS` steps before them, [steps]."""
    return _heights(values) > SPIKE


def _heights(values: Floats) -> Floats:
    """Each step over the median of up to `SPIKE_STEPS` finite steps before it, [steps].

    0 where that says nothing: at a value that is not finite, after fewer than `FEWEST`, and over a median of 0.
    """
    heights = np.zeros(len(values))
    steps = np.flatnonzero(np.isfinite(values))
    for place in range(FEWEST, len(steps)):
        level = np.median(values[steps[max(0, place - SPIKE_STEPS) : place]])
        heights[steps[place]] = values[steps[place]] / level if level > 0 else 0.0
    return heights


def without_spikes(values: Floats) -> Floats:
    """`values` with the steps above `SPIKE` times the median of the `TREND` steps around them set to it, [steps].

    The steps around, not those before, as in `spikes`: those would take a level that rises and stays for spikes, and
    could not tell of the first steps.
    """
    from scipy.ndimage import median_filter

    level = np.asarray(median_filter(values, size=min(TREND, len(values)), mode="reflect"), dtype=np.float64)
    return np.where((values > SPIKE * level) & (level > 0), level, values)


def rolling_variation(values: Floats, window: int = 100) -> Floats:
    """`variation` of the `window` steps that end at each step, [steps]; NaN before the first full window."""
    rolling = np.full(len(values), np.nan)
    if len(values) < max(window, FEWEST):
        return rolling
    windows = np.lib.stride_tricks.sliding_window_view(residuals(values), window)
    rolling[window - 1 :] = windows.std(axis=1)
    return rolling


@dataclass(frozen=True)
class Lag:
    """How two parts' fluctuations follow each other.

    Attributes:
        steps: The part follows the reference by so many steps; negative where it leads.
        correlation: Of the deviations from the trend at that lag.
    """

    steps: int
    correlation: float


def lags(series: Mapping[str, Floats], reference: str, most: int = 10) -> dict[str, Lag]:
    """For each part the lag within +-`most` steps at which its deviations correlate most with the reference's.

    Steps at which some part's value is not finite are left out.
    """
    finite = np.all([np.isfinite(values) for values in series.values()], axis=0) if series else np.zeros(0)
    if reference not in series or finite.sum() <= 4 * most:
        return {}
    deviations = {name: residuals(values[finite]) for name, values in series.items()}
    base = deviations[reference]
    found = {}
    for name, own in deviations.items():
        # Sorted by size first, so that of equal correlations the shortest lag is named.
        candidates = [
            Lag(lag, _correlation(base, own, lag)) for lag in sorted(range(-most, most + 1), key=abs)
        ]
        found[name] = max(candidates, key=lambda lag: lag.correlation)
    return found


def _correlation(base: Floats, own: Floats, lag: int) -> float:
    first, second = (base[: len(base) - lag], own[lag:]) if lag >= 0 else (base[-lag:], own[:lag])
    scale = float(first.std() * second.std())
    return 0.0 if scale == 0.0 else float(((first - first.mean()) * (second - second.mean())).mean() / scale)


def spike_origins(series: Mapping[str, Floats], apart: int = 10) -> list[tuple[int, str]]:
    """Each burst of spikes: the step where it begins and the part that it begins in, in order.

    Spikes of any part less than `apart` steps after each other are one burst. Where several parts begin in one step,
    the one furthest above its running median is named.
    """
    events: list[tuple[int, float, str]] = []
    for name, values in series.items():
        heights = _heights(values)
        events += [(int(step), -float(heights[step]), name) for step in np.flatnonzero(heights > SPIKE)]
    bursts: list[tuple[int, str]] = []
    last = -apart
    for step, _, name in sorted(events):
        if step - last >= apart:
            bursts.append((step, name))
        last = step
    return bursts
