"""Parts in order equal the model's own forward, bit for bit, and own every weight once."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import tailfin
from tailfin.backbones import create, narrow_resnet, small_images
from tailfin.errors import UserError

TIMM = {
    "resnet18": 64,
    "resnet26d": 64,
    "resnet50": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "regnetx_002": 64,
    "regnety_002": 64,
    "efficientnet_b0": 64,
    "mobilenetv2_050": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "vit_base_patch32_clip_224": 224,
    "vit_medium_patch16_gap_240": 240,
}
NARROW = {"embed_dim": 96, "depth": 4, "num_heads": 3}
"""What the larger ViTs are made with: their structure in less time."""


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("classes", [0, 7])
def test_parts_in_order_are_the_timm_model(name: str, classes: int) -> None:
    torch.manual_seed(0)
    narrow = NARROW if name in ("vit_base_patch32_clip_224", "vit_medium_patch16_gap_240") else {}
    model = timm.create_model(name, num_classes=classes, **narrow)
    x = torch.randn(2, 3, TIMM[name], TIMM[name])
    twin = copy.deepcopy(model)
    parts = tailfin.split(model)
    for training in (False, True):  # in training mode BatchNorm and dropout must see the same calls
        model.train(training), twin.train(training), parts.train(training)
        torch.manual_seed(1)
        expected = twin.forward_head(twin.forward_features(x), pre_logits=True)
        torch.manual_seed(1)
        assert torch.equal(parts(x), expected)
    for key, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_parts_in_order_are_the_torchvision_model(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, 224, 224)
    parts = tailfin.split(model).eval()
    with torch.no_grad():
        classifier = model.fc if name == "resnet18" else model.heads
        assert torch.equal(classifier(parts(x)), model(x))


def test_names_follow_the_architecture() -> None:
    names = {name: tailfin.split(timm.create_model(name)).names for name in ("resnet18", "convnext_atto")}
    assert names["resnet18"] == ("stem", "layer1", "layer2", "layer3", "layer4")
    assert names["convnext_atto"] == ("stem", "stages.0", "stages.1", "stages.2", "stages.3")
    vit = tailfin.split(timm.create_model("vit_tiny_patch16_224"))
    assert vit.names == ("embed", "blocks.0-2", "blocks.3-5", "blocks.6-8", "blocks.9-11", "norm")


def test_finer_and_grouped_parts_compute_the_same() -> None:
    model = timm.create_model("resnet18", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64)
    parts = tailfin.split(model, finer=["layer3", "layer4"], groups={"trunk": ["stem", "layer1", "layer2"]})
    assert parts.names == ("trunk", "layer3.0", "layer3.1", "layer4.0", "layer4.1")
    assert torch.equal(parts.eval()(x), model(x))


def test_backbone_state_loads_into_plain_timm() -> None:
    model = timm.create_model("convnext_atto", num_classes=10)
    state = tailfin.split(model).backbone_state_dict()
    plain = timm.create_model("convnext_atto", num_classes=0)
    plain.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(plain.eval()(x), model.eval().forward_head(model.forward_features(x), pre_logits=True))


def test_parts_share_the_backbones_weights() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    parts = tailfin.split(model)
    assert {id(p) for p in parts.parameters()} == {id(p) for p in model.parameters()}
    parts.to(torch.float64)
    assert model.cls_token.dtype == torch.float64


def test_a_sequential_splits_into_its_children() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    parts = tailfin.split(model, finer=["1"])
    x = torch.randn(2, 3, 8, 8)
    assert parts.names == ("0", "1.0", "1.1", "2", "3")
    assert torch.equal(parts(x), model(x))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


def test_a_mapping_serves_anything_else() -> None:
    model = Odd()
    mapping = {"a": ["first", torch.relu], "b": ["second", lambda x: x.mean((2, 3))]}
    parts = tailfin.split(model, mapping, ignore=["fc."])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(parts(x), model(x))
    assert set(parts.backbone_state_dict()) == {"first.weight", "first.bias", "second.weight", "second.bias"}
    with pytest.raises(ValueError, match=r"belong to no part, the first is 'fc\.weight'"):
        tailfin.split(model, mapping)
    with pytest.raises(ValueError, match="without a mapping"):
        tailfin.split(model)
    with pytest.raises(ValueError, match="'nowhere', which the backbone lacks"):
        tailfin.split(model, {"a": ["nowhere"]})
    with pytest.raises(ValueError, match="belongs to two parts"):
        tailfin.split(model, {"a": ["first"], "b": ["first", "second"]}, ignore=["fc."])


def test_wrong_refinements_are_named() -> None:
    model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match="cannot split unknown part 'layer9'"):
        tailfin.split(model, finer=["layer9"])
    with pytest.raises(ValueError, match="do not follow each other"):
        tailfin.split(model, groups={"g": ["stem", "layer2"]})


def test_small_images_keep_resolution() -> None:
    x = torch.randn(1, 3, 32, 32)
    for model in (small_images(timm.create_model("resnet18")), small_images(torchvision.models.resnet18())):
        stem = tailfin.split(model)["stem"]
        assert stem(x).shape == (1, 64, 32, 32)
    assert tailfin.split(small_images(timm.create_model("resnet26d")))["stem"](x).shape == (1, 64, 32, 32)
    with pytest.raises(ValueError, match="not ConvNeXt"):
        small_images(timm.create_model("convnext_atto"))


def test_narrow_resnet_is_narrow_and_splits() -> None:
    model = narrow_resnet(16).eval()
    x = torch.randn(2, 3, 32, 32)
    assert sum(p.numel() for p in model.parameters()) < 320_000
    assert torch.equal(tailfin.split(model).eval()(x), model(x))


def test_the_shortcuts_of_narrow_resnets_are_convolutions_of_stride_2_under_their_usual_names() -> None:
    model = narrow_resnet(4).double()
    plain = copy.deepcopy(model)
    for stage in (plain.layer2, plain.layer3, plain.layer4):
        own = stage[0].downsample[0]
        stage[0].downsample[0] = nn.Conv2d(
            own.in_channels, own.out_channels, 1, stride=2, bias=False
        ).double()
    plain.load_state_dict(model.state_dict(), strict=True)  # as an older version's file has it
    for side in (12, 17, 32):
        images = torch.randn(2, 3, side, side, dtype=torch.float64)
        torch.testing.assert_close(model.eval()(images), plain.eval()(images), rtol=1e-12, atol=1e-12)


def test_backbones_by_name() -> None:
    assert create("resnet10w8", image_size=32, channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 64)
    assert create("vit_tiny_patch16_224", image_size=64)(torch.randn(2, 3, 64, 64)).shape == (2, 192)
    with pytest.raises(UserError, match=r"'resnet81' in --backbone; nearest of .*resnet18"):
        create("resnet81", image_size=32)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_module_in_two_places_and_a_forward_of_its_own_are_kept() -> None:
    act = nn.Tanh()
    model = nn.Sequential(nn.Linear(3, 4), act, Residual(nn.Linear(4, 4), act), nn.Linear(4, 2), act)
    x = torch.randn(5, 3)
    parts = tailfin.split(model)
    assert parts.names == ("0", "1", "2", "3", "4")
    assert torch.equal(parts(x), model(x))
    with pytest.raises(ValueError, match="cannot split a Residual without a mapping"):
        tailfin.split(Residual(nn.Linear(3, 3)))


@pytest.mark.parametrize("name", ["none", "projector", "backbone", "a,b", "a:"])
def test_part_names_that_placements_read_otherwise_are_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="cannot be called"):
        tailfin.MomentumEncoder(tailfin.split(model, {name: ["0"], "end": ["1"]}), placement="end")
