import re

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailfin.report import plots

from .document import read

finite = st.floats(-1e6, 1e6)


def label(svg: str) -> list[str]:
    return [each.text() for each in read(svg).all("text")]


@settings(max_examples=40, deadline=None)
@given(st.lists(finite, min_size=1, max_size=2000))
def test_series_keeps_mean_and_range(values: list[float]) -> None:
    rows: list[dict[str, object]] = [{"step": step, "loss": value} for step, value in enumerate(values)]
    found = plots.series(rows, "loss")
    assert found is not None
    assert len(found.mean) <= plots.MOST_POINTS
    chunks = [values[start : start + found.merged] for start in range(0, len(values), found.merged)]
    np.testing.assert_allclose(
        found.mean, [sum(chunk) / len(chunk) for chunk in chunks], rtol=1e-9, atol=1e-6
    )
    assert list(found.low) == [min(chunk) for chunk in chunks]
    assert list(found.high) == [max(chunk) for chunk in chunks]
    assert (found.first, found.last) == ((0, values[0]), (len(values) - 1, values[-1]))


def test_series_drops_what_is_no_number_and_sorts() -> None:
    rows: list[dict[str, object]] = [
        {"step": 3, "loss": 1.0},
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": float("nan")},
        {"step": None, "loss": 4.0},
        {"step": 4, "loss": "high"},
        {"step": 5},
    ]
    found = plots.series(rows, "loss")
    assert found is not None
    assert list(zip(found.steps, found.mean, strict=True)) == [(1, 2), (3, 1)]
    assert plots.series([], "loss") is None


def test_bars_are_as_long_as_their_values() -> None:
    scores = {"backbone_online": {"knn": 50.0, "linear": 60.0}, "raw_pixels": {"knn": 20.0, "linear": None}}
    plot = plots.accuracy(scores)
    assert plot is not None
    assert [text for text in label(plot.svg) if re.fullmatch(r"\d+\.\d", text)] == ["50.0", "20.0", "60.0"]
    bars = re.findall(r'd="M ([\d.]+) [\d.]+ \nL ([\d.]+) [\d.]+ \nL [^"]*" clip-path', plot.svg)
    lengths = [float(right) - float(left) for left, right in bars if float(right) > float(left)]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 20 / 50, 60 / 50], abs=1e-3)


def test_accuracy_names_only_what_was_judged() -> None:
    plot = plots.accuracy({"backbone_online": {"knn": 50.0, "linear": None}, "untrained": None})
    assert plot is not None
    texts = label(plot.svg)
    assert "backbone, online" in texts
    assert "kNN" in texts
    assert not {"linear probe", "untrained (baseline)", "backbone, momentum"} & set(texts)
    assert plots.accuracy({"backbone_online": {"knn": None, "linear": float("nan")}}) is None


def test_a_loss_that_breaks_is_told_and_marked() -> None:
    rows: list[dict[str, object]] = [
        {"step": s, "loss": 5.0 if s < 30 else float("nan")} for s in range(10, 60, 10)
    ]
    plot = plots.loss(rows)
    assert plot is not None
    assert "Losses not finite: 3, the first at step 30" in plot.caption
    assert "stroke-dasharray" in plot.svg
    sound = plots.loss(rows[:2])
    assert sound is not None
    assert "not finite" not in sound.caption
    assert "stroke-dasharray" not in sound.svg
    assert plots.loss(rows[2:]) is None


@pytest.mark.parametrize(("last", "name"), [(1e-3, "loss (log scale)"), (1.0, "loss"), (-1.0, "loss")])
def test_a_wide_positive_loss_is_drawn_on_a_log_scale(last: float, name: str) -> None:
    plot = plots.loss([{"step": 1, "loss": 5.0}, {"step": 2, "loss": last}])
    assert plot is not None
    assert name in label(plot.svg)


def test_captions_give_either_end() -> None:
    rows: list[dict[str, object]] = [
        {
            "step": 1000 * s,
            "lr": 0.3 / s,
            "decay": 0.99,
            "images_per_second": 2000.0 * s,
            "data_wait": 0.5 / s,
        }
        for s in (1, 2)
    ]
    schedule, speed = plots.schedule(rows), plots.throughput(rows)
    assert schedule is not None
    assert speed is not None
    assert schedule.caption == (
        "Learning rate: 0.3 at step 1,000, 0.15 at step 2,000. Decay, weight of the old value: 0.99 throughout."
    )
    assert speed.caption == (
        "Images per second: 2,000 at step 1,000, 4,000 at step 2,000. Data wait, as a share of the step's time: "
        "50.0 % at step 1,000, 25.0 % at step 2,000."
    )


def test_what_was_not_recorded_is_told() -> None:
    plot = plots.schedule([{"step": 1, "lr": 0.3}])
    assert plot is not None
    assert "Decay, weight of the old value: not recorded." in plot.caption
    assert plots.throughput([]) is None
    assert plots.knn([{"step": 1, "loss": 3.0}]) is None


def test_colours_follow_the_page_and_no_setting_is_left_behind() -> None:
    before = dict(matplotlib.rcParams)
    rows: list[dict[str, object]] = [{"step": s, "loss": float(s % 7), "lr": 0.3} for s in range(1000)]
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "axes.labelcolor": "red"}):
        styled = plots.loss(rows)
    plain = plots.loss(rows)
    assert styled == plain
    assert plain is not None
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", plain.svg)) == set()
    assert {"var(--blue)", "var(--line)"} <= set(re.findall(r"var\(--\w+\)", plain.svg))
    assert len(plain.svg) < 40_000
    assert dict(matplotlib.rcParams) == before
