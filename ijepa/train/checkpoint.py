"""A run's checkpoints: copied at once, written in a thread, read again to go on.

A checkpoint holds `schema`, `step`, `config` (settings as plain values), `model` and `optimizer`
(state dicts), and `facts` (small values of `Task.state` and of the loop).
"""

import logging
import os
import shutil
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

from ijepa.config import PretrainConfig
from ijepa.distributed import is_sharded
from ijepa.errors import IjepaError
from ijepa.jepa.schedules import Schedules
from ijepa.records import read_record, refuse_changed
from ijepa.stage import Work, changes
from ijepa.weights import check_weights, load_checkpoint, save_state

LAST = Path("checkpoints") / "last.pt"  # the newest state, in a run's folder
BEST = Path("checkpoints") / "best.pt"  # that of the best health check, where there are labels
MOST_OF_TIME = 0.02  # that checkpoints may take of a run

Tree = dict[str, Any]

log = logging.getLogger(__name__)


def full_state(model: nn.Module, optimizer: Optimizer) -> tuple[Tree, Tree]:
    """State of networks and optimizer, by the names of the parameters; all processes call it.

    It does not depend on how weights are sharded: a run may go on with another number of processes.
    Sharded weights are gathered on rank 0, other ranks get nothing; other weights are not copied.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=is_sharded(model))
    weights = get_model_state_dict(model, options=options)
    return weights, cast(Tree, get_optimizer_state_dict(model, optimizer, options=options))


def restore(
    model: nn.Module,
    optimizer: Optimizer,
    path: Path,
    enter: Callable[[int], None] = lambda step: None,  # noqa: ARG005  # called by position
) -> Tree:
    """Put a checkpoint back into networks and optimizer, exactly or not at all; returns all of it.

    `enter` is called with its last step first, which may choose what has an optimizer's state.

    Raises:
        IjepaError: it is damaged, of other networks, or weights alone.
    """
    body = load_checkpoint(path)
    if not body["optimizer"]:
        raise IjepaError(
            f"{path} holds weights alone, without the optimizer's state: a run cannot go on from "
            f"it. Remove it to start anew; `ijepa extract` and `finetune` take it as an encoder."
        )
    check_weights(model, body["model"], path)
    enter(body["step"] - 1)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    set_model_state_dict(model, body["model"], options=options)
    try:
        set_optimizer_state_dict(model, optimizer, body["optimizer"], options=options)
    except (KeyError, RuntimeError, ValueError) as error:
        raise IjepaError(f"{path} holds no optimizer state of these networks.") from error
    return body


class CheckpointWriter:
    """Saves a run's state: copies it at once, writes the copy in a thread while training goes on.

    The copy stays allocated for the next one; that of a GPU's tensors lies in pinned memory, so
    that copying runs at the speed of the bus.
    """

    def __init__(self, least_seconds: float, *, writes: bool = True) -> None:
        """Prepare to save every `least_seconds` at most; never in a process that writes nothing."""
        self._least_seconds, self._saved = least_seconds, time.monotonic()
        self._writes = writes
        self._cost_seconds = 0.0  # of the newest checkpoint, to the training
        self._buffers: list[Tensor] = []
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def is_due(self) -> bool:
        """Whether so much time passed that saving takes at most `MOST_OF_TIME` of it."""
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

        def write() -> None:
            began = time.monotonic()
            save_state(paths[0], state)
            for path in paths[1:]:
                link_or_copy(paths[0], path)
            if not on_gpu:  # it took time of the processor that trains
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
        """As `wait`; nothing can be saved afterwards."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._buffers = []

    def _copied(self, body: dict[str, Any]) -> dict[str, Any]:
        leaves, structure = pytree.tree_flatten(body)
        tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
        if [(t.shape, t.dtype) for t in tensors] != [(b.shape, b.dtype) for b in self._buffers]:
            self._buffers = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda) for t in tensors
            ]
        for buffer, tensor in zip(self._buffers, tensors, strict=True):
            buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)  # which is waited for
        if any(tensor.is_cuda for tensor in tensors):
            torch.cuda.current_stream().synchronize()
        copies = iter(self._buffers)
        copied = [next(copies) if torch.is_tensor(leaf) else leaf for leaf in leaves]
        tree: dict[str, Any] = pytree.tree_unflatten(copied, structure)
        return tree


def link_or_copy(first: Path, path: Path) -> None:
    """Give a file, which is never changed but only replaced, another name; atomic."""
    neighbour = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    neighbour.unlink(missing_ok=True)
    try:
        os.link(first, neighbour)
    except OSError:  # a file system without hard links
        shutil.copyfile(first, neighbour)
    neighbour.replace(path)


def take_over(finished: Path, work: Work, config: PretrainConfig, per_epoch: int) -> None:
    """Start a longer run from the newest checkpoint that it shares with a finished, shorter run.

    From there the longer run, of `work` and `config`, takes the very steps that it would take from
    its beginning. It may differ in its epochs, and in how it is watched and saved.
    """
    record = read_record(finished) or {}
    if record.get("stage") != "pretrain":
        raise IjepaError(f"{finished} is no finished run of `ijepa pretrain`; check --prolong.")
    refuse_changed(finished)
    before = PretrainConfig.model_validate(record["config"])
    epochs, longer = before.optimization.epochs, config.optimization.epochs
    optimization = before.optimization.model_copy(update={"epochs": longer})
    alike = before.model_copy(update={"optimization": optimization, "watch": config.watch})
    if changed := changes(work.plan, record | {"config": alike.model_dump(mode="json")}):
        raise IjepaError(
            f"{finished} can be prolonged by more epochs only, with all else as it is: {changed}."
        )
    if longer <= epochs:
        raise IjepaError(
            f"{finished} has {epochs} epochs; prolong it to more, with --set optimization.epochs=N."
        )
    ours, theirs = (Schedules(c.optimization, per_epoch) for c in (config, before))
    rates = {"learning rate": "lr", "weight decay": "weight_decay", "EMA momentum": "ema"}

    def changing(step: int) -> list[str]:
        return [n for n, f in rates.items() if getattr(ours, f)(step) != getattr(theirs, f)(step)]

    total, folder = epochs * per_epoch, finished / LAST.parent
    common = next((step for step in range(total) if changing(step)), total)
    kept = folder.glob("epoch-[0-9]*.pt")
    passed = [(int(path.stem.removeprefix("epoch-")) * per_epoch, path) for path in kept]
    passed = sorted([*passed, (total, finished / LAST)])
    usable = [(step, path) for step, path in passed if step <= common]
    if not usable:
        raise IjepaError(
            f"{finished} cannot be prolonged: its {' and '.join(changing(common))} depends on the "
            f"number of epochs from step {common + 1:,} on, and its first checkpoint is of step "
            f"{passed[0][0]:,}. Use a held schedule from the start "
            f"(optimization.schedule=hold-then-cool, equal optimization.ema), or start a new run "
            f"from its weights with --init {finished}."
        )
    (work.folder / LAST).parent.mkdir(exist_ok=True)
    shutil.copyfile(finished / "metrics.jsonl", work.folder / "metrics.jsonl")
    if (finished / "tensorboard").is_dir():
        board = work.folder / "tensorboard"
        shutil.copytree(finished / "tensorboard", board, dirs_exist_ok=True)
    for _, path in usable:
        link_or_copy(path, work.folder / LAST.parent / path.name)
    step, newest = usable[-1]
    _take_best(finished, work.folder, newest, {at: path for at, path in passed if at <= step})
    log.info("continuing %s after its step %d", finished, step)


def _take_best(finished: Path, folder: Path, newest: Path, kept: dict[int, Path]) -> None:
    """Take over the newest state, and the best one up to it; without that file, none is best."""
    body = load_checkpoint(newest)
    best = (body["facts"].get("best") or {}).get("step")
    if (finished / BEST).is_file():
        kept = {load_checkpoint(finished / BEST)["step"]: finished / BEST, **kept}
    if best in kept:
        link_or_copy(kept[best], folder / BEST)
        link_or_copy(newest, folder / LAST)
        return
    save_state(folder / LAST, body | {"facts": body["facts"] | {"best": None}})
