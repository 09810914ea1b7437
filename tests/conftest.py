"""What every test shares."""

import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tailfin.data.sources import shapes
from tailfin.data.types import Dataset, ImageSet
from tailfin.run.config import Config

# Tests run many tiny operations: handing them between threads costs more than it saves.
torch.set_num_threads(1)

# A cache of the tests' own, which all workers share: what is tried once need not be tried again, and the user's own
# is neither read nor filled.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Matplotlib's own stays: to list the system's fonts anew takes every process that draws some seconds.
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    os.environ.setdefault("MPLCONFIGDIR", str(usual))
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tailfin-tests-")


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


# A shell that starts pytest in the background has it ignore these, and the processes that tests stop by them too.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)

# Drawing 8,000 shapes takes seconds, and many tests want the same ones.
shapes.list_shapes = functools.cache(shapes.list_shapes)


@pytest.fixture(autouse=True)
def plain_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the drawing of figures, a second a page, to the tests of pages and to those that are marked `draws`."""
    if request.path.parent.name != "report" and request.node.get_closest_marker("draws") is None:
        monkeypatch.setattr(
            "tailfin.report.plots._inline", lambda *_: '<svg class="plot" viewBox="0 0 1 1"></svg>'
        )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes of 24 tiny PNG files each."""
    generator = torch.Generator().manual_seed(0)
    for place in range(48):
        image = torch.randint(0, 160, (12, 12, 3), generator=generator, dtype=torch.uint8)
        image[3:9, 3:9] += 90 * (place % 2)
        folder = tmp_path / "photos" / ("plain", "square")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(folder / f"{place:03d}.png")
    return tmp_path / "photos"


def tiny_images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 160, (count, 3, 12, 12), generator=generator, dtype=torch.uint8)
    images[labels == 1, :, 3:9, 3:9] += 90
    return ImageSet(images, labels, ("plain", "square"))


@pytest.fixture
def data() -> Dataset:
    return Dataset("tiny", tiny_images(40, 0), tiny_images(16, 1), (0.4,) * 3, (0.2,) * 3)


@pytest.fixture
def settings() -> Callable[..., Config]:
    """Settings of a tiny run, some of them replaced."""

    def make(**changes: object) -> Config:
        values: dict[str, object] = {
            "backbone": "resnet10w2",
            "batch_size": 8,
            "epochs": 3,
            "optimizer": "sgd",
            "lr": 1.0,
            "precision": "fp32",
            "memory_format": "contiguous",
            "device": "cpu",
            "momentum": "projector",
            "method_options": {"hidden": 16.0, "out": 8.0},
        }
        return Config(**{**values, **changes})  # type: ignore[arg-type]

    return make
