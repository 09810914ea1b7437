"""The picture that goes with each claim, from the contexts that it is judged in."""

from collections.abc import Callable, Sequence
from statistics import fmean

from tailfin.report import study_plots
from tailfin.report.plots import Plot
from tailfin.report.study_plots import Point, Series
from tailfin.study.results.arms import METRICS, Arm, Context, depth
from tailfin.study.results.claims import MARGIN
from tailfin.study.results.findings import MEASURES, METRIC, calm, fluctuation, gain
from tailfin.study.results.statistics import Estimate, estimate

ACCURACY = f"{METRICS[METRIC]}, test accuracy (%)"


def picture(claim: str, contexts: Sequence[Context]) -> Plot | None:
    """The picture of a claim, by its id; None where no run has what it shows."""
    return _PICTURES[claim](contexts)


def _accuracies(contexts: Sequence[Context]) -> Plot | None:
    series = [
        Series(context.name, [_point(arm.momentum, _accuracy(arm)) for arm in context.ordered()])
        for context in contexts
    ]
    caption = "Accuracy against placement, from no momentum over the encoder's input to its end."
    return study_plots.intervals("accuracies", _finite(series), axis=ACCURACY, caption=caption)


def _gains(contexts: Sequence[Context]) -> Plot | None:
    series = [
        Series(
            context.name,
            [
                _point(arm.momentum, gain(arm, context.arms["stopgrad"]))
                for arm in context.ordered()
                if arm.placed
            ],
        )
        for context in contexts
        if "stopgrad" in context.arms
    ]
    caption = "What each placement changes against stopgrad, paired by seed, from the input (top) to the end."
    axis = f"{METRICS[METRIC]}, difference to stopgrad (points)"
    return study_plots.intervals("gains", _finite(series), axis=axis, caption=caption, lines=[(0.0, "")])


def _trend(contexts: Sequence[Context]) -> Plot | None:
    measure = next(iter(MEASURES))
    series = []
    for context in contexts:
        control = context.arms.get("stopgrad")
        if control is None:
            continue
        found = [
            (100 * fmean(calms.values()), _point(arm.momentum, gain(arm, control)))
            for arm in sorted(context.placed, key=depth)
            if (calms := calm(arm, control, measure)) and gain(arm, control).n
        ]
        series.append((Series(context.name, [point for _, point in found]), [x for x, _ in found]))
    names = ("fluctuation less than under stopgrad (%)", "difference to stopgrad (points)")
    caption = (
        f"Gain against calm: how much less the gradients fluctuate ({MEASURES[measure]}, mean of all parts)."
    )
    return study_plots.scatter("trend", series, axes_names=names, caption=caption, zero=True)


def _depth(contexts: Sequence[Context]) -> Plot | None:
    # Sets of runs share their arms without momentum; each is drawn once.
    arms = {arm.where: arm for c in contexts if (arm := c.arms.get("none") or c.arms.get("stopgrad"))}
    panels = []
    for measure, name in MEASURES.items():
        series = []
        for where, arm in arms.items():
            if found := fluctuation(arm, measure):
                columns = zip(*found.values(), strict=True)
                points = [
                    _point(part, estimate(list(column)))
                    for part, column in zip(arm.parts, columns, strict=True)
                ]
                series.append(Series(f"{where}, {arm.momentum}", points))
        panels.append((name, series))
    caption = (
        "Fluctuation of the loss's gradient at each part's output, relative to its size, without momentum."
    )
    return study_plots.profile("depth", panels, axis="part, from input to output", caption=caption)


def _projector(contexts: Sequence[Context]) -> Plot | None:
    points = [
        _point(context.name, gain(context.arms["projector"], context.arms["all"]))
        for context in contexts
        if {"projector", "all"} <= context.arms.keys()
    ]
    caption = "The projector alone against the whole encoder, paired by seed."
    return study_plots.intervals(
        "projector",
        _finite([Series("projector - all", points)]),
        axis=f"{METRICS[METRIC]}, projector - all (points)",
        caption=caption,
        lines=[(0.0, ""), (-MARGIN, f"comparable: above -{MARGIN:g}")],
    )


def _costs(contexts: Sequence[Context]) -> Plot | None:
    series = []
    for context in contexts:
        found = [
            (100 * fmean(costs), _point(arm.momentum, _accuracy(arm)))
            for arm in context.ordered()
            if (costs := list(arm.values("target_cost_measured").values())) and _accuracy(arm).n
        ]
        series.append((Series(context.name, [point for _, point in found]), [x for x, _ in found]))
    names = ("target path, measured (% of a forward)", ACCURACY)
    caption = "Accuracy against what the target path costs."
    return study_plots.scatter("costs", series, axes_names=names, caption=caption)


def _accuracy(arm: Arm) -> Estimate:
    return estimate(list(arm.values(METRIC).values()))


def _point(label: str, found: Estimate) -> Point:
    return Point(label, found.mean, found.low, found.high)


def _finite(series: Sequence[Series]) -> list[Series]:
    """Without the points that no seed has a value for."""
    return [Series(s.name, [point for point in s.points if point.mean == point.mean]) for s in series]


_PICTURES: dict[str, Callable[[Sequence[Context]], Plot | None]] = {
    "C1": _accuracies,
    "C2": _trend,
    "C3": _gains,
    "C4": _depth,
    "C5": _projector,
    "C6": _costs,
}
