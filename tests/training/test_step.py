"""A step asks the device for nothing: counted on tensors without values, where every question raises."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tailfin import methods
from tailfin.compute.device import Execution
from tailfin.data.types import Dataset
from tailfin.run.config import Config
from tailfin.stability import GradientMonitor
from tailfin.training.feed import Batch
from tailfin.training.setup import prepare

# DeepCluster v2 checks the places of a batch, which lie on the host: without values the check cannot be made.
ON_THE_DEVICE = [name for name in methods.names() if name != "deepclusterv2"]


def steps_without_values(config: Config, data: Dataset, monitored: bool = False) -> Tensor:
    """The loss of two steps on given views; making views draws on the host, and has a test of its own."""
    setup = prepare(config, data)
    with FakeTensorMode(allow_non_fake_inputs=True):
        execution = Execution(setup.execution.device, "bf16", "channels_last")
        execution.place(setup.encoder)
        count = config.batch_size // config.accumulate
        views = [torch.empty(count, 3, setup.augment.size, setup.augment.size) for _ in range(2)]
        setup = replace(setup, augment=lambda *_: list(views), execution=execution)  # type: ignore[arg-type]
        step = setup.step()
        monitor = GradientMonitor(setup.encoder.online_parts()) if monitored else None
        images = torch.empty(config.batch_size, 3, 12, 12, dtype=torch.uint8)
        for number in range(2):
            loss = step(Batch(images, torch.arange(config.batch_size), None, 0.0), number)
            if monitor is not None:
                monitor.step()
        return loss


def test_micro_batches_count_as_parts_of_one_batch(settings: Callable[..., Config], data: Dataset) -> None:
    # Four micro-batches that are one and the same move the weights as one of them does alone.
    weights = []
    for copies in (1, 4):
        config = settings(
            batch_size=4 * copies,
            accumulate=copies,
            lr=1.0 / copies,
            weight_decay=0.0,
            warmup_epochs=0.0,
            momentum="none",
        )
        setup = prepare(config, data)
        views = [torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(n)) for n in range(2)]
        setup = replace(setup, augment=lambda *_, views=views: list(views))  # type: ignore[arg-type]
        step = setup.step()
        step(Batch(data.train.images[: 4 * copies], torch.arange(4 * copies), None, 0.0), 0)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in setup.encoder.parameters()]))
    started = torch.cat([p.detach().flatten() for p in prepare(config, data).encoder.parameters()])
    moved = (weights[0] - started).norm()
    assert float((weights[1] - weights[0]).norm() / moved) < 1e-4


KINDS = ("simclr", "byol", "mocov2plus", "swav", "dino", "vicreg")
"""Of losses: contrast, prediction, queue, prototypes, centre, covariance. The others follow where CI is."""


@pytest.mark.parametrize(
    "method", [name if name in KINDS else pytest.param(name, marks=pytest.mark.ci) for name in ON_THE_DEVICE]
)
def test_no_method_waits_for_the_device(method: str, settings: Callable[..., Config], data: Dataset) -> None:
    config = settings(method=method, method_options={}, optimizer=None, lr=None, batch_size=16, image_size=32)
    loss = steps_without_values(config, data)
    with pytest.raises(DataDependentOutputException):
        loss.item()  # what any wait within the step would have raised


@pytest.mark.parametrize(
    "more",
    [
        {"momentum": "none"},
        {"momentum": "stem"},
        {"momentum": "all", "buffers": "ema"},
        {"momentum": "layer4:", "buffers": "copy"},
        {"momentum": "layer4:", "through": True},
        {"gap": 0.1},
        {"accumulate": 2},
        {"clip_grad": 1.0},
        {"optimizer": "lars"},
        {"optimizer": "adamw"},
    ],
    ids=str,
)
def test_no_setting_does(more: dict[str, object], settings: Callable[..., Config], data: Dataset) -> None:
    steps_without_values(settings(method="simclr", batch_size=16, **more), data, monitored=True)
