"""What all cells share: the place of the images, the device's jobs, and what a folder remembers."""

from pathlib import Path

import pytest

from tailfin.errors import UserError
from tailfin.study.execution import compute
from tailfin.study.execution.compute import Kept
from tailfin.study.spec.cells import Compute


def test_one_data_set_takes_a_path_and_several_take_names() -> None:
    assert compute.locations(["a=b/c"], ["cifar10"]) == {"cifar10": "a=b/c"}
    assert compute.locations(["cifar10=b/c"], ["cifar10"]) == {"cifar10": "b/c"}
    found = compute.locations(["cifar100=y"], ["cifar10", "cifar100"])
    assert found == {"cifar10": "cifar10", "cifar100": "y"}
    with pytest.raises(UserError, match=r"--data photos: the study has 2 data sets; .*cifar10, cifar100"):
        compute.locations(["photos"], ["cifar10", "cifar100"])


def test_images_are_told_by_their_files(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder / "cat").mkdir(parents=True)
        (tmp_path / folder / "cat" / "a.png").write_bytes(b"12345")
    first, second = (compute.identify("x", str(tmp_path / folder)) for folder in ("one", "two"))
    assert first == second
    (tmp_path / "two" / ".DS_Store").write_bytes(b"1")
    assert compute.identify("x", str(tmp_path / "two")) == first
    (tmp_path / "two" / "cat" / "b.png").write_bytes(b"1")
    assert compute.identify("x", str(tmp_path / "two")) != first
    assert compute.identify("cifar10", "cifar10") == "cifar10"
    with pytest.raises(UserError, match="no data at 'nowhere', which the study calls 'photos'"):
        compute.identify("photos", "nowhere")


def test_other_images_are_refused() -> None:
    assert compute.same_images({"a": "1"}, {"b": "2"}, Path("r")) == {"a": "1", "b": "2"}
    with pytest.raises(UserError, match="images of 'a' are not those that r was begun with"):
        compute.same_images({"a": "1"}, {"a": "2"}, Path("r"))
    with pytest.raises(UserError, match="r was begun with files for 'a'; say where they lie with --data"):
        compute.same_images({"a": "1"}, {"a": "a"}, Path("r"))


def test_what_a_folder_remembers(tmp_path: Path) -> None:
    assert Kept.read(tmp_path) is None
    kept = Kept(Compute("cpu", "bf16", "channels_last"), {"cifar10": "abc"}, 12345)
    kept.write(tmp_path)
    assert Kept.read(tmp_path) == kept
    (tmp_path / "compute.json").write_text("{}")
    with pytest.raises(UserError, match=r"compute\.json is damaged"):
        Kept.read(tmp_path)


@pytest.mark.parametrize(
    ("free", "memory", "jobs"),
    [(None, None, 8), (10**9, None, 8), (10**9, 10**8, 8), (10**9, 3 * 10**8, 3), (10, 10**8, 1)]
)  # fmt: skip
def test_jobs_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, free: int | None, memory: int | None, jobs: int
) -> None:
    monkeypatch.setattr(compute, "processors", lambda: 8)
    monkeypatch.setattr(compute, "_free_memory", lambda: free)
    assert compute.usual_jobs("cpu", memory) == jobs


def test_processors_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "processors", lambda: 8)
    assert compute.environment(3)["OMP_NUM_THREADS"] == "2"
    assert compute.environment(16)["OMP_NUM_THREADS"] == "1"
    assert compute.environment(1, gpu="5")["CUDA_VISIBLE_DEVICES"] == "5"


def test_a_gpu_is_shared_as_far_as_its_memory_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "processors", lambda: 16)
    monkeypatch.setattr(compute, "_free_on_gpus", lambda: [10 * 2**30, 5 * 2**30])
    assert compute.usual_jobs("cuda", 2 * 2**30) == 4 + 2
    assert compute.usual_jobs("cuda", None) == 2
    monkeypatch.setattr(compute, "processors", lambda: 3)
    assert compute.usual_jobs("cuda", 2 * 2**30) == 3


def test_a_place_is_said_once_and_a_bare_name_is_no_place_among_several() -> None:
    with pytest.raises(UserError, match=r"--data cifar10=b: cifar10 is said to lie in a already"):
        compute.locations(["a", "cifar10=b"], ["cifar10"])
    with pytest.raises(UserError, match=r"--data cifar10: the study has 2 data sets"):
        compute.locations(["cifar10"], ["cifar10", "cifar100"])
