"""The monitors in a loop of one's own, on plain modules: what the docs show runs, and sees what it should."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tailfin
from tailfin.stability import Sign, find_signs

DOCS = Path(__file__).resolve().parents[2] / "docs" / "stability.md"


def loss(one: Tensor, other: Tensor) -> Tensor:
    """Two views alike, each feature with a spread of 1, and all features the same: a line in 128 dimensions."""
    total = (one - other).square().mean()
    for z in (one, other):
        total = total + (1 - z.std(dim=0)).relu().mean()
        total = total + 0.05 * (z - z.mean(dim=1, keepdim=True)).square().sum(dim=1).mean()
    return total


def outside(rate: float, steps: int) -> dict[str, Any]:
    """What the snippet takes as given."""
    torch.manual_seed(0)
    layers = {
        "first": nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU()),
        "second": nn.Sequential(
            nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
    }
    head = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 128))
    backbone = nn.Sequential(*layers.values())
    parameters = [*backbone.parameters(), *head.parameters()]

    def views(count: int) -> tuple[Tensor, Tensor]:
        images = torch.rand(count, 3, 1, 1) + 0.3 * torch.randn(count, 3, 12, 12)
        return images + 0.1 * torch.randn_like(images), images + 0.1 * torch.randn_like(images)

    view1, view2 = views(64)
    return {
        "layers": layers,
        "head": head,
        "backbone": backbone,
        "loss": loss,
        "view1": view1,
        "view2": view2,
        "batches": [views(32) for _ in range(steps)],
        "optimizer": torch.optim.SGD(parameters, lr=rate),
    }


def snippet() -> str:
    section = DOCS.read_text(encoding="utf-8").split("## In your own loop")[1]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_docs_snippet_runs_on_plain_modules_and_sees_a_dimensional_collapse(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = outside(rate=0.5, steps=100)
    exec(snippet(), names)
    assert names["series"].keys() == {"first", "second", "projector"}
    assert all(len(values) == 100 and values.isfinite().all() for values in names["series"].values())
    assert [step for step, _ in names["readings"]] == [50, 100]
    signs: list[Sign] = names["signs"]
    assert signs[0].state == "collapsing"  # rank 1.9 and 1.7
    assert "they use very few dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("placement", ["none", "stopgrad"])
def test_an_encoder_without_momentum_wraps_plain_modules_and_copies_none(placement: str) -> None:
    given = outside(rate=0.1, steps=0)
    encoder = tailfin.MomentumEncoder(
        tailfin.Parts(given["layers"]), projector=given["head"], placement=placement
    )
    assert all(encoder.part(name) is module for name, module in given["layers"].items())
    assert encoder.part("projector") is given["head"]
    own = [*given["backbone"].parameters(), *given["head"].parameters()]
    assert {id(parameter) for parameter in encoder.parameters()} == {id(parameter) for parameter in own}


def test_either_half_alone_is_enough() -> None:
    assert find_signs({}) == []
    broken = torch.ones(100)
    broken[40] = torch.inf
    assert [sign.state for sign in find_signs({"stem": broken})] == ["gradient not finite"]
    point = {"collapse": {"spread": 0.01, "rank": 1.1}}
    assert [sign.state for sign in find_signs({}, [(50, point)])] == ["collapsing"]


def test_the_target_is_judged_where_the_encoder_has_one() -> None:
    given = outside(rate=0.1, steps=0)
    encoder = tailfin.MomentumEncoder(
        tailfin.Parts(given["layers"]), projector=given["head"], placement="projector", decay=0.99999
    )
    still = {"online_drift": {"projector": 0.5}, "target_drift": {"projector": 0.001}}
    (found,) = find_signs({}, [(50, still), (100, still)], encoder=encoder)
    assert found.state == "target stale"
    assert "the run has 100 steps" in found.words
