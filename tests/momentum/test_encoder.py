"""The algebra of the momentum encoder: both branches, the update, and what peers get wrong."""

import copy
import itertools
from collections import Counter

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tailfin
from tailfin.backbones import narrow_resnet
from tailfin.errors import UserError
from tailfin.momentum import Decay, MomentumEncoder, split
from tailfin.momentum.cost import measured_cost, part_flops

WIDTH = 6


def block(kind: int, inputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, WIDTH, 3, padding=1)
    middle = [
        nn.BatchNorm2d(WIDTH),
        nn.GroupNorm(2, WIDTH),
        nn.InstanceNorm2d(WIDTH, track_running_stats=True),
    ]
    return nn.Sequential(conv, middle[kind % 3], nn.ReLU())


def make(
    kinds: tuple[int, ...] = (0, 1, 0), *, seed: int = 0, double: bool = True
) -> tuple[nn.Module, nn.Module]:
    """A backbone of one block a kind with its pooling in the last one, and a projector with BatchNorm."""
    torch.manual_seed(seed)
    blocks = [block(kind, 3 if i == 0 else WIDTH) for i, kind in enumerate(kinds)]
    blocks[-1] = nn.Sequential(blocks[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    backbone = nn.Sequential(*blocks)
    return (backbone.double(), head.double()) if double else (backbone, head)


def images(count: int = 5, *, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def regression(online: tailfin.Branch, target: tailfin.Branch) -> Tensor:
    pairs = zip(online.projections, reversed(target.projections), strict=True)
    return torch.stack([(o - t).square().mean() for o, t in pairs]).sum()


def train(encoder: MomentumEncoder, steps: int, *, lr: float = 0.1, seed: int = 10) -> None:
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        online, target = encoder([images(seed=seed + 2 * step), images(seed=seed + 2 * step + 1)])
        optimizer.zero_grad()
        regression(online, target).backward()
        optimizer.step()
        encoder.update()


kinds = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)


@st.composite
def encoders(draw: st.DrawFn) -> tuple[tuple[int, ...], list[str]]:
    """A random encoder and a random non-empty subset of its parts."""
    chosen = draw(kinds)
    names = [str(i) for i in range(len(chosen))] + ["projector"]
    subset = draw(st.sets(st.sampled_from(names), min_size=1))
    return chosen, [name for name in names if name in subset]


def double_forward(encoder: MomentumEncoder, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both branches the plain way: two whole encoders, the target's assembled from momentum and online weights."""
    online, target = copy.deepcopy(encoder), copy.deepcopy(encoder)
    h = view
    for name in online.names:
        h = online.part(name)(h)
    projection = h
    with torch.no_grad():
        t = view
        for name in target.names:
            part = target.momentum_part(name) if name in target.placement.placed else target.part(name)
            t = part(t)
    projection.square().sum().backward()
    gradients = [p.grad for name in online.names for p in online.part(name).parameters()]
    return projection, t, torch.cat([g.flatten() for g in gradients])


@settings(max_examples=20, deadline=None)
@given(encoders(), st.sampled_from(["batch", "ema", "copy"]))
def test_shared_forward_equals_double_forward(case: tuple[tuple[int, ...], list[str]], buffers: str) -> None:
    backbone, head = make(case[0])
    encoder = MomentumEncoder(
        backbone, projector=head, placement=",".join(case[1]), decay=0.7, buffers=buffers
    )
    train(encoder, 3)
    encoder.zero_grad()
    projection, target_projection, gradient = double_forward(encoder, images())
    online, target = encoder(images())
    online.projections[0].square().sum().backward()
    own = torch.cat([p.grad.flatten() for name in encoder.names for p in encoder.part(name).parameters()])
    torch.testing.assert_close(online.projections[0], projection, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(target.projections[0], target_projection, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, gradient, rtol=1e-10, atol=1e-12)
    assert not target.projections[0].requires_grad


@settings(max_examples=15, deadline=None)
@given(encoders())
def test_target_path_leaves_online_buffers_untouched(case: tuple[tuple[int, ...], list[str]]) -> None:
    backbone, head = make(case[0])
    encoder = MomentumEncoder(backbone, projector=head, placement=",".join(case[1]))
    alone = MomentumEncoder(*[copy.deepcopy(backbone)], projector=copy.deepcopy(head), placement="none")
    encoder([images(seed=1), images(seed=2)])
    alone([images(seed=1), images(seed=2)])
    expected = dict(alone.parts.named_buffers())
    for key, buffer in encoder.parts.named_buffers():
        assert torch.equal(buffer, expected[key]), key
    assert int(head[1].num_batches_tracked) == 2


@settings(max_examples=15, deadline=None)
@given(encoders(), st.floats(0, 1), st.integers(1, 4))
def test_update_is_the_average_of_its_history(
    case: tuple[tuple[int, ...], list[str]], decay: float, steps: int
) -> None:
    backbone, head = make(case[0])
    encoder = MomentumEncoder(backbone, projector=head, placement=",".join(case[1]), decay=decay)
    expected = {
        name: [p.clone() for p in encoder.part(name).parameters()] for name in encoder.placement.placed
    }
    for step in range(steps):
        train(encoder, 1, seed=100 + step)
        for name, values in expected.items():
            online = list(encoder.part(name).parameters())
            expected[name] = [
                decay * v + (1 - decay) * o.detach() for v, o in zip(values, online, strict=True)
            ]
    for name, values in expected.items():
        for value, own in zip(values, encoder.momentum_part(name).parameters(), strict=True):
            torch.testing.assert_close(own, value, rtol=1e-12, atol=1e-14)


def test_decay_zero_is_the_online_part_and_one_is_frozen() -> None:
    for decay in (0.0, 1.0):
        backbone, head = make()
        encoder = MomentumEncoder(backbone, projector=head, placement="1:", decay=decay)
        first = copy.deepcopy(dict(encoder.momentum.named_parameters()))
        train(encoder, 4)
        for name in encoder.placement.placed:
            for key, own in encoder.momentum_part(name).named_parameters():
                online = dict(encoder.part(name).named_parameters())[key]
                assert torch.equal(own, online) == (decay == 0.0) or online.numel() == 0
        if decay == 1.0:
            for key, value in encoder.momentum.named_parameters():
                assert torch.equal(value, first[key])


def test_stopgrad_is_momentum_of_decay_zero() -> None:
    trained = []
    for placement, decay in (("stopgrad", 0.5), ("all", 0.0), ("1:", 0.0)):
        backbone, head = make((0, 1, 0))
        encoder = MomentumEncoder(backbone, projector=head, placement=placement, decay=decay)
        train(encoder, 5)
        trained.append(torch.cat([p.flatten() for p in (*encoder.parts.parameters(), *head.parameters())]))
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(trained[0], trained[2], rtol=1e-10, atol=1e-12)


def test_none_is_one_branch_with_gradient_on_both_sides() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="none")
    online, target = encoder([images(seed=1), images(seed=2)])
    assert target is online
    regression(online, target).backward()
    native = copy.deepcopy(nn.Sequential(*make()))
    a, b = native(images(seed=1)), native(images(seed=2))
    (2 * (a - b).square().mean()).backward()
    for own, expected in zip((*backbone.parameters(), *head.parameters()), native.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-10, atol=1e-12)


def test_all_on_byol_is_textbook_byol() -> None:
    """BYOL written out as in arXiv 2006.07733, algorithm 1: two networks, two forwards, a parameter loop."""
    decay = Decay(0.9, 1.0, 6)
    backbone, head = make((0, 0))
    predictor = nn.Linear(4, 4).double()
    online_net = copy.deepcopy(nn.Sequential(backbone, head))
    online_predictor = copy.deepcopy(predictor)
    target_net = copy.deepcopy(online_net)

    def byol(p: Tensor, z: Tensor) -> Tensor:
        return (2 - 2 * nn.functional.cosine_similarity(p, z)).mean()

    encoder = MomentumEncoder(backbone, projector=head, placement="all", decay=decay)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters(), *predictor.parameters()], lr=0.2)
    reference = torch.optim.SGD([*online_net.parameters(), *online_predictor.parameters()], lr=0.2)
    for step in range(6):
        v1, v2 = images(seed=2 * step), images(seed=2 * step + 1)
        online, target = encoder([v1, v2])
        q1, q2 = (predictor(z) for z in online.projections)
        optimizer.zero_grad()
        (byol(q1, target.projections[1]) + byol(q2, target.projections[0])).backward()
        optimizer.step()
        encoder.update()

        q1, q2 = online_predictor(online_net(v1)), online_predictor(online_net(v2))
        with torch.no_grad():
            t1, t2 = target_net(v1), target_net(v2)
        reference.zero_grad()
        (byol(q1, t2) + byol(q2, t1)).backward()
        reference.step()
        tau = (
            1 - (1 - 0.9) * (torch.cos(torch.tensor(torch.pi * step / 6, dtype=torch.float64)).item() + 1) / 2
        )
        with torch.no_grad():
            for own, other in zip(target_net.parameters(), online_net.parameters(), strict=True):
                own.copy_(tau * own + (1 - tau) * other)

    ours = torch.cat([p.detach().flatten() for p in (*backbone.parameters(), *head.parameters())])
    theirs = torch.cat([p.detach().flatten() for p in online_net.parameters()])
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    slow = torch.cat([p.flatten() for p in encoder.momentum.parameters()])
    torch.testing.assert_close(
        slow, torch.cat([p.flatten() for p in target_net.parameters()]), rtol=1e-10, atol=1e-12
    )
    running = torch.cat([b.flatten().double() for b in encoder.momentum.buffers()])
    torch.testing.assert_close(running, torch.cat([b.flatten().double() for b in target_net.buffers()]))


@pytest.mark.parametrize(
    ("placement", "trunk", "last", "head", "momentum"),
    [
        ("none", 2, 2, 2, 0),
        ("stopgrad", 2, 2, 2, 0),
        ("projector", 2, 2, 2, 2),
        ("layer4:", 2, 2, 2, 4),
        ("layer4", 2, 2, 4, 2),
        ("stem", 4, 4, 4, 2),
        ("all", 2, 2, 2, 12),
    ],
)
def test_forward_calls_are_what_the_placement_pays(
    placement: str, trunk: int, last: int, head: int, momentum: int
) -> None:
    """Counted by hooks over two views: the trunk runs once a view unless the fork lies before it."""
    parts = split(narrow_resnet(4))
    encoder = MomentumEncoder(parts, projector=nn.Linear(32, 4), placement=placement)
    calls: Counter[str] = Counter()

    def count(name: str) -> object:
        return lambda *_: calls.update([name])

    for name in encoder.names:
        encoder.part(name).register_forward_hook(count(name))
    for name in encoder.placement.placed:
        encoder.momentum_part(name).register_forward_hook(count("momentum"))
    encoder([torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)])
    assert (calls["layer1"], calls["layer4"], calls["projector"], calls["momentum"]) == (
        trunk,
        last,
        head,
        momentum,
    )
    assert calls["stem"] == 2


@pytest.mark.parametrize("policy", ["batch", "ema", "copy"])
def test_buffer_policies(policy: str) -> None:
    backbone, head = make((0,))
    encoder = MomentumEncoder(backbone, projector=head, placement="projector", decay=0.75, buffers=policy)
    norm, slow = head[1], encoder.momentum_part("projector")[1]
    norm.num_batches_tracked.fill_(500)
    slow.num_batches_tracked.fill_(500)
    before = slow.running_mean.clone()
    _, target = encoder(images())
    seen = slow.running_mean.clone()
    assert torch.equal(seen, before) == (policy != "batch")
    assert slow.training == (policy == "batch")
    encoder.update()
    expected = {"batch": seen, "ema": 0.75 * seen + 0.25 * norm.running_mean, "copy": norm.running_mean}[
        policy
    ]
    torch.testing.assert_close(slow.running_mean, expected, rtol=1e-12, atol=1e-14)
    assert int(norm.num_batches_tracked) == 501
    assert int(slow.num_batches_tracked) == 501  # a counter is copied or counts; averaging would make it 0
    assert target.projections[0].shape == (5, 4)


def test_eman_target_normalises_with_averaged_statistics() -> None:
    backbone, head = make((1,))
    encoder = MomentumEncoder(backbone, projector=head, placement="projector", decay=0.5, buffers="ema")
    train(encoder, 3)
    online, target = encoder(images())
    linear, norm, act, out = encoder.momentum_part("projector")
    h = linear(online.features[0].detach())
    h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(target.projections[0], out(act(h)), rtol=1e-10, atol=1e-12)


def test_gradient_through_the_target_reaches_the_trunk_and_no_frozen_weight() -> None:
    backbone, head = make((1, 1))
    for placement in ("projector", "1", "1:"):
        encoder = MomentumEncoder(backbone, projector=head, placement=placement, through=True)
        backbone.zero_grad(), head.zero_grad()
        online, target = encoder(images())
        target.projections[0].square().sum().backward()
        assert all(p.grad is None for p in encoder.momentum.parameters())
        assert all(p.grad is None for p in head.parameters())  # borrowed without gradient, or placed
        assert all(p.grad is not None and bool(p.grad.any()) for p in backbone[0][0].parameters())
        assert online.projections[0].requires_grad
    with pytest.raises(ValueError, match="through needs parts before the first one with momentum"):
        MomentumEncoder(backbone, projector=head, placement="stopgrad", through=True)


def test_the_target_starts_as_a_copy_of_the_online_branch() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="all")
    online, target = encoder(images())
    assert torch.equal(online.projections[0], target.projections[0])
    assert not {id(p) for p in encoder.momentum.parameters()} & {id(p) for p in encoder.parts.parameters()}
    with torch.no_grad():
        head[0].weight.add_(1)
    encoder.synchronize()
    assert torch.equal(encoder.momentum_part("projector")[0].weight, head[0].weight)


def test_decay_moves_every_step_and_survives_resume() -> None:
    schedule = Decay(0.9, 1.0, 10)
    values = [schedule(step) for step in range(12)]
    assert values[0] == pytest.approx(0.9)
    assert values[5] == pytest.approx(0.95)
    assert values[10] == values[11] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(values[:11]))
    whole = MomentumEncoder(*make()[:1], projector=make()[1], placement="1:", decay=schedule)
    train(whole, 6)
    half = MomentumEncoder(*make()[:1], projector=make()[1], placement="1:", decay=schedule)
    train(half, 3)
    resumed = MomentumEncoder(*make(seed=9)[:1], projector=make(seed=9)[1], placement="1:", decay=schedule)
    resumed.load_state_dict(half.state_dict())
    assert resumed.decay_now() == {"1": values[3], "2": values[3], "projector": values[3]}
    train(resumed, 3, seed=16)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_per_part_decays() -> None:
    backbone, head = make((1, 1))
    encoder = MomentumEncoder(backbone, projector=head, placement="1:", decay={"1": 1.0, "projector": 0.0})
    first = copy.deepcopy(encoder.momentum_part("1").state_dict())
    train(encoder, 2)
    for key, value in encoder.momentum_part("1").state_dict().items():
        assert torch.equal(value, first[key])
    assert torch.equal(encoder.momentum_part("projector")[0].weight, head[0].weight)
    with pytest.raises(UserError, match="unknown part '7' in decay"):
        MomentumEncoder(backbone, projector=head, placement="1", decay={"7": 0.5})
    with pytest.raises(ValueError, match="no decay is given for part 'projector'"):
        MomentumEncoder(backbone, projector=head, placement="1:", decay={"1": 0.5})


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_decay_outside_the_unit_interval_is_refused(decay: float) -> None:
    backbone, head = make()
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]"):
        MomentumEncoder(backbone, projector=head, decay=decay)


@given(st.floats(0.5, 0.9999), st.integers(1, 8))
def test_scaling_rule_keeps_the_memory_in_samples(decay: float, kappa: int) -> None:
    """kappa updates at decay d forget as much as one update at d ** kappa (arXiv 2307.13813)."""
    many = 1.0
    for _ in range(kappa):
        many *= decay
    assert tailfin.scale_decay(decay, kappa) == pytest.approx(many)


def test_update_keeps_storage_and_matches_by_name() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="all")
    before = {key: value.data_ptr() for key, value in encoder.momentum.named_parameters()}
    train(encoder, 2)
    assert before == {key: value.data_ptr() for key, value in encoder.momentum.named_parameters()}
    del head[1].bias
    head[1].register_parameter("shift", nn.Parameter(torch.zeros(8)))
    with pytest.raises(ValueError, match=r"tensor '1\.(bias|shift)' exists in only one"):
        encoder.update()


def test_momentum_stays_fp32_in_a_bf16_model() -> None:
    """(1 - .999) times a difference is below bf16's resolution: kept in bf16 the average would never move."""
    backbone, head = make((1,), double=False)
    encoder = MomentumEncoder(backbone, projector=head, placement="all", decay=0.999).to(torch.bfloat16)
    assert {p.dtype for p in encoder.parts.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in encoder.momentum.parameters()} == {torch.float32}
    with torch.no_grad():
        head[0].weight.add_(1.0)
    before = encoder.momentum_part("projector")[0].weight.clone()
    for _ in range(10):
        encoder.update()
    moved = (encoder.momentum_part("projector")[0].weight - before).mean()
    torch.testing.assert_close(moved, torch.tensor(1 - 0.999**10), rtol=0.02, atol=0)
    online, target = encoder(images().to(torch.bfloat16))
    assert online.projections[0].dtype == torch.bfloat16
    assert bool(target.projections[0].isfinite().all())
    low = MomentumEncoder(copy.deepcopy(backbone).bfloat16(), projector=copy.deepcopy(head), placement="0")
    assert {p.dtype for p in low.momentum.parameters()} == {torch.float32}


def test_accumulation_over_micro_batches_updates_once() -> None:
    backbone, head = make((1, 1))  # GroupNorm: micro-batches then add up to the whole batch
    whole, micro = (
        MomentumEncoder(copy.deepcopy(backbone), projector=copy.deepcopy(head[0]), decay=0.5)
        for _ in range(2)
    )
    batch = images(8)
    for encoder, pieces in ((whole, 1), (micro, 4)):
        optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.5)
        encoder.follow(optimizer)
        for piece in batch.chunk(pieces):
            online, target = encoder(piece)
            ((online.projections[0] - 2 * target.projections[0]).square().mean() / pieces).backward()
        optimizer.step()
    assert whole.updates == micro.updates == 1
    for a, b in zip(whole.momentum.parameters(), micro.momentum.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_updates_nothing(fused: bool) -> None:
    backbone, head = make((1,), double=False)
    encoder = MomentumEncoder(backbone, projector=head, decay=0.5)
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1, fused=fused)
    encoder.follow(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = copy.deepcopy(encoder.state_dict())
    for bad, updates in ((True, 0), (False, 1)):
        online, _ = encoder(images().float())
        loss = online.projections[0].square().mean() * (float("inf") if bad else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert encoder.updates == updates
        if bad:
            for key, value in encoder.momentum.named_parameters():
                assert torch.equal(value, before[f"momentum.{key}"])


def test_state_is_strict_by_name() -> None:
    backbone, head = make()
    state = MomentumEncoder(backbone, projector=head, placement="projector").state_dict()
    other = MomentumEncoder(*make()[:1], projector=make()[1], placement="2:")
    with pytest.raises(RuntimeError, match=r"Missing key.*momentum\.2"):
        other.load_state_dict(state)


def test_deep_copies_are_independent() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="all", decay=0.5)
    train(encoder, 2)
    twin = copy.deepcopy(encoder)
    train(encoder, 2)
    train(twin, 2)
    assert twin.updates == 4
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
    assert not {id(p) for p in encoder.parameters()} & {id(p) for p in twin.parameters()}


@pytest.mark.parametrize("placement", ["none", "projector", "0", "1,projector"])
def test_compiles(placement: str) -> None:
    torch.manual_seed(0)
    backbone, head = make((0, 1))
    encoder = MomentumEncoder(backbone, projector=head, placement=placement)
    twin = copy.deepcopy(encoder)
    compiled = torch.compile(encoder, backend="aot_eager")
    views = [images(seed=1), images(seed=2)]
    for _ in range(2):
        for own, model in ((encoder, compiled), (twin, twin)):
            online, target = model(views)
            own.zero_grad()
            regression(online, target).backward()
            with torch.no_grad():
                for p in own.parameters():
                    p.sub_(0.1 * p.grad) if p.grad is not None else None
            own.update()
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device to move to")
def test_moves_between_devices() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="1:").to("cuda")
    _, target = encoder(images().cuda())
    encoder.update()
    assert target.projections[0].device.type == "cuda"


def test_moves_to_another_device_as_a_whole() -> None:
    backbone, head = make()
    encoder = MomentumEncoder(backbone, projector=head, placement="1:").to("meta")
    assert {t.device.type for t in (*encoder.parameters(), *encoder.buffers())} == {"meta"}
    _, target = encoder(images().to("meta"))
    assert target.projections[0].device.type == "meta"
    encoder.update()


def test_exports_online_and_momentum_weights_in_timm_keys() -> None:
    model = timm.create_model("resnet18", num_classes=0)
    encoder = MomentumEncoder(split(model), placement="layer4:", decay=0.5)
    with torch.no_grad():
        model.layer4[0].conv1.weight.add_(1.0)
    for momentum in (False, True):
        plain = timm.create_model("resnet18", num_classes=0)
        plain.load_state_dict(encoder.backbone_state_dict(momentum=momentum), strict=True)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            expected = encoder.eval().encode(x, momentum=momentum)[0]
            torch.testing.assert_close(plain.eval()(x), expected)
        assert torch.equal(plain.layer1[0].conv1.weight, model.layer1[0].conv1.weight)


def test_predicted_cost_is_the_share_of_flops_and_zero_for_controls() -> None:
    parts = split(narrow_resnet(8))
    head = nn.Linear(64, 16)
    x = torch.randn(2, 3, 32, 32)
    encoder = MomentumEncoder(parts, projector=head, placement="layer3:")
    modes = [m.training for m in encoder.modules()]
    flops = part_flops(encoder, x)
    assert modes == [m.training for m in encoder.modules()]
    assert flops["stem"] == 2 * 2 * 32 * 32 * 8 * 27
    assert flops["projector"] == 2 * 2 * 64 * 16
    tail = flops["layer3"] + flops["layer4"] + flops["projector"]
    assert encoder.placement.cost(flops) == pytest.approx(tail / sum(flops.values()))


def test_measured_cost_is_the_time_of_the_target_path_over_that_of_a_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    parts, head = split(narrow_resnet(8)), nn.Linear(64, 16)

    def takes_a_second(*_: object) -> None:
        clock[0] += 1

    for part in [*(part for _, part in parts.named_children()), head]:
        part.register_forward_hook(takes_a_second)
    x = torch.randn(2, 3, 32, 32)
    for placement, cost in (("stopgrad", 0), ("projector", 1 / 6), ("layer3:", 3 / 6), ("all", 1)):
        encoder = MomentumEncoder(parts, projector=head, placement=placement)
        assert measured_cost(encoder, x) == pytest.approx(cost), placement


def test_unpooled_features_are_refused() -> None:
    encoder = MomentumEncoder(nn.Sequential(nn.Conv2d(3, 4, 3)), placement="none")
    with pytest.raises(ValueError, match=r"pooled features \[N, D\]"):
        encoder(torch.randn(2, 3, 8, 8))
