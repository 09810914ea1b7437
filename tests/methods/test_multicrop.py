"""Small crops beside the views: seen by the online branch alone, part of the loss."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tailfin import MomentumEncoder, cli
from tailfin.branch import Branch
from tailfin.methods.base import crossings
from tailfin.methods.simclr import nt_xent

SMALL = [
    "--limit", "64", "--epochs", "1", "--batch-size", "16", "--image-size", "16", "--device", "cpu",
    "--backbone", "resnet10w4", "--local-views", "2", "--precision", "fp32", "--memory-format", "contiguous",
    "--judge", "nothing", "--knn-evaluations", "0",
]  # fmt: skip


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    return int(stop.value.code or 0)


def encoder(placement: str) -> MomentumEncoder:
    torch.manual_seed(0)
    parts = nn.Sequential()
    parts.add_module("stem", nn.Conv2d(3, 4, 3))
    parts.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    return MomentumEncoder(parts, projector=nn.Linear(4, 5), placement=placement)


@pytest.mark.parametrize("placement", ["none", "stopgrad", "projector", "all"])
def test_the_target_sees_the_first_views_alone(placement: str) -> None:
    both = encoder(placement)
    views = [torch.randn(2, 3, size, size) for size in (8, 8, 5)]
    calls = []
    for momentum in both.momentum.values():
        momentum.register_forward_hook(lambda _module, args, _output: calls.append(args[0].shape))
    online, target = both(views, 2)
    whole, _ = both(views[:2])
    assert (len(online.projections), len(target.projections)) == (3, 2)
    for one, other in zip(online.projections, whole.projections, strict=False):
        assert torch.equal(one, other)
    assert len(calls) == 4 * len(both.placement.placed)
    assert target.projections[0].requires_grad == (placement == "none")


def test_every_online_view_meets_every_target_view_but_its_own() -> None:
    three, two = (Branch(views, views) for views in ((torch.zeros(1, 1),) * 3, (torch.zeros(1, 1),) * 2))
    assert crossings(three, two) == [(0, 1), (1, 0), (2, 0), (2, 1)]
    with pytest.raises(ValueError, match="1 views in the online and 1 in the target"):
        crossings(Branch(three.features[:1], three.features[:1]), Branch(two.features[:1], two.features[:1]))


def test_nt_xent_of_more_views_is_the_formula() -> None:
    torch.manual_seed(0)
    online = tuple(torch.randn(4, 3).double() for _ in range(3))
    target = tuple(torch.randn(4, 3).double() for _ in range(2))

    def similarity(a: Tensor, b: Tensor) -> float:
        return math.exp(float(a @ b / a.norm() / b.norm()) / 0.5)

    total, count = 0.0, 0
    for i in range(3):
        for j in range(2):
            if i == j:
                continue
            for n in range(4):
                positive = similarity(online[i][n], target[j][n])
                negatives = sum(
                    similarity(online[i][n], target[view][m]) for view in range(2) for m in range(4) if m != n
                )
                total, count = total - math.log(positive / (positive + negatives)), count + 1
    found = nt_xent(Branch(online, online), Branch(target, target), 0.5)
    assert float(found) == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus"])
def test_a_run_with_small_crops(method: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        run(
            "pretrain",
            *SMALL,
            "--data",
            str(photos),
            "--method",
            method,
            "--momentum",
            "projector",
            "--out",
            str(out),
        )
        == 0
    )
    assert "local_size = 8" in (out / "config.toml").read_text()


def test_a_backbone_of_one_size_is_refused_with_its_reason(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *SMALL,
        "--data",
        str(photos),
        "--backbone",
        "vit_tiny_patch16_224",
        "--image-size",
        "32",
        "--local-size",
        "16",
    ]
    assert run("pretrain", *words) == 2
    assert "--local-views: vit_tiny_patch16_224 takes no views of 16 px" in capsys.readouterr().err
