"""Which device computes, how batches get there, and how several processes compute as one.

Processes are started by torchrun (or anything else that sets its variables); one process needs none
of this. What every rank would decide alike is decided by rank 0 and sent to the others.
"""

import contextlib
import functools
import os
import platform
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from ijepa.config import CPU_WORKERS, Runtime
from ijepa.errors import BrokenGroupError, IjepaError, SharedError
from ijepa.world import World, current_world

CPU_FACTS = Path("/proc/cpuinfo")  # of Linux
PATIENCE = timedelta(hours=1)  # while rank 0 writes checkpoints or digests; NCCL has 10 minutes
AHEAD = 2  # batches that are made ready while one computes
END: Any = object()

T = TypeVar("T")
U = TypeVar("U")


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Join torchrun's process group in a `with` block; a `BrokenGroupError` if another failed."""
    world = current_world()
    if world.size == 1:
        yield world
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)  # where collectives of objects put their tensors
    backend, own = ("nccl", device) if on_gpu else ("gloo", None)
    dist.init_process_group(backend, device_id=own, timeout=PATIENCE)
    try:
        yield world
    except RuntimeError as error:  # of a collective; the process that failed tells the reason
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise BrokenGroupError from error
        raise
    dist.destroy_process_group()


def from_rank_0(world: World, work: Callable[[], T]) -> T:
    """Run `work` on rank 0, and give every rank its result, or its `IjepaError`."""
    if world.size == 1:
        return work()
    told: list[T | IjepaError | None] = [None]
    if world.is_rank_0:
        try:
            told = [work()]
        except IjepaError as error:
            told = [error]
    dist.broadcast_object_list(told, src=0)
    result = told[0]
    if isinstance(result, IjepaError):
        dist.barrier()  # all know: they part in order, for gloo aborts a process whose peer is gone
        dist.destroy_process_group()
        raise result if world.is_rank_0 else SharedError(str(result))
    return result  # type: ignore[return-value]  # None only if `work` gave None


def from_all(world: World, value: T) -> list[T]:
    """The `value` of every rank, in their order, for every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """Sum of each number over all ranks, the same on every rank; `values` may be changed."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """Rows (n, ...) of rank 0, then those of rank 1, and so on; n is the same on every rank."""
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def any_rank(flag: bool, device: torch.device, world: World) -> bool:
    """Whether any rank raised the flag; the same answer on every rank."""
    if world.size == 1:
        return flag
    return bool(sum_over_ranks(torch.tensor(int(flag), device=device), world).item())


def in_parallel(model: nn.Module, device: torch.device, world: World) -> nn.Module:
    """Average gradients over ranks while they are computed; alone, the model itself."""
    if world.size == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def pick_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda`, `cuda:1` or `mps` into a device that is there, or refuse it.

    Without a number, each process of a machine takes a GPU of its own. Several have no collectives
    on Apple's.
    """
    has_mps, world = torch.backends.mps.is_available(), current_world()
    if name == "auto":
        alone = "mps" if has_mps and world.size == 1 else "cpu"
        name = "cuda" if torch.cuda.is_available() else alone
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise IjepaError(f"{name!r} is no device; use auto, cpu, cuda, cuda:1 or mps.") from error
    if world.local_size > 1 and (device.type == "mps" or device.index is not None):
        raise IjepaError(f"Several processes cannot share {name}; take --device cuda or cpu.")
    if device.type == "cpu" or (device.type == "mps" and has_mps):
        return device
    if device.type != "cuda":
        raise IjepaError(f"There is no device {name} here; use auto, cpu, cuda or cuda:1.")
    count = torch.cuda.device_count()
    number = world.local_rank if device.index is None else device.index
    if device.index is None and count == 1:
        number = 0  # the scheduler shows each process its own GPU alone
    if number >= count:
        raise IjepaError(f"There is no device cuda:{number}; the machine has {count} CUDA devices.")
    return torch.device("cuda", number)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The same on the device; to a CUDA device it is copied from pinned memory, in the background.

    Not so to Apple's GPU, for which torch may free the source too early (pytorch/pytorch#189690).
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def prepared(made: Generator[T], prepare: Callable[[T], U], device: torch.device) -> Generator[U]:
    """What `prepare` makes of each item.

    On a GPU a thread works ahead, and copies from pinned memory on a stream of its own, so that
    neither the training's thread nor the GPU ever waits for a copy. `made` is closed at the end.
    """
    if device.type != "cuda":
        with contextlib.closing(made):
            for item in made:
                yield prepare(item)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def work() -> Generator[tuple[U, torch.cuda.Event]]:
        with contextlib.closing(made):
            for item in made:
                yield prepare(item), torch.cuda.current_stream(device).record_event()

    begin = functools.partial(torch.cuda.set_stream, side)
    with contextlib.closing(prefetched(work(), AHEAD, begin)) as source:
        for inputs, ready in source:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(ready)
            for leaf in pytree.tree_leaves(inputs):
                if torch.is_tensor(leaf) and leaf.is_cuda:
                    leaf.record_stream(stream)  # its memory is the training's from now on
            yield inputs


def prefetched(
    items: Generator[T], ahead: int, begin: Callable[[], object] | None = None
) -> Generator[T]:
    """The same items in the same order, made in a thread that is up to `ahead` (1, ...) in front.

    The thread calls `begin` first. Closing the generator ends the thread, then closes `items`; what
    is raised in the thread is raised here.
    """
    with contextlib.closing(items), ThreadPoolExecutor(1, "prefetch", begin) as thread:
        waiting: deque[Future[T]] = deque()
        try:
            waiting.extend(thread.submit(next, items, END) for _ in range(ahead))
            while (item := waiting.popleft().result()) is not END:
                waiting.append(thread.submit(next, items, END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: `auto` means on a GPU that can, else the name decides.

    GPUs before Ampere only emulate it, slowly. Where there is no GPU, `device` may name one that is
    planned for, and counts as one that can.
    """
    if precision != "auto" or device.type != "cuda":
        return precision == "bf16"
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def num_workers(runtime: Runtime, device: torch.device) -> int:
    """How many processes read and decode images for this one.

    `runtime.workers`; by default 2 for a CPU, which has its cores to compute with. A GPU waits for
    images, so it gets all cores that this process may use but two, and at least 2; processes that
    torchrun started on one machine share them.
    """
    if runtime.workers is not None:
        return runtime.workers
    if device.type != "cuda":
        return CPU_WORKERS
    return max(2, len(os.sched_getaffinity(0)) // current_world().local_size - 2)


def device_name(device: torch.device, world: World = World(), linear: str = "torch") -> str:  # noqa: B008  # a constant
    """What to write beside a number: processes, the GPU or the CPU with its threads, the library.

    `linear` multiplies matrices on a CPU, see `ijepa.compute.pick_linear`.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({cpu_name()}), {torch.get_num_threads()} threads"
    several = f"{world.size} x " if world.size > 1 else ""
    return several + name + (", oneDNN" if linear == "onednn" else "")


def cpu_name() -> str:
    """The processor's name, family and model, which tell CPUs of one name apart."""
    text = CPU_FACTS.read_text() if CPU_FACTS.exists() else ""
    lines = (line.partition(":") for line in reversed(text.splitlines()))  # the first CPU's last
    facts = {name.strip(): value.strip() for name, _, value in lines}
    if "cpu family" not in facts:
        return platform.processor() or platform.machine()
    return f"{facts['model name']}, family {facts['cpu family']}, model {facts['model']}"
