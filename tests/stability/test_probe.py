"""The probe batch: readings that say what changed, and leave no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn

import tailfin
from tailfin.branch import Branch
from tailfin.stability.probe import Probe


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def encoder(placement: str, decay: float = 0.9) -> tailfin.MomentumEncoder:
    torch.manual_seed(1)
    head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))
    return tailfin.MomentumEncoder(net(), projector=head, placement=placement, decay=decay)


def loss(online: Branch, target: Branch) -> Tensor:
    pairs = zip(online.projections, target.projections[::-1], strict=True)
    return torch.stack([(mine - other).square().sum(dim=1).mean() for mine, other in pairs]).sum()


VIEWS = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


@pytest.mark.parametrize("placement", ["none", "stopgrad", "projector", "0", "all"])
def test_a_reading_leaves_no_trace(placement: str) -> None:
    subject = encoder(placement)
    before = copy.deepcopy(subject.state_dict())
    drawn = torch.random.get_rng_state()
    Probe(subject, loss, VIEWS).read()
    after = subject.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in subject.parameters())
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert subject.training


def test_an_encoder_that_stands_still_is_read_as_standing_still() -> None:
    probe = Probe(encoder("stopgrad"), loss, VIEWS)  # without a second pass, whose dropout would open a gap
    first, second = probe.read(), probe.read()
    assert "gradient_cosine" not in first
    for name in ("0", "1", "projector"):
        assert second["gradient_cosine"][name] == pytest.approx(1, abs=1e-6)
        assert second["gradient_change"][name] == 0
        assert second["online_drift"][name] == 0
        assert second["gap"][name] == pytest.approx(1, abs=1e-6)


def test_the_gradient_cosine_is_that_of_gradients_by_hand() -> None:
    subject = encoder("stopgrad")
    subject.projector[3].p = 0.0  # type: ignore[index,union-attr]

    def by_hand() -> Tensor:
        features = [subject.parts(view) for view in VIEWS]
        first, second = (subject.projector(f) for f in features)  # type: ignore[misc]
        value = (first - second.detach()).square().sum(dim=1).mean()
        value = value + (second - first.detach()).square().sum(dim=1).mean()
        return torch.cat(torch.autograd.grad(value, features)).flatten()

    probe = Probe(subject, loss, VIEWS)
    probe.read()
    before = by_hand()
    with torch.no_grad():
        for parameter in subject.parts.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    reading, after = probe.read(), by_hand()
    cosine = float(torch.cosine_similarity(before, after, dim=0))
    assert cosine < 0.99
    assert reading["gradient_cosine"]["1"] == pytest.approx(cosine, abs=1e-5)
    change = float((after - before).norm() / before.norm())
    assert reading["gradient_change"]["1"] == pytest.approx(change, rel=1e-4)


def test_a_momentum_target_moves_less_than_the_online_branch_and_a_gap_opens() -> None:
    subject = encoder("all", decay=0.9)
    probe = Probe(subject, loss, VIEWS)
    probe.read()
    with torch.no_grad():
        for parameter in subject.part("0").parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    subject.update()
    reading = probe.read()
    for name in ("0", "1", "projector"):
        assert 0 < reading["target_drift"][name] < 0.5 * reading["online_drift"][name]
        assert reading["gap"][name] < 0.999


def test_before_the_fork_target_and_online_are_one() -> None:
    subject = encoder("projector")
    probe = Probe(subject, loss, VIEWS)
    probe.read()
    with torch.no_grad():
        for parameter in subject.parts.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    reading = probe.read()
    for name in ("0", "1"):
        assert reading["target_drift"][name] == reading["online_drift"][name] > 0
        assert reading["gap"][name] == pytest.approx(1, abs=1e-6)


def test_a_collapsed_projector_is_read_as_collapsed() -> None:
    subject = encoder("projector")
    healthy = Probe(subject, loss, VIEWS).read()["collapse"]
    with torch.no_grad():
        subject.projector[-1].weight.zero_()  # type: ignore[index,union-attr]
    collapsed = Probe(subject, loss, VIEWS).read()["collapse"]
    assert collapsed["spread"] < 1e-3 < 0.1 < healthy["spread"]
    assert collapsed["rank"] == pytest.approx(1, abs=0.01)
    assert collapsed["uniformity"] == pytest.approx(0, abs=1e-6)
