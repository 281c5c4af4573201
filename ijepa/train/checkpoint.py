"""A run's checkpoints: copied at once, written in a thread, read again to resume.

A checkpoint holds `schema`, `step`, `config` (settings as plain values), `model` and `optimizer`
(state dicts), and `facts` (small values of `Task.state_dict` and of the loop).
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ijepa.distributed import is_sharded
from ijepa.errors import IjepaError
from ijepa.files import link_or_copy
from ijepa.weights import check_weights, load_checkpoint, save_state

MOST_OF_TIME = 0.02  # that checkpoints may take of a run

Tree = dict[str, Any]


def full_state(model: nn.Module, optimizer: Optimizer) -> tuple[Tree, Tree]:
    """State of networks and optimizer by the names of the parameters; all processes call it.

    It does not depend on how weights are sharded, so a run may resume with another number of
    processes. Sharded weights are gathered on rank 0, and other ranks get nothing; weights that are
    not sharded are not copied.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=is_sharded(model))
    weights = get_model_state_dict(model, options=options)
    return weights, cast(Tree, get_optimizer_state_dict(model, optimizer, options=options))


def load_full_state(
    model: nn.Module,
    optimizer: Optimizer,
    path: Path,
    set_phase: Callable[[int], None] = lambda step: None,  # noqa: ARG005  # called by position
) -> Tree:
    """Load a checkpoint into networks and optimizer, exactly or not at all; returns all of it.

    `set_phase` is called first, with the checkpoint's last step: it may decide which parameters the
    optimizer has a state of. An `IjepaError` refuses a file that is damaged, of other networks, or
    of weights alone.
    """
    body = load_checkpoint(path)
    if not body["optimizer"]:
        raise IjepaError(
            f"{path} holds weights alone, without the optimizer's state: a run cannot go on from "
            f"it. Remove it to start anew; `ijepa extract` and `finetune` take it as an encoder."
        )
    check_weights(model, body["model"], path)
    set_phase(body["step"] - 1)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_model_state_dict(model, body["model"], options=options)
    try:
        set_optimizer_state_dict(model, optimizer, body["optimizer"], options=options)
    except (KeyError, RuntimeError, ValueError) as error:
        raise IjepaError(f"{path} holds no optimizer state of these networks.") from error
    return body


class CheckpointWriter:
    """Saves a run's state: copies it at once, writes the copy in a thread while training goes on.

    The copy stays allocated for the next one. For a GPU it is in pinned memory, which copies at the
    speed of the bus.
    """

    def __init__(self, least_seconds: float, *, writes: bool = True) -> None:
        """Save every `least_seconds` at most; never, unless this process `writes`."""
        self._least_seconds, self._saved = least_seconds, time.monotonic()
        self._writes = writes
        self._cost_seconds = 0.0  # of the newest checkpoint, to the training
        self._buffers: list[Tensor] = []
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def is_due(self) -> bool:
        """Whether enough time has passed for saving to take at most `MOST_OF_TIME` of it."""
        if not self._writes or (self._writing and not self._writing.done()):
            return False
        least = max(self._least_seconds, self._cost_seconds / MOST_OF_TIME)
        return time.monotonic() - self._saved > least

    def save(self, paths: Sequence[Path], body: Tree, *, is_copy: bool = False) -> None:
        """Begin to write the same file to all `paths` of one folder, in order; atomic for each.

        `body` holds tensors on any device and plain values; `is_copy` says that nobody changes the
        tensors any more. An `OSError`, such as a full disk, is about the previous checkpoint.
        """
        start = time.monotonic()
        self.wait()
        state = body if is_copy else self._copied(body)
        on_gpu = any(leaf.is_cuda for leaf in pytree.tree_leaves(body) if torch.is_tensor(leaf))

        def write() -> None:
            began = time.monotonic()
            save_state(paths[0], state)
            for path in paths[1:]:
                link_or_copy(paths[0], path)
            if not on_gpu:  # writing took time of the processor that trains
                self._cost_seconds += time.monotonic() - began

        self._saved = time.monotonic()
        self._cost_seconds = self._saved - start
        self._writing = self._thread.submit(write)

    def wait(self) -> None:
        """Return when everything is on disk; an `OSError` says why it is not."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Wait, and end the thread: nothing can be saved afterwards."""
        self._thread.shutdown()
        self.wait()

    def _copied(self, body: Tree) -> Tree:
        leaves, structure = pytree.tree_flatten(body)
        tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
        if [(t.shape, t.dtype) for t in tensors] != [(b.shape, b.dtype) for b in self._buffers]:
            self._buffers = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors
            ]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)  # waited for below
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        copies = iter(self._buffers)
        copied = [next(copies) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        return cast(Tree, pytree.tree_unflatten(copied, structure))
