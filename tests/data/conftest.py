"""Small images with known content, and a folder to put them in."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


class Folder:
    """Writes files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(
        self, name: str, content: bytes | None = None, *, size: tuple[int, int] = (20, 16), seed: int = 0
    ) -> Path:
        """A file of given bytes, or else a picture in the format that its suffix tells."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            self.picture(*size, seed=seed).save(path)
        else:
            path.write_bytes(content)
        return path

    @staticmethod
    def picture(width: int, height: int, seed: int = 0) -> Image.Image:
        """A smooth random image, which survives JPEG nearly unchanged."""
        coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    @staticmethod
    def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    root = tmp_path / "photos"
    root.mkdir()
    return Folder(root)
