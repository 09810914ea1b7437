"""The memory that a placement takes: its momentum weights, and no activations on top of the online path's."""

from itertools import accumulate

import pytest
import torch
from torch import nn

import tailfin

STAGES = 3


def encoder(placement: str) -> tailfin.MomentumEncoder:
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        for i in range(STAGES)
    ]
    stages[-1].append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    head = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    return tailfin.MomentumEncoder(nn.Sequential(*stages), projector=head, placement=placement)


def peak(placement: str) -> int:
    """Highest sum of bytes allocated and not freed over building the encoder and one step."""
    views = [torch.randn(16, 3, 32, 32) for _ in range(2)]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        subject = encoder(placement)
        online, target = subject(views)
        pairs = zip(online.projections, reversed(target.projections), strict=True)
        torch.stack([(mine - other).square().mean() for mine, other in pairs]).sum().backward()
        subject.update()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("placement", ["projector", "2:", "1:", "all"])
def test_a_placement_takes_its_momentum_weights_and_no_activations(placement: str) -> None:
    subject = encoder(placement)
    weights = sum(t.numel() * t.element_size() for t in subject.momentum.state_dict().values())
    activation = (
        16 * 8 * 32 * 32 * 4
    )  # one map of one view: 3 to 6 of them lay on top with the target path last
    extra = peak(placement) - peak("stopgrad")
    assert weights <= extra + 4096
    assert extra < weights + activation / 8
