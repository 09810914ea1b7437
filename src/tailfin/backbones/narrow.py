"""The narrow ResNet for studies on CPUs, and the stem for small images."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.errors import UserError

NARROW = "resnet10w16"
WIDEST = 1024
"""Of narrow ResNets: 1.3 billion parameters."""


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
