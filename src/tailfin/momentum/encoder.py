"""The momentum encoder: an online branch, and a target branch that costs what its tail costs."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from tailfin.branch import Branch
from tailfin.errors import unknown
from tailfin.momentum.compiled import compile_forward
from tailfin.momentum.parts import Parts, module_key, split
from tailfin.momentum.placement import KEYWORDS, PROJECTOR, Placement
from tailfin.momentum.update import Average, Decay, average_, check_buffers

Run = Callable[[str, Tensor], Tensor]
Outputs = tuple[Tensor, Tensor]


class MomentumEncoder(nn.Module):
    """Two branches over one encoder, with momentum weights on the placed parts alone.

    What lies before the first placed part (the fork) is computed once, for both branches. From there on the target
    path runs placed parts with their momentum weights and the others with the online weights without gradient,
    leaving the online parts' buffers untouched. Dropout before the fork is therefore the same for both branches.

    Args:
        parts: From `split`, or a backbone that `split` knows.
        projector: The last part, on pooled features [N, D]; None for none.
        placement: See `Placement.parse`; None is the projector, or `all` where there is none. `none`: the target is
            the online branch itself. `stopgrad`: its detached outputs, which is momentum of decay 0 at no cost.
        decay: The weight of the old value in the update: a number, a `Decay`, or one of them per placed part.
        buffers: `batch`, `ema` or `copy`, see `tailfin.momentum.update.Buffers`.
        through: Let gradients cross the target path (its weights stay fixed) into the shared parts.

    Raises:
        UserError: A placement, a part in `decay` or a buffer policy that does not exist.
        ValueError: A decay outside [0, 1], `through` with nothing shared before the placed parts, or a part whose
            name means something else in a placement.
    """

    def __init__(
        self,
        parts: Parts | nn.Module,
        *,
        projector: nn.Module | None = None,
        placement: str | Placement | None = None,
        decay: float | Decay | Mapping[str, float | Decay] = 0.99,
        buffers: str = "batch",
        through: bool = False,
    ) -> None:
        super().__init__()
        self.parts = parts if isinstance(parts, Parts) else split(parts)
        self.projector = projector
        self.names = self.parts.names + ((PROJECTOR,) if projector is not None else ())
        _check_names(self.parts.names)
        if placement is None:
            placement = "all" if projector is None else PROJECTOR
        text = placement.text if isinstance(placement, Placement) else placement
        self.placement = Placement.parse(text, self.names)
        self.buffer_policy = check_buffers(buffers)
        if through and not 0 < self.placement.fork < len(self.names):
            raise ValueError(
                f"through needs parts before the first one with momentum; placement {text!r} has none"
            )
        self.through = through
        self.decays = _decays(decay, self.placement)
        self.updates = 0
        self._averages: dict[str, Average] = {}
        self.momentum = nn.ModuleDict(
            {module_key(name): _momentum_copy(self.part(name)) for name in self.placement.placed}
        )
        self.train(self.training)

    def part(self, name: str) -> nn.Module:
        """The online part called `name`."""
        if name == PROJECTOR and self.projector is not None:
            return self.projector
        return self.parts[name]

    def momentum_part(self, name: str) -> nn.Module:
        """The momentum copy of the part called `name`, which must be placed."""
        return self.momentum[module_key(name)]

    def forward(self, views: Tensor | Sequence[Tensor], targets: int | None = None) -> tuple[Branch, Branch]:
        """Both branches over one or more views, each view on its own (BatchNorm sees one view at a time).

        Args:
            views: One tensor [N, C, H, W] or a sequence of them, whose sizes may differ.
            targets: How many of the views, from the first on, the target branch sees too; None for all. The small
                crops of multi-crop (arXiv 2006.09882, section 3.2) come last and are left to the online branch.

        Returns:
            The online and the target branch; under `none` they are one object, but for views without a target.
        """
        views = [views] if isinstance(views, Tensor) else list(views)
        count = len(views) if targets is None else targets
        pairs = [self._both(view) for view in views[:count]]
        alone = [self._path((view, view), self.names, self._run_online) for view in views[count:]]
        online = _branch([*(online for online, _ in pairs), *alone])
        if self.placement.placed:
            return online, _branch(target for _, target in pairs)
        target = online.first(count)
        return online, target if self.placement.shares_gradient else target.detach()

    def encode(self, x: Tensor, *, momentum: bool = False) -> tuple[Tensor, Tensor]:
        """Features [N, D] and projections [N, P] of one branch, for evaluation.

        Args:
            x: Images [N, C, H, W].
            momentum: The target path's weights instead of the online ones.
        """
        return self._path((x, x), self.names, self._run_target if momentum else self._run_online)

    def online_parts(self) -> dict[str, nn.Module]:
        """The online modules by part name, in order: where monitors listen."""
        return {name: self.part(name) for name in self.names}

    def compile_parts(self, **options: Any) -> None:
        """Compile every part on its own and in place (`torch.compile`); the state keeps its keys.

        A part is compiled when it first runs, and again for each mode that it runs in: without gradient, in eval
        mode, over views of another size. Monitors listen where parts end, outside what is compiled. Torch's limit of
        recompilations is raised in the whole process.

        Args:
            options: Of `torch.compile`.
        """
        for module in (*self.online_parts().values(), *self.momentum.values()):
            compile_forward(module, options)

    def boundaries(self, view: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Every part's output on the online and on the target path; before the fork they are the same tensors.

        Args:
            view: Images [N, C, H, W].
        """
        online: dict[str, Tensor] = {}
        target: dict[str, Tensor] = {}
        self._both(view, online, target)
        return online, {name: target.get(name, online[name]) for name in self.names}

    @torch.no_grad()
    def update(self) -> None:
        """One momentum update; call it after each optimizer step that was really taken (or see `follow`)."""
        average_((self._average(name), self.decays[name](self.updates)) for name in self.placement.placed)
        self.updates += 1

    def follow(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Update by itself after each step that `optimizer` takes, and after none that a gradient scaler skips."""

        def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
            # Fused optimizers are called by the scaler even for a step that they then skip inside.
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is None or not bool(found_inf):
                self.update()

        return optimizer.register_step_post_hook(after)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Copy the online weights and buffers to the momentum parts, as after loading a pretrained backbone."""
        for name in self.placement.placed:
            state = self.part(name).state_dict()
            self.momentum_part(name).load_state_dict(state)

    def decay_now(self) -> dict[str, float]:
        """The decay that the next update takes, for each placed part."""
        return {name: decay(self.updates) for name, decay in self.decays.items()}

    def backbone_state_dict(self, *, momentum: bool = False) -> dict[str, Tensor]:
        """The backbone's weights under its own library's keys.

        Args:
            momentum: With momentum weights where a part is placed.
        """
        state = self.parts.state_dict()
        if momentum:
            for name in self.placement.placed:
                if name != PROJECTOR:
                    prefix = module_key(name)
                    own = self.momentum_part(name).state_dict()
                    state.update({f"{prefix}.{key}": value for key, value in own.items()})
        return self.parts.backbone_state_dict(state)

    def train(self, mode: bool = True) -> "MomentumEncoder":
        """Set the mode; momentum parts stay in eval mode where the buffer policy says so."""
        super().train(mode)
        if self.buffer_policy != "batch":
            self.momentum.eval()
        return self

    def get_extra_state(self) -> Tensor:
        """The number of updates taken, from which every decay follows."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Any) -> None:
        """Restore the number of updates taken."""
        self.updates = int(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MomentumEncoder":
        # An average kept in bf16 stalls: at decay .99 a hundredth of the difference is below bf16's resolution. So
        # `encoder.to(torch.bfloat16)` moves the momentum weights and keeps them in fp32.
        held = self.momentum
        self.momentum = nn.ModuleDict()
        try:
            super()._apply(fn, recurse)
        finally:
            self.momentum = held

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            low = moved.is_floating_point() and moved.element_size() < 4
            return tensor.to(device=moved.device) if low else moved

        held._apply(keep_precision)
        return self

    def _both(
        self,
        x: Tensor,
        online_seen: dict[str, Tensor] | None = None,
        target_seen: dict[str, Tensor] | None = None,
    ) -> tuple[Outputs, Outputs]:
        fork = self.placement.fork
        shared = self._path((x, x), self.names[:fork], self._run_online, online_seen)
        own = self.names[fork:]
        if not own:
            return shared, shared
        # The target goes first: its passing activations then lie in memory before those that the online path keeps
        # for the backward pass, not on top of them (`all`, SimCLR, resnet10w16: 2 instead of 46 MB over stopgrad).
        with torch.set_grad_enabled(self.through and torch.is_grad_enabled()):
            start = shared if self.through else (shared[0].detach(), shared[1].detach())
            target = self._path(start, own, self._run_target, target_seen)
        return self._path(shared, own, self._run_online, online_seen), target

    def _path(
        self, start: Outputs, names: Iterable[str], run: Run, seen: dict[str, Tensor] | None = None
    ) -> Outputs:
        """Features and last output after running the parts called `names` from `start`; outputs go to `seen`."""
        features, x = start
        for name in names:
            x = run(name, x)
            if seen is not None:
                seen[name] = x
            if name != PROJECTOR:
                features = x
        return features, x

    def _average(self, name: str) -> Average:
        momentum, online = self.momentum_part(name), self.part(name)
        known = self._averages.get(name)
        if known is None or known.momentum is not momentum or known.online is not online:
            known = self._averages[name] = Average(momentum, online, self.buffer_policy)
        return known

    def _run_online(self, name: str, x: Tensor) -> Tensor:
        return cast(Tensor, self.part(name)(x))

    def _run_target(self, name: str, x: Tensor) -> Tensor:
        if name in self.placement.placed:
            part = self.momentum_part(name)
            return cast(Tensor, part(_as_weights(part, x)))
        part = self.part(name)
        # Stand-ins take what the forward writes (BatchNorm's statistics). Detached weights take no gradient, and
        # autocast keeps no casts of them, which the online path after this one would take for its own.
        tensors = {key: buffer.clone() for key, buffer in part.named_buffers()} if part.training else {}
        tensors |= {key: parameter.detach() for key, parameter in part.named_parameters()}
        return cast(Tensor, functional_call(part, tensors, (_as_weights(part, x),)))


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if name in KEYWORDS or any(mark in name for mark in ",: ") or not name:
            raise ValueError(f"a part cannot be called {name!r}, which placements read otherwise")


def _branch(outputs: Iterable[Outputs]) -> Branch:
    features, projections = zip(*outputs, strict=True)
    for feature in features:
        if feature.ndim != 2:
            raise ValueError(
                f"the last part must end in pooled features [N, D], got shape {tuple(feature.shape)}"
            )
    return Branch(features, projections)


def _as_weights(part: nn.Module, x: Tensor) -> Tensor:
    """`x` in the dtype of the part's weights where autocast does not see to it: momentum is fp32 in a bf16 model."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x
    weight = next(part.parameters(), x)
    return x.to(weight.dtype)


def _momentum_copy(part: nn.Module) -> nn.Module:
    """A copy, never built anew: the target starts as the online part itself, heads included."""
    held = copy.deepcopy(part).requires_grad_(False)
    for tensor in (*held.parameters(), *held.buffers()):
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor.data = tensor.data.float()
    return held


def _decays(decay: float | Decay | Mapping[str, float | Decay], placement: Placement) -> dict[str, Decay]:
    if not isinstance(decay, Mapping):
        one = decay if isinstance(decay, Decay) else Decay(decay)
        return dict.fromkeys(placement.placed, one)
    for name in decay:
        if name not in placement.placed:
            raise unknown("part", name, placement.placed, where="decay")
    missing = [name for name in placement.placed if name not in decay]
    if missing:
        raise ValueError(f"no decay is given for part {missing[0]!r}, which keeps momentum weights")
    return {name: value if isinstance(value, Decay) else Decay(value) for name, value in decay.items()}
