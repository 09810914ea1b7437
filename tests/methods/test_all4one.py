"""All4One's terms against their formulas, and the whole against the authors' code."""

import math
from inspect import signature

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.all4one import All4One, place_waves, redundancy
from tailfin.methods.nnclr import neighbour_nce

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(pace: float, *shape: int) -> Tensor:
    return torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape)


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def make(**options: float) -> All4One:
    """Heads as they start: with waves as weights all centroids are the same, and their term is log N throughout."""
    torch.manual_seed(0)
    method = All4One(hidden=8, out=8, queue_size=12, **options)  # type: ignore[arg-type]
    for part in method.attention.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    method.support.gather(F.normalize(wave(0.9, 12, 8), dim=1)[None])
    method.support.commit()
    return method


def slow_redundancy(pairs: list[tuple[Tensor, Tensor]]) -> float:
    same, other = [], []
    for online, target in pairs:
        a = F.normalize(F.normalize(target.double(), dim=1), dim=0)
        b = F.normalize(online.double(), dim=0)
        for i in range(a.shape[1]):
            for j in range(a.shape[1]):
                value = sum(float(x) * float(y) for x, y in zip(a[:, i], b[:, j], strict=True))
                same.append((1 - value) ** 2) if i == j else other.append(value**2)
    return (math.sqrt(sum(same) / len(same)) + math.sqrt(sum(other) / len(other))) / 2


@few
@given(st.integers(1, 3), st.integers(2, 6), st.integers(2, 5), seeds)
def test_redundancy_is_the_formula(count: int, n: int, p: int, seed: int) -> None:
    views = [(draw(seed + 2 * k, n, p), draw(seed + 2 * k + 1, n, p)) for k in range(count)]
    assert float(redundancy(views)) == pytest.approx(slow_redundancy(views), abs=1e-5)


def test_redundancy_of_independent_features_that_agree_is_nothing_and_its_gradient_finite() -> None:
    view = torch.eye(4).requires_grad_()
    value = redundancy([(view, view)])
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(view.grad).all()


def test_value_of_the_authors_code() -> None:
    # All4One.training_step of solo-learn at 9187ea3 (solo/methods/all4one.py, losses/nnclr.py and
    # utils/positional_encodings.py as they are, the rest of the package stubbed), run once with torch 2.14.1 on the
    # same waves: its projector the identity, its heads loaded from `make`, no dropout, its queue the 12 rows. Its
    # terms, before their weights: neighbours 2.0416312, centroids 3.8209083 and features 5.7917328.
    got = make().loss(branch(wave(1.3, 2, 6, 8)), branch(wave(0.7, 2, 6, 8)))
    assert float(got.detach()) == pytest.approx(5.8271360, abs=2e-5)


def test_centroids_differ() -> None:
    online, target = branch(wave(1.3, 2, 6, 8)), branch(wave(0.7, 2, 6, 8))
    both, plain = (float(make(feature=0, centroid=c).loss(online, target).detach()) for c in (1, 0))
    # log 6 would be the term of centroids that are all the same.
    assert abs(both - plain - math.log(6)) > 1e-2
    assert both - plain == pytest.approx(3.8209083, abs=2e-5)


def test_the_transformer_is_the_published_one() -> None:
    # Three layers and dropout .1 (solo/methods/all4one.py), eight heads, twice as wide within.
    attention = All4One(hidden=8, out=16, queue_size=12).attention
    assert isinstance(attention, nn.TransformerEncoder)
    assert len(attention.layers) == attention.num_layers == 3
    for layer in attention.layers:
        assert layer.self_attn.num_heads == 8
        assert (layer.linear1.in_features, layer.linear1.out_features) == (16, 32)
        rates = [layer.self_attn.dropout, layer.dropout.p, layer.dropout1.p, layer.dropout2.p]
        assert rates == [0.1, 0.1, 0.1, 0.1]
        assert not layer.norm_first


def test_the_constructors_defaults_are_the_published_ones() -> None:
    # solo-learn scripts/pretrain/cifar/all4one.yaml; the centroids' temperature is nnclr_loss_func's own. There the
    # feature term is .5 * 10 * (half of each root), here 5 * their mean.
    defaults = {name: p.default for name, p in signature(All4One).parameters.items()}
    want = {
        "temperature": 0.2,
        "centroid_temperature": 0.1,
        "centroid": 0.5,
        "feature": 5.0,
        "queue_size": 98304,
    }
    assert defaults == {"hidden": None, "out": None, **want}
    method = All4One(hidden=8, out=8)
    kept = {name: getattr(method, name) for name in want if name != "queue_size"}
    assert {**kept, "queue_size": method.support.size} == want
    assert method.neighbours == 5


def test_terms_add_up() -> None:
    online, target = wave(1.3, 3, 6, 8), wave(0.7, 2, 6, 8)
    values = {
        weights: float(
            make(centroid=weights[0], feature=weights[1]).loss(branch(online), branch(target)).detach()
        )
        for weights in [(0, 0), (1, 0), (0, 1), (2, 3)]
    }
    plain, centroid, feature, both = values.values()
    pairs = [(online[i], target[j]) for i in range(3) for j in range(2) if i != j]
    assert feature - plain == pytest.approx(slow_redundancy(pairs), abs=1e-4)
    assert both - plain == pytest.approx(2 * (centroid - plain) + 3 * (feature - plain), abs=1e-4)
    method = make()
    found = [method.nearest(view)[:, 0] for view in target]
    predictions = [method.predictor(view).detach() for view in online]
    contrast = [
        float(neighbour_nce(found[j], predictions[i], 0.2)) for i in range(3) for j in range(2) if i != j
    ]
    assert plain == pytest.approx(sum(contrast) / len(contrast) / 2, abs=1e-5)


def test_the_order_of_samples_does_not_matter() -> None:
    online, target, order = draw(0, 2, 6, 8), draw(1, 2, 6, 8), torch.tensor([3, 0, 5, 4, 1, 2])
    want = make().loss(branch(online), branch(target))
    got = make().loss(branch(online.flip(0)[:, order]), branch(target.flip(0)[:, order]))
    assert float(got.detach()) == pytest.approx(float(want.detach()), abs=1e-4)


def test_each_place_has_a_wave_of_its_own() -> None:
    want = [[math.sin(x), math.cos(x), math.sin(x / 10000 ** (1 / 3))] for x in range(7)]
    got = place_waves(5, 7)
    assert got.shape == (5, 7)
    assert torch.allclose(got[:3].T, torch.tensor(want), atol=1e-5)


def test_both_predictors_and_the_transformer_learn() -> None:
    method = make()
    method.loss(branch(draw(0, 2, 6, 8)), branch(draw(1, 2, 6, 8))).backward()
    # The next layer's batch norm takes the first bias of a predictor off again.
    idle = {"predictor.0.bias", "centroid_predictor.0.bias"}
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert name in idle or parameter.grad.abs().max() > 1e-4, name
    assert All4One.defaults(512, 50_000).items() >= {"hidden": 2048, "out": 256}.items()


@pytest.mark.parametrize("out", [1, 6, 12])
def test_widths_that_eight_heads_do_not_divide(out: int) -> None:
    views = branch(draw(0, 2, 6, out))
    assert torch.isfinite(All4One(hidden=4, out=out, queue_size=8).loss(views, views))


@pytest.mark.parametrize(
    "option", ["temperature", "centroid_temperature", "centroid", "feature", "queue_size"]
)
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option.removeprefix("centroid_")):
        All4One(hidden=4, out=4, **{"queue_size": 8, option: -1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="views"):
        make().loss(branch(draw(0, 3, 6, 8)), branch(draw(0, 3, 6, 8)))
