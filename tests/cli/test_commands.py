"""The commands as a user types them: a run from images to report, wrong input, and being killed."""

import html
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import tailfin as package
from tailfin import backbones, cli
from tailfin.backbones import narrow_resnet
from tailfin.commands import measure
from tailfin.errors import UserError
from tailfin.momentum import MomentumEncoder, split
from tailfin.run import checkpoint
from tailfin.run.config import Config
from tailfin.run.folder import RunFolder
from tailfin.training.checkpoints import Checkpoints

TINY = (
    "--backbone resnet10w2 --batch-size 8 --epochs 3 --optimizer sgd --lr 0.5 --precision fp32 "
    "--memory-format contiguous --device cpu --method-options hidden 16 out 8"
).split()

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tailfin(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives exit code, standard output and standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run


@pytest.mark.parametrize(("judge", "judged"), [("encoder", {"untrained"}), ("nothing", set())])
def test_a_run_is_judged_by_what_was_asked(
    tailfin: Run, photos: Path, tmp_path: Path, judge: str, judged: set[str]
) -> None:
    out = tmp_path / "run"
    code, _, _ = tailfin("pretrain", "--data", photos, "--out", out, "--judge", judge, *TINY)
    assert code == 0
    result = json.loads((out / "result.json").read_text())
    assert {name for name in ("untrained", "raw_pixels") if result[name] is not None} == judged
    assert (result["linear"] is not None) == bool(judged)
    assert bool(result["unjudged"]) == (not judged)
    assert (out / "report.html").exists()


@pytest.mark.draws
def test_a_run_from_images_to_report(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, _ = tailfin("pretrain", "--data", photos, "--out", out, "--momentum", "layer4:", *TINY)
    assert code == 0
    assert "backbone online" in said
    assert "layer4, projector" in said
    result = json.loads((out / "result.json").read_text())
    assert result["placement"] == "layer4:"
    assert result["momentum_parts"] == ["layer4", "projector"]
    assert 0 < result["target_cost"]["predicted"] < 0.5
    assert result["target_cost"]["measured"] >= 0  # a busy machine measures anything of so small a model
    assert set(result["scores"]) == {
        "backbone_online", "projector_online", "backbone_momentum", "projector_momentum", "untrained", "raw_pixels"
    }  # fmt: skip
    assert result["knn"] == result["scores"]["backbone_online"]["knn"]
    assert result["images_per_second"] > 0
    assert {"torch", "timm", "python", "tailfin"} <= set(result["versions"])
    assert result["train_images"] + result["test_images"] == 48
    page = (out / "report.html").read_text()
    assert "layer4" in page
    assert html.escape(result["verdict"]["words"]) in page

    held = checkpoint.load(out / "checkpoint.safetensors").tensors
    exported = load_file(out / "encoder.safetensors")
    assert torch.equal(exported["conv1.weight"], held["encoder/parts.stem.0.weight"])
    plain = narrow_resnet(2)
    plain.load_state_dict(exported, strict=True)
    slow = load_file(out / "encoder-momentum.safetensors")
    assert torch.equal(slow["layer1.0.conv1.weight"], exported["layer1.0.conv1.weight"])
    assert not torch.equal(slow["layer4.0.conv1.weight"], exported["layer4.0.conv1.weight"])

    (out / "report.html").unlink()
    assert tailfin("report", out)[0] == 0
    assert (out / "report.html").read_text() == page
    code, said, _ = tailfin("evaluate", out)
    assert code == 0
    row = next(line for line in said.splitlines() if line.startswith("backbone online"))
    assert float(row.split()[2]) == pytest.approx(result["knn"], abs=0.06)
    code, said, _ = tailfin("pretrain", "--resume", out)
    assert (code, "is finished" in said) == (0, True)

    again = tmp_path / "again"
    assert tailfin("pretrain", "--config", out / "config.toml", "--out", again)[0] == 0
    assert (again / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()
    assert torch.equal(load_file(again / "encoder.safetensors")["conv1.weight"], exported["conv1.weight"])


def test_the_backbone_loads_into_plain_timm(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    options = list(TINY)
    options[options.index("resnet10w2")] = "convnext_atto"
    options[options.index("3")] = "1"
    options += ["--judge", "nothing", "--knn-evaluations", "0", "--monitors", "none"]
    code, *_ = tailfin("pretrain", "--data", photos, "--out", tmp_path / "r", "--image-size", 32, *options)
    assert code == 0
    plain = timm.create_model("convnext_atto", num_classes=0)
    plain.load_state_dict(load_file(tmp_path / "r" / "encoder.safetensors"), strict=True)


@pytest.mark.parametrize(
    "backbone", ["resnet10w2", "resnet18", "torchvision:resnet18", "vit_tiny_patch16_224"]
)
def test_an_encoder_file_says_what_it_is_and_loads_by_itself(backbone: str, tmp_path: Path) -> None:
    model = backbones.create(backbone, image_size=48)
    encoder = MomentumEncoder(split(model), placement="all")
    about = {"backbone": backbone, "image_size": 48, "channels": 3, "mean": [0.5] * 3, "std": [0.2] * 3}
    RunFolder(tmp_path).save_encoder(encoder, about)
    with torch.no_grad():
        next(encoder.parts.parameters()).zero_()
    loaded = package.load_encoder(tmp_path / "encoder.safetensors")
    kept = load_file(tmp_path / "encoder.safetensors")
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in kept.items())
    assert not loaded.training
    assert package.encoder_metadata(tmp_path / "encoder.safetensors") == about
    (tmp_path / "encoder.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match=r"is no encoder\.safetensors of a run|damaged or not safetensors"):
        package.load_encoder(tmp_path / "encoder.safetensors")


def test_a_damaged_result_is_one_line_and_not_drawn(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "result.json").write_text("")
    code, _, said = tailfin("report", tmp_path)
    assert (code, said.count("\n")) == (0, 1)
    assert "result.json is damaged" in said
    assert "result.json is damaged" in (tmp_path / "report.html").read_text()


def test_without_labels_it_trains_and_says_what_it_could_not_judge(
    tailfin: Run, photos: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        shutil.copy(path, flat / path.name)
    code, said, _ = tailfin("pretrain", "--data", flat, "--out", tmp_path / "r", "--method", "byol", *TINY)
    assert code == 0
    assert "not judged: accuracy of kNN and linear probe: the images have no labels" in said
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert (result["knn"], result["linear"], result["scores"]) == (None, None, {})
    assert "no labels" in (tmp_path / "r" / "report.html").read_text()
    code, _, err = tailfin("evaluate", tmp_path / "r")
    assert (code, "no labels to judge with" in err) == (2, True)
    code, said, _ = tailfin("evaluate", tmp_path / "r", "--data", photos, "--limit", "30")
    assert (code, "backbone momentum" in said) == (0, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["pretrian"],
            "unknown command 'pretrian'; allowed: pretrain, advise, bench, evaluate, report, list, cache, data, "
            "pack, study; did you mean 'pretrain'",
        ),
        (["pretrain", "--method", "simcrl"], "unknown method 'simcrl'; allowed: .*did you mean 'simclr'"),
        (["pretrain", "--momentum", "layer9:"], "unknown part 'layer9' in placement 'layer9:'"),
        (["pretrain", "--method", "SimCLR"], "did you mean 'simclr'"),
        (["pretrain", "--momentum", "projektor"], "did you mean 'projector'"),
        (["pretrain", "--backbone", "resnet19"], "unknown backbone 'resnet19' in --backbone; nearest"),
        (
            ["pretrain", "--backbone", "eva02_tiny_patch14_224"],
            r"how to split a Eva; it knows narrow ResNet, .*ViT \(tailfin list .*tailfin\.split\(model, ",
        ),
        (["pretrain", "--data", "PHOTOS-"], r"no such path .*photos-' in --data.*did you mean .*photos'"),
        (["pretrain", "--data", "cifar11"], "did you mean 'cifar10'"),
        (
            ["pretrain", "--data", "PHOTOS", "--limit", "1", "--batch-size", "2"],
            "has 1 training image; at least 2 are needed",
        ),
        (
            ["pretrain", "--data", "PHOTOS", "--batch-size", "64"],
            "--batch-size 64 is larger than the 40 training",
        ),
        (["pretrain", "--decay", "1.5"], r"--decay is 1\.5; it must lie in \[0, 1\]"),
        (["pretrain", "--epochz", "3"], "Unrecognized options: --epochz, 3; did you mean --epochs"),
        (["pretrain", "--epochs", "many"], "--epochs is 'many'; it must be a whole number"),
        (["pretrain", "--batch_size=1.5"], "--batch-size is '1.5'; it must be a whole number"),
        (["pretrain", "--lr", "high"], "--lr is 'high'; it must be a number"),
        (["pretrain", "--lr", "None"], "--lr is 'None'; it must be a number"),
        (["pretrain", "--lr"], "--lr needs a value"),
        (["pretrain", "--lr", "--epochs", "3"], "--lr needs a value"),
        (
            ["pretrain", "--optimizer", "adam"],
            "unknown value 'adam' in --optimizer; allowed: sgd, lars, adamw; did you mean 'adamw'",
        ),
        (["list", "backbone"], "unknown value 'backbone'; allowed: all, .*did you mean 'backbones'"),
        (["pretrain", "photos/"], r"unexpected 'photos/'; did you mean --data photos/\?"),
        (["bench", "a/" * 60], "did you mean --data " + "a/" * 60),
        (["report", "a", "b"], "unexpected 'b'$"),
        (["pretrain", "--through", "yes"], "--through takes no value; leave out 'yes'"),
        (["pretrain", "--method", "./mine.py"], r"name the class too: \./mine\.py:CLASS"),
        (["advise", "--out", "x"], "advise keeps nothing; leave out --out x"),
        (["bench", "--out", "x"], "bench keeps nothing; leave out --out x"),
        (["bench", "--momentum", "auto"], "leave out --momentum, or name one"),
        (["advise", "--resume", "x"], "Unrecognized options: --resume, x"),
        (["bench", "--config", "none.toml"], "cannot read none.toml: No such file"),
        (["advise", "--config", ""], "--config is empty"),
        (["pretrain", "--buffers", "emma"], "unknown value 'emma' in --buffers; .*did you mean 'ema'"),
        (["pretrain", "--device", "gpu"], "unknown --device 'gpu'"),
        (["pretrain", "--out", "/proc/run"], "cannot make the run folder /proc/run"),
        (["pretrain", "--config", "none.toml"], "cannot read none.toml: No such file"),
        (["pretrain", "--config", "a", "--resume", "b"], "exclude each other"),
        (["pretrain", "--resume", "PHOTOS"], "no run at .*photos: the folder holds no config.toml"),
        (["pretrain", "--resume", "nowhere"], "no run at nowhere: the folder does not exist"),
        (
            ["pretrain", "--momentum", "none", "--through"],
            "--through needs parts before the first one with momentum",
        ),
        (["evaluate"], "evaluate: RUN is missing: tailfin evaluate RUN"),
        (["evaluate", "nowhere"], "no run at nowhere"),
        (["report", "nowhere"], "no run at nowhere"),
        (["list", "placements", "--backbone", "resnet19"], "unknown backbone 'resnet19'"),
        (["list", "placements", "--backbone", "mobilenetv3_small_050"], "how to split a MobileNetV3"),
        (["list", "placements", "--image-size", "0"], "--image-size is 0"),
        (["pretrain", "--backbone", "legacy_seresnet18"], "how to split a SENet"),
        (["pretrain", "--momentum", "all", "--through"], "--through needs parts before"),
        (["pretrain", "--resume", ""], "--resume is empty"),
        (["pretrain", "--workers", "-1"], "--workers is -1"),
        (["pretrain", "--clip-grad", "nan"], "--clip-grad is nan; it must be finite"),
        (["pretrain", "--warmup-epochs", "99"], "longer than --epochs 8"),
        (["pretrain", "--optimizer", "adamw"], "give --lr"),
        (["pretrain", "--method-options", "temprature", "1"], "did you mean .temperature."),
        (
            ["pretrain", "--method-options", "temperature"],
            "names and numbers in turn, such as temperature 0.1",
        ),
        (["pretrain", "--method-options", "hidden", "1.5"], "must be a whole number"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    tailfin: Run,
    photos: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said, err = tailfin(*(word.replace("PHOTOS", str(photos)) for word in words))
    assert code == 2
    assert said == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_run_folder_is_not_overwritten_and_resume_takes_no_other_settings(
    tailfin: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    assert tailfin("pretrain", "--data", photos, "--out", out, *TINY)[0] == 0
    code, _, err = tailfin("pretrain", "--data", photos, "--out", out, *TINY)
    assert (code, "holds a run already; go on with --resume" in err) == (2, True)
    code, _, err = tailfin("pretrain", "--resume", out, "--momentum", "all", "--lr", "0.1")
    assert code == 2
    assert (
        "continues the same run, but --momentum was 'none' and is now 'all'; --lr was 0.5 and is now 0.1"
        in err
    )
    (out / "result.json").unlink()
    (out / "config.toml").write_text((out / "config.toml").read_text().replace("lr = 0.5", "lr = 0.6"))
    code, _, err = tailfin("pretrain", "--resume", out)
    assert (code, "belongs to other settings: --lr was 0.5 and is now 0.6" in err) == (2, True)
    (out / "config.toml").write_text((out / "config.toml").read_text().replace("lr = 0.6", "lr = 0.5"))
    content = bytearray((out / "checkpoint.safetensors").read_bytes())
    content[-1] ^= 1
    (out / "checkpoint.safetensors").write_bytes(content)
    for words in (("pretrain", "--resume", out), ("evaluate", out)):
        code, _, err = tailfin(*words)
        assert (code, "is damaged" in err) == (2, True)


def test_a_diverging_run_says_what_where_and_since_when(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    options = list(TINY)
    options[options.index("0.5")] = "1e30"
    code, _, err = tailfin("pretrain", "--data", photos, "--out", tmp_path / "r", *options)
    assert code == 1
    assert "the loss is nan since step" in err
    assert "Lower --lr" in err


@pytest.mark.parametrize(
    "words", [["--help"], ["pretrain", "--help"], ["evaluate", "--help"], ["report", "-h"]]
)
def test_help_explains_by_examples(tailfin: Run, words: list[str]) -> None:
    code, said, _ = tailfin(*words)
    assert code == 0
    assert "example" in said
    assert "tailfin " in said


@pytest.mark.parametrize("command", ["pretrain", "advise", "bench", "evaluate", "study"])
def test_help_says_what_is_chosen_and_not_none(tailfin: Run, command: str) -> None:
    _, said, _ = tailfin(command, "--help")
    assert "None" not in said.replace("None is chosen", "")
    assert "Open" not in said
    assert "(default: )" not in re.sub(r"--(data|reuse) \[STR.*?\(default: \)", "", said, flags=re.DOTALL)
    if command not in ("evaluate", "study"):
        assert "--lr FLOAT " in said
        assert "--optimizer {sgd,lars,adamw}" in said
        assert "Default: as published" in said


@pytest.mark.parametrize("command", ["advise", "bench"])
def test_settings_come_from_a_file_too(
    tailfin: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "c.toml").write_text('momentum = "projector"\nepochs = 3\nseed = 4\nout = "runs/x"\n')
    asked: list[Config] = []
    monkeypatch.setattr(measure, "check", asked.append)
    monkeypatch.setattr(measure, "load_data", lambda *_, **__: sys.exit(0))
    assert tailfin(command, "--config", tmp_path / "c.toml", "--seed", "5")[0] == 0
    # A finished run's file names the placement that it had; advice is about another.
    momentum = "auto" if command == "advise" else "projector"
    assert asked == [Config(momentum=momentum, epochs=3, seed=5)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--momentum", "none", "--decay", "0.9"], "            --decay: without effect, for no part has"),
        (["--momentum", "stopgrad", "--buffers=ema", "--decay_end", "1"], "--decay-end, --buffers: without"),
        (["--decay", "0.9"], "--decay: without effect"),  # SimCLR was published without momentum
        (["--momentum", "projector", "--decay", "0.9"], None),
        ([], None),
    ],
)
def test_what_only_momentum_heeds_is_told_where_there_is_none(
    tailfin: Run, photos: Path, tmp_path: Path, words: list[str], line: str | None
) -> None:
    options = [*TINY, "--judge", "nothing", "--data", str(photos), "--out", str(tmp_path / "r")]
    options[options.index("3")] = "1"
    code, said, _ = tailfin("pretrain", *options, *words)
    assert code == 0
    assert "1 epoch, 5 steps" in said
    if line is None:
        assert "without effect" not in said
    else:
        assert line in said


@pytest.mark.parametrize("out", [8, 4])
def test_a_batch_too_small_for_the_method_is_told(
    tailfin: Run, photos: Path, tmp_path: Path, out: int
) -> None:
    options = [*TINY, "--judge", "nothing", "--data", str(photos), "--out", str(tmp_path / "r")]
    options[options.index("3")] = "1"
    _, said, _ = tailfin("pretrain", *options, "--method", "wmse", "--method-options", "out", out)
    assert ("images at a time are too few for it, which needs 16" in said) == (out == 8)


def test_too_few_samples_to_whiten_at_once_are_told(tailfin: Run, photos: Path, tmp_path: Path) -> None:
    options = [*TINY, "--judge", "nothing", "--data", str(photos), "--out", str(tmp_path / "r")]
    options[options.index("3")] = "1"
    _, said, _ = tailfin(
        "pretrain", *options, "--method", "wmse", "--method-options", "out", 4, "sub_batch", 4
    )
    assert "sub_batch 4 is too few to whiten 4 features, which needs 8" in said


def test_list_names_methods_and_what_placements_cost(tailfin: Run) -> None:
    code, said, _ = tailfin("list")
    assert code == 0
    for name in ("simclr", "byol", "mocov2plus", "vit_tiny_patch16_224", "layer4:", "stopgrad"):
        assert name in said


def test_a_line_a_method_fits_a_usual_terminal(tailfin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, said, _ = tailfin("list", "methods")
    assert "…" not in said
    assert re.search(r"dino +prototypes +2021 +all, 0.9995 to 1 +-", said)
    assert re.search(r"supcon +contrastive +2020 +none +labels", said)


def test_help_does_not_import_torch() -> None:
    for words in ("[]", "['pretrain', '--help']", "['study', '--help']"):
        found = f"import sys, tailfin.cli\ntry: tailfin.cli.main({words})\nfinally: sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", found], check=False).returncode == 0


def start(words: list[str], out: Path) -> subprocess.Popen[str]:
    log = (out.parent / "log").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tailfin", "pretrain", *words],
        stdout=log,
        stderr=log,
        text=True,
        env=environment,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.timeout(600)
@pytest.mark.ci
def test_killed_at_random_moments_and_resumed_it_is_the_same_run(photos: Path, tmp_path: Path) -> None:
    """SIGKILL six times: while loading, training, validating, saving, wherever it falls."""
    options = [*TINY, "--data", str(photos), "--momentum", "projector", "--method", "mocov2plus"]
    options[options.index("3")] = "25"
    options += ["--checkpoint-minutes", "0.002"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert start([*options, "--out", str(whole)], whole).wait() == 0
    moments = random.Random(0)
    kills = 0
    process = start([*options, "--out", str(parts)], parts)
    wait_for((parts / "config.toml").exists, process)
    while kills < 6 and process.poll() is None:
        log = parts / "timing.jsonl"
        size = log.stat().st_size if log.exists() else 0
        wait_for(lambda log=log, size=size: log.exists() and log.stat().st_size > size, process)  # type: ignore[misc]
        time.sleep(moments.uniform(0, 0.15))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            process = start(["--resume", str(parts)], parts)
    assert process.wait() == 0, (tmp_path / "log").read_text()[-2000:]
    assert kills == 6
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    first, second = (checkpoint.load(path / "checkpoint.safetensors").tensors for path in (whole, parts))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (whole, parts))
    assert ours["scores"] == theirs["scores"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.ci), signal.SIGTERM])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(
    photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "r"
    options = [*TINY, "--data", str(photos), "--out", str(out)]
    options[options.index("3")] = "400"
    process = start(options, out)
    log = out / "timing.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size > 0, process)
    process.send_signal(number)
    assert process.wait() == 128 + number
    said = (tmp_path / "log").read_text()
    assert f"go on with: tailfin pretrain --resume {out}" in said
    assert "Traceback" not in said
    step = checkpoint.load(out / "checkpoint.safetensors").progress["step"]
    assert f"stopped after step {step};" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place", ["training.loop.Loop.run", "commands.pretrain.judge", "commands.pretrain.write_report"]
)
def test_interrupted_outside_the_loop_it_says_how_to_go_on(
    tailfin: Run, photos: Path, tmp_path: Path, place: str, number: signal.Signals
) -> None:
    out = tmp_path / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"tailfin.{place}", lambda *_: signal.raise_signal(number))
        code, said, _ = tailfin("pretrain", *TINY, "--data", photos, "--out", out)
    assert code == 128 + number
    assert said.splitlines()[-1] == f"stopped; go on with: tailfin pretrain --resume {out}"
    code, said, _ = tailfin("pretrain", "--resume", out)
    assert code == 0
    assert ("goes on     after step" in said) == (
        place != "commands.pretrain.write_report"
    )  # then it is finished
    assert (out / "result.json").exists()
    assert (out / "report.html").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_in_the_last_step_it_does_not_go_on_to_judge(
    tailfin: Run, photos: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out, save = tmp_path / "r", Checkpoints.save

    def last(checkpoints: Checkpoints, step: int) -> None:
        if step == checkpoints.step.schedule.total:
            signal.raise_signal(number)
        save(checkpoints, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", last)
        code, said, _ = tailfin("pretrain", *TINY, "--data", photos, "--out", out)
    assert code == 128 + number
    assert f"go on with: tailfin pretrain --resume {out}" in said
    assert not (out / "result.json").exists()
    assert tailfin("pretrain", "--resume", out)[0] == 0
