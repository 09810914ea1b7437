"""Charts of a run as inline SVG: matplotlib figures whose colours are the page's CSS variables."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import escape

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from tailfin.report.words import count, mapping, number, percent, share

# Okabe and Ito's colour-blind-safe colours. Each is replaced by the page's variable of that name, so that
# one picture serves the light and the dark scheme.
INK, FAINT, BLUE, ORANGE = "#1c2127", "#c9ced6", "#0072b2", "#d55e00"
VARIABLES = {INK: "--ink", FAINT: "--line", BLUE: "--blue", ORANGE: "--orange"}

STYLE = {
    # Without a salt the identifiers of clip paths and markers are random.
    "svg.hashsalt": "tailfin",
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
}

# Five inches are 480 CSS pixels: at that width a label is as large as the page's small text.
WIDTH = 5.0
MOST_POINTS = 300

SCORES = {
    "backbone_online": "backbone, online",
    "projector_online": "projector, online",
    "backbone_momentum": "backbone, momentum",
    "projector_momentum": "projector, momentum",
    "untrained": "untrained (baseline)",
    "raw_pixels": "raw pixels (baseline)",
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """An inline SVG element with its alternative text, and the caption beneath it ("" where labels say it)."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Series:
    """A recorded quantity over steps, every `merged` rows averaged into a point that `low` and `high` bound.

    `first` and `last` are the recorded (step, value) at either end.
    """

    first: tuple[float, float]
    last: tuple[float, float]
    steps: Floats
    mean: Floats
    low: Floats
    high: Floats
    merged: int


def series(rows: Sequence[Mapping[str, object]], key: str) -> Series | None:
    """The finite values of `key` by step, merged to at most `MOST_POINTS`; None where there are none."""
    pairs = [(number(row.get("step")), number(row.get(key))) for row in rows]
    points = sorted(((x, y) for x, y in pairs if x is not None and y is not None), key=lambda point: point[0])
    if not points:
        return None
    merged = -(-len(points) // MOST_POINTS)
    starts = np.arange(0, len(points), merged)
    steps, values = np.array(points, dtype=np.float64).T
    sizes = np.diff(np.append(starts, len(points)))
    return Series(
        points[0],
        points[-1],
        np.add.reduceat(steps, starts) / sizes,
        np.add.reduceat(values, starts) / sizes,
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
        merged,
    )


def accuracy(scores: Mapping[str, object]) -> Plot | None:
    """Test accuracy in percent of each representation beside the baselines; None where nothing was judged."""
    rows = []
    for key, label in SCORES.items():
        judged = mapping(scores.get(key))
        knn, linear = number(judged.get("knn")), number(judged.get("linear"))
        if knn is not None or linear is not None:
            rows.append((label, knn, linear))
    if not rows:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.42 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=False, axis="y")
        upper = [(place - 0.2, knn) for place, (_, knn, _) in enumerate(rows)]
        lower = [(place + 0.2, linear) for place, (_, _, linear) in enumerate(rows)]
        bars(axes, upper, "kNN", BLUE, hatch="")
        bars(axes, lower, "linear probe", ORANGE, hatch="////")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        highest = max(value for _, *values in rows for value in values if value is not None)
        axes.set_xlim(0, 1.12 * highest or 1)
        axes.set_xlabel("test accuracy (%)")
        figure.legend(loc="outside upper right", ncols=2)
        said = "; ".join(
            f"{name}: kNN {percent(knn)}, linear {percent(linear)}" for name, knn, linear in rows
        )
        return Plot(_inline(figure, "accuracy", f"Test accuracy. {said}."), "")


def loss(metrics: Sequence[Mapping[str, object]]) -> Plot | None:
    """The training loss over steps, with the first non-finite value marked; None without finite losses."""
    recorded = [row for row in metrics if isinstance(row.get("loss"), int | float)]
    found = series(recorded, "loss")
    broken = [
        step
        for row in recorded
        if number(row["loss"]) is None and (step := number(row.get("step"))) is not None
    ]
    if found is None:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, found, BLUE)
        wide = found.low.min() > 0 and found.high.max() > 1000 * found.low.min()
        axes.set_yscale("log" if wide else "linear")
        axes.set_ylabel("loss (log scale)" if wide else "loss")
        if broken:
            axes.axvline(broken[0], color=ORANGE, linestyle="--")
        step_axis(axes)
        said = f"Training loss: {_course(found, lambda value: f'{value:.4g}')}."
        if found.merged > 1:
            said += f" Each point is the mean of {found.merged} recorded values, the band their range."
        if broken:
            said += (
                f" Losses not finite: {len(broken):,}, the first at step {count(broken[0])} (dashed line)."
            )
        return finish(figure, "loss", said)


def knn(metrics: Sequence[Mapping[str, object]]) -> Plot | None:
    """Validation kNN accuracy in percent during training; None where there was no evaluation."""
    found = series(metrics, "knn")
    if found is None:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, found, BLUE)
        axes.set_ylabel("validation kNN (%)")
        step_axis(axes)
        said = f"kNN accuracy on the validation images: {_course(found, percent)}."
        return finish(figure, "knn", said)


def schedule(metrics: Sequence[Mapping[str, object]]) -> Plot | None:
    """Learning rate and momentum decay over steps; None where neither was recorded."""
    return _panels(
        "schedule",
        metrics,
        Panel("lr", "Learning rate", "learning rate", BLUE, lambda value: f"{value:.3g}", False),
        Panel(
            "decay", "Decay, weight of the old value", "decay", ORANGE, lambda value: f"{value:.6g}", False
        ),
    )


def throughput(timing: Sequence[Mapping[str, object]]) -> Plot | None:
    """Images per second and the share of time spent waiting for data; None where neither was recorded."""
    return _panels(
        "throughput",
        timing,
        Panel("images_per_second", "Images per second", "images/s", BLUE, count, True),
        Panel("data_wait", "Data wait, as a share of the step's time", "data wait", ORANGE, share, True),
    )


@dataclass(frozen=True)
class Panel:
    """One of several quantities stacked over a common step axis."""

    key: str
    name: str
    label: str
    colour: str
    written: Callable[[float], str]
    from_zero: bool


def _panels(name: str, rows: Sequence[Mapping[str, object]], *panels: Panel) -> Plot | None:
    found = [(panel, points) for panel in panels if (points := series(rows, panel.key)) is not None]
    if not found:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        stack = figure.subplots(len(found), sharex=True, squeeze=False)[:, 0]
        for axes, (panel, points) in zip(stack, found, strict=True):
            _draw(axes, points, panel.colour)
            axes.set_ylabel(panel.label)
            axes.yaxis.set_major_locator(MaxNLocator(4))
            if panel.from_zero:
                axes.set_ylim(0, max(1.1 * points.high.max(), 0.01))
                axes.yaxis.set_major_formatter(
                    FuncFormatter(lambda value, _, written=panel.written: written(value))
                )
        step_axis(stack[-1])
        figure.align_ylabels()
        said = [f"{panel.name}: {_course(points, panel.written)}" for panel, points in found]
        said += [
            f"{panel.name}: not recorded" for panel in panels if panel not in [each for each, _ in found]
        ]
        return finish(figure, name, ". ".join(said) + ".")


def bars(
    axes: Axes, found: Sequence[tuple[float, float | None]], label: str, colour: str, hatch: str
) -> None:
    """Horizontal bars (place, value) with their values beside them; None leaves a gap."""
    drawn = [(place, value) for place, value in found if value is not None]
    if not drawn:
        return
    axes.barh(
        [place for place, _ in drawn],
        [value for _, value in drawn],
        height=0.38,
        label=label,
        facecolor="none" if hatch else colour,
        edgecolor=colour,
        hatch=hatch,
    )
    for place, value in drawn:
        axes.annotate(
            f"{value:.1f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8
        )


def _draw(axes: Axes, found: Series, colour: str) -> None:
    if found.merged > 1:
        axes.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.25, linewidth=0)
    few = len(found.steps) <= 25
    axes.plot(found.steps, found.mean, color=colour, linewidth=1.4, marker="o" if few else "", markersize=3.5)


def step_axis(axes: Axes) -> None:
    """The horizontal axis of anything recorded over training."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("optimizer step")


def _course(found: Series, written: Callable[[float], str]) -> str:
    (start, first), (end, last) = found.first, found.last
    if start == end:
        return f"{written(first)} at step {count(start)}, the only value"
    if found.low.min() == found.high.max():
        return f"{written(first)} throughout"
    return f"{written(first)} at step {count(start)}, {written(last)} at step {count(end)}"


def style() -> AbstractContextManager[None]:
    """The look of all plots."""
    # From the defaults, so that a matplotlibrc of the user's does not change the page.
    return matplotlib.style.context(["default", STYLE])


def finish(figure: Figure, name: str, caption: str) -> Plot:
    """The figure as an inline SVG; `name` must be its own on a page."""
    return Plot(_inline(figure, name, caption), caption)


def _inline(figure: Figure, name: str, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The style element would apply to the whole page, whose own sheet says the same of plots alone.
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    # HTML knows the namespaces; identifiers must differ between the pictures of one page.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = svg.replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None  # matplotlib always writes one
    opening = f'<svg class="plot" role="img" aria-label="{escape(alt)}" {box.group()}>'
    return opening + svg[svg.index(">") + 1 :].strip()
