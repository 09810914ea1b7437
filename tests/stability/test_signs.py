"""Each sign is provoked by a run that deserves it, and a healthy run shows none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tailfin.data.types import Dataset
from tailfin.stability.signs import Sign, collapse_sign, few_dimensions, gradient_signs, target_signs
from tailfin.training.config import Config
from tailfin.training.folder import RunFolder
from tailfin.training.loop import Loop
from tailfin.training.monitoring import Monitors, gradient_series, summarise
from tailfin.training.setup import load_data, prepare


class Silent:
    def step(self, *_: object) -> None:
        pass


COMMON = Config(
    limit=480,
    batch_size=24,
    epochs=15,
    backbone="resnet10w4",
    image_size=32,
    precision="fp32",
    memory_format="contiguous",
    device="cpu",
)


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_data(COMMON, torch.device("cpu"))


Signs = Callable[..., list[Sign]]


@pytest.fixture
def signs(shapes: Dataset, tmp_path: Path) -> Signs:
    def train(**changes: object) -> list[Sign]:
        setup = prepare(replace(COMMON, **changes), shapes)  # type: ignore[arg-type]
        folder = RunFolder(tmp_path)
        Loop(setup, folder, None).run(Silent())
        return summarise(folder.read_stability(), setup).signs

    return train


@pytest.mark.parametrize(
    "changes", [{"momentum": "projector"}, {"momentum": "all", "decay": 0.9, "epochs": 6}]
)
def test_a_healthy_run_shows_no_sign(signs: Signs, changes: dict[str, object]) -> None:
    assert signs(**changes) == []


@pytest.mark.parametrize(
    ("method", "momentum", "options"),
    [("byol", "stopgrad", {"predictor": 0}), ("byol", "none", {"predictor": 0, "stop_gradient": 0})],
)
def test_what_keeps_a_method_from_collapsing_taken_away(
    signs: Signs, method: str, momentum: str, options: dict[str, float]
) -> None:
    found = signs(method=method, momentum=momentum, optimizer="sgd", lr=0.3, method_options=options, epochs=8)
    assert found[0].state == "collapsing"
    assert "completely since step 50" in found[0].words


def test_a_learning_rate_far_too_high_brings_spikes(signs: Signs) -> None:
    found = signs(optimizer="sgd", lr=30.0)
    # Such a run is rightly called unstable too where its variation passes the bar, which hangs on rounding.
    assert found[-1].state == "gradient spikes"
    assert "they start at" in found[-1].words


def test_a_learning_rate_made_too_high_is_unstable(signs: Signs) -> None:
    found = signs(method="byol", optimizer="sgd", lr=100.0, epochs=6, monitors="gradient")
    # It varies by 133 % at its worst, where published rates stay below 34 %. The probe would call it collapsed, too.
    assert found[0].state == "unstable"
    assert "unstable at stem since step 1" in found[0].words


def test_an_average_longer_than_the_run_is_a_stale_target(signs: Signs) -> None:
    (found,) = signs(momentum="all", decay=0.99999, epochs=6)
    assert found.state == "target stale"
    assert "100,000 updates, and the run has 120 steps" in found.words


def test_an_average_of_nearly_nothing_is_a_target_too_fast(signs: Signs) -> None:
    (found,) = signs(momentum="all", decay=0.05, epochs=6)
    assert found.state == "target too fast"


def noise(sigma: float, seed: int, steps: int = 400) -> np.ndarray:
    return np.exp(sigma * np.random.default_rng(seed).standard_normal(steps))


def test_the_part_that_becomes_unstable_first_is_named_with_its_step() -> None:
    stem, layer4, projector = (noise(0.1, seed) for seed in range(3))
    layer4[200:] = noise(0.8, 3, 200)
    projector[300:] = noise(1.0, 4, 100)
    found = gradient_signs(1, {"stem": stem, "layer4": layer4, "projector": projector})
    assert found[0].state == "unstable"
    assert "unstable at layer4 since step 2" in found[0].words


def test_spikes_are_named_after_the_part_where_they_start() -> None:
    stem, projector = noise(0.1, 0), noise(0.1, 1)
    for step in (100, 200, 300):
        stem[step] = 6.0
        projector[step + 4] = 5.0
    (found,) = gradient_signs(1, {"stem": stem, "projector": projector})
    assert found.state == "gradient spikes"
    assert "start at stem, the first one at step 101" in found.words
    assert "3 of them from stem" in found.evidence


@pytest.mark.parametrize("step", [60, 200, 399])
@pytest.mark.parametrize("height", [8.0, 1000.0])
def test_one_spike_alone_is_no_instability(step: int, height: float) -> None:
    stem = noise(0.1, 0)
    stem[step] = height
    assert gradient_signs(1, {"stem": stem, "projector": noise(0.1, 1)}) == []


def test_spikes_alone_are_spikes_and_noise_all_along_is_instability() -> None:
    spiked = noise(0.1, 0)
    spiked[50::12] = 8.0
    assert [sign.state for sign in gradient_signs(1, {"stem": spiked})] == ["gradient spikes"]
    for sigma in (0.7, 1.0, 1.5):
        assert gradient_signs(1, {"stem": noise(sigma, 0)})[0].state == "unstable", sigma


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_one_odd_value_hides_neither_instability_nor_spikes(value: float) -> None:
    wild, spiked = noise(0.8, 3), noise(0.1, 0)
    spiked[[100, 200, 300]] = 8.0
    wild[150] = spiked[150] = value
    assert "unstable" in [sign.state for sign in gradient_signs(1, {"stem": wild})]
    assert "gradient spikes" in [sign.state for sign in gradient_signs(1, {"stem": spiked})]


def test_a_gradient_that_is_not_finite_is_named_first_with_step_and_part() -> None:
    parts = {name: noise(0.8, seed) for seed, name in enumerate(("stem", "layer4", "projector"))}
    parts["stem"][[120, 300]] = parts["layer4"][120] = np.inf
    found = gradient_signs(1, parts)
    assert found[0].state == "gradient not finite"
    assert "2 of 400 steps, first at step 121 at the output of layer4" in found[0].words
    assert found[1].state == "unstable"
    # From some step on for good, without the values that the other signs need.
    (alone,) = gradient_signs(1, {"stem": np.array([1.0, *[np.inf] * 99])})
    assert "99 of 100 steps, first at step 2" in alone.words


def test_parts_never_heard_and_the_search_of_a_scaler_for_its_scale_are_no_sign() -> None:
    scaled = noise(0.1, 0)
    scaled[:10] = np.inf
    assert gradient_signs(1, {"stem": np.full(400, np.nan), "projector": scaled}) == []
    late = noise(0.1, 0)  # a part that is frozen at first
    late[:200] = np.nan
    assert gradient_signs(1, {"stem": late}) == []


def test_what_was_not_finite_is_so_in_the_rows_of_a_run_too(shapes: Dataset, tmp_path: Path) -> None:
    setup = prepare(replace(COMMON, monitors="gradient", epochs=2), shapes)
    folder = RunFolder(tmp_path)
    monitors = Monitors(setup, folder)
    for step in range(40):
        online, _ = setup.encoder(torch.randn(4, 3, 32, 32))
        (online.projections[0].sum() * (torch.inf if step == 30 else 1)).backward()
        monitors.after_step()
    monitors.write(40)
    monitors.close()
    series = gradient_series(folder.read_stability())
    assert {name: np.flatnonzero(np.isinf(values)).tolist() for name, values in series.items()} == {
        name: [30] for name in setup.encoder.names
    }
    found = summarise(folder.read_stability(), setup).signs
    assert "1 of 40 steps, first at step 31 at the output of projector" in found[0].words


def reading(**collapse: float) -> dict[str, dict[str, float]]:
    return {"collapse": {"spread": 0.8, "rank": 30.0, **collapse}}


def test_collapse_is_dated_from_where_it_lasts() -> None:
    rows = [(50, reading(spread=0.05)), (100, reading()), (150, reading(rank=1.0)), (200, reading(rank=1.1))]
    found = collapse_sign(rows, 128)
    assert found is not None
    assert "since step 150: they use very few dimensions" in found.words
    assert collapse_sign(rows[:2], 128) is None


def test_the_bar_of_a_rank_leaves_room_in_narrow_embeddings() -> None:
    assert few_dimensions(2.9, 64)
    assert not few_dimensions(3.1, 2048)
    assert not few_dimensions(1.3, 4)  # 3 of 4 cannot be few
    assert few_dimensions(1.1, 4)


def test_readings_that_are_not_finite_do_not_stop_the_others() -> None:
    nan = float("nan")
    broken = {
        "gap": {"projector": nan},
        "online_drift": {"projector": nan},
        "target_drift": {"projector": nan},
    }
    assert target_signs([(50, broken)], "projector", 0.9, 100) == []
    assert collapse_sign([(50, reading(spread=nan, rank=nan))], 128) is None


def test_without_readings_nothing_is_said_of_the_target() -> None:
    assert target_signs([], "projector", 0.99999, 100) == []
