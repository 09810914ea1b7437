"""Split an encoder into ordered, named parts that end in pooled features.

The parts share the backbone's own modules and parameters: training the parts trains the backbone, and
`Parts.backbone_state_dict` gives the weights back under the backbone's own keys.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

PartFunction = Callable[[Any, Tensor], Tensor]
"""A function of a module (or a shell of one) and the previous part's output."""


class Step(NamedTuple):
    """The smallest piece that `split` knows: the part it belongs to, its name when split finer, and its module."""

    part: str
    fine: str
    module: nn.Module


class Call(nn.Module):
    """Runs `function` on a shell of `module` that owns only the named children and the module's direct tensors.

    A shell is the same object in all but ownership, so code such as a ViT's `_pos_embed` runs unchanged, while a
    deep copy of it copies what the part owns and no more.
    """

    def __init__(
        self,
        module: nn.Module,
        children: Mapping[str, nn.Module],
        function: PartFunction,
        direct: bool = False,
    ) -> None:
        super().__init__()
        self.shell = _shell(module, children, direct)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.shell, x)


class Parts(nn.Module):
    """Named parts in order; calling them all equals the backbone's own forward up to pooled features [N, D].

    Attributes:
        names: The parts' names, from input to output.
    """

    def __init__(
        self, parts: Mapping[str, nn.Module], keys: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        if not parts:
            raise ValueError("an encoder needs at least one part")
        self.names = tuple(parts)
        for name, module in parts.items():
            self.add_module(module_key(name), module)
        self._check_disjoint()
        self._keys = keys if keys is not None else {key: (key,) for key in self.state_dict()}

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, self._modules[module_key(name)])

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = self[name](x)
        return x

    def backbone_state_dict(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The weights under the backbone's own keys, without the classifier.

        Args:
            state: A state of these parts, such as one with momentum weights; the parts' own where None.
        """
        values = self.state_dict() if state is None else state
        return {key: values[own].detach() for own, keys in self._keys.items() for key in keys}

    def _check_disjoint(self) -> None:
        owner: dict[int, str] = {}
        for name in self.names:
            for key, tensor in self[name].named_parameters():
                other = owner.setdefault(id(tensor), name)
                if other != name:
                    raise ValueError(f"parameter {key!r} belongs to two parts, {other!r} and {name!r}")


def module_key(name: str) -> str:
    """The name under which a part is registered: torch allows no dot there, and part names may hold some."""
    return name.replace(".", "/")


def split(
    backbone: nn.Module,
    mapping: Mapping[str, Sequence[str | nn.Module | Callable[[Tensor], Tensor]]] | None = None,
    *,
    finer: Iterable[str] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    ignore: Sequence[str] = (),
) -> Parts:
    """Split `backbone` into ordered named parts that end in pooled features.

    Known without a mapping: timm ResNet, ConvNeXt, RegNet, EfficientNet and VisionTransformer, torchvision ResNet
    and VisionTransformer, and any `nn.Sequential` (its children). A classifier is left out.

    Args:
        backbone: The encoder; its modules are shared, not copied.
        mapping: For anything else: part name -> what it runs in order, as names of submodules ("layer1.0"),
            modules without a place in the backbone, or functions of a tensor.
        finer: Parts to split into their blocks: "layer3" gives "layer3.0", "layer3.1", ...
        groups: New name -> consecutive parts to join, as {"trunk": ["stem", "layer1"]}.
        ignore: Prefixes of parameters that no part needs to own, such as "fc.".

    Raises:
        ValueError: An unknown architecture without a mapping, a part or submodule that does not exist, parameters
            that no part owns or that two parts own, or parts of a group that do not follow each other.
    """
    if mapping is not None:
        steps, ignored = _mapped(backbone, mapping), tuple(ignore)
    else:
        steps, classifier = _family(backbone)
        ignored = (*ignore, classifier) if classifier else tuple(ignore)
    named = _grouped(_refined(steps, tuple(finer)), groups or {})
    parts = {
        name: modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        for name, modules in ((n, [s.module for s in g]) for n, g in groupby(named, key=lambda s: s.part))
    }
    if len(parts) != len({s.part for s in named}):
        raise ValueError(f"a part is interrupted by another; parts in order: {[s.part for s in named]}")
    return Parts(parts, _backbone_keys(backbone, Parts(parts), ignored))


def _backbone_keys(backbone: nn.Module, parts: Parts, ignored: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Which keys of the backbone's state each tensor of the parts stands for, matched by identity."""
    found: dict[int, list[str]] = {}
    for key, tensor in backbone.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), []).append(key)
    keys = {
        own: tuple(found.pop(id(tensor)))
        for own, tensor in parts.state_dict(keep_vars=True).items()
        if id(tensor) in found
    }
    left = [key for names in found.values() for key in names if not key.startswith(ignored or ("\0",))]
    if left:
        raise ValueError(
            f"{len(left)} tensors of {type(backbone).__name__} belong to no part, the first is {left[0]!r}; "
            "add them to a part or name their prefix in `ignore`"
        )
    return keys


def _refined(steps: list[Step], finer: tuple[str, ...]) -> list[Step]:
    names = list(dict.fromkeys(s.part for s in steps))
    for name in finer:
        if name not in names:
            raise ValueError(f"cannot split unknown part {name!r}; parts: {', '.join(names)}")
    return [s._replace(part=s.fine) if s.part in finer else s for s in steps]


def _grouped(steps: list[Step], groups: Mapping[str, Sequence[str]]) -> list[Step]:
    names = list(dict.fromkeys(s.part for s in steps))
    renamed = dict(zip(names, names, strict=True))
    for group, members in groups.items():
        for member in members:
            if member not in names:
                raise ValueError(f"group {group!r} holds unknown part {member!r}; parts: {', '.join(names)}")
        places = sorted(names.index(m) for m in members)
        if not places or places != list(range(places[0], places[-1] + 1)):
            raise ValueError(f"parts of group {group!r} do not follow each other: {', '.join(members)}")
        renamed |= dict.fromkeys(members, group)
    return [s._replace(part=renamed[s.part]) for s in steps]


def _mapped(
    backbone: nn.Module, mapping: Mapping[str, Sequence[str | nn.Module | Callable[[Tensor], Tensor]]]
) -> list[Step]:
    steps = []
    for name, entries in mapping.items():
        for place, entry in enumerate(entries):
            if isinstance(entry, str):
                try:
                    steps.append(Step(name, entry, backbone.get_submodule(entry)))
                except AttributeError:
                    raise ValueError(
                        f"part {name!r} names submodule {entry!r}, which the backbone lacks"
                    ) from None
            elif isinstance(entry, nn.Module):
                steps.append(Step(name, f"{name}.{place}", entry))
            else:
                function = entry
                call = Call(nn.Module(), {}, _ignoring_shell(function))
                steps.append(Step(name, f"{name}.{place}", call))
    return steps


def _ignoring_shell(function: Callable[[Tensor], Tensor]) -> PartFunction:
    return lambda _, x: function(x)


def _shell(module: nn.Module, children: Mapping[str, nn.Module], direct: bool) -> nn.Module:
    shell = copy.copy(module)
    shell.__dict__["_modules"] = dict(children)
    shell.__dict__["_parameters"] = dict(module._parameters) if direct else {}
    shell.__dict__["_buffers"] = dict(module._buffers) if direct else {}
    return shell


# The families: each gives its steps in the order of the model's own forward, and the prefix of its classifier.


def _family(backbone: nn.Module) -> tuple[list[Step], str]:
    for kind in type(backbone).__mro__:
        family = _FAMILIES.get(f"{kind.__module__}.{kind.__name__}")
        # A subclass with a forward of its own computes something else than its family.
        if family is not None and type(backbone).forward is kind.forward:  # type: ignore[attr-defined]
            return family(backbone)
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
    return _shell(module, {n: m for n, m in module.named_children() if n != child}, direct=True)


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
        "encoder": _shell(encoder, {"dropout": encoder.dropout}, direct=True),
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
