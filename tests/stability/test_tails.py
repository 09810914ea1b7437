"""What a tail that is held still keeps away of the output's movement."""

import copy

import pytest
import torch
from torch import Tensor, nn

import tailfin
from tailfin.stability import TailDrift

VIEWS = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
NAMES = ("0", "1", "2", "projector")


def encoder(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> tailfin.MomentumEncoder:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout)),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4))
    return tailfin.MomentumEncoder(backbone, projector=head, placement="stopgrad").to(dtype)


@torch.no_grad()
def move(subject: tailfin.MomentumEncoder, *names: str) -> None:
    for name in names:
        for parameter in subject.part(name).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("moved", NAMES)
def test_one_part_that_moves_is_held_off_by_the_tails_that_contain_it(moved: str, dropout: float) -> None:
    subject = encoder(dropout)
    drift = TailDrift(subject, VIEWS)
    assert drift.read() == {}
    move(subject, moved)
    found = drift.read()
    place = NAMES.index(moved)
    assert list(found) == list(NAMES)
    for index, name in enumerate(NAMES):
        assert found[name] == pytest.approx(1.0 if index <= place else 0.0, abs=1e-5), name


def test_the_share_is_that_of_the_formula_in_float64() -> None:
    subject = encoder(dtype=torch.float64)
    views = [view.double() for view in VIEWS]
    drift = TailDrift(subject, views)
    drift.read()
    old = copy.deepcopy(subject)
    move(subject, *NAMES)
    found = drift.read()

    @torch.no_grad()
    def output(head: tailfin.MomentumEncoder, tail: tailfin.MomentumEncoder, first: int) -> Tensor:
        rows = []
        for view in views:
            x = view
            for index, name in enumerate(NAMES):
                x = (head if index < first else tail).part(name)(x)
            rows.append(x)
        return torch.cat(rows)

    before = output(old, old, 0)
    moved = (output(subject, subject, 0) - before).norm()
    for index, name in enumerate(NAMES):
        left = (output(subject, old, index) - before).norm()
        assert found[name] == pytest.approx(float(1 - left / moved), abs=1e-5), name


@pytest.mark.parametrize("train", [True, False])
def test_small_movements_are_read_under_autocast_too(train: bool) -> None:
    def read(low: bool) -> dict[str, float]:
        subject = encoder().train(train)
        drift = TailDrift(subject, VIEWS)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            drift.read()
            torch.manual_seed(7)
            for parameter in subject.parameters():
                parameter.data += 1e-4 * parameter * torch.randn_like(parameter)
            for buffer in subject.buffers():
                if buffer.is_floating_point():
                    buffer += 1e-4
            return drift.read()

    assert read(low=True) == pytest.approx(read(low=False), abs=1e-3)
    assert read(low=True)["0"] == pytest.approx(1.0, abs=1e-3)


def test_each_reading_is_compared_with_the_one_before() -> None:
    subject = encoder()
    drift = TailDrift(subject, VIEWS)
    drift.read()
    move(subject, *NAMES)
    drift.read()
    assert drift.read() == {}  # nothing moved since
    move(subject, "projector")
    assert drift.read()["projector"] == pytest.approx(1.0, abs=1e-5)


def test_a_reading_leaves_no_trace() -> None:
    subject = encoder(dropout=0.3)
    before = copy.deepcopy(subject.state_dict())
    drawn = torch.random.get_rng_state()
    drift = TailDrift(subject, VIEWS)
    drift.read()
    move(subject, "2")
    moved, drawn = copy.deepcopy(subject.state_dict()), torch.random.get_rng_state()
    drift.read()
    assert all(torch.equal(moved[key], value) for key, value in subject.state_dict().items())
    assert any(not torch.equal(before[key], value) for key, value in moved.items())
    assert torch.equal(drawn, torch.random.get_rng_state())
