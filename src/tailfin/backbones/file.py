"""A run's encoder file: what it says of itself, and the backbone with its weights."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from tailfin.backbones.named import create
from tailfin.errors import UserError
from tailfin.files.reading import json_object, read_tensors, understand

LARGEST = 8192
"""Side (pixels) of images for which an encoder file may ask; some backbones have a parameter for each position."""


def load_encoder(file: str | Path) -> nn.Module:
    """The backbone of a finished run, with its weights, in eval mode and in its own library's class.

    Its images are to be normalised with the `mean` and `std` of `encoder_metadata`.

    Args:
        file: encoder.safetensors or encoder-momentum.safetensors of a run.

    Raises:
        UserError: Not such a file, or weights that do not fit what it says of itself.
    """
    tensors, metadata = read_tensors(Path(file))
    about = _about(metadata, file)
    model = create(about["backbone"], image_size=about["image_size"], channels=about["channels"])
    missing, unexpected = understand(str(file), lambda: model.load_state_dict(tensors, strict=False))
    # torchvision has no models without a classifier, which a run does not train.
    lost = [key for key in missing if not key.startswith(("fc.", "heads."))]
    if lost or unexpected:
        raise UserError(
            f"{file} does not hold a {about['backbone']}: {(lost or unexpected)[0]!r} does not fit"
        )
    return model.eval()


def encoder_metadata(file: str | Path) -> dict[str, Any]:
    """What an encoder file says of itself: backbone, image_size, channels, mean and std of the training images.

    Raises:
        UserError: Not an encoder file of a run.
    """
    return _about(read_tensors(Path(file))[1], file)


def _about(metadata: Mapping[str, str], file: str | Path) -> dict[str, Any]:
    if "tailfin" not in metadata:
        raise UserError(f"{file} is no encoder.safetensors of a run")
    about = json_object(metadata["tailfin"], str(file))

    def checked() -> dict[str, Any]:
        channels, size = about["channels"], about["image_size"]
        if type(about["backbone"]) is not str or type(size) is not int or not 8 <= size <= LARGEST:
            raise ValueError(f"backbone {about['backbone']!r} at {size!r} px")
        if channels not in (1, 3):
            raise ValueError(f"{channels!r} channels")
        for name in ("mean", "std"):
            values = [float(value) for value in about[name]]
            if len(values) != channels or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} {about[name]!r} for {channels} channels")
        if min(about["std"]) <= 0:
            raise ValueError(f"std {about['std']!r}")
        return about

    return understand(str(file), checked)
