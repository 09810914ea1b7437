"""The update over modules matched once: shared, replaced and missing tensors, and several modules in one call."""

import copy

import pytest
import torch
from torch import nn

import tailfin
from tailfin.momentum.update import Average, average_


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    online = net()
    online(torch.randn(2, 3, 6, 6))
    momentum = copy.deepcopy(online).requires_grad_(False)
    with torch.no_grad():
        for tensor in (*online.parameters(), *online.buffers()):
            tensor.add_(1)
    return momentum, online


@pytest.mark.parametrize("policy", ["batch", "ema", "copy"])
def test_each_tensor_moves_as_its_policy_says(policy: str) -> None:
    momentum, online = pair()
    before = copy.deepcopy(momentum.state_dict())
    average_([(Average(momentum, online, policy), 0.75)])  # type: ignore[arg-type]
    after, theirs = momentum.state_dict(), online.state_dict()
    for name, parameter in momentum.named_parameters():
        torch.testing.assert_close(parameter.data, 0.75 * before[name] + 0.25 * theirs[name])
    mean = {"batch": before["1.running_mean"], "copy": theirs["1.running_mean"]}
    mean["ema"] = 0.75 * before["1.running_mean"] + 0.25 * theirs["1.running_mean"]
    torch.testing.assert_close(after["1.running_mean"], mean[policy])
    counted = before if policy == "batch" else theirs
    assert after["1.num_batches_tracked"] == counted["1.num_batches_tracked"]


def test_a_tensor_that_modules_share_moves_once() -> None:
    online = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    online[1].weight = online[0].weight
    momentum = copy.deepcopy(online).requires_grad_(False)
    before = momentum[0].weight.clone()
    with torch.no_grad():
        online[0].weight.add_(1)
    average_([(Average(momentum, online, "batch"), 0.5)])
    torch.testing.assert_close(momentum[0].weight, before + 0.5)


def test_a_tensor_that_was_replaced_is_found_and_one_that_is_missing_is_named() -> None:
    momentum, online = pair()
    average = Average(momentum, online, "batch")
    online[3].weight = nn.Parameter(torch.zeros_like(online[3].weight))
    before = momentum[3].weight.clone()
    average_([(average, 0.5)])
    torch.testing.assert_close(momentum[3].weight, 0.5 * before)
    del online[3].bias
    with pytest.raises(ValueError, match=r"tensor '3\.bias' exists in only one"):
        average_([(average, 0.5)])
    online.append(nn.Linear(5, 2))
    online[3].register_parameter("bias", nn.Parameter(torch.zeros(5)))
    with pytest.raises(ValueError, match=r"tensor '4\.\w+' exists in only one"):
        Average(momentum, online, "batch")


def test_parts_at_decays_of_their_own_and_one_that_was_exchanged() -> None:
    head = nn.Linear(5, 2)
    backbone = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    encoder = tailfin.MomentumEncoder(
        backbone, projector=head, placement="all", decay={"0": 0.5, "projector": 0.9}
    )
    first = copy.deepcopy(encoder.momentum.state_dict())
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *head.parameters()):
            parameter.add_(1)
    encoder.update()
    for name, tensor in encoder.momentum.state_dict().items():
        torch.testing.assert_close(tensor, first[name] + (0.1 if name.startswith("projector") else 0.5))
    encoder.projector = nn.Linear(5, 2)
    before = encoder.momentum_part("projector").weight.clone()
    encoder.update()
    torch.testing.assert_close(
        encoder.momentum_part("projector").weight, 0.9 * before + 0.1 * encoder.projector.weight
    )


def test_a_copied_encoder_updates_its_own_weights() -> None:
    encoder = tailfin.MomentumEncoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), placement="all")
    encoder.update()
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.parts.parameters():
            parameter.add_(1)
    other.update()
    name = next(name for name in encoder.names if list(encoder.part(name).parameters()))
    ours, theirs = (next(e.momentum_part(name).parameters()) for e in (encoder, other))
    torch.testing.assert_close(theirs, ours + 0.01)


@pytest.mark.parametrize("placement", ["0", "0,1", "backbone", "1"])
def test_parts_without_momentum_after_the_fork_get_their_gradient_under_autocast(placement: str) -> None:
    """The target path runs them first and without gradient; casts of theirs must not be kept for the online path."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 8)),
        nn.Linear(8, 8),
        nn.Sequential(nn.ReLU(), nn.Linear(8, 8)),
    )
    encoder = tailfin.MomentumEncoder(backbone, projector=nn.Linear(8, 4), placement=placement)
    views = [torch.randn(6, 3, 2, 2) for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16):
        online, _ = encoder(views)
        loss = torch.stack([projection.float().square().mean() for projection in online.projections]).sum()
    loss.backward()
    for name in encoder.names:
        assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.part(name).parameters()), name
