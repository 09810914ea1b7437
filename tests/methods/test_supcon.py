"""SupCon's loss against its formula, and the labels that it needs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods import _contrast
from tailfin.methods.base import Moment
from tailfin.methods.simclr import nt_xent
from tailfin.methods.supcon import SupCon, supervised_contrast

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def moment(labels: Tensor | None) -> Moment:
    return Moment(0, 1, 1, torch.arange(0 if labels is None else len(labels)), labels)


def slow(online: Tensor, target: Tensor, labels: list[int], temperature: float) -> float:
    online, target = (F.normalize(x.double(), dim=-1) for x in (online, target))
    terms = []
    for i, anchors in enumerate(online):
        for n, anchor in enumerate(anchors):
            others = [(j, m) for j in range(len(target)) for m in range(len(labels)) if (j, m) != (i, n)]
            powers = {(j, m): math.exp(float(anchor @ target[j, m]) / temperature) for j, m in others}
            positives = [(j, m) for j, m in others if labels[m] == labels[n]]
            if positives:
                logs = [math.log(powers[p] / sum(powers.values())) for p in positives]
                terms.append(-sum(logs) / len(logs))
    return sum(terms) / len(terms)


@few
@given(
    st.integers(2, 4),
    st.integers(1, 2),
    st.lists(st.integers(0, 3), min_size=2, max_size=7),
    st.sampled_from([0.07, 0.5]),
    st.sampled_from([2**26, 30, 1]),
    seeds,
)
def test_it_is_the_formula_whole_and_in_pieces(
    views: int, targets: int, labels: list[int], temperature: float, most: int, seed: int
) -> None:
    online, target = draw(seed, views, len(labels), 5), 3 * draw(seed + 1, targets, len(labels), 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_contrast, "MOST_SIMILARITIES", most)
        got = supervised_contrast(branch(online), branch(target), torch.tensor(labels), temperature)
    assert float(got) == pytest.approx(slow(online, target, labels, temperature), rel=1e-4, abs=1e-5)


def test_gradients_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, found = torch.tensor([0, 1, 0, 2, 1]), []
    for most in (2**26, 7):
        monkeypatch.setattr(_contrast, "MOST_SIMILARITIES", most)
        online, target = draw(0, 4, 5, 3).requires_grad_(), draw(1, 2, 5, 3).requires_grad_()
        loss = supervised_contrast(branch(online), branch(target), labels, 0.2)
        found.append(torch.autograd.grad(loss, (online, target)))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(whole, pieces)


def test_the_gradient_keeps_its_digits_where_a_class_is_nearly_one_point() -> None:
    labels = torch.zeros(64, dtype=torch.long)
    views = draw(0, 1, 1, 16) + 0.01 * draw(1, 2, 64, 16)
    found = []
    for kind in (torch.float32, torch.float64):
        here = views.to(kind).requires_grad_()
        rows = F.normalize(here, dim=-1).flatten(0, 1)
        if kind == torch.float32:
            loss = supervised_contrast(branch(here), branch(here), labels, 0.1)
        else:
            logits = (rows @ rows.T / 0.1).masked_fill(torch.eye(128, dtype=torch.bool), -torch.inf)
            logs = logits.log_softmax(dim=1).masked_fill(torch.eye(128, dtype=torch.bool), 0.0)
            loss = -logs.sum(dim=1).mean() / 127
        found.append(torch.autograd.grad(loss, here)[0].double())
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


@pytest.mark.parametrize(("temperature", "want"), [(0.2, 5.0739293), (0.07, 13.4439802)])
def test_values_of_the_authors_implementation(temperature: float, want: float) -> None:
    # SupConLoss of HobbitLong/SupContrast losses.py with base_temperature = temperature, which leaves its
    # additional factor out, on the same wave as unit vectors, run once.
    views = torch.sin(1.3 * torch.arange(1, 41)).reshape(2, 5, 4)
    got = supervised_contrast(branch(views), branch(views), torch.tensor([0, 1, 0, 2, 1]), temperature)
    assert float(got) == pytest.approx(want, rel=1e-5)


@few
@given(st.integers(2, 8), seeds)
def test_a_class_for_each_image_makes_it_nt_xent(n: int, seed: int) -> None:
    online, target = branch(draw(seed, 2, n, 5)), branch(draw(seed + 1, 2, n, 5))
    got = supervised_contrast(online, target, torch.arange(n), 0.2)
    assert float(got) == pytest.approx(float(nt_xent(online, target, 0.2)), rel=1e-5)


def test_names_of_classes_rotations_and_orders_do_not_matter() -> None:
    online, target, labels = draw(0, 2, 6, 4), draw(1, 2, 6, 4), torch.tensor([0, 1, 1, 0, 2, 1])
    want = float(supervised_contrast(branch(online), branch(target), labels, 0.2))
    turn, order = torch.linalg.qr(draw(2, 4, 4)).Q, torch.randperm(6)
    moved = [branch((x @ turn).flip(0)[:, order]) for x in (online, target)]
    renamed = torch.tensor([7, 0, 100])[labels]
    assert float(supervised_contrast(*moved, renamed[order], 0.2)) == pytest.approx(want, rel=1e-5)
    others = torch.tensor([0, 1, 2, 0, 2, 1])
    assert float(supervised_contrast(branch(online), branch(target), others, 0.2)) != pytest.approx(want)


def test_its_least_value_is_that_of_classes_as_opposite_points() -> None:
    # Two classes at opposite poles: 2 views of 2 images a class leave 3 positives and 4 negatives.
    labels = torch.tensor([0, 0, 1, 1])
    poles = torch.stack([torch.where(labels == 0, 1.0, -1.0), torch.zeros(4)], dim=1)
    views = poles.expand(2, -1, -1).clone().requires_grad_()
    loss = supervised_contrast(branch(views), branch(views), labels, 0.5)
    assert loss.item() == pytest.approx(math.log(3 + 4 * math.exp(-4)), rel=1e-6)
    loss.backward()
    assert torch.allclose(views.grad, torch.zeros_like(views), atol=1e-6)
    for seed in range(20):
        other = branch(draw(seed, 2, 4, 2))
        assert float(supervised_contrast(other, other, labels, 0.5)) > loss.item()


def test_the_labels_of_the_moment_are_the_ones_used_and_gradients_cross_both_branches() -> None:
    method = SupCon(hidden=4, out=4, temperature=0.3)
    online, target = draw(0, 2, 5, 4).requires_grad_(), draw(1, 2, 5, 4).requires_grad_()
    for labels in ([0, 1, 0, 1, 2], [0, 0, 0, 1, 1]):
        method.begin(moment(torch.tensor(labels)))
        loss = method.loss(branch(online), branch(target))
        assert loss.item() == pytest.approx(slow(online.detach(), target.detach(), labels, 0.3), rel=1e-4)
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (online, target))


@pytest.mark.parametrize("known", [None, moment(None)])
def test_images_without_labels_are_refused(known: Moment | None) -> None:
    method = SupCon(hidden=4, out=4)
    method.begin(known)
    with pytest.raises(ValueError, match="SupCon needs a label an image"):
        method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(1), torch.zeros(3, 1)])
def test_labels_of_other_images_are_refused(labels: Tensor) -> None:
    method = SupCon(hidden=4, out=4)
    method.begin(moment(labels.long()))
    with pytest.raises(ValueError, match="for 3 images"):
        method.loss(branch(draw(0, 2, 3, 4)), branch(draw(1, 2, 3, 4)))


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="1 views in the online"):
        supervised_contrast(branch(draw(0, 1, 3, 4)), branch(draw(1, 1, 3, 4)), torch.zeros(3), 0.2)


def test_it_says_that_it_needs_labels_and_the_large_recipe_is_for_large_images() -> None:
    assert SupCon.about.needs == ("labels",)
    assert SupCon.recipe_at(32) is SupCon.recipe
    large = SupCon.recipe_at(224)
    assert large is SupCon.large
    assert SupCon(large.hidden, large.out, **large.options).out == 512


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"out": 0}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SupCon(**options)  # type: ignore[arg-type]
