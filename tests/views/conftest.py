from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DATASETS = Path(__file__).resolve().parents[2].parent / "shared" / "datasets"


@pytest.fixture(scope="session")
def cifar() -> Tensor:
    """16 CIFAR-10 test images, uint8 [16, 3, 32, 32]."""
    from io import BytesIO

    import pyarrow.parquet as parquet
    from PIL import Image

    path = DATASETS / "cifar10" / "test-00000-of-00001.parquet"
    if not path.exists():
        pytest.skip("CIFAR-10's test split is not in shared/datasets")
    rows = next(parquet.ParquetFile(path).iter_batches(batch_size=16, columns=["img"])).to_pylist()
    pictures = [np.asarray(Image.open(BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def photo():
    """Makes images with the 1/f spectrum of photographs, saturated borders and grain: uint8 [n, c, h, w]."""

    def make(n: int, c: int, h: int, w: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        image = torch.zeros(n, c, h, w)
        for octave in range(6):
            side = 2 ** (octave + 1)
            noise = torch.randn(n, c, side, side, generator=generator) * 60 / 1.6**octave
            image += F.interpolate(noise, (h, w), mode="bicubic")
        return (image + 128).round().clamp(0, 255).to(torch.uint8)

    return make
