"""Charts of a study as inline SVG, in the style of a run's report: means over seeds with their intervals."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tailfin.report import plots
from tailfin.report.plots import BLUE, FAINT, INK, ORANGE, Plot

PURPLE = "#cc79a7"
COLOURS, MARKERS = (BLUE, ORANGE, PURPLE, INK), ("o", "s", "^", "D", "v", "P", "X", "*")


def style(index: int) -> tuple[str, str]:
    """Colour and marker of a series: markers tell eight apart without colour, both together 32."""
    return COLOURS[(index + index // len(MARKERS)) % len(COLOURS)], MARKERS[index % len(MARKERS)]


BARS = "Markers are means over seeds, bars 95 % Student t intervals; hollow markers have one seed and no interval."
LEGEND = 66
"""Characters that a line of the legend takes, six of them for each marker."""
LEGEND_LINE = 0.2
"""Height of one, in inches, by which a picture grows: a long legend must not take the points' room."""
LABEL = 7.5
"""Size of a label within a scatter plot, in points of 1/72 inch."""
CROWD = 24
"""From more points than this on, a label that would cover something or lie far from its point is left out."""
OUTLYING = 30
"""Where the largest of values above 0 is more than so many times the median one, the axis is logarithmic."""


@dataclass(frozen=True)
class Point:
    """A mean over seeds, its interval where there is one, and what to call it."""

    label: str
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """Points that share a colour, a marker and a line of the legend."""

    name: str
    points: Sequence[Point]


def intervals(
    name: str,
    series: Sequence[Series],
    *,
    axis: str,
    caption: str,
    lines: Sequence[tuple[float, str]] = (),
) -> Plot | None:
    """One row a label, one marker a series, horizontal interval bars; None without points.

    Args:
        name: Identifies the picture within the page.
        series: The points; rows come in the order of the first series that has them.
        axis: What is on the horizontal axis, with its unit.
        caption: Beneath the picture.
        lines: Vertical reference lines: where, and what they are.
    """
    series = [each for each in series if each.points]
    labels = list(dict.fromkeys(point.label for each in series for point in each.points))
    if not labels:
        return None
    with plots.style():
        tall = 0.85 + len(labels) * (0.2 + 0.1 * len(series))
        figure = Figure(figsize=(plots.WIDTH, tall), layout="constrained")
        axes = figure.add_subplot()
        for where, what in lines:
            dashes = "-" if where == 0 else "--"
            axes.axvline(where, color=INK, linewidth=0.9, linestyle=dashes, label=what or None)
        for index, each in enumerate(series):
            shift = 0.0 if len(series) == 1 else 0.56 * (index / (len(series) - 1) - 0.5)
            for place, point in enumerate(each.points):
                row = labels.index(point.label) + shift
                _marker(axes, point, index, (point.mean, row), "x", each.name if place == 0 else None)
        axes.grid(visible=False, axis="y")
        for row in range(1, len(labels)) if len(series) > 1 else ():
            axes.axhline(row - 0.5, color=FAINT, linewidth=0.5)
        axes.set_yticks(range(len(labels)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(axis)
        _legend(figure, axes, len(series) > 1 or any(what for _, what in lines))
        return _finish(figure, name, f"{caption} {BARS}")


def profile(
    name: str, panels: Sequence[tuple[str, Sequence[Series]]], *, axis: str, caption: str
) -> Plot | None:
    """Values against ordered labels, such as the parts from input to output; one panel a quantity.

    Args:
        name: Identifies the picture within the page.
        panels: The vertical axis of each, and its series.
        axis: What is on the horizontal axis.
        caption: Beneath the picture.
    """
    panels = [(what, [s for s in series if s.points]) for what, series in panels]
    panels = [(what, series) for what, series in panels if series]
    if not panels:
        return None
    labels = list(dict.fromkeys(p.label for _, series in panels for s in series for p in s.points))
    with plots.style():
        figure = Figure(figsize=(plots.WIDTH, 0.7 + 1.75 * len(panels)), layout="constrained")
        stack = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
        logarithmic = ""
        for axes, (what, series) in zip(stack, panels, strict=True):
            for index, each in enumerate(series):
                colour, _ = style(index)
                shift = 0.0 if len(series) == 1 else 0.24 * (index / (len(series) - 1) - 0.5)
                places = [labels.index(point.label) + shift for point in each.points]
                axes.plot(places, [p.mean for p in each.points], color=colour, linewidth=1.0, alpha=0.6)
                for order, (place, point) in enumerate(zip(places, each.points, strict=True)):
                    first = each.name if order == 0 else None
                    _marker(axes, point, index, (place, point.mean), "y", first)
            axes.set_ylabel(what)
            means = [point.mean for each in series for point in each.points]
            if min(means) > 0 and max(means) > OUTLYING * median(means):
                axes.set_yscale("log")
                axes.set_ylim(min(means) / 3, 3 * max(means))
                logarithmic = " Where one value lies far above the others, the vertical axis is logarithmic."
            else:
                axes.set_ylim(bottom=0)
            axes.set_xticks(range(len(labels)), labels)
        stack[-1].set_xlabel(axis)
        figure.align_ylabels()
        _legend(figure, stack[0], any(len(series) > 1 for _, series in panels))
        return _finish(figure, name, f"{caption} {BARS}{logarithmic}")


def scatter(
    name: str,
    series: Sequence[tuple[Series, Sequence[float]]],
    *,
    axes_names: tuple[str, str],
    caption: str,
    zero: bool = False,
) -> Plot | None:
    """Labelled points with vertical interval bars; None without points.

    Args:
        name: Identifies the picture within the page.
        series: The points, and where each is on the horizontal axis.
        axes_names: What is on the horizontal and on the vertical axis, with units.
        caption: Beneath the picture.
        zero: Draw a line at zero on both axes.
    """
    series = [each for each in series if each[0].points]
    if not series:
        return None
    with plots.style():
        figure = Figure(figsize=(plots.WIDTH, 4.0), layout="constrained")
        axes = figure.add_subplot()
        if zero:
            axes.axhline(0, color=INK, linewidth=0.9)
            axes.axvline(0, color=INK, linewidth=0.9)
        for index, (each, across) in enumerate(series):
            for order, (x, point) in enumerate(zip(across, each.points, strict=True)):
                _marker(axes, point, index, (x, point.mean), "y", each.name if order == 0 else None)
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        points = [(x, point) for each, across in series for x, point in zip(across, each.points, strict=True)]
        axes.margins(x=0.15)
        cut = _frame_means(axes, [point for _, point in points])
        _legend(figure, axes, len(series) > 1)
        notes = " Some bars go beyond the picture." if cut else ""
        if _labels(figure, axes, points) < len(points):
            notes += " Labels without room are left out."
        return _finish(figure, name, f"{caption} {BARS}{notes}")


def _frame_means(axes: Axes, points: Sequence[Point]) -> bool:
    """Let the means fill at least half the height, whatever the longest bar; returns whether a bar is cut."""
    low, high = min(point.mean for point in points), max(point.mean for point in points)
    reach = 0.5 * (high - low) or max(0.02 * abs(high), 0.5)
    bars = [end for p in points if p.low is not None and p.high is not None for end in (p.low, p.high)]
    bottom, top = min([low, *bars]), max([high, *bars])
    room = 0.15 * (high - low + 2 * reach)
    axes.set_ylim(max(bottom, low - reach) - room, min(top, high + reach) + room)
    return bottom < low - reach - room or top > high + reach + room


def _marker(
    axes: Axes, point: Point, index: int, at: tuple[float, float], bar: str, label: str | None
) -> None:
    colour, marker = style(index)
    alone = point.low is None or point.high is None
    error = None
    if point.low is not None and point.high is not None:
        error = [[point.mean - point.low], [point.high - point.mean]]
    bars: dict[str, Any] = {"xerr": error} if bar == "x" else {"yerr": error}
    axes.errorbar(
        *at,
        **bars,
        color=colour,
        marker=marker,
        markersize=5,
        markerfacecolor="none" if alone else colour,
        linewidth=0,
        elinewidth=1.3,
        capsize=2.5,
        label=label,
    )


def _labels(figure: Figure, axes: Axes, points: Sequence[tuple[float, Point]]) -> int:
    """Write each point's label beside it, where it covers no marker, bar or other label as far as possible.

    Returns:
        How many were written; all of them where there is no crowd.
    """
    figure.draw_without_rendering()  # places the axes
    scale = figure.dpi / 72
    places = [axes.transData.transform((x, point.mean)) for x, point in points]
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in places]
    for x, point in points:
        if point.low is not None and point.high is not None:
            (across, below), (_, above) = axes.transData.transform([(x, point.low), (x, point.high)])
            taken.append((across - scale, below, across + scale, above))
    left, bottom, right, top = axes.bbox.extents
    written = 0
    # From the upper end down, so that a bundle of points gets its labels in the points' order.
    for index in sorted(range(len(points)), key=lambda i: -points[i][1].mean):
        x, y = places[index]
        width, height = 0.58 * LABEL * scale * len(points[index][1].label), 1.25 * LABEL * scale
        best: tuple[float, int, tuple[float, float, float, float]] | None = None
        for distance, turn in itertools.product((8, 16, 26, 38, 52, 68), range(16)):
            toward = math.cos(turn * math.pi / 8), math.sin(turn * math.pi / 8)
            # Flush with the point on the side towards it, centred above and below.
            start = x + toward[0] * distance * scale - width * (1 - toward[0]) / 2
            middle = y + toward[1] * distance * scale
            box = (start, middle - height / 2, start + width, middle + height / 2)
            outside = max(0.0, left - box[0], box[2] - right, bottom - box[1], box[3] - top)
            cost = distance + sum(_overlap(box, other) for other in taken) + 100 * outside
            if best is None or cost < best[0]:
                best = (cost, distance, box)
        assert best is not None  # there are candidates
        cost, distance, box = best
        if len(points) > CROWD and cost > 16:  # beyond the two nearest rings, or over much
            continue
        written += 1
        taken.append((box[0] - 3 * scale, box[1], box[2] + 3 * scale, box[3]))  # the space between two words
        label = axes.annotate(
            points[index][1].label,
            (points[index][0], points[index][1].mean),
            ((box[0] - x) / scale, ((box[1] + box[3]) / 2 - y) / scale),
            textcoords="offset points",
            fontsize=LABEL,
            va="center",
            arrowprops={"arrowstyle": "-", "color": INK, "linewidth": 0.5} if distance > 8 else None,
        )
        label.set_in_layout(False)
    return written


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Area that two boxes (left, bottom, right, top) share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)


def _legend(figure: Figure, axes: Axes, wanted: bool) -> None:
    if wanted:
        handles, names = axes.get_legend_handles_labels()
        columns = max(1, min(3, LEGEND // (max(map(len, names)) + 6)))
        figure.legend(handles, names, loc="outside upper center", ncols=columns)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * -(-len(names) // columns))


def _finish(figure: Figure, name: str, caption: str) -> Plot:
    plot = plots.finish(figure, name, caption)
    return replace(plot, svg=plot.svg.replace(PURPLE, "var(--purple)"))
