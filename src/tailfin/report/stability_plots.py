"""Charts of what the monitors saw: gradients at the parts' outputs, their fluctuation, and the probe batch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tailfin.report.plots import (
    BLUE,
    INK,
    MOST_POINTS,
    ORANGE,
    WIDTH,
    Floats,
    Plot,
    bars,
    finish,
    step_axis,
    style,
)
from tailfin.report.words import items, mapping, number

LINES = ("-", "--", "-.", ":")


def gradients(rows: Sequence[Mapping[str, object]]) -> Plot | None:
    """Gradient of the loss at each part's output over steps, on a logarithmic axis."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, values in mapping(row.get("gradient")).items():
            last, found = number(row.get("step")), items(values)
            if last is None:
                continue
            for place, value in enumerate(found):
                size = number(value)
                if size is not None and size > 0:
                    series.setdefault(name, []).append((last - len(found) + 1 + place, size))
    if not series:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        _lines(axes, {name: np.array(points) for name, points in series.items()})
        axes.set_yscale("log")
        axes.set_ylabel("gradient norm of a sample")
        step_axis(axes)
        means = ", ".join(
            f"{name} {np.mean([size for _, size in points]):.3g}" for name, points in series.items()
        )
        return finish(
            figure, "gradients", f"Gradient of the loss at each part's output, root mean square: {means}."
        )


def fluctuation(found: Mapping[str, object]) -> Plot | None:
    """Fluctuation of the gradient by part: variation around the trend, and jump from step to step, in percent."""
    rows = []
    for name, values in found.items():
        variation, jump = (number(mapping(values).get(key)) for key in ("variation", "jump"))
        if variation is not None and jump is not None:
            rows.append((name, 100 * variation, 100 * jump))
    if not rows:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 0.85 + 0.42 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        places = np.arange(len(rows))[::-1]
        bars(
            axes,
            [(p + 0.2, r[1]) for p, r in zip(places, rows, strict=True)],
            "variation around the trend",
            BLUE,
            "",
        )
        bars(
            axes, [(p - 0.2, r[2]) for p, r in zip(places, rows, strict=True)], "median jump", ORANGE, "////"
        )
        axes.set_yticks(places, [name for name, _, _ in rows])
        axes.set_xlim(0, 1.15 * max(max(row[1:]) for row in rows))
        axes.set_xlabel("% of the gradient norm")
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=2)
        most = max(rows, key=lambda row: row[1])
        return finish(
            figure,
            "fluctuation",
            f"Fluctuation of the gradient by part: largest at {most[0]}, {most[1]:.1f} % around its trend.",
        )


PROBED = {
    "gradient_cosine": "gradient: cosine with the reading before",
    "gap": "cosine between online and target output",
    "online_drift": "drift of the online output",
    "target_drift": "drift of the target's output",
}


def probe(rows: Sequence[Mapping[str, object]], key: str) -> Plot | None:
    """One of `PROBED` by part over steps."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        step = number(row.get("step"))
        for name, value in mapping(mapping(row.get("probe")).get(key)).items():
            size = number(value)
            if step is not None and size is not None:
                series.setdefault(name, []).append((step, size))
    if not series:
        return None
    with style():
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        _lines(axes, {name: np.array(points) for name, points in series.items()})
        axes.set_ylabel(key.replace("_", " "))
        step_axis(axes)
        last = ", ".join(f"{name} {points[-1][1]:.3g}" for name, points in series.items())
        return finish(figure, f"probe-{key}", f"Probe batch, {PROBED[key]}; at the end: {last}.")


def _lines(axes: Axes, series: Mapping[str, Floats]) -> None:
    """One line a part, from dark at the input to light at the output; line styles tell them apart in grey too."""
    for index, (name, points) in enumerate(series.items()):
        merged = math.ceil(len(points) / MOST_POINTS)
        starts = np.arange(0, len(points), merged)
        sizes = np.diff(np.append(starts, len(points)))
        steps, values = (np.add.reduceat(column, starts) / sizes for column in points.T)
        colour = to_hex(colormaps["viridis"](0.1 + 0.75 * index / max(1, len(series) - 1)))
        marker = "o" if len(steps) <= 25 else ""
        axes.plot(
            steps,
            values,
            LINES[index % 4],
            color=colour,
            label=name,
            linewidth=1.3,
            marker=marker,
            markersize=3,
        )
    axes.figure.legend(loc="outside upper left", ncols=4, fontsize=8, labelcolor=INK)
