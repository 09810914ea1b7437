"""SimCLR's recipes; its loss is tested with the other losses."""

import pytest
import torch
from torch.nn import functional as F

from tailfin.branch import Branch
from tailfin.methods.simclr import SimCLR


def test_the_large_recipe_is_for_large_images_and_its_temperature_is_used() -> None:
    assert SimCLR.recipe_at(32) is SimCLR.recipe
    large = SimCLR.recipe_at(224)
    assert large is SimCLR.large
    method = SimCLR(large.hidden, large.out, **large.options)
    one, other = F.normalize(torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0)), dim=2)
    views = (torch.cat((one, other)), torch.cat((other, one)))
    # Each positive is at distance cosine, each negative at 1 (the same vector) or cosine.
    cosine = float(one @ other.T) / 0.1
    powers = torch.tensor([cosine, 1 / 0.1, cosine])
    assert float(method.loss(Branch(views, views), Branch(views, views))) == pytest.approx(
        float(powers.logsumexp(dim=0)) - cosine, rel=1e-4
    )
