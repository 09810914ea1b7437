"""The gap loss that can be added to any method."""

import math

import pytest
import torch

from tailfin import cli
from tailfin.branch import Branch
from tailfin.methods.gap import gap_loss


def test_it_is_the_mean_distance_of_unit_vectors_of_the_same_view() -> None:
    torch.manual_seed(0)
    online, target = (tuple(torch.randn(3, 4) for _ in range(2)) for _ in range(2))
    slow = 0.0
    for one, other in zip(online, target, strict=True):
        for a, b in zip(one.double(), other.double(), strict=True):
            a, b = a / math.sqrt(float(a @ a)), b / math.sqrt(float(b @ b))
            slow += float((a - b) @ (a - b)) / 6
    assert float(gap_loss(Branch(online, online), Branch(target, target))) == pytest.approx(slow, rel=1e-5)


def test_it_is_zero_for_equal_branches_and_sends_nothing_into_the_target() -> None:
    online, target = (torch.randn(5, 3, requires_grad=True) for _ in range(2))
    same = Branch((online,), (online,))
    assert gap_loss(same, same).item() == pytest.approx(0.0, abs=1e-6)
    gap_loss(same, Branch((target,), (target,))).backward()
    assert online.grad is not None
    assert target.grad is None


def test_the_gradient_at_a_dead_row_is_bounded() -> None:
    torch.manual_seed(0)
    rows, target = torch.randn(4, 8), torch.randn(4, 8)
    rows[1] = 0
    rows.requires_grad_()
    gap_loss(Branch((rows,), (rows,)), Branch((target,), (target,))).backward()
    assert rows.grad is not None
    # Along the cosine the loss's own slope is 2 over 4 rows. A floor of 1e-12 would multiply it by 1e12.
    assert 0 < float(rows.grad[1].norm()) * 4 / 2 <= 1.0001e6


def test_it_needs_two_branches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(
            ["pretrain", "--gap", "0.5", "--momentum", "stopgrad", "--limit", "64", "--batch-size", "16"]
        )
    assert stop.value.code == 2
    assert "--gap is 0.5" in capsys.readouterr().err
