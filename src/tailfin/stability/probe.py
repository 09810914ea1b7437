"""A probe batch: fixed images in fixed views, on which what changes is the encoder alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.momentum import MomentumEncoder
from tailfin.stability import collapse

MOST_POSITIONS = 1024
"""Values of a sample that are compared at a part's output, spread evenly over it. Feature maps of a ResNet-50 would
take 800 MB for 64 images; a cosine from 128 x 1024 values is off by a third of a per cent."""

Loss = Callable[[Branch, Branch], Tensor]
Reading = dict[str, dict[str, float]]


class Probe:
    """Looks at an encoder through one batch; each reading is compared with the one before.

    A reading leaves no trace in the encoder: no gradient, no BatchNorm statistics, no random numbers. In a loop of
    your own:

        probe = Probe(encoder, loss, views)
        ...; if step % 50 == 0: print(probe.read())

    A `GradientMonitor` on the same modules hears a reading too, unless it is paused.

    Args:
        encoder: Both branches. A `MomentumEncoder` whose placement is `none` or `stopgrad` wraps plain modules and
            copies none of them.
        loss: The method's loss on the two branches.
        views: Normalised images, one [N, C, H, W] a view.
        heads: What the loss runs beside the encoder, such as a predictor with BatchNorm; its buffers are left as they
            were too.
        autocast: The context of a forward pass.
    """

    def __init__(
        self,
        encoder: MomentumEncoder,
        loss: Loss,
        views: Sequence[Tensor],
        *,
        heads: nn.Module | None = None,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.encoder, self.loss, self.views, self.autocast = encoder, loss, tuple(views), autocast
        self.modules = (encoder,) if heads is None else (encoder, heads)
        self.before: dict[str, Tensor] = {}

    def read(self) -> Reading:
        """One reading: quantity -> part -> value. Values that need an earlier reading are left out of the first.

        gradient_cosine, gradient_change: between the gradient of the loss at the part's output and the last
            reading's; the change is relative to the last one's norm.
        online_drift, target_drift: how far the part's output has moved since the last reading, relative to its norm.
        gap: cosine between online and target output, a mean over samples.
        collapse: `spread`, `rank` (RankMe), `alignment` and `uniformity` of the projections.
        """
        with _untouched(self.modules), torch.enable_grad(), torch.random.fork_rng(cuda_of(self.views)):
            torch.manual_seed(0)
            now, gaps, projections = self._measure()
        found: Reading = {"gap": gaps, "collapse": _collapse(projections)}
        for kind, key in (
            ("gradient", "gradient_change"),
            ("online", "online_drift"),
            ("target", "target_drift"),
        ):
            found |= {key: {}}
            for name in self.encoder.names:
                new, old = now.get(f"{kind}/{name}"), self.before.get(f"{kind}/{name}")
                if new is not None and old is not None and new.shape == old.shape:
                    scale = torch.linalg.vector_norm(old).clamp_min(1e-30)
                    found[key][name] = float(torch.linalg.vector_norm(new - old) / scale)
        cosines = {}
        for name in self.encoder.names:
            new, old = now.get(f"gradient/{name}"), self.before.get(f"gradient/{name}")
            if new is not None and old is not None and new.shape == old.shape:
                cosines[name] = float(F.cosine_similarity(new.flatten(), old.flatten(), dim=0))
        found["gradient_cosine"] = cosines
        self.before = now
        return {key: values for key, values in found.items() if values}

    def _measure(self) -> tuple[dict[str, Tensor], dict[str, float], list[Tensor]]:
        names = self.encoder.names
        with self.autocast():
            seen = [self.encoder.boundaries(view) for view in self.views]
            online = _branch([outputs for outputs, _ in seen], names)
            if self.encoder.placement.shares_gradient:
                target = online
            else:
                target = _branch([outputs for _, outputs in seen], names)
                target = target if self.encoder.through else target.detach()
            loss = self.loss(online, target)
        outputs = [outputs[name] for outputs, _ in seen for name in names]
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
        now: dict[str, Tensor] = {}
        gaps: dict[str, float] = {}
        for index, name in enumerate(names):
            mine = gradients[index :: len(names)]
            if all(gradient is not None for gradient in mine):
                now[f"gradient/{name}"] = torch.cat([_thin(g) for g in mine if g is not None])
            now[f"online/{name}"] = torch.cat([_thin(first[name].detach()) for first, _ in seen])
            now[f"target/{name}"] = torch.cat([_thin(second[name].detach()) for _, second in seen])
            cosine = F.cosine_similarity(now[f"online/{name}"], now[f"target/{name}"], dim=1)
            gaps[name] = float(cosine.mean())
        return now, gaps, [projection.detach() for projection in online.projections]


def _branch(outputs: Sequence[dict[str, Tensor]], names: Sequence[str]) -> Branch:
    last = names[-1]
    features = names[-2] if last == "projector" else last
    return Branch(tuple(o[features] for o in outputs), tuple(o[last] for o in outputs))


def _collapse(projections: Sequence[Tensor]) -> dict[str, float]:
    first = projections[0].float()
    found = {
        "spread": collapse.normalised_std(first),
        "rank": collapse.effective_rank(first),
        "uniformity": collapse.uniformity(first),
    }
    if len(projections) > 1:
        found["alignment"] = collapse.alignment(first, projections[1].float())
    return found


def _thin(tensor: Tensor) -> Tensor:
    """At most `MOST_POSITIONS` values of each sample, float32 [N, positions]."""
    flat = tensor.flatten(1)
    stride = -(-flat.shape[1] // MOST_POSITIONS)
    # An even stride over [C, H, W] would only ever meet a few columns of each map.
    stride += 1 - stride % 2
    return flat[:, ::stride][:, :MOST_POSITIONS].float()


def cuda_of(views: Sequence[Tensor]) -> list[torch.device]:
    return [views[0].device] if views[0].device.type == "cuda" else []


@contextmanager
def _untouched(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put buffers back afterwards as they were."""
    held = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in held:
                buffer.copy_(before)
