"""Optimizers against their formulas, and the schedule of the learning rate."""

import math

import pytest
import torch
from torch import nn

from tailfin.run.config import OptimizerName
from tailfin.training import optimizers


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("kind", ["sgd", "lars", "adamw"])
def test_norms_and_biases_get_no_weight_decay(kind: OptimizerName) -> None:
    net = model()
    optimizer = optimizers.build(kind, [net], lr=0.1, weight_decay=0.5)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    assert decayed == {id(net[0].weight), id(net[2].weight)}
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]


def test_frozen_parameters_are_left_out() -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = optimizers.build("sgd", [net], lr=0.1, weight_decay=0.0)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip", [False, True])
def test_lars_is_its_formula(weight_decay: float, clip: bool) -> None:
    """arXiv 1708.03888, equation 6 and section 4; with clip, the local rate is at most the global one (LARC)."""
    net, lr, eta = model(), 0.4, 0.02
    optimizer = optimizers.build(
        "lars", [net], lr=lr, weight_decay=weight_decay, momentum=0.9, trust_coefficient=eta, clip=clip
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        expected = {}
        for name, p in net.named_parameters():
            w, g = p.detach().clone(), p.grad.clone()
            if p.ndim > 1:
                trust = eta * w.norm() / (g.norm() + weight_decay * w.norm() + 1e-8)
                if clip:
                    trust = min(trust / lr, torch.tensor(1.0, dtype=torch.float64))
                g = (g + weight_decay * w) * trust
            velocity[name] = 0.9 * velocity[name] + g
            expected[name] = w - lr * velocity[name]
        optimizer.step()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.detach(), expected[name], rtol=1e-9, atol=1e-12)


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    rates = [optimizers.learning_rate(s, peak=2.0, warmup=4, total=14) for s in range(14)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 14):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 4) / 10))
    assert optimizers.learning_rate(0, peak=2.0, warmup=0, total=5) == 2.0
