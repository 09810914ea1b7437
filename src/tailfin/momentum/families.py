"""Known architectures: each gives its steps in the order of the model's own forward, and its classifier's prefix."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailfin.momentum.pieces import Call, Step, shell


def family(backbone: nn.Module) -> tuple[list[Step], str]:
    """The steps of a known architecture, and the prefix of its classifier's keys.

    Raises:
        ValueError: It is not known.
    """
    for kind in type(backbone).__mro__:
        found = _FAMILIES.get(f"{kind.__module__}.{kind.__name__}")
        # A subclass with a forward of its own computes something else than its family.
        if found is not None and type(backbone).forward is kind.forward:  # type: ignore[attr-defined]
            return found(backbone)
    known = ", ".join(_FAMILIES)
    raise ValueError(
        f"cannot split a {type(backbone).__name__} without a mapping; known by themselves: {known}"
    )


def _blocks(part: str, stage: nn.Module) -> list[Step]:
    # Not named_children(), which leaves out a module that stands in two places.
    return [
        Step(part, f"{part}.{name}", block) for name, block in stage._modules.items() if block is not None
    ]


def _modules(part: str, model: nn.Module, names: Iterable[str]) -> list[Step]:
    return [Step(part, part, model.get_submodule(name)) for name in names]


def _pooled(model: Any, x: Tensor) -> Tensor:
    return cast(Tensor, model.forward_head(x, pre_logits=True))


def _without(module: nn.Module, child: str) -> nn.Module:
    return shell(module, {n: m for n, m in module.named_children() if n != child}, direct=True)


def _timm_resnet(model: Any) -> tuple[list[Step], str]:
    steps = _modules("stem", model, ("conv1", "bn1", "act1", "maxpool"))
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        steps += _blocks(layer, getattr(model, layer))
    return [
        *steps,
        Step("layer4", steps[-1].fine, Call(model, {"global_pool": model.global_pool}, _pooled)),
    ], "fc."


def _torchvision_resnet(model: Any) -> tuple[list[Step], str]:
    steps = _modules("stem", model, ("conv1", "bn1", "relu", "maxpool"))
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        steps += _blocks(layer, getattr(model, layer))
    last = steps[-1].fine
    return [*steps, Step("layer4", last, model.avgpool), Step("layer4", last, nn.Flatten())], "fc."


def _convnext(model: Any) -> tuple[list[Step], str]:
    steps = _modules("stem", model, ("stem",))
    for index, stage in enumerate(model.stages):
        part = f"stages.{index}"
        steps += [Step(part, f"{part}.0", stage.downsample), *_blocks(part, stage.blocks)]
    part, fine, _ = steps[-1]
    head = Call(model, {"head": _without(model.head, "fc")}, _pooled)
    return [*steps, Step(part, fine, model.norm_pre), Step(part, fine, head)], "head.fc."


def _regnet(model: Any) -> tuple[list[Step], str]:
    steps = _modules("stem", model, ("stem",))
    for stage in ("s1", "s2", "s3", "s4"):
        steps += _blocks(stage, getattr(model, stage))
    part, fine, _ = steps[-1]
    head = Call(model, {"head": _without(model.head, "fc")}, _pooled)
    return [*steps, Step(part, fine, model.final_conv), Step(part, fine, head)], "head.fc."


def _efficientnet(model: Any) -> tuple[list[Step], str]:
    steps = _modules("stem", model, ("conv_stem", "bn1"))
    for index, stage in enumerate(model.blocks):
        steps += _blocks(f"blocks.{index}", stage)
    steps += _modules("head", model, ("conv_head", "bn2"))
    return [
        *steps,
        Step("head", "head", Call(model, {"global_pool": model.global_pool}, _pooled)),
    ], "classifier."


def _block_groups(prefix: str, blocks: Iterable[tuple[str, nn.Module]], count: int = 4) -> list[Step]:
    """Transformer blocks in up to `count` parts of equal depth, as the stages of a ResNet: "blocks.0-2", ..."""
    blocks = list(blocks)
    size = -(-len(blocks) // count)
    steps = []
    for index, (_, block) in enumerate(blocks):
        first = index // size * size
        last = min(first + size, len(blocks)) - 1
        name = f"{prefix}.{first}-{last}" if last > first else f"{prefix}.{first}"
        steps.append(Step(name, f"{prefix}.{index}", block))
    return steps


def _timm_vit_embed(model: Any, x: Tensor) -> Tensor:
    return cast(Tensor, model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x)))))


def _timm_vit_norm(model: Any, x: Tensor) -> Tensor:
    return _pooled(model, model.norm(x))


def _timm_vit(model: Any) -> tuple[list[Step], str]:
    children = dict(model.named_children())
    first = {n: children[n] for n in ("patch_embed", "pos_drop", "patch_drop", "norm_pre") if n in children}
    last = {n: children[n] for n in ("norm", "attn_pool", "fc_norm", "head_drop") if n in children}
    return [
        Step("embed", "embed", Call(model, first, _timm_vit_embed, direct=True)),
        *_block_groups("blocks", model.blocks.named_children()),
        Step("norm", "norm", Call(model, last, _timm_vit_norm)),
    ], "head"  # "head_dist" of distilled ones too


def _torchvision_vit_embed(model: Any, x: Tensor) -> Tensor:
    x = model._process_input(x)
    x = torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], dim=1)
    return cast(Tensor, model.encoder.dropout(x + model.encoder.pos_embedding))


def _torchvision_vit_norm(encoder: Any, x: Tensor) -> Tensor:
    return cast(Tensor, encoder.ln(x)[:, 0])


def _torchvision_vit(model: Any) -> tuple[list[Step], str]:
    encoder = model.encoder
    embed = {
        "conv_proj": model.conv_proj,
        "encoder": shell(encoder, {"dropout": encoder.dropout}, direct=True),
    }
    return [
        Step("embed", "embed", Call(model, embed, _torchvision_vit_embed, direct=True)),
        *_block_groups("blocks", encoder.layers.named_children()),
        Step("norm", "norm", Call(encoder, {"ln": encoder.ln}, _torchvision_vit_norm)),
    ], "heads."


def _sequential(model: nn.Module) -> tuple[list[Step], str]:
    steps: list[Step] = []
    for name, child in model._modules.items():
        if child is not None:
            plain = type(child).forward is nn.Sequential.forward
            steps += _blocks(name, child) if plain else [Step(name, name, child)]
    return steps, ""


_FAMILIES: dict[str, Callable[[Any], tuple[list[Step], str]]] = {
    "timm.models.resnet.ResNet": _timm_resnet,
    "timm.models.convnext.ConvNeXt": _convnext,
    "timm.models.regnet.RegNet": _regnet,
    "timm.models.efficientnet.EfficientNet": _efficientnet,
    "timm.models.vision_transformer.VisionTransformer": _timm_vit,
    "torchvision.models.resnet.ResNet": _torchvision_resnet,
    "torchvision.models.vision_transformer.VisionTransformer": _torchvision_vit,
    "torch.nn.modules.container.Sequential": _sequential,
}
