"""DeepCluster v2's loss against its formula, its k-means, its bank and when it clusters."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tailfin.branch import Branch
from tailfin.methods.base import Moment
from tailfin.methods.deepclusterv2 import DeepClusterV2, _sums, cluster_prediction, spherical_kmeans

few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def branch(views: Tensor) -> Branch:
    return Branch(tuple(views), tuple(views))


def small(**options: float) -> DeepClusterV2:
    return DeepClusterV2(out=4, **{"images": 12, "prototypes": 3, "heads": 2, **options})  # type: ignore[arg-type]


def moment(step: int, indices: list[int], per_epoch: int = 3) -> Moment:
    return Moment(step, 30, per_epoch, torch.tensor(indices), None)


def take(method: DeepClusterV2, step: int, indices: list[int], views: Tensor, taken: bool = True) -> Tensor:
    torch.manual_seed(step)
    method.begin(moment(step, indices))
    loss = method.loss(branch(views.flip(0)), branch(views))
    method.after_step(taken)
    return loss


def epoch(method: DeepClusterV2, first: int, seed: int = 0) -> Tensor:
    """Three steps of four images; returns what the bank should hold."""
    views = F.normalize(draw(seed, 2, 12, 4), dim=-1)
    for part in range(3):
        places = list(range(4 * part, 4 * part + 4))
        take(method, first + part, places, views[:, places])
    return views


def cross_entropy(query: Tensor, keys: Tensor, right: int, temperature: float) -> float:
    query, keys = F.normalize(query.double(), dim=0), F.normalize(keys.double(), dim=1)
    powers = [math.exp(float(query @ key) / temperature) for key in keys]
    return -math.log(powers[right] / sum(powers))


@few
@given(st.integers(2, 3), st.integers(1, 6), st.integers(1, 7), seeds)
def test_cluster_prediction_is_the_formula(views: int, n: int, k: int, seed: int) -> None:
    online, target = draw(seed, views, n, 5), draw(seed + 1, 2, n, 5)
    centroids = F.normalize(draw(seed + 2, 2, k, 5), dim=-1)
    labels = torch.randint(-1, k, (2, n), generator=torch.Generator().manual_seed(seed))
    terms = []
    for head in range(2):
        for i in range(views):
            for sample in range(n):
                label = int(labels[head, sample])
                if label >= 0:
                    terms.append(cross_entropy(online[i, sample], centroids[head], label, 0.2))
                else:
                    others = [target[j] for j in range(2) if j != i]
                    rest = [cross_entropy(online[i, sample], keys, sample, 0.2) for keys in others]
                    terms.append(sum(rest) / len(rest))
    got = cluster_prediction(branch(online), branch(target), centroids, labels, 0.2)
    assert float(got) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


def test_value_of_another_implementation() -> None:
    # solo-learn's deepclusterv2_loss_func on the same waves, run once.
    def wave(pace: float, *shape: int) -> Tensor:
        return F.normalize(torch.sin(pace * torch.arange(1, math.prod(shape) + 1)).reshape(shape), dim=-1)

    centroids = torch.stack((wave(0.9, 6, 4), wave(1.1, 6, 4)))
    labels = torch.tensor([[0, 1, 2, 3, 4], [5, 5, 0, 1, 2]])
    online = branch(wave(1.3, 2, 5, 4))
    assert float(cluster_prediction(online, online, centroids, labels, 0.1)) == pytest.approx(
        8.7929878, rel=1e-4
    )


def test_rotations_and_the_order_of_samples_do_not_matter() -> None:
    online, target, labels = draw(0, 2, 5, 4), draw(1, 2, 5, 4), torch.tensor([[0, -1, 2, 1, -1]])
    centroids = F.normalize(draw(2, 1, 3, 4), dim=-1)
    want = cluster_prediction(branch(online), branch(target), centroids, labels, 0.1)
    turn, order = torch.linalg.qr(draw(3, 4, 4)).Q, torch.tensor([3, 0, 4, 1, 2])
    moved = [branch((views @ turn).flip(0)[:, order]) for views in (online, target)]
    got = cluster_prediction(*moved, centroids @ turn, labels[:, order], 0.1)
    assert float(got) == pytest.approx(float(want), rel=1e-4)


def test_kmeans_finds_groups_that_are_there() -> None:
    middles = torch.eye(4)
    truth = torch.arange(4).repeat(30)
    points = F.normalize(middles[truth] + 0.1 * draw(0, 120, 4), dim=1)
    centroids, nearest = spherical_kmeans(points, points[:4], 5)
    assert torch.equal(nearest, truth)
    assert float((centroids * middles).sum(dim=1).min()) > 0.99
    for k in range(4):
        assert torch.allclose(centroids[k], F.normalize(points[truth == k].sum(dim=0), dim=0), atol=1e-5)


@few
@given(st.integers(1, 20), st.integers(1, 8), seeds)
def test_kmeans_never_gets_worse_and_assigns_the_nearest(n: int, k: int, seed: int) -> None:
    points, start = F.normalize(draw(seed, n, 3), dim=1), F.normalize(draw(seed + 1, k, 3), dim=1)
    fits = []
    for iterations in range(4):
        centroids, nearest = spherical_kmeans(points, start, iterations)
        cosines = points @ centroids.T
        assert torch.equal(nearest, cosines.argmax(dim=1))
        assert torch.allclose(centroids.norm(dim=1), torch.ones(k), atol=1e-5)
        fits.append(float(cosines.max(dim=1).values.sum()))
    assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(fits))


def test_kmeans_keeps_an_empty_clusters_centroid() -> None:
    points, start = torch.tensor([[1.0, 0.0], [0.8, 0.6]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    centroids, nearest = spherical_kmeans(points, start, 3)
    assert torch.equal(centroids[1], start[1])
    assert nearest.tolist() == [0, 0]


@few
@given(st.integers(0, 20), st.integers(1, 8), seeds)
def test_sums_are_those_of_a_plain_loop(n: int, k: int, seed: int) -> None:
    points, labels = draw(seed, n, 3), torch.randint(k, (n,), generator=torch.Generator().manual_seed(seed))
    want = torch.zeros(k, 3, dtype=torch.float64)
    for point, label in zip(points.double(), labels.tolist(), strict=True):
        want[label] += point
    assert torch.allclose(_sums(points, labels, k).double(), want, atol=1e-5)


class Named(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_kmeans_uses_no_operation_that_is_atomic_on_a_gpu() -> None:
    # Those that torch.use_deterministic_algorithms names and that could sum by label.
    points = F.normalize(draw(0, 40, 3), dim=1)
    with Named() as called:
        spherical_kmeans(points, points[:5], 3)
    assert "mm" in called.names
    atomic = ("index_add", "scatter", "index_put", "put_", "bincount", "histc", "cumsum", "index_reduce")
    assert not [name for name in called.names if name.startswith(atomic)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_kmeans_gives_the_same_bits_each_time_on_cuda() -> None:
    points = F.normalize(draw(0, 20_000, 16), dim=1).cuda()
    once, again = (spherical_kmeans(points, points[:50], 10) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_it_clusters_after_each_epoch_and_no_sooner() -> None:
    method = small()
    views = epoch(method, 0)
    assert torch.allclose(method.bank, views, atol=1e-6)
    assert int(method.assignments.min()) >= 0
    for head in range(2):  # heads take turns with the views
        nearest = (views[head] @ method.centroids[head].T).argmax(dim=1)
        assert torch.equal(nearest, method.assignments[head])
    held = method.assignments.clone(), method.centroids.clone()
    take(method, 3, [0, 1, 2, 3], draw(5, 2, 4, 4))
    take(method, 4, [4, 5, 6, 7], draw(6, 2, 4, 4))
    assert torch.equal(held[0], method.assignments)
    take(method, 5, [8, 9, 10, 11], draw(7, 2, 4, 4))
    assert not torch.equal(held[1], method.centroids)


def test_a_last_step_that_is_not_taken_leaves_the_clusters_for_another_epoch() -> None:
    method = small()
    take(method, 0, [0, 1, 2, 3], draw(0, 2, 4, 4))
    take(method, 1, [4, 5, 6, 7], draw(1, 2, 4, 4))
    take(method, 2, [8, 9, 10, 11], draw(2, 2, 4, 4), taken=False)
    assert int(method.assignments.max()) == -1
    assert not method.bank[:, 8:].any()
    take(method, 3, [0, 1, 2, 3], draw(3, 2, 4, 4))
    assert int(method.assignments.max()) == -1
    take(method, 5, [0, 1, 2, 3], draw(3, 2, 4, 4))
    assert (method.assignments >= 0).any(dim=0).tolist() == [True] * 8 + [False] * 4


def test_a_look_and_a_loss_alone_change_nothing() -> None:
    method = small()
    epoch(method, 0)
    held = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        take(method, 5, [0, 1], draw(3, 2, 2, 4))
    method.begin(moment(5, [0, 1]))
    for _ in range(20):
        method.loss(branch(draw(1, 2, 2, 4)), branch(draw(2, 2, 2, 4)))
    assert sum(len(places) for places, _ in method._pending) <= 12 + 1
    assert all(torch.equal(value, method.state_dict()[key]) for key, value in held.items())


def test_state_goes_on_to_the_bit() -> None:
    method, twin = small(), small()
    epoch(method, 0)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    for step in (3, 4, 5, 6):
        views, places = draw(step, 2, 4, 4), [(4 * step + k) % 12 for k in range(4)]
        assert torch.equal(take(method, step, places, views), take(twin, step, places, views))
    assert torch.equal(method.centroids, twin.centroids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "identical", "zero"])
def test_finite_at_the_edges(dtype: torch.dtype, kind: str) -> None:
    method = small(prototypes=30)  # more centroids than images seen
    for step in range(7):
        views = draw(step, 2, 2, 4)
        if kind == "identical":
            views[:] = views[0, 0]
        elif kind == "zero":
            views.zero_()
        online = views.to(dtype).requires_grad_()
        method.begin(moment(step, [step, step + 1]))
        loss = method.loss(branch(online), branch(online))
        loss.backward()
        method.after_step()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert online.grad is not None
        assert torch.isfinite(online.grad).all()
    assert torch.isfinite(method.centroids).all()


def test_what_it_cannot_know_is_said() -> None:
    method, views = small(), branch(draw(0, 2, 4, 4))
    with pytest.raises(ValueError, match="call begin"):
        method.loss(views, views)
    for indices in ([0, 1, 2, 12], [-1, 0, 1, 2], [0, 1]):
        method.begin(moment(0, indices))
        with pytest.raises(ValueError, match="places 0 to 11"):
            method.loss(views, views)


def test_defaults_follow_backbone_and_images() -> None:
    assert DeepClusterV2.defaults(512, 50_000).items() >= {"prototypes": 3000, "images": 50_000}.items()
    assert DeepClusterV2.defaults(64, 1200).items() >= {"prototypes": 100, "images": 1200, "out": 128}.items()
    with pytest.raises(ValueError, match="heads"):
        small(heads=0)
