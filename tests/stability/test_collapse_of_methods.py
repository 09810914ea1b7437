"""Methods without what keeps them from collapsing do collapse, and the verdict says so; with it they do not."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tailfin.data.types import Dataset
from tailfin.methods._heads import normalised_mlp
from tailfin.methods.simsiam import SimSiam
from tailfin.stability.verdict import Verdict, judge
from tailfin.training.config import Config
from tailfin.training.folder import RunFolder
from tailfin.training.loop import Loop
from tailfin.training.monitoring import summarise
from tailfin.training.setup import Setup, load_data, prepare
from tailfin.views.augment import Augment
from tailfin.views.recipes import ViewRecipe

COMMON = Config(
    limit=480,
    batch_size=24,
    backbone="resnet10w4",
    image_size=32,
    optimizer="sgd",
    monitors="probe",
    knn_evaluations=0,
    precision="fp32",
    memory_format="contiguous",
    device="cpu",
)
SIMSIAM = replace(COMMON, method="simsiam", momentum="none", epochs=5, lr=2.0)
UNSAFE = {"predictor": 0.0, "stop_gradient": 0.0}


class Silent:
    def step(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_data(COMMON, torch.device("cpu"))


Train = Callable[[Setup], tuple[Verdict, float, float]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    def run(setup: Setup) -> tuple[Verdict, float, float]:
        """The verdict by the probe alone, the last loss and the last rank."""
        folder = RunFolder(tmp_path / str(len(list(tmp_path.iterdir()))))
        folder.path.mkdir()
        Loop(setup, folder, None).run(Silent())
        rows = folder.read_stability()
        last = [row["probe"]["collapse"] for row in rows if "probe" in row][-1]
        verdict = judge(
            spread=last["spread"],
            effective_rank=last["rank"],
            width=setup.method.out,
            trained=None,
            untrained=None,
            judged_images=0,
            losses=[],
            timing=[],
            signs=summarise(rows, setup).signs,
        )
        return verdict, folder.read_metrics()[-1]["loss"], last["rank"]

    return run


@pytest.mark.parametrize("options", [{}, UNSAFE])
def test_byol_collapses_to_a_point_without_predictor_and_stopped_gradient(
    train: Train, shapes: Dataset, options: dict[str, float]
) -> None:
    config = replace(COMMON, method="byol", momentum="none", epochs=5, lr=0.3, method_options=options)
    verdict, loss, _ = train(prepare(config, shapes))
    if options:
        assert verdict.state == "collapsing"
        assert "collapsed completely" in verdict.words
        assert loss < 0.1  # of 8 at most: only the verdict tells this from success
    else:
        assert "No sign of collapse" in verdict.words


@pytest.mark.parametrize("options", [{}, UNSAFE])
def test_simsiam_collapses_to_a_point_without_predictor_and_stopped_gradient(
    train: Train, shapes: Dataset, monkeypatch: pytest.MonkeyPatch, options: dict[str, float]
) -> None:
    # Without the batch norm at the projector's end, with which its paper finds no collapse either (table 3b).
    def projector(self: SimSiam, features: int) -> nn.Sequential:
        return normalised_mlp(features, self.hidden, self.out, affine=False)[:-1]

    monkeypatch.setattr(SimSiam, "projector", projector)
    verdict, loss, _ = train(prepare(replace(SIMSIAM, method_options=options), shapes))
    if options:
        assert verdict.state == "collapsing"
        assert "collapsed completely" in verdict.words
        assert loss < -0.9  # of -1: only the verdict tells this from success
    else:
        assert "No sign of collapse" in verdict.words


@pytest.mark.parametrize("options", [{}, UNSAFE])
def test_simsiam_as_published_collapses_to_few_dimensions_instead(
    train: Train, shapes: Dataset, options: dict[str, float]
) -> None:
    # Its last batch norm takes the mean off every batch, so the outputs cannot be one point. They come near one line:
    # the rank is 1.3 to 1.9 without both and 8 to 12 with (seeds 0 and 1), and the bar is 3.
    verdict, _, rank = train(prepare(replace(SIMSIAM, method_options=options), shapes))
    if options:
        assert verdict.state == "collapsing"
        assert "since step 50: they use very few dimensions" in verdict.words
        assert rank < 2
    else:
        assert "No sign of collapse" in verdict.words
        assert rank > 6


def test_barlow_twins_without_its_redundancy_term_collapses_to_few_dimensions(
    train: Train, shapes: Dataset
) -> None:
    # Nothing keeps its features from being one: rank 2.5 and 2.7 with seeds 0 and 1.
    config = replace(
        COMMON,
        method="barlow_twins",
        momentum="none",
        optimizer=None,
        epochs=5,
        method_options={"redundancy": 0.0},
    )
    verdict, _, _ = train(prepare(config, shapes))
    assert verdict.state == "collapsing"
    assert "they use very few dimensions" in verdict.words


@pytest.mark.parametrize("centring", [1.0, 0.0])
def test_dino_collapses_to_one_prototype_without_centring(
    train: Train, shapes: Dataset, monkeypatch: pytest.MonkeyPatch, centring: float
) -> None:
    # In so short a run DINO learns from mild views alone. What tells images apart in the teacher's answer comes back
    # from the student scaled by the ratio of their temperatures, 2.5 here, times the correlation of two views, and
    # that product must pass 1. In this untrained network the correlation of the prototypes' scores is .56 for large
    # crops and flips, but .03 with the published colours, where the loss ends at the logarithm of the prototypes'
    # number. (Last loss of log(40) = 3.69 with centring: 2.5 with seed 0, 3.6 with seed 1, whose spread is .65 too.)
    # Such views leave one direction with 94 % of the variance even with centring (rank 2.3; 4.0 with seed 1), and the
    # verdict names that: only the collapse to a point is centring's matter. With published views the rank is 7 to 10.
    # The head's weights are cut at two deviations, a start .88 times as large: with the whole distribution centring
    # learns with seed 3 (loss 2.5) and stays at log(40) near one point with seeds 2, 4 and 5; without it the spread
    # ends at .006 to .016 with four of the seeds 0 to 5, at .09 and .17 with two.
    def cut(weight: torch.Tensor, *, std: float) -> torch.Tensor:
        return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)

    monkeypatch.setattr(nn.init, "normal_", cut)
    config = replace(
        COMMON,
        method="dino",
        momentum="all",
        decay=0.99,
        epochs=8,
        lr=1.0,
        method_options={"teacher_temperature": 0.04, "centring": centring},
    )
    setup = prepare(config, shapes)
    mild = ViewRecipe(scale=(0.8, 1.0))
    setup = replace(setup, augment=Augment((mild, mild), size=32, mean=shapes.mean, std=shapes.std))
    verdict, loss, _ = train(setup)
    if centring:
        assert "collapsed completely" not in verdict.words
        assert loss < math.log(setup.method.out) - 0.3  # nor is it collapsed to the uniform answer
    else:
        assert verdict.state == "collapsing"
        assert "collapsed completely" in verdict.words
        assert loss < 0.1
