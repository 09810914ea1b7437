"""Backbones by name: timm's, torchvision's, and a narrow ResNet for CPUs; stems for small images."""

import difflib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.errors import UserError
from tailfin.momentum.parts import Parts, split
from tailfin.reading import json_object, read_tensors, understand

NARROW = "resnet10w16"
FAMILIES = (
    ("narrow ResNet, any width", "resnet10w16, resnet10w32", "stem, layer1 ... layer4"),
    ("timm ResNet", "resnet18, resnet50, resnet26d", "stem, layer1 ... layer4"),
    ("timm ConvNeXt", "convnext_atto, convnextv2_nano", "stem, stages.0 ... stages.3"),
    ("timm RegNet", "regnety_002, regnetx_008", "stem, s1 ... s4"),
    ("timm EfficientNet", "efficientnet_b0, mobilenetv2_050", "stem, blocks.0 ... blocks.6, head"),
    ("timm ViT", "vit_tiny_patch16_224, vit_small_patch16_224", "embed, blocks in four groups, norm"),
    ("torchvision ResNet", "torchvision:resnet18", "stem, layer1 ... layer4"),
    ("torchvision ViT", "torchvision:vit_b_16", "embed, blocks in four groups, norm"),
)
"""What can be named: family, examples, parts before the projector."""
SMALL_SIDE = 64
"""Up to this side (pixels) ResNets get the small-image stem."""
WIDEST = 1024
"""Of narrow ResNets: 1.3 billion parameters."""
LARGEST = 8192
"""Side (pixels) of images for which an encoder file may ask; some backbones have a parameter for each position."""


def create(name: str, *, image_size: int, channels: int = 3) -> nn.Module:
    """A randomly initialised backbone without a classifier.

    Args:
        name: A timm model ("resnet18", "vit_tiny_patch16_224"), "torchvision:resnet18", or "resnet10w16", the narrow
            ResNet of any width.
        image_size: Side of the views in pixels; up to 64, ResNets get the `small_images` stem and ViTs smaller
            patches are not chosen by themselves.
        channels: 1 or 3.

    Raises:
        UserError: No such model, or one that cannot take these images.
    """
    if narrow := re.fullmatch(r"resnet10w(\d+)", name):
        return narrow_resnet(int(narrow[1]), channels=channels)
    if name.startswith("torchvision:"):
        model = _torchvision(name.removeprefix("torchvision:"), image_size, channels)
    else:
        model = _timm(name, image_size, channels)
    is_resnet = all(hasattr(model, name) for name in ("conv1", "maxpool", "layer4"))
    return small_images(model) if image_size <= SMALL_SIDE and is_resnet else model


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


def create_parts(name: str, *, image_size: int, channels: int = 3) -> Parts:
    """A backbone by name, split into its parts; see `create`.

    Raises:
        UserError: As `create`, or an architecture that cannot be split by itself.
    """
    model = create(name, image_size=image_size, channels=channels)
    try:
        return split(model)
    except ValueError:
        # The command line takes no mapping, which is what `split` asks for.
        families = ", ".join(family.partition(",")[0] for family, *_ in FAMILIES)
        raise UserError(
            f"--backbone {name}: tailfin does not know how to split a {type(model).__name__}; it knows {families} "
            "(tailfin list backbones). In a loop of your own, tailfin.split(model, {...}) takes the parts"
        ) from None


@lru_cache
def normalises_batches(name: str, image_size: int) -> bool:
    """Whether the backbone has BatchNorm, as convolutional ones do and ViT and ConvNeXt do not.

    Raises:
        UserError: As `create`.
    """
    with torch.device("meta"):
        model = create(name, image_size=image_size)
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def feature_width(parts: Parts, *, image_size: int, channels: int) -> int:
    """The width D of the parts' pooled features [N, D].

    Raises:
        UserError: The backbone cannot take images of this size.
    """
    training = parts.training
    parts.eval()
    try:
        with torch.no_grad():
            return int(parts(torch.zeros(1, channels, image_size, image_size)).shape[1])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"the backbone cannot take images of {image_size} px: {error}") from None
    finally:
        parts.train(training)


def narrow_resnet(width: int = 16, *, channels: int = 3) -> nn.Module:
    """A ResNet of one basic block a stage, `width` to 8 x `width` channels, with the small-image stem.

    It is timm's ResNet in class and keys; at width 16 it has 0.3 M parameters, for studies on CPUs. The last norm of
    a block starts at one: at zero each block begins as a mere shortcut, which suits deep networks, while with one
    block a stage the untrained encoder's linear probe on CIFAR-10 falls from 35.9 % to 32.8 %.
    """
    from timm.models.resnet import BasicBlock, ResNet

    if not 1 <= width <= WIDEST:
        raise UserError(f"the width of a narrow ResNet is {width}; it must lie between 1 and {WIDEST}")
    widths = tuple(width * scale for scale in (1, 2, 4, 8))
    model = ResNet(
        BasicBlock, (1, 1, 1, 1), channels=widths, in_chans=channels, num_classes=0, zero_init_last=False
    )
    # timm fixes the stem at 64 channels, which at width 16 would be half of all the work.
    model.conv1, model.bn1 = _conv(channels, width), nn.BatchNorm2d(width)
    model.layer1[0].conv1, model.layer1[0].downsample = _conv(width, width), None
    for stage in (model.layer2, model.layer3, model.layer4):
        strided = stage[0].downsample[0]
        stage[0].downsample[0] = _EverySecond(strided.in_channels, strided.out_channels)
        stage[0].downsample[0].weight = strided.weight
    return small_images(model)


class _EverySecond(nn.Conv2d):
    """A 1x1 convolution of stride 2 as one of stride 1 on every second pixel: the same values under the same key.

    oneDNN 3.12 (torch 2.14) is broken in the other's backward with fewer than 8 or 16 channels, in fp32 and
    channels_last: gradients off by 5 to 100 %, crashes, hangs, by CPU; docs/running.md has the shapes. This form was
    right to 3e-7 on all. The pooling takes single pixels; indexing took 1.5 times as long.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, kernel_size=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.avg_pool2d(input, kernel_size=1, stride=2), self.weight)


def small_images(model: nn.Module) -> nn.Module:
    """Give a timm or torchvision ResNet a stem for 32 to 64 px: 3x3, stride 1, no max-pool; changed in place.

    Raises:
        ValueError: Not a ResNet with `conv1` and `maxpool`.
    """
    resnet = cast(Any, model)
    conv = getattr(model, "conv1", None)
    if conv is None or not hasattr(model, "maxpool"):
        raise ValueError(
            f"the small-image stem is for ResNets with conv1 and maxpool, not {type(model).__name__}"
        )
    if isinstance(conv, nn.Sequential):  # timm's deep stem: three 3x3, the first of stride 2
        cast(nn.Conv2d, conv[0]).stride = (1, 1)
    else:
        resnet.conv1 = _conv(conv.in_channels, conv.out_channels)
    resnet.maxpool = nn.Identity()
    return model


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _no_such(kind: str, name: str, known: list[str]) -> UserError:
    # Over a thousand names are allowed: the nearest ones say more than all of them.
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.0)
    return UserError(f"unknown {kind} {name!r} in --backbone; nearest of {len(known)}: {', '.join(near)}")


def _timm(name: str, image_size: int, channels: int) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise _no_such("backbone", name, [*timm.list_models(), NARROW])
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    try:
        try:  # models of a fixed input size take it, and only they know the option
            return cast(nn.Module, timm.create_model(name, img_size=image_size, **options))
        except TypeError:
            return cast(nn.Module, timm.create_model(name, **options))
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(
            f"backbone {name!r} cannot take {channels} x {image_size} px images: {error}"
        ) from None


def _torchvision(name: str, image_size: int, channels: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise _no_such("torchvision backbone", name, models.list_models(module=models))
    options = {"image_size": image_size} if name.startswith("vit") else {}
    try:
        model = models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"backbone 'torchvision:{name}' cannot take {image_size} px images: {error}"
        ) from None
    if channels != 3:
        raise UserError(f"backbone 'torchvision:{name}' takes 3 channels, the images have {channels}")
    return cast(nn.Module, model)
