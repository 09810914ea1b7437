"""The table of methods and what holds for each of them."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tailfin import methods
from tailfin.branch import Branch
from tailfin.errors import UserError
from tailfin.methods import base
from tailfin.views import recipes

every = pytest.mark.parametrize("name", methods.names())


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown method 'simcrl'.*did you mean 'simclr'"):
        methods.load("simcrl")


def test_listing_methods_does_not_import_torch() -> None:
    code = "import sys, tailfin.methods as m; m.names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["simclr", "byol", "mocov2plus"])
def test_published_widths_from_512_features_and_proportional_ones_below(name: str) -> None:
    cls = methods.load(name)
    published = {"hidden": cls.recipe.hidden, "out": cls.recipe.out}
    for features, want in ((512, published), (2048, published), (128, {"hidden": 512, "out": 128})):
        assert cls.defaults(features, 50_000).items() >= want.items()


@every
def test_defaults_are_what_the_constructor_takes(name: str) -> None:
    cls = methods.load(name)
    method = cls(**cls.defaults(32, 1000))  # type: ignore[arg-type]
    assert method.projector(32)(torch.randn(4, 32)).shape[0] == 4
    with pytest.raises(TypeError):
        cls(**cls.defaults(32, 1000), nonsense=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "want"), [(1_000_000, 32768), (50_000, 32768), (20_000, 8192), (3, 2), (1, 1)]
)
def test_queue_is_the_published_one_but_shorter_than_an_epoch(images: int, want: int) -> None:
    assert methods.load("mocov2plus").defaults(512, images)["queue_size"] == want


@pytest.mark.parametrize("name", ["simclr", "byol", "mocov2plus"])
def test_projector_has_the_widths_and_the_normalisation_of_its_recipe(name: str) -> None:
    cls = methods.load(name)
    projector = cls(hidden=12, out=5).projector(7)
    linears = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(7, 12), (12, 5)]
    normalised = any(isinstance(layer, nn.BatchNorm1d) for layer in projector.modules())
    assert normalised == cls.recipe.batch_norm == (name != "mocov2plus")


@every
def test_large_images_bring_their_own_recipe(name: str) -> None:
    cls = methods.load(name)
    large = cls.large or cls.recipe
    assert cls.recipe_at(64) is cls.recipe
    assert cls.recipe_at(65) is large
    small, wide = (cls.defaults(512, 1_000_000, size) for size in (32, 224))
    assert small.keys() == wide.keys()
    assert wide.items() >= {"hidden": large.hidden, "out": large.out, **large.options}.items()


@every
@pytest.mark.parametrize("size", [32, 224])
def test_recipe_is_coherent(name: str, size: int) -> None:
    cls = methods.load(name)
    recipe = cls.recipe_at(size)
    assert (recipe.trust_coefficient is not None) == (recipe.optimizer == "lars")
    # At CIFAR's size; MMCR, whose two branches both have gradients there, has a momentum target at ImageNet's.
    assert size > 64 or cls.stop_gradient or recipe.placement == "none"
    assert 0 < recipe.decay <= recipe.decay_end <= 1


@pytest.mark.parametrize("name", ["simclr", "byol", "mocov2plus"])
@pytest.mark.parametrize("detached", [True, False])
def test_thirty_steps_pull_the_views_of_a_sample_together(name: str, detached: bool) -> None:
    torch.manual_seed(0)
    cls = methods.load(name)
    options = {"queue_size": 64} if name == "mocov2plus" else {}
    method = cls(hidden=32, out=16, **options)
    encoder = method.projector(10)
    optimizer = torch.optim.SGD([*encoder.parameters(), *method.parameters()], lr=0.2, momentum=0.9)
    samples = torch.randn(24, 10)
    noise = torch.Generator().manual_seed(1)

    def views() -> Branch:
        outputs = tuple(encoder(samples + 0.5 * torch.randn(24, 10, generator=noise)) for _ in range(2))
        return Branch(outputs, outputs)

    def agreement() -> float:
        with torch.no_grad():
            first, second = views().projections
            return float(nn.functional.cosine_similarity(first, second).mean())

    before = agreement()
    for _ in range(30):
        online = views()
        optimizer.zero_grad()
        method.loss(online, online.detach() if detached else online).backward()
        optimizer.step()
        method.after_step()
    assert agreement() > before


def test_methods_and_views_mean_the_same_by_a_small_image() -> None:
    # Neither imports the other.
    assert base.LARGEST_SMALL_IMAGE == recipes.LARGEST_SMALL_IMAGE
