"""A process of several, by torch.distributed: how it finds the others, and what it does with them."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, TypeVar, cast
from uuid import uuid4

import torch
from torch import Tensor, nn

from tailfin.branch import Branch
from tailfin.compute.world import World, launched, local_rank
from tailfin.errors import AlreadySaid, Lost, OfProcess, UserError

T = TypeVar("T")

FIRST_SECONDS = 60.0
"""Longest wait for the first process to answer."""


class Several(World):
    """A process of several, by torch.distributed.

    Args:
        device: Of this process; it decides about the backend.
        seconds: Longest wait for another process.
    """

    def __init__(self, device: torch.device, seconds: float = 1800.0) -> None:
        from datetime import timedelta

        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=seconds)
        with _ended_at_once():
            _find_first()
            store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
            store = fresh(store, rank, size, seconds)
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        self._asked: tuple[Tensor, Any] | None = None

    def place(self, device: torch.device) -> torch.device:
        """A GPU a process, by its number on its machine."""
        return torch.device("cuda", local_rank()) if device.type == "cuda" else device

    def ready(self, encoder: nn.Module, batch_norm: str) -> None:
        """See `World`."""
        from tailfin.compute.norm import synchronise

        if batch_norm == "sync":
            synchronise(encoder)
        self._broadcast_buffers = batch_norm != "sync"

    def wrap(self, objective: nn.Module, *, idle: bool) -> nn.Module:
        """See `World`; by `DistributedDataParallel`."""
        from torch.nn.parallel import DistributedDataParallel

        # Its name since torch 2.14; the other one is deprecated there.
        new = "forward_sync_buffers" in signature(DistributedDataParallel).parameters
        buffers = {"forward_sync_buffers" if new else "broadcast_buffers": self._broadcast_buffers}
        return DistributedDataParallel(
            objective,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=idle,
            gradient_as_bucket_view=True,
            **cast(Any, buffers),
        )

    def alone(self, wrapped: nn.Module) -> AbstractContextManager[object]:
        """See `World`."""
        return cast(AbstractContextManager[object], wrapped.no_sync())  # type: ignore[operator]

    def whole(self, branch: Branch, known: Branch | None = None) -> Branch:
        """See `World`; what a method does not look at is never sent."""
        from tailfin.compute.gather import Gathered

        return Gathered(branch, known)

    def mean(self, values: Tensor) -> Tensor:
        """See `World`."""
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def every(self, value: T) -> list[T]:
        """See `World`."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return cast(list[T], found)

    def first(self, make: Callable[[], T]) -> T:
        """See `World`."""
        import torch.distributed as dist

        told: list[Any] = [None]
        if self.leads:
            try:
                told = [(True, make())]
            except UserError as error:
                told = [(False, error)]
        dist.broadcast_object_list(told, 0)
        made, value = told[0]
        if not made:
            raise value if self.leads else AlreadySaid(str(value))
        return cast(T, value)

    def any(self, flag: bool) -> bool:
        """See `World`."""
        import torch.distributed as dist

        asked, answer = torch.tensor([float(flag)]), False
        if self._asked is not None:
            before, work = self._asked
            work.wait()
            answer = bool(before.item() > 0)
        self._asked = (asked, dist.all_reduce(asked, op=dist.ReduceOp.MAX, async_op=True))
        return answer

    def close(self) -> None:
        """See `World`."""
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def fresh(store: Any, rank: int, size: int, seconds: float) -> Any:
    """A part of the launcher's store that nothing but this start of all processes has written to.

    torchrun keeps one store over its restarts (torch 2.14): after a kill while the processes were finding each other,
    the next start took dead ones' addresses for its own, and waited. So the first process names each start anew, and
    confirms to every other one that both speak of the same.
    """
    prefixed = cast(Any, torch.distributed).PrefixStore
    own, end = uuid4().hex, time.monotonic() + seconds
    if rank == 0:
        store.set("tailfin", own)
    said: dict[int, str] = {}
    while time.monotonic() < end:
        if rank == 0:
            for other in range(1, size):
                if other not in said and store.check([f"{own}/{other}"]):
                    said[other] = store.get(f"{own}/{other}").decode()
            if len(said) == size - 1:
                for other, name in said.items():
                    store.set(f"{own}/{other}/{name}", "")
                return prefixed(own, store)
        elif store.check(["tailfin"]):
            named = store.get("tailfin").decode()
            store.set(f"{named}/{rank}", own)
            if store.check([f"{named}/{rank}/{own}"]):
                return prefixed(named, store)
        time.sleep(0.02)
    raise Lost(f"process {rank} of {size}: the others were not there within {seconds:.0f} s")


@contextmanager
def _ended_at_once() -> Iterator[None]:
    """SIGTERM ends this process inside, as nothing has begun.

    What Python does about signals would wait for torch, which waits for the other processes; and a launcher that ends
    one process for another's sake waits half a minute before it kills it.
    """
    try:
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _find_first() -> None:
    """Find that nobody answers where the first process should be; torch would wait for it half an hour.

    Raises:
        UserError: Nobody did within so many seconds.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if os.environ.get("RANK") == "0" or not host or not port.isdigit():
        return
    end, reason = time.monotonic() + FIRST_SECONDS, "no answer"
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            reason = str(error.strerror or error)
            time.sleep(0.2)
    where = f"{host}:{port}, where MASTER_ADDR and MASTER_PORT say"
    raise OfProcess(
        f"process {os.environ.get('RANK')}: no first process at {where}, within {FIRST_SECONDS:.0f} s ({reason})"
    )


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes of this run: those that a launcher started, or this one.

    Args:
        device: Where the first one computes.

    Raises:
        OfProcess: Whatever is wrong with one process of several but the first, naming it.
        Lost: Another process has ended.
    """
    if launched() == 1:
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank())
    world = Several(torch.device("cuda", local_rank()) if device.type == "cuda" else device)
    try:
        yield world
    except UserError as error:
        if world.leads or isinstance(error, AlreadySaid):
            raise
        raise OfProcess(f"process {world.rank} of {world.size}: {error}") from None
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0]
        raise Lost(f"process {world.rank} of {world.size} lost another one: {reason}") from None
    # Not where something went wrong: the others may be waiting for this process, and who started them ends them.
    world.close()
