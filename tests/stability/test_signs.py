"""Each sign is provoked by a run that deserves it, and a healthy run shows none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tailfin.data.types import Dataset
from tailfin.stability.signs import Sign, collapse_sign, gradient_signs, target_signs
from tailfin.training.config import Config
from tailfin.training.folder import RunFolder
from tailfin.training.loop import Loop
from tailfin.training.monitoring import summarise
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


def test_a_healthy_run_shows_no_sign(signs: Signs) -> None:
    assert signs(momentum="projector") == []


@pytest.mark.parametrize(
    ("method", "momentum", "options"),
    [("byol", "stopgrad", {"predictor": 0}), ("byol", "none", {"predictor": 0, "stop_gradient": 0})],
)
def test_what_keeps_a_method_from_collapsing_taken_away(
    signs: Signs, method: str, momentum: str, options: dict[str, float]
) -> None:
    found = signs(method=method, momentum=momentum, optimizer="sgd", lr=0.3, method_options=options)
    assert found[0].state == "collapsing"
    assert "completely since step 50" in found[0].words


def test_a_learning_rate_far_too_high_brings_spikes(signs: Signs) -> None:
    found = signs(optimizer="sgd", lr=30.0)
    # Such a run is rightly called unstable too where its variation passes the bar, which hangs on rounding.
    assert found[-1].state == "gradient spikes"
    assert "they start at" in found[-1].words


def test_an_average_longer_than_the_run_is_a_stale_target(signs: Signs) -> None:
    (found,) = signs(momentum="all", decay=0.99999)
    assert found.state == "target stale"
    assert "100,000 updates, and the run has 300 steps" in found.words


def test_an_average_of_nearly_nothing_is_a_target_too_fast(signs: Signs) -> None:
    (found,) = signs(momentum="all", decay=0.05)
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


def reading(**collapse: float) -> dict[str, dict[str, float]]:
    return {"collapse": {"spread": 0.8, "rank": 30.0, **collapse}}


def test_collapse_is_dated_from_where_it_lasts() -> None:
    rows = [(50, reading(spread=0.05)), (100, reading()), (150, reading(rank=1.0)), (200, reading(rank=1.1))]
    found = collapse_sign(rows, 128)
    assert found is not None
    assert "since step 150: its embeddings use very few dimensions" in found.words
    assert collapse_sign(rows[:2], 128) is None


def test_without_readings_nothing_is_said_of_the_target() -> None:
    assert target_signs([], "projector", 0.99999, 100) == []
