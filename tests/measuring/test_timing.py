"""`tailfin bench`: each phase is charged with its own time, and the advice follows from the shares."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from tailfin.data.load import load
from tailfin.data.types import Dataset
from tailfin.measuring import timing as benching
from tailfin.measuring.timing import PHASES, Stopwatch, advice, bench
from tailfin.momentum import MomentumEncoder
from tailfin.run.config import Config
from tailfin.training.feed import Batch
from tailfin.training.setup import Setup, prepare

TINY = Config(
    data="shapes",
    limit=64,
    image_size=16,
    batch_size=8,
    backbone="resnet10w2",
    device="cpu",
    precision="fp32",
    memory_format="contiguous",
    monitors="none",
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load("shapes", image_size=16, limit=64, seed=0, tolerate=0.0, cache=None, workers=1)


class Slow(nn.Module):
    """Waits, then does what `inner` does."""

    def __init__(self, inner: nn.Module, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds = inner, seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("placement", "target"), [("none", 0.0), ("projector", 0.0), ("layer4:", 0.0), ("all", 0.1)]
)
def test_a_slow_part_is_charged_to_the_branch_that_ran_it(
    data: Dataset, placement: str, target: float
) -> None:
    setup = prepare(replace(TINY, momentum=placement), data)
    first = setup.encoder.names[0]
    owners = [setup.encoder.parts]
    if first in setup.encoder.placement.placed:
        owners.append(setup.encoder.momentum)  # type: ignore[arg-type]
    for owner in owners:
        owner._modules[first] = Slow(owner._modules[first], 0.05)  # type: ignore[arg-type]
    watch = Stopwatch(setup)
    step = setup.step(watch)
    images = data.train.images[:8]
    step(Batch(images, torch.arange(8), None, 0.0), 0)
    watch.remove()
    assert watch.seconds["forward online"] >= 0.1  # two views
    assert watch.seconds["forward target"] >= target
    if target == 0.0:
        assert watch.seconds["forward target"] < 0.1
    assert set(watch.seconds) == set(PHASES)
    assert all(value > 0 for name, value in watch.seconds.items() if name not in ("data", "forward target"))


def test_it_measures_every_phase_and_placement_and_leaves_no_hooks(data: Dataset) -> None:
    found = bench(TINY, data, seconds=0.0)
    assert list(found.phases) == list(PHASES)
    assert list(found.placements) == ["none", "stopgrad", "projector", "layer4:", "all"]
    assert found.placements["stopgrad"] == 1.0
    assert found.images_per_second > 0
    assert 0 < found.used < found.peak
    assert found.larger is not None
    assert found.larger[0] == 32


def test_a_gpu_is_waited_for_after_some_steps_and_not_after_each(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, did = prepare(TINY, data), list[str]()
    now = [0.0]

    def step(_: Batch, number: int) -> None:
        did.append(str(number))
        now[0] += 1.0

    def wait(_: torch.device) -> None:
        did.append("wait")
        now[0] += 2.0  # what is under way when the host has launched all

    monkeypatch.setattr(Setup, "step", lambda _: step)
    monkeypatch.setattr(benching, "_wait", wait)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setitem(benching.WINDOW, "cpu", 4)
    times = benching._in_turn({"this": setup}, 0.0)["this"]
    turn = ["wait", "0", "1", "2", "3", "wait"]
    assert did[: len(turn)] == turn
    assert did[-2:] == [str(4 * (benching.WARM_UP + benching.FEWEST) - 1), "wait"]
    assert times == [(4 * 1.0 + 2.0) / 4] * benching.FEWEST


def test_a_batch_that_does_not_fit_in_memory_is_not_advised(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    setup = prepare(TINY, data)
    monkeypatch.setattr(benching, "_in_turn", full)
    assert benching._larger(setup, data, 0.0) is None


def test_the_advice_names_what_waits() -> None:
    even = dict.fromkeys(PHASES, 1.0)
    assert any("Loader-bound" in line for line in advice({**even, "data": 2.0}, 100.0, None))
    assert any("views" in line for line in advice({**even, "views": 4.0}, 100.0, None))
    calm = {**even, "data": 0.0, "backward": 9.0}
    assert any("--batch-size 1024" in line for line in advice(calm, 100.0, (1024, 120.0)))
    [line] = advice(calm, 100.0, (1024, 105.0))
    assert "Nothing waits" in line
    assert "backward" in line


def test_it_says_what_compiling_gains(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[MomentumEncoder] = []
    monkeypatch.setattr(MomentumEncoder, "compile_parts", lambda encoder: compiled.append(encoder))
    assert bench(TINY, data, seconds=0.0).compiled is None
    assert not compiled
    found = bench(replace(TINY, compile=True), data, seconds=0.0).compiled
    assert len(compiled) == 1  # what it is compared with is not compiled
    assert found is not None
    assert found.faster > 0
    assert found.seconds >= 0
    assert (found.pays_after is None) or found.pays_after >= 0
