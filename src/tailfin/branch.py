"""What one branch of an encoder says about a batch: the plain type between momentum and methods."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Outputs of the online or the target branch, one tensor a view.

    Attributes:
        features: Pooled backbone outputs, each [N, D].
        projections: Projector outputs, each [N, P]; the features themselves where there is no projector.
    """

    features: tuple[Tensor, ...]
    projections: tuple[Tensor, ...]

    def first(self, count: int) -> "Branch":
        """The branch of the first `count` views; itself where it has no more."""
        if count >= len(self.features):
            return self
        return Branch(self.features[:count], self.projections[:count])

    def detach(self) -> "Branch":
        """The same values outside the graph (stop-gradient)."""
        return Branch(tuple(f.detach() for f in self.features), tuple(p.detach() for p in self.projections))
