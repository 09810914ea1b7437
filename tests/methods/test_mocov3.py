"""MoCo v3's loss against its formula, its heads, and where its gradient goes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.mocov3 import MoCoV3, batch_nce

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def small(**options: float) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3(hidden=8, out=4, **options)  # type: ignore[arg-type]


def slow(query: Tensor, key: Tensor, temperature: float) -> float:
    query, key = (F.normalize(x.double(), dim=-1) for x in (query, key))
    total = 0.0
    for n, row in enumerate(query):
        powers = [math.exp(float(row @ other) / temperature) for other in key]
        total -= math.log(powers[n] / sum(powers))
    return 2 * temperature * total / len(query)


@few
@given(st.integers(1, 7), st.sampled_from([0.05, 0.2, 1.0]), seeds)
def test_batch_nce_is_the_formula(n: int, temperature: float, seed: int) -> None:
    query, key = draw(seed, n, 5), 3 * draw(seed + 1, n, 5)
    got = float(batch_nce(query, key, temperature))
    assert got == pytest.approx(slow(query, key, temperature), rel=1e-4, abs=1e-5)


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


@pytest.mark.parametrize(("temperature", "want"), [(0.2, 3.2273061), (1.0, 7.0751643)])
def test_values_of_the_authors_implementation(temperature: float, want: float) -> None:
    # contrastive_loss of facebookresearch/moco-v3 moco/builder.py in one process, both directions, run once.
    method = small(temperature=temperature)
    method.predictor = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.eye_(method.predictor[0].weight)
    got = method.loss(branch(wave(1.3, 2, 5, 4)), branch(wave(0.7, 2, 5, 4)))
    assert got.item() == pytest.approx(want, rel=1e-5)


@few
@given(st.integers(2, 4), seeds)
def test_the_loss_is_the_mean_over_pairs_of_views_times_two(views: int, seed: int) -> None:
    method = small()
    online, target = draw(seed, views, 6, 4), draw(seed + 1, 2, 6, 4)
    predicted = [method.predictor(view).detach() for view in online]
    terms = [slow(predicted[i], target[j], 0.2) for i in range(views) for j in range(2) if i != j]
    got = method.loss(branch(online), branch(target)).item()
    assert got == pytest.approx(2 * sum(terms) / len(terms), rel=1e-4)


def test_rotations_of_both_and_orders_of_samples_and_views_do_not_matter() -> None:
    query, key = draw(0, 6, 4), draw(1, 6, 4)
    turn, order = torch.linalg.qr(draw(2, 4, 4)).Q, torch.randperm(6)
    got = batch_nce((query @ turn)[order], (key @ turn)[order], 0.2)
    assert float(got) == pytest.approx(float(batch_nce(query, key, 0.2)), rel=1e-5)
    method, online, target = small(), draw(3, 2, 6, 4), draw(4, 2, 6, 4)
    first, second = (
        method.loss(branch(x), branch(y)).item()
        for x, y in ((online, target), (online.flip(0), target.flip(0)))
    )
    assert first == pytest.approx(second, rel=1e-6)


def test_at_high_temperatures_the_gradient_keeps_its_size() -> None:
    # The limit is linear: towards the own key, away from the batch's mean key, each with weight 2.
    query = F.normalize(draw(0, 5, 4), dim=1).requires_grad_()
    key = F.normalize(draw(1, 5, 4), dim=1)
    (got,) = torch.autograd.grad(batch_nce(query, key, 1e3), query)
    want = 2 * (key.mean(dim=0) - key) / 5
    want = want - (want * query).sum(dim=1, keepdim=True) * query.detach()  # along the sphere alone
    assert torch.allclose(got, want, atol=1e-3)


def test_no_negative_means_no_loss_and_equal_keys_mean_chance() -> None:
    assert float(batch_nce(draw(0, 1, 4), draw(1, 1, 4), 0.2)) == pytest.approx(0, abs=1e-6)
    same = batch_nce(draw(0, 6, 4), draw(1, 1, 4).expand(6, 4), 0.2)
    assert float(same) == pytest.approx(0.4 * math.log(6), rel=1e-5)


def test_the_predictor_is_the_online_branchs_alone_and_sees_each_view_once() -> None:
    method = small()
    online, target = draw(0, 3, 5, 4).requires_grad_(), draw(1, 2, 5, 4)
    before = method.loss(branch(online), branch(target))
    assert int(method.predictor[1].num_batches_tracked) == 3
    before.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.predictor.parameters())
    # Cosines: the target's lengths do not matter, and would if it went through the predictor's batch norm.
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    assert method.loss(branch(online), branch(target * scales)).item() == pytest.approx(
        before.item(), rel=1e-5
    )


def test_the_projector_ends_normalised_and_no_layer_of_a_head_has_a_bias() -> None:
    method = small()
    projector = method.projector(7)
    out = projector(5 + 3 * draw(0, 64, 7))
    assert torch.allclose(out.mean(dim=0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(out.var(dim=0, unbiased=False), torch.ones(4), atol=1e-2)
    two_layers = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert [type(layer) for layer in projector] == [*two_layers, nn.BatchNorm1d]
    # The authors' code for a ResNet leaves the predictor's last norm out (moco/builder.py, `last_bn` False).
    assert [type(layer) for layer in method.predictor] == two_layers
    linears = [m for head in (projector, method.predictor) for m in head if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(7, 8), (8, 4), (4, 8), (8, 4)]
    assert all(m.bias is None for m in linears)
    assert not list(projector[-1].parameters())


def test_the_large_recipe_is_for_large_images_and_constructs() -> None:
    assert MoCoV3.recipe_at(32) is MoCoV3.recipe
    large = MoCoV3.recipe_at(224)
    assert large is MoCoV3.large
    assert MoCoV3(large.hidden, large.out, **large.options).temperature == 1.0


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"hidden": 0}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        MoCoV3(**options)  # type: ignore[arg-type]


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="1 views in the online"):
        small().loss(branch(draw(0, 1, 3, 4)), branch(draw(1, 1, 3, 4)))
