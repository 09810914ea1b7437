"""SimCLR, BYOL and MoCo as lightly trains them in its CIFAR-10 benchmark, from its own pieces: an arm of peers.py."""

import copy
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from common import Transformed
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models import ResNetGenerator
from lightly.models.modules import heads
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


def train(
    pictures: Dataset[Any],
    clock: Callable[[], None],
    *,
    batch: int,
    steps: int,
    workers: int,
    device: torch.device,
    method: str,
    fast: bool,
) -> None:
    """Steps of lightly's CIFAR-10 benchmark.

    To its favour its schedule, logs and kNN are left out, and of MoCo the split BatchNorm and the shuffled keys.

    Args:
        pictures: PIL images by index, enough for all steps.
        clock: Called at the start of each step.
        batch: Images a step.
        steps: In all.
        workers: Of the DataLoader.
        device: Where it trains.
        method: simclr, byol or mocov2plus.
        fast: With bf16 and channels_last, which are not in the benchmark.
    """
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)  # for all three methods
    loader = DataLoader(
        Transformed(pictures, transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    model = LightlyModel(method).to(device)
    if fast:
        model = model.to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=5e-4)
    for pair in islice(loader, steps):
        clock()
        views = [view.to(device, non_blocking=True) for view in pair]
        if fast:
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            loss = model(*views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


class LightlyModel(nn.Module):
    """SimCLR, BYOL and MoCo of lightly's CIFAR-10 benchmark, from lightly's own pieces."""

    def __init__(self, method: str) -> None:
        super().__init__()
        resnet = ResNetGenerator("resnet-18")
        self.method = method
        self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
        self.predictor: nn.Module = nn.Identity()
        if method == "simclr":
            self.head: nn.Module = heads.SimCLRProjectionHead(512, 512, 128)
            self.criterion: nn.Module = NTXentLoss()
            return
        if method == "byol":
            self.head = heads.BYOLProjectionHead(512, 1024, 256)
            self.predictor = heads.BYOLPredictionHead(256, 1024, 256)
            self.criterion = NegativeCosineSimilarity()
        else:
            self.head = heads.MoCoProjectionHead(512, 512, 128)
            self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128))
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views, the momentum update before it as in lightly's training step."""
        if self.method == "simclr":
            return self.criterion(self.online(first), self.online(second))  # type: ignore[no-any-return]
        update_momentum(self.backbone, self.backbone_momentum, m=0.99)
        update_momentum(self.head, self.head_momentum, m=0.99)
        ways = ((first, second), (second, first))
        losses = [self.criterion(self.online(one), self.target(other)) for one, other in ways]
        return torch.stack(losses).mean()

    def online(self, view: Tensor) -> Tensor:
        """Backbone, head and predictor."""
        return self.predictor(self.head(self.backbone(view).flatten(start_dim=1)))  # type: ignore[no-any-return]

    @torch.no_grad()
    def target(self, view: Tensor) -> Tensor:
        """The momentum backbone and head."""
        return self.head_momentum(self.backbone_momentum(view).flatten(start_dim=1))  # type: ignore[no-any-return]
