"""LeJEPA's loss and statistic against their formulas and the authors' code, and how its directions are drawn."""

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods import lejepa
from tailfin.methods.lejepa import LeJEPA, epps_pulley, lejepa_loss

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1).square()).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def slow_statistic(samples: list[float], knots: int) -> float:
    """N int |phi(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt over [-3, 3], by the trapezoidal rule on both sides of 0."""
    spacing, total = 3 / (knots - 1), 0.0
    for k in range(-knots + 1, knots):
        t = k * spacing
        empirical = sum(cmath.exp(1j * t * x) for x in samples) / len(samples)
        share = 0.5 if abs(k) == knots - 1 else 1.0
        total += share * abs(empirical - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2) * spacing
    return len(samples) * total


@few
@given(st.integers(1, 9), st.integers(2, 20), seeds)
def test_statistic_is_the_formula(n: int, knots: int, seed: int) -> None:
    samples = 2 * draw(seed, n, 3) + 0.5
    got = epps_pulley(samples, knots)
    want = [slow_statistic(column, knots) for column in samples.double().T.tolist()]
    assert torch.allclose(got, torch.tensor(want), rtol=1e-4, atol=1e-5)


@few
@given(st.integers(2, 4), st.integers(2, 6), st.integers(1, 5), st.floats(0, 1), seeds)
def test_loss_is_the_formula(views: int, n: int, p: int, weight: float, seed: int) -> None:
    online, target = draw(seed, views, n, p), draw(seed + 1, 2, n, p)
    method = LeJEPA(out=p, regularisation=weight, directions=3, knots=5)
    torch.manual_seed(7)
    directions = lejepa.draw(online[0], 3).double()
    torch.manual_seed(7)
    terms = []
    for view in online.double():
        centre = [[float(target[:, k, c].double().mean()) for c in range(p)] for k in range(n)]
        squares = [(float(view[k, c]) - centre[k][c]) ** 2 for k in range(n) for c in range(p)]
        columns = [[float(row @ a) for row in view] for a in directions.T]
        sigreg = sum(slow_statistic(column, 5) for column in columns) / 3
        terms.append((1 - weight) * sum(squares) / (n * p) + weight * sigreg)
    got = method.loss(branch(online), branch(target))
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_values_of_the_authors_code() -> None:
    # rbalestr-lab/lejepa: the package's EppsPulley(), and MINIMAL.md's loss (lamb .05) after seed 3; run once.
    online = wave(1.3, 2, 7, 4)
    want = torch.tensor([0.6228113, 0.7351795, 0.7604182, 0.6345763])
    assert torch.allclose(epps_pulley(online[0], 17), want, rtol=1e-5)
    torch.manual_seed(3)
    directions = F.normalize(torch.randn(4, 256), dim=0)
    got = [lejepa_loss(view, online.mean(dim=0), directions, 17, 0.05) for view in online]
    assert float(sum(got)) / 2 == pytest.approx(0.2865298, rel=1e-5)


def test_a_normal_sample_is_told_from_others() -> None:
    normal = torch.distributions.Normal(0, 1).icdf((torch.arange(400) + 0.5) / 400)
    columns = torch.stack((normal, 2 * normal, normal + 1, normal.sign(), torch.zeros(400)), dim=1)
    good, *others = epps_pulley(columns, 17).tolist()
    assert good < 0.01
    assert min(others) > 10


def test_normal_samples_have_one_mean_statistic_whatever_their_number() -> None:
    """The mean of N |phi - e^(-t^2 / 2)|^2 is 1 - e^(-t^2), whose integral times the weight is known."""
    root = math.sqrt(2 * math.pi)
    want = root * math.erf(3 / math.sqrt(2)) - root / math.sqrt(3) * math.erf(3 * math.sqrt(1.5))
    for n in (2, 32):
        assert float(epps_pulley(draw(n, n, 20_000), 17).mean()) == pytest.approx(want, rel=0.03)


def test_directions_are_unit_and_follow_torchs_generator() -> None:
    like = torch.zeros(5, 6)
    torch.manual_seed(9)
    first, second = (lejepa.draw(like, 4) for _ in range(2))
    torch.manual_seed(9)
    assert torch.equal(first, lejepa.draw(like, 4))
    assert float((first - second).abs().min()) > 0
    assert torch.allclose(first.norm(dim=0), torch.ones(4), atol=1e-6)


def test_torchs_generator_decides_the_loss() -> None:
    views, method = branch(draw(0, 2, 6, 4)), LeJEPA(out=4, directions=2)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(method.loss(views, views))
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_orders_do_not_matter_and_rotations_hardly_do() -> None:
    online, target = draw(0, 2, 6, 4), draw(1, 2, 6, 4)
    turn, samples = torch.linalg.qr(draw(2, 4, 4)).Q, torch.arange(6).roll(2)
    method = LeJEPA(out=4, directions=4000, regularisation=0.5)
    torch.manual_seed(0)
    want = float(method.loss(branch(online), branch(target)))
    torch.manual_seed(0)
    moved, others = (views.flip(0)[:, samples] for views in (online, target))
    assert float(method.loss(branch(moved), branch(others))) == pytest.approx(want, rel=1e-5)
    torch.manual_seed(0)
    turned = float(method.loss(branch(online @ turn), branch(target @ turn)))
    assert turned == pytest.approx(want, rel=0.02)
    assert turned != pytest.approx(want, rel=1e-6)


def test_the_centre_is_the_targets() -> None:
    """Small crops, which the online branch alone sees, are drawn to the large views' centre."""
    online, target = draw(0, 4, 6, 4), draw(1, 2, 6, 4)
    method = LeJEPA(out=4, regularisation=0.0)
    want = (online - target.mean(dim=0)).square().mean()
    assert float(method.loss(branch(online), branch(target))) == pytest.approx(float(want), rel=1e-5)


def test_descent_makes_projections_normal() -> None:
    views = (0.1 * draw(0, 1, 64, 3) + 1).repeat(2, 1, 1).requires_grad_()
    method = LeJEPA(out=3, directions=32, regularisation=0.5)
    optimizer = torch.optim.SGD([views], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        method.loss(branch(views), branch(views)).backward()
        optimizer.step()
    rows = views.detach()[0]
    assert torch.allclose(rows.mean(dim=0), torch.zeros(3), atol=0.15)
    assert torch.allclose(rows.T.cov(), torch.eye(3), atol=0.25)


def test_large_images_have_more_directions() -> None:
    assert LeJEPA(**LeJEPA.recipe_at(224).options).directions == 1024
    assert LeJEPA(**LeJEPA.recipe_at(32).options).directions == 256


@pytest.mark.parametrize("options", [{"regularisation": 1.5}, {"directions": 0}, {"knots": 1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LeJEPA(**options)
