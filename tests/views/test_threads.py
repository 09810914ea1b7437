"""Threads that share out chunks: each chunk once, each operation in one thread, the same views as without them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread

import pytest
import torch

from tailfin.views import recipes
from tailfin.views.augment import Augment, evaluate_view
from tailfin.views.threads import each

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_every_chunk_is_worked_on_once_in_a_thread_without_others() -> None:
    seen = []
    chunks = [slice(start, start + 2) for start in range(0, 20, 2)]
    each(
        lambda chunk: seen.append((chunk.start, current_thread().name, torch.get_num_threads())), chunks, CPU
    )
    assert sorted(start for start, _, _ in seen) == [chunk.start for chunk in chunks]
    assert all(name.startswith("views") and threads == 1 for _, name, threads in seen)
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_in_a_thread_is_the_callers() -> None:
    def fail(chunk: slice) -> None:
        raise ValueError(f"no {chunk.start}")

    with pytest.raises(ValueError, match="no 0"):
        each(fail, [slice(0, 1), slice(1, 2)], CPU)


@pytest.mark.usefixtures("three_threads")
def test_nothing_is_worked_on_after_an_error() -> None:
    begun = []

    def fail(chunk: slice) -> None:
        begun.append(chunk.start)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        each(fail, [slice(start, start + 1) for start in range(1000)], CPU)
    count = len(begun)
    each(lambda _: None, [slice(0, 1), slice(1, 2), slice(2, 3)], CPU)
    assert len(begun) == count < 1000


@pytest.mark.usefixtures("three_threads")
def test_views_can_be_made_in_inference_mode() -> None:
    images = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    with torch.inference_mode():
        views = evaluate_view(images, size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert views.is_inference()
    assert bool((views == -1).all())


def names_of(count: int) -> set[str]:
    names = set()
    each(lambda _: names.add(current_thread().name), [slice(k, k + 1) for k in range(count)], CPU)
    return names


def test_one_thread_is_the_callers() -> None:
    assert names_of(4) == {current_thread().name}


@pytest.mark.usefixtures("three_threads")
def test_one_chunk_stays_with_the_caller() -> None:
    assert names_of(1) == {current_thread().name}


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("size", [32, 96])
def test_views_are_the_same_to_the_bit_with_any_number_of_threads(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 3, 40, 40), dtype=torch.uint8, generator=generator)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    augment = Augment(recipes.byol(size), size=size, mean=mean, std=std)
    many = augment(images, torch.Generator().manual_seed(1))
    seen = evaluate_view(images, size=size, mean=mean, std=std)
    torch.set_num_threads(1)
    one = augment(images, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))
    assert torch.equal(seen, evaluate_view(images, size=size, mean=mean, std=std))
