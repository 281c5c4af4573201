"""What a training step needs, made ready on the device while the step before it computes."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ijepa.config import PretrainConfig
from ijepa.data.loader import Batch
from ijepa.jepa.augment import normalise
from ijepa.jepa.masks import Masks, batch_masks, part_of

AHEAD = 2  # steps that are made ready while one computes
LAST: Any = object()

T = TypeVar("T")


class StepInputs(NamedTuple):
    """Images and masks of one step.

    Attributes:
        number: of the batch, counted from 0.
        images: (B, 3, height, width) float, normalised, on the device; of this process.
        masks: of these images, on the device.
        groups: masks of all processes, on the CPU.
        ready: set on a side stream when all of it is on the device; None on a CPU.
    """

    number: int
    images: Tensor
    masks: list[Masks]
    groups: list[Masks]
    ready: torch.cuda.Event | None = None


def step_inputs(
    made: Iterator[Batch], config: PretrainConfig, share: slice, device: torch.device
) -> Generator[StepInputs]:
    """Masks beside each batch, both on the device.

    On a GPU a thread works ahead, and copies from pinned memory on a stream of its own, so that
    neither the training's thread nor the GPU ever waits for a copy.

    Args:
        made: batches in order; closed at the end.
        config: whose masks and normalisation.
        share: places of a batch that are this process's.
        device: where the step computes.
    """
    prepared = _prepared(made, config, share, device)
    if device.type != "cuda":
        yield from prepared
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
    with contextlib.closing(prefetched(prepared, AHEAD, lambda: torch.cuda.stream(side))) as source:
        for inputs in source:
            _hand_over(inputs, torch.cuda.current_stream(device))
            yield inputs


def prefetched(
    items: Generator[T],
    ahead: int,
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Generator[T]:
    """The same items in the same order, made in a thread that is up to `ahead` items in front.

    Closing it ends the thread and closes `items`; what is raised there is raised here.

    Args:
        items: made in the thread alone.
        ahead: at least 1.
        context: made and entered in the thread around all of its work.
    """
    made: queue.SimpleQueue[T] = queue.SimpleQueue()
    room, stop = threading.Semaphore(ahead - 1), threading.Event()

    def work() -> None:
        with context(), contextlib.closing(items):
            for item in items:
                made.put(item)
                room.acquire()
                if stop.is_set():
                    return

    with ThreadPoolExecutor(1, "prefetch") as thread:
        working = thread.submit(work)
        working.add_done_callback(lambda _: made.put(LAST))
        try:
            while (item := made.get()) is not LAST:
                room.release()
                yield item
            working.result()  # raises what was raised there
        finally:
            stop.set()
            room.release()


def _prepared(
    made: Iterator[Batch], config: PretrainConfig, share: slice, device: torch.device
) -> Generator[StepInputs]:
    for batch in made:
        groups = batch_masks(config, batch.step)
        masks = to_device(part_of(groups, share), device)
        images = normalise(
            batch.images.to(device, non_blocking=True), config.data.mean, config.data.std
        )
        ready = torch.cuda.current_stream(device).record_event() if images.is_cuda else None
        yield StepInputs(batch.step, images, masks, groups, ready)


def to_device(groups: list[Masks], device: torch.device) -> list[Masks]:
    """Masks of several groups, in one copy from pinned memory where the device is a GPU."""
    if device.type != "cuda":
        return groups
    tensors = [tensor for masks in groups for tensor in masks]
    packed = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory()
    parts = torch.split(packed.to(device, non_blocking=True), [t.numel() for t in tensors])
    shaped = iter([part.view(like.shape) for part, like in zip(parts, tensors, strict=True)])
    return [Masks(*pair) for pair in zip(shaped, shaped, strict=True)]


def _hand_over(inputs: StepInputs, stream: torch.cuda.Stream) -> None:
    """Let the training's stream wait for the side stream, and own the memory from now on."""
    assert inputs.ready is not None
    stream.wait_event(inputs.ready)
    inputs.images.record_stream(stream)
    for masks in inputs.masks:
        for tensor in masks:
            tensor.record_stream(stream)
