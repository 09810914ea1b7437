"""Split an encoder into ordered, named parts that end in pooled features.

The parts share the backbone's own modules and parameters: training the parts trains the backbone, and
`Parts.backbone_state_dict` gives the weights back under the backbone's own keys.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import cast

from torch import Tensor, nn

from tailfin.momentum.families import family
from tailfin.momentum.pieces import Call, PartFunction, Step


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
        steps, classifier = family(backbone)
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
