"""The neighbour look-up against a plain search, and how the support set fills."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods._ring import Ring
from tailfin.methods._support import nearest
from tailfin.methods.all4one import All4One
from tailfin.methods.nnbyol import NNBYOL
from tailfin.methods.nnclr import NNCLR
from tailfin.methods.nnsiam import NNSiam

few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 2**31 - 1)
every = pytest.mark.parametrize("cls", [NNCLR, NNBYOL, NNSiam, All4One])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ring(size: int, rows: Tensor) -> Ring:
    support = Ring(1, size, rows.shape[1])
    support.gather(F.normalize(rows, dim=1)[None])
    support.commit()
    return support


def branch(seed: int, n: int, p: int = 4) -> Branch:
    views = tuple(draw(seed, 2, n, p))
    return Branch(views, views)


@few
@given(st.integers(0, 9), st.integers(1, 5), st.integers(1, 6), seeds)
def test_neighbours_are_those_of_a_plain_search(filled: int, count: int, n: int, seed: int) -> None:
    vectors, past = draw(seed, n, 4), draw(seed + 1, filled, 4)
    got = nearest(vectors, ring(9, past), count)
    assert got.shape == (n, count, 4)
    for query, found in zip(vectors, got, strict=True):
        own = F.normalize(query, dim=0)
        rows = sorted(F.normalize(past, dim=1), key=lambda row: float(-row @ own))
        want = [*rows, *[own] * count][:count]  # what is missing is the view itself
        assert torch.allclose(found, torch.stack(want), atol=1e-6)


def test_empty_rows_are_no_neighbours() -> None:
    # Every cosine with what is held is negative; a row of zeros would be nearer.
    held = -torch.eye(4)[:1]
    got = nearest(torch.eye(4)[:1], ring(8, held), 1)
    assert torch.equal(got[:, 0], held)


@pytest.mark.parametrize("filled", [0, 8])
def test_neighbours_have_no_gradient_and_are_float32(filled: int) -> None:
    vectors = draw(0, 3, 4).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = nearest(vectors, ring(8, draw(1, filled, 4)), 2)
    assert not got.requires_grad
    assert got.dtype == torch.float32


def test_a_support_set_in_half_precision_is_searched_too() -> None:
    support = ring(8, torch.eye(4))
    got = nearest(draw(0, 3, 4), support.bfloat16(), 2)
    assert got.dtype == torch.float32
    assert torch.equal(got, nearest(draw(0, 3, 4), ring(8, torch.eye(4)), 2))


def test_neighbours_do_not_depend_on_length_or_rotation() -> None:
    vectors, past, turn = draw(0, 5, 4), draw(1, 8, 4), torch.linalg.qr(draw(2, 4, 4)).Q
    want = nearest(vectors, ring(8, past), 3) @ turn
    assert torch.allclose(nearest(7 * vectors @ turn, ring(8, past @ turn), 3), want, atol=1e-6)


@every
def test_the_first_target_view_enters_at_a_taken_step_in_training(cls: type[NNCLR]) -> None:
    method = cls(hidden=4, out=4, queue_size=8)
    target = branch(1, 3)
    method.loss(branch(0, 3), target)
    assert int(method.support.entered) == 0
    method.after_step(taken=False)
    method.after_step()
    with torch.no_grad():
        method.loss(branch(0, 3), target)
    method.after_step()
    method.eval()
    method.loss(branch(0, 3), target)
    method.after_step()
    assert int(method.support.entered) == 0
    method.train()
    method.loss(branch(0, 3), target)
    method.loss(branch(0, 2), branch(2, 2))
    method.after_step()
    want = torch.cat((target.projections[0], branch(2, 2).projections[0]))
    assert torch.equal(method.support.rows[0, :5], F.normalize(want, dim=1))
    assert int(method.support.entered) == 5


@every
def test_the_support_set_shrinks_with_the_images(cls: type[NNCLR]) -> None:
    published = cls.defaults(512, 50_000)["queue_size"]
    assert published == (98304 if cls is All4One else 65536)
    assert cls.defaults(512, 1_000_000)["queue_size"] == published
    assert cls.defaults(512, 5_000)["queue_size"] == published // 10
    assert cls.defaults(512, 0)["queue_size"] == cls.neighbours


@every
def test_a_support_set_that_is_too_small_is_refused(cls: type[NNCLR]) -> None:
    with pytest.raises(ValueError, match="queue_size"):
        cls(hidden=4, out=4, queue_size=cls.neighbours - 1)
