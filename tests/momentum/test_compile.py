"""Compiled part by part, an encoder computes the same outputs, gradients and buffers, and monitors hear the same."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager

import tailfin
from tailfin.stability import GradientMonitor

STEPS = 3


class Counting:
    """A backend that traces forward and backward, needs no compiler, and counts how often a graph runs."""

    def __init__(self) -> None:
        self.calls = 0
        torch._dynamo.reset()

    def __call__(self, graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        traced = aot_eager(graph, example)

        def run(*arguments: object) -> object:
            self.calls += 1
            return traced(*arguments)

        return run


def encoder(placement: str, **options: object) -> tailfin.MomentumEncoder:
    torch.manual_seed(0)
    # Of different lengths: torch would run equal ones by one graph, and never come to its limit.
    stages = nn.Sequential(
        *(
            nn.Sequential(
                nn.Conv2d(8 if i else 3, 8, 3, padding=1), nn.BatchNorm2d(8), *[nn.ReLU()] * (i + 1)
            )
            for i in range(5)
        ),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12)),
    ).double()
    head = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6)).double()
    return tailfin.MomentumEncoder(stages, projector=head, placement=placement, decay=0.9, **options)  # type: ignore[arg-type]


def trained(subject: tailfin.MomentumEncoder) -> tuple[Tensor, Tensor]:
    """Projections of the target after `STEPS` steps, and the gradients that a monitor heard."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD([p for p in subject.parameters() if p.requires_grad], lr=0.1)
    monitor = GradientMonitor(subject.online_parts())
    for _ in range(STEPS):
        views = [
            torch.randn(8, 3, side, side, generator=generator, dtype=torch.float64) for side in (12, 12, 8)
        ]
        online, target = subject(views, 2)
        loss = (online.projections[0] - target.projections[1]).square().mean()
        loss = loss + (online.projections[2] - target.projections[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step()
        subject.update()
    heard = monitor.flush()
    monitor.remove()
    return target.projections[0].detach(), heard


@pytest.mark.parametrize(
    ("placement", "options"),
    [
        pytest.param("none", {}, marks=pytest.mark.ci),
        pytest.param("stopgrad", {}, marks=pytest.mark.ci),
        ("projector", {}),
        pytest.param("1", {}, marks=pytest.mark.ci),
        pytest.param("all", {}, marks=pytest.mark.ci),
        pytest.param("all", {"buffers": "ema"}, marks=pytest.mark.ci),
        ("3:", {"through": True}),
    ],
    ids=str,
)
def test_a_compiled_encoder_trains_as_one_that_is_not(placement: str, options: dict[str, object]) -> None:
    plain, compiled = encoder(placement, **options), encoder(placement, **options)
    backend = Counting()
    compiled.compile_parts(backend=backend)
    expected, found = trained(plain), trained(compiled)
    tail = len(compiled.names) - compiled.placement.fork
    # Every part of every pass: torch leaves what goes beyond its limit of recompilations as it is, without an error.
    assert backend.calls == STEPS * (3 * len(compiled.names) + 2 * tail)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=0.0)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], value, rtol=1e-9, atol=1e-12)


def test_a_copy_computes_with_its_own_weights() -> None:
    compiled = encoder("projector")
    compiled.compile_parts(backend=Counting())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    compiled.eval().encode(x)
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not bool(other.encode(x)[1].any())
    assert bool(compiled.encode(x)[1].any())
