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


def test_one_chunk_or_one_thread_stays_with_the_caller() -> None:
    names = []
    each(lambda _: names.append(current_thread().name), [slice(0, 1), slice(1, 2)], CPU)
    assert set(names) == {current_thread().name}


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
