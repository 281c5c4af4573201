"""Saves a run's state while it trains: copied at once, written in a thread."""

import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ijepa.weights import save_state

MOST_OF_TIME = 0.02  # that checkpoints may take of a run


class CheckpointWriter:
    """Saves a run's state: copies it at once, writes the copy in a thread.

    Training goes on while the file is written. The copy stays allocated for the next one; that of a
    GPU's tensors lies in pinned memory, so that copying runs at the speed of the bus.
    """

    def __init__(self, least_seconds: float, *, writes: bool = True) -> None:
        """Prepare to save.

        Args:
            least_seconds: between two checkpoints.
            writes: whether this process writes files; one that does not never asks to save.
        """
        self._least_seconds, self._saved = least_seconds, time.monotonic()
        self._writes = writes
        self._cost_seconds = 0.0  # of the newest checkpoint, to the training
        self._buffers: list[Tensor] = []
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[float] | None = None

    def is_due(self) -> bool:
        """Did enough time pass, and so much that saving takes at most `MOST_OF_TIME` of it?"""
        if not self._writes or (self._writing and not self._writing.done()):
            return False
        least = max(self._least_seconds, self._cost_seconds / MOST_OF_TIME)
        return time.monotonic() - self._saved > least

    def save(self, paths: Sequence[Path], body: dict[str, Any], *, is_copy: bool = False) -> None:
        """Begin to write the same file to all `paths`, the last one last; atomic for each.

        Args:
            paths: in one folder, which exists.
            body: tensors on any device, and plain values.
            is_copy: nobody changes the tensors any more, so that they need not be copied.

        Raises:
            OSError: of the checkpoint before this one, such as a full disk.
        """
        start = time.monotonic()
        self.wait()
        state = body if is_copy else self._copied(body)
        on_gpu = any(leaf.is_cuda for leaf in pytree.tree_leaves(body) if torch.is_tensor(leaf))
        self._writing = self._thread.submit(_write, paths, state)
        self._saved = time.monotonic()
        self._cost_seconds = self._saved - start
        if not on_gpu:  # writing takes time of the processor that trains
            self._writing.add_done_callback(self._count_writing)

    def wait(self) -> None:
        """Return when everything is on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """As `wait`; nothing can be saved afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._buffers = []

    def _count_writing(self, written: Future[float]) -> None:
        if not written.exception():
            self._cost_seconds += written.result()

    def _copied(self, body: dict[str, Any]) -> dict[str, Any]:
        leaves, structure = pytree.tree_flatten(body)
        tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
        if [(t.shape, t.dtype) for t in tensors] != [(b.shape, b.dtype) for b in self._buffers]:
            self._buffers = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors
            ]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        copies = iter(self._buffers)
        copied = [next(copies) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        tree: dict[str, Any] = pytree.tree_unflatten(copied, structure)
        return tree


def _write(paths: Sequence[Path], body: dict[str, Any]) -> float:
    """Write once, and give the file its other names; returns the seconds that it took."""
    start = time.monotonic()
    first, *others = paths
    save_state(first, body)
    for path in others:
        link_or_copy(first, path)
    return time.monotonic() - start


def link_or_copy(first: Path, path: Path) -> None:
    """Give a file, which is never changed but only replaced, another name; atomic."""
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    neighbour.unlink(missing_ok=True)
    try:
        os.link(first, neighbour)
    except OSError:  # a file system without hard links
        shutil.copyfile(first, neighbour)
    neighbour.replace(path)
