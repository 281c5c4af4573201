"""Batches made ready on the device while the step before them computes."""

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

AHEAD = 2  # batches that are made ready while one computes
LAST: Any = object()

T = TypeVar("T")
U = TypeVar("U")


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

    def work() -> Generator[tuple[U, torch.cuda.Event]]:
        with contextlib.closing(made):
            for item in made:
                yield prepare(item), torch.cuda.current_stream(device).record_event()

    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
    with contextlib.closing(prefetched(work(), AHEAD, lambda: torch.cuda.stream(side))) as source:
        for inputs, ready in source:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(ready)
            for leaf in pytree.tree_leaves(inputs):
                if torch.is_tensor(leaf) and leaf.is_cuda:
                    leaf.record_stream(stream)  # its memory is the training's from now on
            yield inputs


def prefetched(
    items: Generator[T],
    ahead: int,
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Generator[T]:
    """The same items in the same order, made in a thread that is up to `ahead` (1, ...) in front.

    Closing it ends the thread and closes `items`; what is raised there is raised here. `context` is
    entered in the thread around all of its work.
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
