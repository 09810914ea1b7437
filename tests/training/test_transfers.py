"""A step on a GPU never waits for a copy of its own: its forward pieces run on fake CUDA tensors, without a GPU.

What is on the host is real, what is on the device has a shape and no values. Backward is left out, for which torch
asks a driver.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tailfin import methods
from tailfin.data.types import Dataset
from tailfin.methods.base import Moment
from tailfin.run.config import Config
from tailfin.training.setup import prepare

CUDA = torch.device("cuda", 0)
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
STAGED = ("supcon", "deepclusterv2")
"""Methods that send the batch's labels or places as they are: few bytes the driver stages, and the host goes on."""
MOST_STAGED = 2**16


class Transfers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host would wait for a copy to the device, and where an operation takes tensors of both.

    Args:
        staged: Whether few bytes may be sent without being pinned.
    """

    def __init__(self, *, staged: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.staged = staged
        self.sent = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        host = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        asked = kwargs.get("device")
        if len(host) == len(tensors) and (asked is None or torch.device(asked).type == "cpu"):
            return func(*args, **kwargs)
        if func.overloadpacket in COPIES and host:
            self._check_copy(func, host[0], kwargs.get("non_blocking") or args[2:3] == (True,))
        elif any(tensor.ndim for tensor in host):  # a scalar goes with the launch
            raise AssertionError(f"{func} takes tensors of both devices")
        with self.fake:
            return func(*args, **kwargs)

    def _check_copy(self, func: Any, source: Tensor, non_blocking: bool) -> None:
        self.sent += 1
        assert non_blocking, f"{func} of {source.nbytes} bytes blocks"
        pinned = getattr(source, "pinned", False) or (self.staged and source.nbytes <= MOST_STAGED)
        assert pinned, f"{func} of {source.nbytes} bytes that are not pinned"

    def on_device(self, like: Tensor) -> Tensor:
        """A tensor of the same shape and type on the device."""
        with self.fake:
            return torch.empty(like.shape, dtype=like.dtype, device=CUDA)

    def move(self, module: nn.Module) -> None:
        """Put the tensors of a module on the device; `Module.to` fails with fake ones."""
        moved: dict[Tensor, nn.Parameter] = {}
        for each in module.modules():
            for name, parameter in each.named_parameters(recurse=False):
                if parameter not in moved:  # one that is shared stays shared
                    moved[parameter] = nn.Parameter(self.on_device(parameter), parameter.requires_grad)
                each._parameters[name] = moved[parameter]
            for name, buffer in each.named_buffers(recurse=False):
                each._buffers[name] = self.on_device(buffer)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for a driver does without one."""

    def pin(tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        pinned.pinned = True  # type: ignore[attr-defined]
        return pinned

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)


@pytest.fixture
def transfers() -> Iterator[Transfers]:
    """The mode, entered."""
    with Transfers() as mode:
        yield mode


@pytest.mark.parametrize("name", methods.names())
def test_no_method_waits_for_its_copies(name: str, settings: Callable[..., Config], data: Dataset) -> None:
    setup = prepare(settings(method=name, optimizer=None, lr=None, method_options={}), data)
    encoder, method = setup.encoder.train(), setup.method.train()
    index, labels = torch.arange(8), data.train.labels
    assert labels is not None
    with Transfers(staged=name in STAGED) as transfers:
        transfers.move(encoder)
        transfers.move(method)
        branches = encoder([transfers.on_device(torch.empty(8, 3, 12, 12)) for _ in range(2)])
        for step in range(2):  # the second finds what the first left in a queue
            method.begin(Moment(step, setup.total_steps, setup.steps_per_epoch, index, labels[index]))
            loss = method.loss(*branches)
            assert isinstance(loss, FakeTensor)
            assert (loss.device, loss.shape, loss.dtype) == (CUDA, (), torch.float32)
            method.after_step()
    assert (transfers.sent > 0) == (name in STAGED)


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": "none"},
        {"momentum": "layer3:", "buffers": "ema"},
        {"momentum": "layer4:", "through": True},
        {"momentum": "stem,projector", "method": "swav", "local_views": 2, "image_size": 32},
    ],
)
def test_no_view_and_no_placement_waits_for_its_copies(
    changes: dict[str, Any], settings: Callable[..., Config], data: Dataset
) -> None:
    setup = prepare(settings(**changes), data)
    encoder, count = setup.encoder.train(), len(setup.augment.recipes)
    draws, aspect = torch.Generator().manual_seed(0), torch.linspace(0.5, 2.0, 8)
    with Transfers() as transfers:
        transfers.move(encoder)
        transfers.move(setup.method)
        images = transfers.on_device(data.train.images[:8])
        views = setup.augment(images, draws, aspect)
        if setup.local is not None:
            views += setup.local(images, draws, aspect)
        assert transfers.sent > 0
        loss = setup.method.loss(*encoder([setup.execution.images(view) for view in views], count))
        assert isinstance(loss, FakeTensor)
        assert loss.device == CUDA
        encoder.update()


def test_a_copy_that_the_host_waits_for_is_found(transfers: Transfers) -> None:
    device = transfers.on_device(torch.empty(4, 4))
    with pytest.raises(AssertionError, match=r"_to_copy.* of 64 bytes blocks"):
        torch.eye(4).to(device)
    with pytest.raises(AssertionError, match=r"_to_copy.* blocks"):
        torch.eye(4).pin_memory().to(CUDA)
    with pytest.raises(AssertionError, match=r"_to_copy.* not pinned"):
        torch.eye(4).to(CUDA, non_blocking=True)
    with pytest.raises(AssertionError, match=r"copy_.* blocks"):
        device.copy_(torch.eye(4))
    with pytest.raises(AssertionError, match="takes tensors of both devices"):
        device[torch.tensor([1, 2])]
    with pytest.raises(AssertionError, match="takes tensors of both devices"):
        device @ torch.eye(4)
    sent = torch.eye(4).pin_memory().to(CUDA, non_blocking=True)
    assert (sent + torch.tensor(2.0)).device == CUDA
    assert device.copy_(torch.eye(4).pin_memory(), non_blocking=True).device == CUDA


def test_the_copy_that_whitening_once_waited_for_is_found(
    settings: Callable[..., Config], data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    eye = torch.eye
    monkeypatch.setattr(torch, "eye", lambda width, device: eye(width).to(device))  # of W-MSE alone
    with pytest.raises(AssertionError, match=r"_to_copy.* blocks"):
        test_no_method_waits_for_its_copies("wmse", settings, data)
