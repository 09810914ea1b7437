"""What momentum on a tail would steady: how far the output still moves while the tail is held still."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from tailfin.momentum import MomentumEncoder
from tailfin.stability.probe import cuda_of


class TailDrift:
    """Follows the output of an encoder's last part for fixed images, and which tail its movement comes from.

    The weights of the last reading stand for a target that averages over a time much longer than that between
    readings. In a loop of your own:

        drift = TailDrift(encoder, views)
        ...; if step % 10 == 0: print(drift.read())

    Args:
        encoder: Whose online branch trains. Its placement does not matter.
        views: Normalised images, one [N, C, H, W] a view.
    """

    def __init__(self, encoder: MomentumEncoder, views: Sequence[Tensor]) -> None:
        self.encoder, self.views = encoder, tuple(views)
        self.held: dict[str, dict[str, Tensor]] = {}
        self.before = torch.empty(0)

    @torch.no_grad()
    def read(self) -> dict[str, float]:
        """Part -> the share of the output's movement since the last reading that the tail from there on holds off.

        With o the old weights, n the new ones and z the outputs of the last part, float32 [views * N, D], the tail
        from part i on holds off 1 - |z(n before i, o from i on) - z(o)| / |z(n) - z(o)|: 1 at the first part, and
        below 0 where the old tail moves more under its new input than the new one does. Empty at first, and where
        nothing moved.

        Never under autocast: between close readings, weights rounded to bf16 move by rounding noise, which no tail
        holds off (weights that move by 1e-3 of themselves: .06 in bf16 where fp32 says .44).
        """
        names = self.encoder.names
        weights = {
            name: {**dict(part.named_parameters()), **dict(part.named_buffers())}
            for name, part in self.encoder.online_parts().items()
        }
        found: dict[str, float] = {}
        kind = self.views[0].device.type
        with torch.random.fork_rng(cuda_of(self.views)), torch.autocast(kind, enabled=False):
            seen = [self._path(weights, names, view) for view in self.views]
            now = torch.cat([outputs[-1].float() for outputs in seen])
            moved = torch.linalg.vector_norm(now - self.before) if self.held else torch.zeros(())
            if moved > 0:
                for index, name in enumerate(names):
                    ends = [self._path(self.held, names[index:], outputs[index])[-1] for outputs in seen]
                    left = torch.linalg.vector_norm(torch.cat([end.float() for end in ends]) - self.before)
                    found[name] = 1.0 - float(left / moved)
        self.held = {
            name: {key: tensor.detach().clone() for key, tensor in own.items()}
            for name, own in weights.items()
        }
        self.before = now
        return found

    def _path(
        self, weights: Mapping[str, Mapping[str, Tensor]], names: Sequence[str], x: Tensor
    ) -> list[Tensor]:
        """`x`, and the output of each part called in turn, with these weights and buffers for its own."""
        outputs = [x]
        for name in names:
            part = self.encoder.part(name)
            # A part draws the same dropout masks wherever the path begins, and what it writes goes to a copy.
            torch.manual_seed(self.encoder.names.index(name))
            written = {key: weights[name][key].clone() for key, _ in part.named_buffers()}
            tensors = {**weights[name], **written}
            outputs.append(functional_call(part, tensors, (outputs[-1],)))
        return outputs
