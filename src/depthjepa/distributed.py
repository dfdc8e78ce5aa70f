"""Several processes of one run: the only file that knows how they are started, wrapped and talked to.

`torchrun` starts them and says through the environment which is which. All of them do the same things in the same
order; what a function here needs of the others, it waits for, at most as long as the process group was told.
With one process every function is the identity.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from depthjepa.faults import BadInput, RunStopped

T = TypeVar("T")


LAUNCH = "let torchrun set them, or unset all of them for a single process"


@dataclass(frozen=True, slots=True)
class Ranks:
    """Place of this process among those of the run: its number, how many there are, the same on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0
    beside: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to the terminal."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things this process does: every `world`-th; `join` puts them together again."""
        return range(self.rank, count, self.world)


def ranks() -> Ranks:
    """Read `RANK`, `WORLD_SIZE` and their `LOCAL_` like as `torchrun` sets them; one process without them.

    Raises `BadInput` for one without the other, for what is no number, and for a rank that there is not: such a process
    would train alone, and perhaps write nothing.
    """
    given = {name for name in ("RANK", "WORLD_SIZE") if os.environ.get(name)}
    if len(given) == 1:
        (there,) = given
        (absent,) = {"RANK", "WORLD_SIZE"} - given
        raise BadInput(f"{there}={os.environ[there]} is set without {absent}: {LAUNCH}")
    rank, world = _whole("RANK", 0), _whole("WORLD_SIZE", 1)
    local, beside = _whole("LOCAL_RANK", 0), _whole("LOCAL_WORLD_SIZE", 1)
    if rank >= world:
        raise BadInput(f"RANK={rank} and WORLD_SIZE={world}: ranks are 0 to {world - 1}; {LAUNCH}")
    if os.environ.get("LOCAL_WORLD_SIZE") and local >= beside:
        raise BadInput(f"LOCAL_RANK={local} and LOCAL_WORLD_SIZE={beside}: ranks are 0 to {beside - 1}; {LAUNCH}")
    return Ranks(rank, world, local, beside)


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not re.fullmatch("[0-9]{1,9}", text) or (name.endswith("SIZE") and int(text) == 0):
        raise BadInput(f"{name}={text!r} is no whole number{' above 0' * name.endswith('SIZE')}: {LAUNCH}")
    return int(text)


def started_apart() -> str:
    """What to tell a process that Slurm started beside others, none of which knows of the others; else empty."""
    count = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if count == 1 or "WORLD_SIZE" in os.environ:
        return ""
    return f" (srun has started {count} processes, each as a run of its own: to share one run they need torchrun)"


@contextlib.contextmanager
def process_group(ranks: Ranks, device: torch.device, minutes: float) -> Iterator[None]:
    """Open the process group when there is more than one process, and close it at the end.

    `minutes`: how long a process waits for the others, here and in everything below. Raises `RunStopped` where one
    did not come or is gone. (NCCL ends the process itself then, with a message of its own.)
    """
    if ranks.world == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise BadInput(f"WORLD_SIZE={ranks.world} is set without {name}: {LAUNCH}")
    _whole("MASTER_PORT", 0)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(backend, timeout=timedelta(minutes=minutes))
        yield
        wait_for_all(ranks)  # none leaves while another still writes
    except RuntimeError as fault:
        if not _of_the_group(fault):
            raise
        raise RunStopped(
            f"process {ranks.rank} of {ranks.world} has lost another one, or waited {minutes:g} minutes for it in vain "
            f"(train.timeout_minutes); what is written is whole. Look for the message of the other one; here it was: "
            f"{str(fault).splitlines()[0]}"
        ) from fault
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _of_the_group(fault: RuntimeError) -> bool:
    """Whether a fault is of the talk between processes; gloo's are plain, and begin with a file of its source."""
    return isinstance(fault, torch.distributed.DistError) or "/gloo/" in str(fault)


def background_group(ranks: Ranks, minutes: float) -> Any:
    """A group of the same processes that may talk in a thread of its own; None for one process."""
    if ranks.world == 1:
        return None
    return torch.distributed.new_group(backend="gloo", timeout=timedelta(minutes=minutes))


def wait_for_all(ranks: Ranks) -> None:
    """Return when all processes have come here."""
    if ranks.world > 1:
        torch.distributed.barrier()


def first_writes(ranks: Ranks, write: Callable[[], object], group: Any = None) -> None:
    """Let the first process write while the others wait; where it cannot, none goes on.

    `group`: that of a thread which waits apart from the training; None: the training's.
    """
    fault: Exception | None = None
    if ranks.first:
        try:
            write()
        except Exception as reason:  # raised again below, once the others know
            fault = reason
    failed = of_first(fault is not None, ranks, group)
    if fault is not None:
        raise fault
    if failed:
        raise RunStopped(f"process {ranks.rank} of {ranks.world}: the first one could not write, and says why")


def of_first(value: T, ranks: Ranks, group: Any = None) -> T:
    """What the first process has, on all of them; any plain value. `group` as of `first_writes`."""
    if ranks.world == 1:
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0, group=group)
    return held[0]


def any_process(wishes: tuple[bool, ...], ranks: Ranks, device: torch.device) -> list[bool]:
    """Whether any process has each wish: all must do the same after the same step."""
    if ranks.world == 1:
        return list(wishes)
    found = torch.tensor([float(wish) for wish in wishes], device=device)
    return [share > 0 for share in average(found, ranks).tolist()]


def average(values: Tensor, ranks: Ranks) -> Tensor:
    """Mean of a tensor over all processes (the tensor itself when there is one)."""
    if ranks.world > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
        values /= ranks.world
    return values


def gather(names: list[str], ranks: Ranks) -> list[str]:
    """The lists of all processes in one, in the order of their ranks."""
    if ranks.world == 1:
        return names
    lists: list[list[str]] = [[] for _ in range(ranks.world)]
    torch.distributed.all_gather_object(lists, names)
    return [name for each in lists for name in each]


def join(part: Shaped[Tensor, "own ..."], count: int, ranks: Ranks) -> Shaped[Tensor, "count ..."]:
    """The rows that each process made of its share of `count` things, in the order of the things, on all processes."""
    if ranks.world == 1:
        return part
    most = len(Ranks(0, ranks.world).share(count))
    padded = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(ranks.world)]
    torch.distributed.all_gather(parts, padded)
    return torch.stack(parts, 1).flatten(0, 1)[:count]


def with_others(rows: Float[Tensor, "own d"]) -> Float[Tensor, "all d"]:
    """The rows of all processes, one after the other in the order of their ranks; gradients reach all of them.

    A loss of all rows that every process computes asks each row as many times over as there are processes, and `wrap`
    divides by their number: what is learned is what one process would learn of all rows. All processes have as many
    rows. Without a process group the rows themselves.
    """
    gathered: Tensor = _WithOthers.apply(rows) if torch.distributed.is_initialized() else rows
    return gathered


class _WithOthers(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        first = len(rows) * torch.distributed.get_rank()
        context.own = slice(first, first + len(rows))
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        return gradient[context.own]


def wrap(method: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The method with gradients that are averaged over all processes as the backward pass makes them.

    Which parameters take part is settled here: wrap anew where others begin to learn. One that is sharded does so by
    itself.
    """
    if ranks.world == 1 or is_sharded(method):
        return method
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 has another name for it, 2.11 this one alone
        return DistributedDataParallel(method, device_ids=devices, broadcast_buffers=False)


def adding_up(wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Backward passes inside keep their gradients to this process: a later one, outside, averages their sum.

    Where parameters are sharded each pass averages its own: whole gradients are what there is no room for.
    """
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else contextlib.nullcontext()


def shard(method: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device) -> None:
    """Leave each process its share of every parameter, in place; a block's are put together where it is computed.

    `blocks` are put together one at a time, and all else for the length of a step. An optimiser is made of the
    parameters that there are afterwards: their gradients, and so its moments, are shares as well.
    """
    mesh = init_device_mesh(device.type, (ranks.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(method, mesh=mesh)


def is_sharded(method: nn.Module) -> bool:
    """Whether each process holds a share of every parameter alone."""
    return isinstance(method, FSDPModule)


def own(value: Tensor) -> Tensor:
    """What this process holds of a tensor, in the tensor's own memory: its share, or all of it."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """A tensor put together from the shares of all processes, which all have to ask; itself where it is whole."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, other: Tensor) -> Tensor:
    """A tensor that all processes have, as this process holds another one of its shape: its share, or all of it."""
    if not isinstance(other, DTensor) or isinstance(value, DTensor):
        return value
    value = value.to(other.device)
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
