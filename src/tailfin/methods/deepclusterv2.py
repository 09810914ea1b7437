"""DeepCluster v2: every epoch the images are clustered, and views are to tell their cluster (arXiv 2006.09882)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tailfin.branch import Branch
from tailfin.methods._heads import affordable
from tailfin.methods.base import (
    WIDE,
    About,
    Method,
    Recipe,
    check_temperature,
    crossings,
    full_precision,
    two_views,
    unit,
)

VIEWS = 2
"""Views that the bank keeps of each image."""

CHUNK = 4096
"""Images that are compared with all centroids at once."""


class DeepClusterV2(Method):
    """DeepCluster v2 (appendix D of SwAV's paper): a bank of projections, clustered after every epoch.

    An image without a cluster, as all are in the first epoch, takes the target's projections of its batch for
    centroids, its own being the right one: so does k-means with no fewer centroids than images. The authors
    fill the bank with one more pass over the images before the first epoch.

    Attributes:
        bank: float32 [2, images, out], unit target projections of each image's last two views; 0 where never seen.
        centroids: float32 [heads, prototypes, out], unit vectors.
        assignments: int64 [heads, images], each image's centroid; -1 where it has none.
    """

    stop_gradient = True
    about = About(
        title="DeepCluster v2",
        family="prototypes",
        year=2020,
        source="2006.09882",
        idea="After every epoch the images are clustered by what the encoder made of them during that epoch. In the "
        "next epoch every view is to be nearest to the centroid of its image's cluster. Several clusterings at once "
        "make the labels less arbitrary.",
        equation=r"-\log \frac{\exp(\cos(z, c_{y}) / \tau)}{\sum_k \exp(\cos(z, c_k) / \tau)}, \quad "
        r"y = \arg\max_k \cos(z', c_k)",
        expected={"CIFAR-10": 88.85, "CIFAR-100": 63.61},
        expected_source="solo-learn, ResNet-18, 1000 epochs",
    )
    recipe = Recipe(
        optimizer="lars",
        lr=0.6,
        weight_decay=1e-6,
        trust_coefficient=0.02,
        clip=True,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        warmup_epochs=11,
        source="solo-learn scripts/pretrain/cifar/deepclusterv2.yaml; views: SimCLR's at half strength; decay: ours",
    )
    large = Recipe(
        optimizer="lars",
        lr=0.3,
        weight_decay=1e-6,
        trust_coefficient=0.001,
        views="simclr",
        placement="none",
        decay=0.99,
        decay_end=0.99,
        hidden=2048,
        out=128,
        batch_norm=True,
        source="facebookresearch/swav scripts/deepclusterv2_400ep_2x224_pretrain.sh (4.8 at batch 4096); decay: ours",
    )
    bank: Tensor
    centroids: Tensor
    assignments: Tensor

    def __init__(
        self,
        hidden: int | None = None,
        out: int | None = None,
        *,
        images: int = 50_000,
        heads: int = 3,
        prototypes: int = 3000,
        temperature: float = 0.1,
        iterations: int = 10,
    ) -> None:
        """`images` is the size of the training set; `heads` clusterings have `prototypes` centroids each.

        Args:
            hidden: Hidden width of the projector.
            out: Its output width.
            images: Places in the bank.
            heads: Clusterings, taking turns with the views that they look at.
            prototypes: Centroids of each.
            temperature: Divides the cosines of projections with centroids.
            iterations: Of k-means.

        Raises:
            ValueError: If `temperature` is not above 0 or another number is below 1.
        """
        super().__init__(hidden, out)
        for name, value in (
            ("images", images),
            ("heads", heads),
            ("prototypes", prototypes),
            ("iterations", iterations),
        ):
            if value < 1:
                raise ValueError(f"{name} {value}; must be 1 or more")
        self.temperature = check_temperature(temperature)
        self.iterations = iterations
        self.register_buffer("bank", torch.zeros(VIEWS, images, self.out))
        self.register_buffer("centroids", torch.zeros(heads, prototypes, self.out))
        self.register_buffer("assignments", torch.full((heads, images), -1))
        self._pending: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def defaults(cls, in_features: int, images: int, image_size: int = 32) -> dict[str, float]:
        """3000 centroids from 512 features on, 512 below; 12 images each at least."""
        values = super().defaults(in_features, images, image_size)
        prototypes = int(values["prototypes"]) if in_features >= WIDE else 512
        return {**values, "images": images, "prototypes": affordable(prototypes, images)}

    def loss(self, online: Branch, target: Branch) -> Tensor:
        """Mean over clusterings, online views and samples; in training mode the target waits for the bank.

        Raises:
            ValueError: If nobody said which images these are, or the bank has no place for one of them, or the
                target has not two views.
        """
        views = two_views(target.projections)
        if self.moment is None:
            raise ValueError("deepclusterv2 must know which images a batch holds: call begin(moment) first")
        count = self.bank.shape[1]
        places = self.moment.indices
        if len(places) != len(views[0]) or not 0 <= int(places.min()) <= int(places.max()) < count:
            raise ValueError(f"the bank has places 0 to {count - 1}; {len(places)} indices do not fit them")
        # A few kilobytes are staged by the driver: the host need not wait for the device.
        places = places.to(self.bank.device, non_blocking=True)
        loss = cluster_prediction(
            online, target, self.centroids, self.assignments[:, places], self.temperature
        )
        if self.training and torch.is_grad_enabled():
            self._pending.append((places, torch.stack([unit(view.detach()) for view in views])))
            # A loop that never calls after_step must not grow without bound.
            while sum(len(places) for places, _ in self._pending[1:]) >= count:
                self._pending.pop(0)
        return loss

    @torch.no_grad()
    def after_step(self, taken: bool = True) -> None:
        """Write all micro-batches since the last call into the bank; after an epoch's last step, cluster it.

        Where that step was not taken, the clusters stay for another epoch.
        """
        pending, self._pending = self._pending, []
        moment = self.moment
        if not taken or not pending or moment is None:
            return
        for places, views in pending:
            self.bank.index_copy_(1, places, views.to(self.bank.dtype))
        if (moment.step + 1) % max(1, moment.steps_per_epoch) == 0:
            self._cluster()

    def _cluster(self) -> None:
        seen = (self.bank[0] != 0).any(dim=1).nonzero()[:, 0]
        if len(seen) == 0:
            return
        heads, prototypes, _ = self.centroids.shape
        for head in range(heads):
            points = self.bank[head % VIEWS, seen]
            # Drawn on the CPU, so that every device starts from the same images.
            draws = torch.cat([torch.randperm(len(seen)) for _ in range(-(-prototypes // len(seen)))])
            start = points[draws[:prototypes].to(points.device)]
            centroids, nearest = spherical_kmeans(points, start, self.iterations)
            self.centroids[head] = centroids
            self.assignments[head] = self.assignments.new_full((self.bank.shape[1],), -1).index_copy(
                0, seen, nearest
            )


def cluster_prediction(
    online: Branch, target: Branch, centroids: Tensor, assignments: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of views with their images' clusters (arXiv 2006.09882, equations 8 and 9), a float32 scalar.

    The mean over clusterings, online views and samples. A sample without a cluster is compared with the target's
    projections of its batch, in every target view but its own.

    Args:
        online: Projections, each [N, P].
        target: The same from the target branch; no gradient enters it.
        centroids: Unit vectors [heads, K, P].
        assignments: int64 [heads, N], each sample's centroid, or -1 for none.
        temperature: Divides the cosines.
    """
    with full_precision(centroids):
        queries = [unit(projection) / temperature for projection in online.projections]
        keys = [unit(projection.detach()) for projection in target.projections]
        own = torch.arange(len(keys[0]), device=keys[0].device)
        alone: list[list[Tensor]] = [[] for _ in queries]
        for i, j in crossings(online, target):
            alone[i].append(F.cross_entropy(queries[i] @ keys[j].T, own, reduction="none"))
        losses = []
        for centres, labels in zip(centroids.float(), assignments, strict=True):
            for query, instance in zip(queries, alone, strict=True):
                told = F.cross_entropy(query @ centres.T, labels.clamp_min(0), reduction="none")
                losses.append(torch.where(labels >= 0, told, torch.stack(instance).mean(dim=0)))
        return torch.stack(losses).mean()


@torch.no_grad()
def spherical_kmeans(points: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """K-means by cosine (arXiv 2006.09882, equation 11): unit centroids [K, P] and each point's nearest, int64 [N].

    An empty cluster keeps its centroid. The same points and start give the same bits each time, on CUDA too.

    Args:
        points: Unit vectors [N, P].
        centroids: Those to start from, [K, P].
        iterations: Of assigning and averaging; the points are assigned once more at the end.
    """
    with full_precision(points):
        points, centroids = points.float(), centroids.float()
        for _ in range(iterations):
            sums = _sums(points, _nearest(points, centroids), len(centroids))
            # Where opposite points cancel there is no direction to go.
            moved = sums.norm(dim=1, keepdim=True) > 1e-6
            centroids = torch.where(moved, unit(sums), centroids)
        return centroids, _nearest(points, centroids)


def _sums(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """The sum of the points of each of `count` labels, [count, P]."""
    # Sorted, every label's points are one segment, summed in their order. `index_add_` is atomic on CUDA: its sums
    # differ in their last bits from run to run, and with them the nearest centroid of points between two.
    labels, order = labels.sort(stable=True)
    bounds = torch.searchsorted(labels, torch.arange(count + 1, device=labels.device))
    return torch.segment_reduce(points[order], "sum", lengths=bounds.diff(), axis=0, initial=0.0)


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    # All cosines at once would be half a gigabyte for CIFAR and 15 for ImageNet.
    return torch.cat([(chunk @ centroids.T).argmax(dim=1) for chunk in points.split(CHUNK)])
