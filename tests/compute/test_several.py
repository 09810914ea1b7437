"""One run on several processes: the same run as on one."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tailfin.compute.several import fresh
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
        _, error = process.communicate(timeout=560)
        assert process.returncode == 0, error


Of = Callable[[str], dict[str, Tensor]]


def pair(factory: pytest.TempPathFactory, folder: str, names: list[str]) -> Iterator[Of]:
    """What two processes came to, by the name of the run; one pair serves all of pytest's workers."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    out = (factory.getbasetemp().parent if shared else factory.getbasetemp()) / folder
    processes = []
    try:
        out.mkdir()
        processes = start(2, WORKER, out, *names)
    except FileExistsError:
        pass  # another worker has started them

    def of(name: str) -> dict[str, Tensor]:
        while not (out / name).exists():
            if processes and any(process.poll() for process in processes):
                finished(processes)
            time.sleep(0.1)
        return load_file(out / name)

    yield of
    finished(processes)


PUBLISHED = [name for name in cases() if not name.endswith(" projector")]
PROJECTOR = [name for name in cases() if name.endswith(" projector")]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Of]:
    yield from pair(tmp_path_factory, "published", PUBLISHED)


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Of]:
    yield from pair(tmp_path_factory, "projector", PROJECTOR)


def same(found: dict[str, Tensor], expected: dict[str, Tensor], loosely: float = 1e-3) -> None:
    """Weights to 1e-5 after 20 steps, losses and gradients to 1e-5 after one and to `loosely` after 20.

    What holds projections, such as queues, has more of fp32's rounding.
    """
    assert found.keys() == expected.keys()
    for key in ("losses", "gradient"):
        ours, theirs = found.pop(key), expected.pop(key)
        torch.testing.assert_close(
            ours[0], theirs[0], rtol=1e-5, atol=0.0, equal_nan=True, msg=f"{key} at first"
        )
        torch.testing.assert_close(ours, theirs, rtol=loosely, atol=0.0, equal_nan=True, msg=key)
    for key, value in expected.items():
        held = key.startswith("method.") and value.ndim > 1 and "weight" not in key
        loose = 1e-3 if held else 1e-5
        torch.testing.assert_close(found[key], value, rtol=loose, atol=loose, msg=f"{key} differs")


def later(name: str) -> float:
    """Rounding can make another image the nearest one."""
    return 2e-2 if name.startswith(("nn", "all4one")) else 1e-3


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "local"])
def test_two_processes_train_as_one(published: Of, name: str) -> None:
    same(published(name), train(name, World()), later(name))


@pytest.mark.ci
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROJECTOR)
def test_two_processes_train_as_one_with_momentum_on_the_projector(projector: Of, name: str) -> None:
    same(projector(name), train(name, World()), later(name))


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_four_processes_train_as_one(tmp_path: Path) -> None:
    names = ["vibcreg projector", "accumulated"]
    finished(start(4, WORKER, tmp_path, *names))
    for name in names:
        same(load_file(tmp_path / name), train(name, World()))


@pytest.mark.timeout(600)
def test_batch_norm_over_each_share_is_another_run(published: Of) -> None:
    one = train("local", World())
    found = published("local")
    assert not torch.allclose(found["losses"], one["losses"], rtol=1e-3)
    assert VARIANTS["local"]["batch_norm"] == "local"


def test_a_start_among_what_a_killed_one_left_finds_its_own(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 3)
    store.set("tailfin", "dead")
    for rank in (1, 2):  # what a start left that was killed when all but one had been confirmed
        store.set(f"dead/{rank}", "gone")
        store.set(f"dead/{rank}/gone", "")
    with ThreadPoolExecutor(3) as pool:
        later = [pool.submit(fresh, store, rank, 3, 60.0) for rank in (1, 2)]
        time.sleep(0.2)
        assert not any(each.done() for each in later)
        first = fresh(store, 0, 3, 60.0)
        found = [each.result() for each in later]
    first.set("here", "yes")
    assert [each.get("here") for each in found] == [b"yes", b"yes"]
