"""Benchmarks that wait for a GPU run at a tiny size on the CPU, so that they are known to work when there is one."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tailfin.views.recipes import ViewRecipe

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")
QUICK = ("loop_share", "momentum_update", "judging", "step_profile", "optimizer_step")
"""Lines of gpu.sh whose tiny form takes some seconds each; all of them take four minutes of one core."""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SPDL = bool(find_spec("spdl") and find_spec("spdl.io"))
DALI = bool(find_spec("nvidia") and find_spec("nvidia.dali"))


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/common.py."""
    monkeypatch.syspath_prepend(FOLDER)
    import common

    yield common
    del sys.modules["common"]


def gpu(
    *words: str, python: str = sys.executable, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """benchmarks/gpu.sh."""
    given = {"PYTHON": python, "GPU_DEVICE": "cpu", "GPU_MINUTES": "30", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(FOLDER / "gpu.sh"), *words],
        env={**os.environ, **given, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def saved(folder: Path) -> dict[str, Any]:
    """What each JSON file of a folder holds."""
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """A program in place of Python that prints its words and fails for loop_share.py."""
    path = tmp_path / "stub"
    path.write_text('#!/bin/sh\necho "$@"\ncase "$1" in *loop_share.py) exit 3 ;; esac\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.ci
def test_quick_lines_of_the_gpu_set(tmp_path: Path) -> None:
    done = gpu("--tiny", "shapes", str(tmp_path), GPU_ONLY=" ".join(QUICK))
    assert done.returncode == 0, done.stdout + done.stderr
    found = saved(tmp_path)
    assert set(found) == {
        "loop-share-resnet10w4-cpu",
        "momentum-update-cpu",
        "judging-cpu",
        "step-profile-resnet10w4-cpu",
        "optimizer-step-cpu",
    }
    where = found["judging-cpu"]["where"]
    assert where["command"].startswith("judging.py --device cpu --tiny") or " --tiny " in where["command"]
    assert str(tmp_path) not in json.dumps(found)
    loop = found["loop-share-resnet10w4-cpu"]["figures"]["resnet10w4"]
    assert loop["steps"] == 4
    rounds = [loop[f"{arm}_images_per_second"]["rounds"][0] for arm in ("bare", "loop")]
    assert loop["loop_over_bare"]["median"] == pytest.approx(rounds[1] / rounds[0])
    update = found["momentum-update-cpu"]["figures"]["resnet18"]
    assert update["timm ModelEmaV3"]["like"] == "ours, ema"
    assert update["torch AveragedModel"]["like"] == "ours, copy"
    profile = found["step-profile-resnet10w4-cpu"]["figures"]
    assert profile["wall_seconds"] > 0
    assert profile["idle"] is None  # of a GPU alone


@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not os.environ.get("TAILFIN_SLOW_TESTS"), reason="takes four minutes: TAILFIN_SLOW_TESTS=1"
)
def test_all_lines_of_the_gpu_set(tmp_path: Path) -> None:
    done = gpu("--tiny", "shapes", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not reached in time" not in done.stdout
    names = " ".join(saved(tmp_path))
    for name in (
        "to-accuracy",
        "placement-cost-simclr",
        "placement-cost-byol",
        "monitor-cost",
        "views",
        "start",
    ):
        assert name in names
    assert "advice: " in (tmp_path / "gpu-cpu.txt").read_text()


def test_the_gpu_set_goes_on_after_a_failure_and_says_so(tmp_path: Path, stub: str) -> None:
    (tmp_path / "some data").mkdir()
    done = gpu("some data", "out", python=stub, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "failed: loop_share"
    printed = (tmp_path / "out" / "gpu-cpu.txt").read_text()
    assert f"--out {tmp_path}/out --data {tmp_path}/some data --device cpu --methods simclr" in printed
    places = [
        printed.index(name)
        for name in ("placement_cost.py", "loop_share.py", "to_accuracy.py", "tailfin bench")
    ]
    assert places == sorted(places)
    assert "--workers 4" in printed


def test_calls_of_the_gpu_set_add_to_one_log_and_pack_what_they_made(tmp_path: Path, stub: str) -> None:
    (tmp_path / "views-cpu.json").write_text("{}")
    (tmp_path / "views-cuda.json").write_text("{}")
    (tmp_path / "to-accuracy-runs").mkdir()
    for name in ("views", "start"):
        assert gpu("shapes", str(tmp_path), python=stub, GPU_ONLY=name).returncode == 0
    printed = (tmp_path / "gpu-cpu.txt").read_text()
    assert printed.index("views.py") < printed.index("start.py")
    with tarfile.open(tmp_path / "gpu-cpu.tar") as packed:
        assert sorted(packed.getnames()) == ["./gpu-cpu.txt", "./views-cpu.json"]


def test_two_calls_are_enough_for_the_gpu_set() -> None:
    found = re.findall(r"^(?:bench|peers|line) (\w+) (\d+)", (FOLDER / "gpu.sh").read_text(), re.MULTILINE)
    seconds = {name: int(most) for name, most in found}
    last = list(seconds).index("to_accuracy") + 1
    first = list(seconds.values())[:last]
    assert list(seconds)[:last] == [
        *("placement_cost", "loop_share", "momentum_update", "peers_simclr", "to_accuracy"),
    ]
    assert sum(first) <= 540
    assert sum(seconds.values()) - sum(first) <= 540
    assert seconds["to_accuracy"] >= 200


def test_a_line_is_not_begun_without_its_seconds(tmp_path: Path, stub: str) -> None:
    done = gpu("shapes", str(tmp_path), python=stub, GPU_MINUTES="1", GPU_ONLY="loop_share views")
    assert done.returncode == 0  # else the stub's loop_share would have failed
    assert "benchmarks/views.py" in done.stdout
    assert done.stdout.splitlines()[-1] == 'not reached in time; for them: GPU_ONLY="loop_share"'


def test_the_gpu_set_names_what_its_time_did_not_reach(tmp_path: Path, stub: str) -> None:
    done = gpu("shapes", str(tmp_path), python=stub, GPU_MINUTES="0", GPU_ONLY="views bench")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ['not reached in time; for them: GPU_ONLY="views bench"']


@pytest.mark.ci
def test_from_raw_files_to_an_accuracy(tmp_path: Path) -> None:
    words = (
        "--data shapes --backbone resnet10w4 --limit 200 --batch-size 50 --epochs 1 --target 100 --device cpu"
    )
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    command = [sys.executable, str(FOLDER / "to_accuracy.py"), *words.split(), *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100 % not reached" in done.stdout
    [(name, found)] = saved(tmp_path).items()
    assert name == "to-accuracy-shapes-simclr-resnet10w4-cpu"
    row = found["figures"]["runs"]["1"]
    assert row["seconds"] > row["training_seconds"] > 0
    assert 0 < row["linear"] < 100
    assert found["figures"]["profile"]["phases"]["backward"] > 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert saved(tmp_path)[name]["figures"]["runs"]["1"] == row, again.stdout  # a finished run stands
    other = subprocess.run([*command, "--recipe", "--lr", "0.1"], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert "holds runs with other options" in other.stderr


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A file of benchmarks/, by name."""
    monkeypatch.syspath_prepend(FOLDER)
    names = {"common"}

    def load(name: str) -> ModuleType:
        names.add(name)
        return import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_a_stopped_run_to_an_accuracy_is_stopped_in_good_order_and_keeps_its_clock(
    module: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_accuracy = module("to_accuracy")
    stub = tmp_path / "stub"
    stub.write_text(
        f"#!/bin/sh\ntrap 'echo saved >>{tmp_path}/said; exit 143' TERM\n"
        f"echo began >>{tmp_path}/said\nfor i in $(seq 600); do sleep .1; done\n"
    )
    stub.chmod(0o755)
    said = tmp_path / "said"
    monkeypatch.setattr(sys, "executable", str(stub))
    usual = signal.signal(signal.SIGTERM, to_accuracy.stop)

    def twice() -> None:
        while not said.exists():
            time.sleep(0.01)
        for _ in range(2):  # as `timeout` does
            os.kill(os.getpid(), signal.SIGTERM)

    killer = threading.Thread(target=twice)
    killer.start()
    start = time.perf_counter()
    try:
        with pytest.raises(SystemExit) as ended:
            to_accuracy.run(tmp_path / "epochs1", [], float("inf"))
    finally:
        killer.join()
        signal.signal(signal.SIGTERM, usual)
    assert ended.value.code == 143
    assert said.read_text().split() == ["began", "saved"]
    [seconds] = to_accuracy.clock_of(tmp_path / "epochs1").read_text().split()
    assert 0 < float(seconds) <= time.perf_counter() - start

    def over() -> float:
        return float(said.read_text().split().count("began") == 2)

    # The deadline stops it too: one that is over as soon as the run has begun again.
    monkeypatch.setattr(to_accuracy, "time", SimpleNamespace(monotonic=over, perf_counter=time.perf_counter))
    wait = subprocess.Popen.wait

    def waits(process: Any, timeout: float | None = None) -> int:
        while timeout is not None and not over():
            time.sleep(0.01)
        return wait(process, None if timeout is None else 0.0)

    monkeypatch.setattr(subprocess.Popen, "wait", waits)
    assert not to_accuracy.run(tmp_path / "epochs1", [], 0.5)
    assert said.read_text().split()[-1] == "saved"
    assert len(to_accuracy.clock_of(tmp_path / "epochs1").read_text().split()) == 2


def test_a_gpu_measures_the_memory_of_a_step_by_itself(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    placement_cost = module("placement_cost")
    did: list[str] = []
    monkeypatch.setattr(placement_cost, "build", lambda _, name: did.append(name))
    monkeypatch.setattr(placement_cost, "three_steps", lambda _: did.append("steps"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: did.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 7)
    assert placement_cost.memory_of(None, "all", torch.device("cuda")) == 7
    assert did == ["all", "steps", "reset", "steps"]


def test_optimizers_of_an_older_timm_have_no_foreach_arm(
    module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizer_step = module("optimizer_step")
    model = torch.nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.ones(2, 2), torch.ones(2)
    Lars = optimizer_step.Lars

    class Old(Lars):  # type: ignore[misc, valid-type]
        def __init__(self, params: Any, lr: float = 1.0, momentum: float = 0.0) -> None:
            super().__init__(params, lr=lr, momentum=momentum)

    monkeypatch.setattr(optimizer_step, "Lars", Old)
    forms = optimizer_step.forms("lars", model)
    assert list(forms) == ["ours", "loop"]
    forms["loop"]()
    assert model.weight.isfinite().all()


def test_a_step_longer_than_its_kernels_is_idle_for_the_rest(module: Callable[[str], ModuleType]) -> None:
    idle = module("step_profile").idle
    assert idle(0.03, 0.04) == pytest.approx(0.25)
    assert idle(0.05, 0.04) == 0.0  # kernels on two streams


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not find_spec("lightly"), reason="lightly is not installed")
@pytest.mark.skipif(not find_spec("solo"), reason="solo-learn is not installed")
def test_solo_learn_is_measured_beside_lightly(tmp_path: Path) -> None:
    words = "--data shapes --methods simclr --batch-size 4 --steps 1 --rounds 1 --workers 1 --device cpu"
    command = [sys.executable, str(FOLDER / "peers.py"), *words.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [found] = saved(tmp_path).values()
    assert found["where"]["versions"]["solo-learn"]
    for name in ("lightly, its recipe", "solo-learn, its recipe"):
        assert 0 < found["figures"][name]["images_per_second"]["median"] < 1e6


@pytest.mark.ci
def test_a_folder_of_jpegs_through_every_library_that_is_here(tmp_path: Path) -> None:
    words = "--images 3 --rounds 1 --workers 1"
    command = [sys.executable, str(FOLDER / "decoding.py"), *words.split(), "--out", str(tmp_path)]
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = saved(tmp_path)["decoding-cpu"]["figures"]
    without_ffmpeg = "SPDL does not find FFmpeg's shared libraries: left out" in done.stdout
    assert ("SPDL, an epoch" in figures) == (SPDL and not without_ffmpeg)
    assert ("DALI, an epoch" in figures) == DALI
    for figure in figures.values():
        assert 0 < figure.get("images_per_second", figure)["median"] < 1e6


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/decoding.py, whose libraries take this recipe: whole images, always mirrored, else unchanged."""
    monkeypatch.syspath_prepend(FOLDER)
    import decoding

    whole = ViewRecipe(scale=(1.0, 1.0), ratio=(1.25, 1.25), flip=1.0)
    monkeypatch.setattr(decoding.recipes, "simclr", lambda _: (whole, whole))
    yield decoding
    for name in ("decoding", "views", "common", "spdl_arm", "dali_arm"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        pytest.param("DALI", 0.5, marks=pytest.mark.skipif(not DALI, reason="DALI is not installed")),
        pytest.param("SPDL", 4.0, marks=pytest.mark.skipif(not SPDL, reason="SPDL is not installed")),
    ],
)
def test_views_of_other_libraries_are_what_torchvision_makes(
    decoding: ModuleType, tmp_path: Path, name: str, most: float
) -> None:
    """`most` is the mean difference in grey levels: SPDL resizes brightness and colour each by themselves."""
    from PIL import Image

    decoding.write(tmp_path / "all", 3)
    found = dict(decoding.peers(tmp_path, 1))
    if name not in found:
        pytest.skip(f"{name} is installed, but does not run here: FFmpeg's shared libraries are missing")
    transform = decoding.torchvision_of(decoding.recipes.simclr(decoding.SIZE)[0], decoding.SIZE, "v1")
    wanted = torch.stack([transform(Image.open(path)) for path in tmp_path.rglob("*.jpg")])
    grey = 255 * torch.tensor(decoding.STD)[:, None, None]
    [batch] = found[name]()
    for views in batch:
        apart = ((views[:, None] - wanted).abs() * grey).mean((2, 3, 4))
        assert apart.min(0).values.max() < most  # each image is there, in whatever order
        assert apart.argmin(0).unique().numel() == 3


@pytest.mark.parametrize("values", [[2.0], [1.0, 3.0], [4.0, 1.0, 2.0, 9.0]])
def test_few_rounds_have_a_least_and_a_most(common: ModuleType, values: list[float]) -> None:
    row = common.spread(values)
    assert (row["min"], row["max"], row["n"]) == (min(values), max(values), len(values))
    assert row["rounds"] == values
    assert "quartile" not in str(row)


def test_five_rounds_have_quartiles_among_them(common: ModuleType) -> None:
    row = common.ratio([5.0, 1.0, 2.0, 4.0, 3.0], [1.0] * 5)
    assert (row["lower_quartile"], row["median"], row["upper_quartile"]) == (2.0, 3.0, 4.0)
    assert common.words(row, ".1f") == "3.0 (quartiles 2.0 and 4.0)"
    assert common.words(common.spread([1.0, 3.0]), ".1f") == "2.0 (min 1.0, max 3.0)"


def test_arms_come_in_another_order_each_round(common: ModuleType) -> None:
    ran: list[str] = []

    def arm(name: str) -> Any:
        return lambda: ran.append(name) or 1.0  # type: ignore[func-returns-value]

    seconds = common.in_turn({name: arm(name) for name in "abcd"}, 8, CPU, warm=0)
    rounds = [tuple(ran[i : i + 4]) for i in range(0, len(ran), 4)]
    assert all(sorted(each) == list("abcd") for each in rounds)
    assert len(set(rounds)) > 4
    assert seconds == {name: [1.0] * 8 for name in "abcd"}  # an arm's own clock counts


def test_short_arms_are_repeated(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "LEAST_SECONDS", 0.05)
    now = [0.0]
    monkeypatch.setattr(common.time, "perf_counter", lambda: now[0])
    calls = 0

    def short() -> None:
        nonlocal calls
        calls += 1
        now[0] += 0.005

    [spent] = common.in_turn({"short": short}, 1, CPU, warm=1)["short"]
    assert 1 + 1 + 2 <= calls <= 1 + 1 + 10  # to warm up, before the clock, on the clock
    assert spent == pytest.approx(0.005)


def test_a_command_line_names_no_folder_of_the_machine(common: ModuleType) -> None:
    assert common.said(["--data", "/some/where/cifar10", "--out=/a/b", "--rounds", "3", "runs/x"]) == [
        *("--data", "cifar10", "--out=b", "--rounds", "3", "runs/x")
    ]
