"""Judging: both branches of an encoder, at the cost of its placement."""

from collections.abc import Callable

import pytest
import torch

from tailfin.data.types import Dataset
from tailfin.judging.features import extract
from tailfin.judging.subject import Subject, answers
from tailfin.run.config import Config
from tailfin.training.setup import prepare

Make = Callable[..., Config]


def subject_of(config: Config, data: Dataset) -> Subject:
    """An encoder whose momentum weights lie elsewhere than the online ones."""
    setup = prepare(config, data)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in setup.encoder.momentum.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return Subject.of(setup)


@pytest.mark.parametrize("momentum", ["projector", "layer4:", "stem", "all"])
def test_both_branches_are_the_encoders_two_paths(momentum: str, settings: Make, data: Dataset) -> None:
    subject = subject_of(settings(momentum=momentum), data)
    encoder = subject.encoder
    found = subject.branches(data.train)
    assert encoder.training
    encoder.eval()
    online, target = (
        extract(
            lambda x, momentum=momentum: encoder.encode(x, momentum=momentum),
            data.train,
            size=subject.size,
            mean=subject.mean,
            std=subject.std,
            device="cpu",
        )
        for momentum in (False, True)
    )
    expected = {
        "backbone_online": online[0],
        "projector_online": online[1],
        "backbone_momentum": target[0],
        "projector_momentum": target[1],
    }
    if momentum == "projector":
        torch.testing.assert_close(expected.pop("backbone_momentum"), found["backbone_online"])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found["projector_online"], found["projector_momentum"])


@pytest.mark.parametrize(
    ("momentum", "stems"), [("none", 1), ("stopgrad", 1), ("projector", 1), ("layer4:", 1), ("all", 2)]
)
def test_judging_runs_the_trunk_as_often_as_the_placement_asks(
    momentum: str, stems: int, settings: Make, data: Dataset
) -> None:
    subject = subject_of(settings(momentum=momentum), data)
    untrained = subject_of(settings(momentum="none"), data)
    assert data.test is not None
    calls: list[int] = []
    placed = "stem" in subject.encoder.placement.placed
    for part in [subject.encoder.part("stem"), *([subject.encoder.momentum_part("stem")] if placed else [])]:
        part.register_forward_hook(lambda *_: calls.append(1))
    found = answers(subject, untrained, data.train, data.test, 0, pixels=False)
    batches = (len(data.train) + len(data.test)) // subject.batch_size
    assert len(calls) == stems * batches
    assert ("backbone_momentum" in found) == (momentum not in ("none", "stopgrad"))
    if momentum == "projector":
        assert found["backbone_momentum"] is found["backbone_online"]
