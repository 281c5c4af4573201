"""Batches made ready on the device while the step before them computes."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

AHEAD = 2  # batches that are made ready while one computes
END: Any = object()

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
