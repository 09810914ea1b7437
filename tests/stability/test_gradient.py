"""The gradients that monitors record are those that autograd gives by hand."""

import copy

import pytest
import torch
from torch import Tensor, nn

import tailfin
from tailfin.stability.gradient import GradientMonitor


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, 5),
    )


def by_hand(model: nn.Sequential, batches: list[Tensor], *, bf16: bool = False) -> list[float]:
    """Root mean square over samples of the norm of the gradient of each sample's own loss at each part's output."""
    squares = torch.zeros(len(model), dtype=torch.float64)
    samples = 0
    for batch in batches:
        for sample in batch:
            outputs = []
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                x = sample[None]
                for part in model:
                    x = part(x)
                    outputs.append(x)
                loss = x.float().square().sum()
            gradients = torch.autograd.grad(loss, outputs)
            squares += torch.stack([g.double().square().sum() for g in gradients])
            samples += 1
    return [float(value) for value in (squares / samples).sqrt()]


def parts(model: nn.Sequential) -> dict[str, nn.Module]:
    return {f"part{index}": part for index, part in enumerate(model)}


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_recorded_norms_equal_the_samples_own_gradients_under_accumulation_and_scaling(
    micro: int, scale: float
) -> None:
    model, images = net(), torch.randn(8, 3, 8, 8)
    monitor = GradientMonitor(parts(model))
    for chunk in images.chunk(micro):
        loss = model(chunk).square().sum(dim=1).mean()
        (loss * scale / micro).backward()
    monitor.step(scale / micro)
    assert monitor.flush()[0].tolist() == pytest.approx(by_hand(net(), [images]), rel=1e-5)


def test_the_value_does_not_depend_on_the_batch_size() -> None:
    model, images = net(), torch.randn(4, 3, 8, 8)
    monitor = GradientMonitor(parts(model))
    for batch in (images, images.repeat(5, 1, 1, 1)):
        model(batch).square().sum(dim=1).mean().backward()
        monitor.step()
    one, five = monitor.flush()
    torch.testing.assert_close(one, five)


def test_under_bf16_the_norms_equal_those_of_the_same_bf16_pass() -> None:
    model, images = net(), torch.randn(8, 3, 8, 8)
    monitor = GradientMonitor(parts(model))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images).float().square().sum(dim=1).mean()
    loss.backward()
    monitor.step()
    assert monitor.flush()[0].tolist() == pytest.approx(by_hand(net(), [images], bf16=True), rel=0.02)


def test_compiled_models_are_heard_too() -> None:
    model, images = net(), torch.randn(8, 3, 8, 8)
    monitor = GradientMonitor(parts(model))
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images).square().sum(dim=1).mean().backward()
    monitor.step()
    assert monitor.flush()[0].tolist() == pytest.approx(by_hand(net(), [images]), rel=1e-5)


@pytest.mark.parametrize("placement", ["none", "stopgrad", "2", "1,2", "0", "all"])
def test_only_the_online_path_of_a_momentum_encoder_is_heard(placement: str) -> None:
    plain = net()
    encoder = tailfin.MomentumEncoder(copy.deepcopy(plain), placement=placement)
    monitor = GradientMonitor(encoder.online_parts())
    views = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    online, _ = encoder(views)
    torch.cat([f.square().sum(dim=1) for f in online.features]).mean().mul(2).backward()
    monitor.step()
    assert monitor.flush()[0].tolist() == pytest.approx(by_hand(plain, views), rel=1e-5)


def test_a_target_path_that_lets_gradients_through_is_not_counted_as_a_part() -> None:
    views = [torch.randn(8, 3, 8, 8)]
    seen = []
    for through in (False, True):
        encoder = tailfin.MomentumEncoder(net(), placement="1", decay=0.5, through=through)
        monitor = GradientMonitor(encoder.online_parts())
        online, target = encoder(views)
        (online.features[0] * target.features[0].detach()).sum(dim=1).mean().backward()
        monitor.step()
        seen.append(monitor.flush()[0])
    torch.testing.assert_close(seen[0], seen[1])


def test_evaluation_and_pauses_are_not_heard_and_pending_steps_survive_an_interruption() -> None:
    model = net()
    monitor = GradientMonitor(parts(model))

    def train() -> None:
        model(torch.ones(2, 3, 8, 8)).square().mean().backward()

    with torch.no_grad():
        model(torch.ones(2, 3, 8, 8))
    monitor.step()
    with monitor.pause():
        train()
    monitor.step()
    assert len(monitor.pending()) == 0
    train()
    monitor.step()
    held = monitor.pending()
    fresh = GradientMonitor(parts(net()))
    fresh.restore(held)
    torch.testing.assert_close(fresh.flush(), monitor.flush())
    assert len(held) == 1
    assert len(fresh.flush()) == 0
    monitor.remove()
    train()
    monitor.step()
    assert len(monitor.flush()) == 0


def test_a_part_that_took_no_part_in_the_loss_is_nan_and_the_others_are_not() -> None:
    model = net()
    monitor = GradientMonitor(parts(model))
    model[:2](torch.ones(2, 3, 8, 8)).square().mean().backward()
    monitor.step()
    assert monitor.flush()[0].isnan().tolist() == [False, False, True]


def test_a_part_whose_first_layer_is_frozen_is_heard_and_one_that_is_all_frozen_is_not() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model[1][0].requires_grad_(False)
    monitor = GradientMonitor(parts(model))
    model(torch.ones(2, 4)).square().mean().backward()
    monitor.step()
    assert monitor.flush()[0].isfinite().all()
    model[1].requires_grad_(False)
    model(torch.ones(2, 4)).square().mean().backward()
    monitor.step()
    assert monitor.flush()[0].isnan().tolist() == [False, True]


def test_a_gradient_that_is_not_finite_is_inf_and_not_the_nan_of_a_silent_part() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    monitor = GradientMonitor(parts(model))
    for factor in (torch.nan, torch.inf):
        (model[:2](torch.ones(2, 4)).sum() * factor).backward()
        monitor.step()
        row = monitor.flush()[0]
        assert row[:2].tolist() == [torch.inf, torch.inf]
        assert row[2].isnan()
