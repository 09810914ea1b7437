"""What must hold for each method, whatever its loss: safe numbers, kept state, every placement."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import tailfin
from tailfin import MomentumEncoder, methods
from tailfin.branch import Branch
from tailfin.methods.base import Method, Moment

IMAGES, FEATURES = 64, 12
every = pytest.mark.parametrize("name", methods.names())

LARGE = {"all4one": 1024, "dcl": 6144, "simclr": 6144, "supcon": 2048}
"""What the large batch is where a step of 8192 images takes too long on one core.

All4One's takes 11 s and 3.0 GB, its transformer sees 20 rows an image (at its published width 47 s and 11 GB were
seen); DCL's, SimCLR's and SupCon's 12 s and more. DCL and SimCLR take their anchors in pieces from 5793 images on, as
at 8192; SupCon's pieces have a test of their own.
"""


def make(name: str) -> Method:
    torch.manual_seed(0)
    cls = methods.load(name)
    return cls(**cls.defaults(FEATURES, IMAGES))  # type: ignore[arg-type]


def moment(step: int, count: int) -> Moment:
    indices = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(step))[:count]
    return Moment(step, total_steps=20, steps_per_epoch=5, indices=indices, labels=indices % 3)


def width(method: Method) -> int:
    return int(method.projector(FEATURES)(torch.randn(4, FEATURES)).shape[1])


def take(method: Method, step: int, views: tuple[Tensor, ...], taken: bool = True) -> Tensor:
    method.begin(moment(step, len(views[0])))
    branch = Branch(views, views)
    loss = method.loss(branch, branch.detach())
    if loss.requires_grad:
        loss.backward()
    method.after_step(taken)
    return loss.detach()


def random_views(width: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator), torch.randn(count, width, generator=generator)


@every
def test_it_says_what_it_is(name: str) -> None:
    about = methods.load(name).about
    assert about.title
    assert 2018 <= about.year <= 2026
    assert len(about.idea.rstrip(".").split(". ")) == 3, "three sentences"
    assert about.idea.endswith(".")
    assert about.equation.count("{") == about.equation.count("}")
    assert bool(about.expected) == bool(about.expected_source)


@every
@pytest.mark.parametrize("count", [2, 5, 16])
@pytest.mark.parametrize("kind", ["random", "identical", "zero", "one row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_finite(name: str, count: int, kind: str, dtype: torch.dtype) -> None:
    method = make(name)
    shape = width(method)
    for step in range(3):  # state is empty, then filling
        first, second = random_views(shape, count, step)
        if kind == "identical":
            second = first
        elif kind == "zero":
            first = second = torch.zeros_like(first)
        elif kind == "one row":  # a random one: the mean of equal numbers is not exact, that of ones is
            first = second = first[:1].repeat(count, 1)
        views = tuple(view.to(dtype).requires_grad_() for view in (first.clone(), second.clone()))
        loss = take(method, step, views)
        assert loss.dtype == torch.float32
        assert loss.shape == ()
        assert torch.isfinite(loss)
        for tensor in (*views, *method.parameters()):
            assert tensor.grad is None or torch.isfinite(tensor.grad).all()
        assert views[0].grad is not None


def without_autocast(module: nn.Module) -> None:
    plain = module.forward

    def forward(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return plain(*inputs)

    module.forward = forward  # type: ignore[method-assign]


@every
def test_under_autocast_the_loss_itself_is_in_full_precision(name: str) -> None:
    losses = []
    for autocast in (False, True):
        method = make(name)
        for head in method.children():
            without_autocast(head)
        for step in range(3):
            torch.manual_seed(step)
            views = random_views(width(method), 16, step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                losses.append(take(method, step, tuple(view.requires_grad_() for view in views)))
    assert torch.equal(torch.stack(losses[:3]), torch.stack(losses[3:]))


@every
@pytest.mark.parametrize("count", [1024, pytest.param(8192, marks=pytest.mark.ci)])
def test_a_large_batch_has_a_finite_loss_and_gradient(name: str, count: int) -> None:
    count = min(count, LARGE.get(name, count))
    torch.manual_seed(0)
    cls = methods.load(name)
    options = {**cls.defaults(FEATURES, IMAGES), "hidden": 16, "out": 8}
    if "images" in options:
        options["images"] = count
    method = cls(**options)  # type: ignore[arg-type]
    views = tuple(view.requires_grad_() for view in random_views(width(method), count, 0))
    branch = Branch(views, views)
    indices = torch.arange(count)
    method.begin(Moment(0, total_steps=20, steps_per_epoch=5, indices=indices, labels=indices % 1000))
    loss = method.loss(branch, branch.detach())
    loss.backward()
    method.after_step()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    for tensor in (*views, *method.parameters()):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    assert views[0].grad is not None


@every
def test_state_is_saved_and_restored_to_the_bit(name: str) -> None:
    method = make(name)
    shape = width(method)
    for step in range(7):
        take(method, step, random_views(shape, 16, step))
    twin = make(name)
    twin.load_state_dict(copy.deepcopy(method.state_dict()))
    for step in range(7, 12):
        torch.manual_seed(step)
        one = take(method, step, random_views(shape, 16, step))
        torch.manual_seed(step)
        assert torch.equal(one, take(twin, step, random_views(shape, 16, step)))
    for key, value in method.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key


@every
def test_a_step_that_is_not_taken_and_a_look_leave_no_trace(name: str) -> None:
    method = make(name)
    shape = width(method)
    for step in range(3):
        take(method, step, random_views(shape, 16, step))
    heads = {key for key, _ in method.named_parameters()}
    kept = {k: v.clone() for k, v in method.state_dict().items() if k not in heads and "running" not in k}
    kept = {k: v for k, v in kept.items() if "num_batches" not in k}
    take(method, 3, random_views(shape, 16, 3), taken=False)
    with torch.no_grad():
        take(method, 3, random_views(shape, 16, 4))
    for key, value in kept.items():
        assert torch.equal(value, method.state_dict()[key]), key


@every
@pytest.mark.parametrize(
    "placement", ["none", "stopgrad", "stem", "body:", "projector", "stem,projector", "all"]
)
def test_every_placement_trains(name: str, placement: str) -> None:
    method = make(name)
    parts = nn.Sequential()
    parts.add_module("stem", nn.Linear(8, 10))
    parts.add_module("body", nn.Linear(10, FEATURES))
    projector = method.projector(FEATURES)
    encoder = MomentumEncoder(parts, projector=projector, placement=placement, decay=0.9)
    parameters = [p for p in (*encoder.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01)
    for step in range(6):
        images = torch.randn(16, 8)
        online, target = encoder([images + 0.1 * torch.randn(16, 8) for _ in range(2)])
        method.begin(moment(step, 16))
        loss = method.loss(online, target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parts.parameters())
        optimizer.step()
        encoder.update()
        method.after_step()
    assert all(torch.isfinite(p).all() for p in parameters)


@every
def test_a_loss_alone_changes_no_state(name: str) -> None:
    method = make(name)
    shape = width(method)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    buffers = {key for key, _ in method.named_buffers() if "running" not in key and "num_batches" not in key}
    for part in range(3):
        views = random_views(shape, 8, part)
        method.begin(moment(0, 8))
        method.loss(Branch(views, views), Branch(views, views).detach())
    for key in buffers & before.keys():
        assert torch.equal(before[key], method.state_dict()[key]), f"{key} changed before the step was taken"


def _transformer() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=FEATURES, depth=4, num_heads=2, num_classes=0
    )


def _convnext() -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 6, 8, FEATURES), num_classes=0)


@every
@pytest.mark.parametrize("backbone", [_transformer, _convnext])
def test_backbones_without_batch_norm_train(name: str, backbone: Callable[[], nn.Module]) -> None:
    method = make(name)
    parts = tailfin.split(backbone())
    encoder = MomentumEncoder(
        parts, projector=method.projector(FEATURES), placement=f"{parts.names[-1]}:", decay=0.9
    )
    parameters = [p for p in (*encoder.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    images = torch.randn(8, 3, 32, 32)
    for step in range(2):
        online, target = encoder([images + 0.1 * torch.randn_like(images) for _ in range(2)])
        method.begin(moment(step, 8))
        method.loss(online, target).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parts.parameters())
        optimizer.step()
        optimizer.zero_grad()
        encoder.update()
        method.after_step()


@every
def test_small_crops_in_micro_batches_leave_the_state_of_the_views_alone(name: str) -> None:
    whole, cut = make(name), make(name)
    shape = width(whole)
    for step in range(3):
        views = random_views(shape, 16, step)
        small = random_views(shape, 16, 100 + step)
        moments = moment(step, 16)
        for method, pieces in ((whole, [slice(0, 16)]), (cut, [slice(0, 8), slice(8, 16)])):
            for piece in pieces:
                some = tuple(view[piece] for view in (*views, *small))
                labels = moments.labels if moments.labels is None else moments.labels[piece]
                method.begin(replace(moments, indices=moments.indices[piece], labels=labels))
                loss = method.loss(Branch(some, some), Branch(some[:2], some[:2]).detach())
                assert torch.isfinite(loss)
            method.after_step()
    ours, theirs = whole.state_dict(), cut.state_dict()
    statistics = {key for key in ours if key.startswith("predictor") or "running" in key or "tracked" in key}
    for key in ours.keys() - statistics:
        assert ours[key].shape == theirs[key].shape
        assert torch.isfinite(ours[key]).all()
    for key in ("queue.rows", "support.rows"):
        if key in ours:  # a short ring keeps the same rows from another place on
            assert torch.equal(*(state[key].sort(dim=1).values for state in (ours, theirs))), key


@pytest.mark.parametrize("name", ["barlow_twins", "sigmoid_pairwise", "wmse"])
def test_a_loss_that_is_the_same_turned_round_is_the_same_when_taken_once(name: str) -> None:
    method = make(name).eval()
    size = width(method)
    values, gradients = [], []
    for one_branch in (True, False):
        views = tuple(view.requires_grad_() for view in random_views(size, 16, 3))
        branch = Branch(views, views)
        method.begin(moment(0, 16))
        loss = method.loss(branch, branch if one_branch else Branch(views, views))
        loss.backward()
        values.append(loss.detach())
        gradients.append(torch.cat([view.grad for view in views if view.grad is not None]))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
