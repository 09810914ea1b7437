"""Backbones by name: timm's, torchvision's, and the narrow ResNet; whole, or split into parts."""

import difflib
import re
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

from tailfin.backbones.narrow import NARROW, narrow_resnet, small_images
from tailfin.errors import UserError
from tailfin.momentum.parts import Parts, split

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


def _no_such(kind: str, name: str, known: list[str]) -> UserError:
    # Over a thousand names are allowed: the nearest ones say more than all of them.
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.0)
    return UserError(f"unknown {kind} {name!r} in --backbone; nearest of {len(known)}: {', '.join(near)}")
