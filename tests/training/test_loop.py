"""Training as a whole: exact resume, accumulation, and stopping in good order."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tailfin import methods
from tailfin.data.types import Dataset
from tailfin.errors import Diverged, UserError
from tailfin.judging.result import judge
from tailfin.judging.subject import Subject
from tailfin.judging.validation import Validation
from tailfin.run import checkpoint
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.training import checkpoints
from tailfin.training.checkpoints import Checkpoints
from tailfin.training.listeners import Progress, not_finite
from tailfin.training.loop import Stopped
from tailfin.training.resolve import resolved
from tailfin.training.setup import Setup, prepare
from tailfin.training.start import start

Make = Callable[..., Config]


class Silent(Progress):
    """Progress that asks for a stop after some step."""

    def __init__(self, stop: int | None = None, number: int = signal.SIGTERM) -> None:
        self.stop, self.number = stop, number

    def step(self, step: int, *_: object) -> None:
        if self.stop is not None and step >= self.stop:
            os.kill(os.getpid(), self.number)


@dataclass
class Run:
    setup: Setup
    folder: RunFolder
    validation: Validation | None


def run(config: Config, data: Dataset, path: Path, stop: int | None = None) -> Run:
    path.mkdir(exist_ok=True)
    setup, folder = prepare(config, data), RunFolder(path)
    validation = Validation.of(Subject.of(setup), setup.data.train, 0)
    start(setup, folder, validation, Silent(stop)).run()
    return Run(setup, folder, validation)


def same_run(one: Path, other: Path) -> None:
    first, second = (checkpoint.load(path / "checkpoint.safetensors") for path in (one, other))
    assert first.tensors.keys() == second.tensors.keys()
    for name, value in first.tensors.items():
        assert torch.equal(value, second.tensors[name]), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("method", "momentum", "optimizer"),
    [("simclr", "projector", "sgd"), ("byol", "all", "lars"), ("mocov2plus", "layer2,projector", "adamw")],
)
def test_a_stopped_and_resumed_run_is_the_uninterrupted_one(
    method: str,
    momentum: str,
    optimizer: str,
    memory_format: str,
    settings: Make,
    data: Dataset,
    tmp_path: Path,
) -> None:
    config = settings(
        method=method,
        momentum=momentum,
        optimizer=optimizer,
        memory_format=memory_format,
        lr=0.05,
        epochs=4,
        decay=0.9,
        decay_end=1.0,
    )
    run(config, data, tmp_path / "whole")
    for stop in (5, 15):
        with pytest.raises(Stopped, match=f"stopped after step {stop}"):
            run(config, data, tmp_path / "parts", stop)
    run(config, data, tmp_path / "parts")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_between_log_rows_keeps_the_losses(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    config = settings(batch_size=2, epochs=1, checkpoint_minutes=0.0)
    run(config, data, tmp_path / "whole")
    path = tmp_path / "parts"
    path.mkdir()
    setup = prepare(config, data)
    loop = start(setup, RunFolder(path), None, Silent())
    original = loop.step

    def interrupted(batch: object, step: int) -> torch.Tensor:
        if step == 14:
            raise RuntimeError("killed")
        return original(batch, step)  # type: ignore[arg-type]

    interrupted.schedule = original.schedule  # type: ignore[attr-defined]
    interrupted.steps_per_epoch = original.steps_per_epoch  # type: ignore[attr-defined]
    interrupted.world = original.world  # type: ignore[attr-defined]
    loop.step = interrupted  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="killed"):
        loop.run()
    assert checkpoint.load(path / "checkpoint.safetensors").progress["step"] == 14
    run(config, data, path)
    same_run(tmp_path / "whole", path)


@pytest.mark.parametrize(
    "change", [{"lr": 0.5}, {"momentum": "all"}, {"decay": 0.5}, {"seed": 1}, {"buffers": "ema"}]
)
def test_other_settings_are_refused(
    change: dict[str, object], settings: Make, data: Dataset, tmp_path: Path
) -> None:
    """Runs that differ only in momentum are other runs too."""
    run(settings(epochs=1), data, tmp_path)
    name = "--" + next(iter(change))
    with pytest.raises(UserError, match=f"belongs to other settings: {name} was .* and is now"):
        run(settings(epochs=1, **change), data, tmp_path)


def test_other_images_are_refused(settings: Make, data: Dataset, tmp_path: Path) -> None:
    run(settings(epochs=1), data, tmp_path)
    other = replace(data, train=replace(data.train, images=data.train.images.flip(0)))
    with pytest.raises(UserError, match="was trained on other images"):
        run(settings(epochs=1), other, tmp_path)


def test_micro_batches_add_up_to_the_batch(settings: Make, data: Dataset, tmp_path: Path) -> None:
    """Counted, since batch statistics and contrast differ: one momentum update and one learning rate a step."""
    loop = run(settings(accumulate=4, epochs=1), data, tmp_path)
    assert loop.setup.encoder.updates == loop.setup.total_steps == 5
    queue = run(
        settings(
            accumulate=4,
            epochs=1,
            method="mocov2plus",
            method_options={"hidden": 8, "out": 4, "queue_size": 64},
        ),
        data,
        tmp_path / "queue",
    )
    assert int(queue.setup.method.queue.entered) == 40  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    config = settings(epochs=2, checkpoint_minutes=0.0)
    setup = prepare(config, data)
    loop = start(setup, RunFolder(tmp_path), None, Silent())
    original = setup.method.loss
    calls = iter(range(100))

    def broken(*branches: object) -> torch.Tensor:
        return original(*branches) * (float("nan") if next(calls) >= 7 else 1.0)  # type: ignore[arg-type]

    setup.method.loss = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(
        Diverged,
        match=r"the loss is nan since step 8 \(epoch 1\.40\).*not finite: stem, layer1.*last finite loss",
    ):
        loop.run()
    held = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert held.progress["step"] == 7
    assert all(bool(value.isfinite().all()) for value in held.tensors.values())


def test_a_first_loss_that_is_not_finite_has_none_before_it(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    setup = prepare(settings(epochs=1), data)
    setup.method.loss = lambda *_: sum(p.sum() for p in setup.encoder.parameters()) * float("nan")  # type: ignore[method-assign, assignment]
    with pytest.raises(Diverged, match=r"the loss is nan since step 1 .*; no loss was finite"):
        start(setup, RunFolder(tmp_path), None, Silent()).run()


def test_weights_that_are_not_finite_never_reach_a_checkpoint(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    setup = prepare(settings(epochs=1, checkpoint_minutes=0.0), data)
    loop = start(setup, RunFolder(tmp_path), None, Silent())
    step = loop.step.optimizer.step
    calls = iter(range(100))

    def poison() -> None:
        step()
        if next(calls) == 2:
            setup.encoder.part("projector")[0].weight.data.fill_(float("inf"))  # type: ignore[index, union-attr]

    loop.step.optimizer.step = poison  # type: ignore[method-assign, assignment]
    with pytest.raises(
        Diverged, match=r"encoder/projector\.0\.weight is not finite after step 3 .*though the loss"
    ):
        loop.run()
    assert checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == 2


def test_tensors_that_are_not_finite_are_named_in_order_by_one_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = {
        "whole": torch.ones(3),
        "infinite": torch.tensor([1.0, -torch.inf]),
        "count": torch.tensor(7),
        "empty": torch.empty(0),
        "flags": torch.ones(2, dtype=torch.bool),
        "unknown": torch.full((2, 2), torch.nan, dtype=torch.bfloat16),
    }
    asked: list[torch.Size] = []
    answer = torch.Tensor.tolist

    def counted(flags: torch.Tensor) -> object:
        asked.append(flags.shape)
        return answer(flags)

    def waits(_: torch.Tensor) -> bool:
        raise AssertionError("one tensor's flag is asked for by itself")

    monkeypatch.setattr(torch.Tensor, "tolist", counted)
    monkeypatch.setattr(torch.Tensor, "__bool__", waits)
    assert not_finite(tensors) == ["infinite", "unknown"]
    assert asked == [torch.Size([6])]
    assert not_finite({}) == []


def test_a_short_epoch_brings_no_checkpoint(
    settings: Make, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Checkpoints, "save", lambda _, step: saved.append(step))
    setup = prepare(settings(epochs=3), data)
    loop = start(setup, RunFolder(tmp_path), None, Silent())
    loop.run()
    assert saved == [setup.total_steps]
    monkeypatch.setattr(checkpoints, "EPOCH_SECONDS", 0.0)
    saved.clear()
    start(prepare(settings(epochs=3), data), RunFolder(tmp_path), None, Silent()).run()
    assert saved == [5, 10, 15]


def test_a_part_that_no_monitor_hears_stops_no_checkpoint(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    setup = prepare(settings(epochs=1, checkpoint_minutes=0.0, monitors="gradient"), data)
    setup.encoder.part("stem").requires_grad_(False)  # hears nothing, and is NaN in the rows that wait
    loop = start(setup, RunFolder(tmp_path), None, Silent())
    loop.run()
    assert checkpoint.load(tmp_path / "checkpoint.safetensors").progress["step"] == setup.total_steps


def test_every_placement_trains(settings: Make, data: Dataset, tmp_path: Path) -> None:
    for number, momentum in enumerate(
        ("none", "stopgrad", "projector", "layer3:", ":layer2", "stem,projector", "all")
    ):
        for method in ("simclr", "byol", "mocov2plus"):
            config = settings(method=method, momentum=momentum, epochs=1, lr=0.05)
            loop = run(config, data, tmp_path / f"{number}-{method}")
            rows = loop.folder.read_metrics()
            assert [row["step"] for row in rows if "loss" in row] == [5]
            assert ("decay" in rows[0]) == bool(loop.setup.encoder.placement.placed)
            if momentum == "none":
                # A method that never had a gradient through its target keeps to that.
                assert loop.setup.encoder.placement.text == ("none" if method == "simclr" else "stopgrad")


def test_published_defaults_are_resolved(settings: Make, data: Dataset) -> None:
    config = prepare(settings(method="byol", momentum="published", optimizer=None, lr=None), data).config
    assert (config.momentum, config.decay, config.decay_end) == ("all", 0.99, 1.0)
    assert (config.optimizer, config.lr, config.weight_decay) == ("lars", 1.0, 1e-5)
    assert config.warmup_epochs == pytest.approx(0.3)
    assert config.image_size == 12
    given = prepare(settings(method="byol", momentum="projector", decay=0.9), data).config
    assert (given.decay, given.decay_end) == (0.9, 0.9)


def test_wrong_combinations_are_named(settings: Make, data: Dataset) -> None:
    with pytest.raises(UserError, match="--batch-size 64 is larger than the 40 training images"):
        prepare(settings(batch_size=64), data)
    with pytest.raises(UserError, match=r"unknown method option 'temprature'.*did you mean 'temperature'"):
        prepare(settings(method_options={"temprature": 0.1}), data)
    with pytest.raises(UserError, match="temperature"):
        prepare(settings(method_options={"temperature": -1.0}), data)
    with pytest.raises(UserError, match="unknown part 'layer5'"):
        prepare(settings(momentum="layer5:"), data)


@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2plus"])
def test_bf16_trains_with_momentum_weights_in_fp32(
    method: str, settings: Make, data: Dataset, tmp_path: Path
) -> None:
    config = settings(
        method=method, momentum="all", epochs=2, lr=0.05, precision="bf16", memory_format="channels_last"
    )
    loop = run(config, data, tmp_path)
    assert {p.dtype for p in loop.setup.encoder.momentum.parameters()} == {torch.float32}
    assert all(
        torch.isfinite(torch.tensor(row["loss"])) for row in loop.folder.read_metrics() if "loss" in row
    )
    plain = run(replace(config, precision="fp32"), data, tmp_path / "fp32").folder.read_metrics()
    first = loop.folder.read_metrics()[0]["loss"]
    assert first == pytest.approx(plain[0]["loss"], rel=0.02)


def test_clipping_bounds_the_gradient(settings: Make, data: Dataset, tmp_path: Path) -> None:
    free, clipped = (
        run(settings(epochs=1, clip_grad=clip, weight_decay=0.0), data, tmp_path / str(clip))
        for clip in (None, 1e-9)
    )
    start = prepare(settings(), data).encoder.part("stem")
    for loop, moves in ((free, True), (clipped, False)):
        difference = loop.setup.encoder.part("stem")[0].weight - start[0].weight
        assert bool(difference.abs().max() > 1e-6) == moves


def test_grey_images_one_class_and_a_batch_as_large_as_the_data(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    train = replace(data.train, images=data.train.images[:, :1], labels=torch.zeros(40, dtype=torch.int64))
    grey = replace(data, train=train, test=replace(train), mean=(0.4,), std=(0.2,))
    config = settings(batch_size=40, epochs=2)
    loop = run(config, grey, tmp_path)
    assert loop.setup.total_steps == 2
    result = judge(loop.setup, loop.folder, loop.validation, {})
    assert result["knn"] == result["linear"] == 100.0
    assert result["verdict"]["state"] == "no better than untrained"


def test_odd_images_are_judged_in_their_own_geometry(settings: Make, data: Dataset, tmp_path: Path) -> None:
    """Squashed to a canvas, with aspects: views, validation, neighbours and pictures all take them."""
    aspect = torch.linspace(0.5, 2.0, 40)
    assert data.test is not None
    odd = replace(data, train=replace(data.train, aspect=aspect), test=replace(data.test, aspect=aspect[:16]))
    loop = run(settings(epochs=1, image_size=8), odd, tmp_path)
    result = judge(loop.setup, loop.folder, loop.validation, {})
    assert result["linear"] is not None
    assert loop.folder.read_pictures()["views"].shape == (8, 3, 3, 8, 8)


def test_judging_in_between_leaves_the_training_as_it_was(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    config = settings(buffers="ema", momentum="layer4:", epochs=2)
    often, never = tmp_path / "often", tmp_path / "never"
    run(replace(config, knn_evaluations=2), data, often)
    run(replace(config, knn_evaluations=0), data, never)
    first, second = (checkpoint.load(path / "checkpoint.safetensors").tensors for path in (often, never))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("backbone", ["vit_tiny_patch16_224", "convnext_atto", "torchvision:vit_b_16"])
def test_backbones_without_batch_norm_get_adamw(backbone: str, settings: Make, data: Dataset) -> None:
    open_ = settings(method="byol", backbone=backbone, optimizer=None, lr=None, image_size=32)
    found = resolved(open_, methods.load("byol"), data.train, torch.device("cpu"))
    assert (found.optimizer, found.lr, found.weight_decay) == ("adamw", 1.5e-4, 0.1)
    with pytest.raises(UserError, match=r"--optimizer lars is not the usual one here \(adamw\)"):
        resolved(replace(open_, optimizer="lars"), methods.load("byol"), data.train, torch.device("cpu"))


def test_parameters_whose_first_gradient_comes_late_train(
    settings: Make, data: Dataset, tmp_path: Path
) -> None:
    """SwAV's prototypes rest during its first steps."""
    config = settings(method="swav", optimizer="sgd", lr=0.05, epochs=2)
    run(config, data, tmp_path / "run")
