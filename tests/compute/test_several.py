"""One run on several processes: the same run as on one."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tailfin.compute.world import World

from .worker import VARIANTS, cases, train

WORKER = Path(__file__).with_name("worker.py")


def start(size: int, *words: object) -> list[subprocess.Popen[str]]:
    """Processes as torchrun starts them."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finished(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        _, error = process.communicate(timeout=280)
        assert process.returncode == 0, error


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], dict[str, Tensor]]]:
    """What two processes came to, by the name of the run."""
    out = tmp_path_factory.mktemp("two")
    processes = start(2, WORKER, out)

    def of(name: str) -> dict[str, Tensor]:
        if not (out / name).exists():
            finished(processes)
        return load_file(out / name)

    yield of
    for process in processes:
        process.kill()
        process.wait()


def same(found: dict[str, Tensor], expected: dict[str, Tensor], later: float = 1e-3) -> None:
    """Weights to 1e-5 after 20 steps, losses and gradients to 1e-5 after one and to `later` after 20.

    What holds projections, such as queues, has more of fp32's rounding.
    """
    assert found.keys() == expected.keys()
    for key in ("losses", "gradient"):
        ours, theirs = found.pop(key), expected.pop(key)
        torch.testing.assert_close(
            ours[0], theirs[0], rtol=1e-5, atol=0.0, equal_nan=True, msg=f"{key} at first"
        )
        torch.testing.assert_close(ours, theirs, rtol=later, atol=0.0, equal_nan=True, msg=key)
    for key, value in expected.items():
        held = key.startswith("method.") and value.ndim > 1 and "weight" not in key
        loose = 1e-3 if held else 1e-5
        torch.testing.assert_close(found[key], value, rtol=loose, atol=loose, msg=f"{key} differs")


@pytest.mark.parametrize("name", [name for name in cases() if name != "local"])
def test_two_processes_train_as_one(shared: Callable[[str], dict[str, Tensor]], name: str) -> None:
    # Rounding can make another image the nearest one.
    later = 2e-2 if name.startswith(("nn", "all4one")) else 1e-3
    same(shared(name), train(name, World()), later)


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_four_processes_train_as_one(tmp_path: Path) -> None:
    names = ["simclr projector", "vibcreg projector", "accumulated", "multi-crop", "swav published"]
    names = [name for name in names if name in cases()]
    finished(start(4, WORKER, tmp_path, *names))
    for name in names:
        same(load_file(tmp_path / name), train(name, World()))


def test_batch_norm_over_each_share_is_another_run(shared: Callable[[str], dict[str, Tensor]]) -> None:
    one = train("local", World())
    found = shared("local")
    assert not torch.allclose(found["losses"], one["losses"], rtol=1e-3)
    assert VARIANTS["local"]["batch_norm"] == "local"
