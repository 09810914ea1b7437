"""Settings that do not fit each other: what is named, and auto, whose placement nobody knows yet."""

from pathlib import Path

import pytest

from tailfin import cli
from tailfin.commands import pretrain
from tailfin.commands.checking import check
from tailfin.measuring.advice import Advice, PartAdvice
from tailfin.momentum.placement import Placement
from tailfin.run.config import Config
from tailfin.training import misfits
from tailfin.training.misfits import Misfit, part_names

NAMES = part_names("resnet10w2", 32)


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        (Config(method="simclrr"), "method", "did you mean 'simclr'"),
        (Config(backbone="resnet19"), "backbone", "unknown backbone 'resnet19'"),
        (Config(momentum="layer9:"), "momentum", "unknown part 'layer9'"),
        (Config(method_options={"temprature": 1}), "method_options", "did you mean 'temperature'"),
        (Config(momentum="all", through=True), "through", "--momentum all has none"),
        # What the user typed comes first, then what it stands for.
        (Config(through=True), "through", r"--momentum published \(none\) has none"),
    ],
)
def test_the_setting_is_named(config: Config, key: str, message: str) -> None:
    with pytest.raises(Misfit, match=message) as error:
        misfits.find(config, image_size=32)
    assert error.value.key == key


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_through_goes_with_auto_whatever_the_method_was_published_with(method: str) -> None:
    auto = Config(momentum="auto", through=True, method=method)
    misfits.find(auto, image_size=32)
    check(auto)


def test_through_goes_with_every_tail_but_all() -> None:
    auto = Config(momentum="auto", through=True)
    for first in NAMES[1:]:
        misfits.through(auto, Placement.parse(f"{first}:", NAMES))
    with pytest.raises(Misfit, match=r"--momentum auto \(all\) has none"):
        misfits.through(auto, Placement.parse("all", NAMES))


def test_auto_that_chooses_all_under_through_is_one_line_and_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [PartAdvice(name, 0.1, None, 0.5, 0.5) for name in NAMES]
    monkeypatch.setattr(pretrain, "advise", lambda *_: Advice("all", 1.0, "Why.", parts, 10))
    words = "pretrain --momentum auto --through --backbone resnet10w2 --limit 60 --batch-size 8".split()
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--through needs parts before the first one with momentum; --momentum auto (all) has none" in error
    assert not (tmp_path / "run").exists()
