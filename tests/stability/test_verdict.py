"""Each verdict is provoked, and a sound run raises none."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.stability import collapse, verdict
from tailfin.stability.signs import Sign
from tailfin.training.feed import Feed
from tailfin.training.listeners import Progress
from tailfin.training.setup import prepare
from tailfin.training.start import start


def judged(**changes: object) -> verdict.Verdict:
    sound: dict[str, object] = {
        "spread": 0.9,
        "effective_rank": 40.0,
        "width": 128,
        "trained": (55.0, 60.0),
        "untrained": (32.0, 36.0),
        "chance": (1e-9, 1e-9),
        "losses": [(10, 6.1), (900, 4.9)],
        "timing": [{"data_wait": 0.01}, {"data_wait": 0.02}],
    }
    return verdict.judge(**{**sound, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "healthy", "features better than the untrained"),
        ({"spread": 0.01}, "collapsing", "collapsed completely"),
        ({"effective_rank": 2.9}, "collapsing", "very few dimensions"),
        ({"effective_rank": 3.1, "width": 2048}, "healthy", "features better"),
        ({"spread": float("nan")}, "collapsing", "not finite"),
        ({"chance": (0.3, 0.026)}, "no better than untrained", "By kNN or linear probe no improvement"),
        ({"chance": (0.3, 0.024)}, "no better than untrained", "(by the linear probe it is better)"),
        ({"chance": (0.024, 0.3)}, "no better than untrained", "By the linear probe no improvement"),
        ({"validation": [30.0, 41.0, 33.0]}, "past its best", "from 41.0 % to 33.0 %"),
        ({"validation": [30.0, 41.0, 38.5]}, "healthy", "features better"),
        ({"validation": [30.0, 41.0, 33.0], "validation_images": 60}, "healthy", "features better"),
        ({"signs": [Sign("unstable", "At layer4.", "e")]}, "unstable", "At layer4."),
        ({"signs": [Sign("a", "A.", "e"), Sign("collapsing", "Gone.", "e")]}, "collapsing", "Gone."),
        ({"chance": None}, "not judged", "without kNN and linear probe"),
        ({"timing": [{"data_wait": 0.1}, {"data_wait": 0.6}]}, "loader-bound", "waited for images"),
        ({"trained": None, "untrained": None, "chance": None}, "not judged", "No sign of collapse"),
        ({"trained": None, "untrained": None, "chance": None, "spread": 0.0}, "collapsing", "collapsed"),
    ],
)
def test_each_state_is_provoked(changes: dict[str, object], state: str, words: str) -> None:
    found = judged(**changes)
    assert found.state == state
    assert words in found.words


def test_the_evidence_names_the_figures() -> None:
    evidence = "\n".join(judged().evidence)
    for figure in (
        "0.90",
        "40.0 of 128",
        "6.100 at step 10",
        "4.900 at step 900",
        "2 %",
        "55.0 %",
        "36.0 %",
        "by chance alone in under 0.1 % of",
    ):
        assert figure in evidence


def test_a_validation_that_only_wavers_is_hardly_ever_called_past_its_best() -> None:
    # Twenty looks at an encoder that has stopped changing, each on 60 fresh images: the best of twenty lies above the
    # last. With two standard errors whatever the number of looks 13 % of these were called past their best.
    draws = np.random.default_rng(0)
    called = [
        judged(validation=(100 * draws.binomial(60, 0.4, 20) / 60).tolist(), validation_images=60).state
        for _ in range(1000)
    ]
    assert called.count("past its best") < 25


def test_real_collapses_of_embeddings_are_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(500, 64, generator=generator)
    line = torch.randn(500, 1, generator=generator) * torch.randn(1, 64, generator=generator)
    point = torch.ones(500, 64) + 0.001 * spread
    states = []
    for features in (spread, line, point):
        std, rank = collapse.normalised_std(features), collapse.effective_rank(features)
        states.append(judged(spread=std, effective_rank=rank, width=64).state)
    assert states == ["healthy", "collapsing", "collapsing"]


def test_a_run_that_is_fed_slowly_is_loader_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetch = Feed._fetch

    def slowly(feed: Feed, step: int) -> object:
        time.sleep(0.5)
        return fetch(feed, step)

    monkeypatch.setattr(Feed, "_fetch", slowly)
    config = Config(
        limit=64,
        batch_size=8,
        epochs=1,
        backbone="resnet10w4",
        image_size=32,
        monitors="none",
        precision="fp32",
        memory_format="contiguous",
        device="cpu",
    )
    folder = RunFolder(tmp_path)
    start(prepare(config), folder, None, Progress()).run()
    found = judged(timing=folder.read_timing())
    assert found.state == "loader-bound"
    assert any("of the time spent waiting for images" in line for line in found.evidence)


def test_where_the_untrained_encoder_is_right_already_nothing_can_be_told() -> None:
    told = {"trained": (100.0, 100.0), "untrained": (100.0, 95.0), "chance": (1.0, 0.03)}
    found = judged(**told, missed=(0, 5))
    assert found.state == "no better than untrained"
    assert "judge on more or harder images" in found.words
    assert "train longer" in judged(**told, missed=(0, 6)).words
