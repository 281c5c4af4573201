"""A run's checkpoints: written now and then, read again to resume.

A checkpoint holds `schema`, `step`, `config` (settings as plain values), `model` and `optimizer`
(state dicts), and `facts` (small values of `Task.state_dict` and of the loop).
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from ijepa.errors import IjepaError
from ijepa.files import link_or_copy
from ijepa.weights import load_checkpoint, load_weights, save_state

MOST_OF_TIME = 0.02  # that checkpoints may take of a run
ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)

Tree = dict[str, Any]


def full_state(model: nn.Module, optimizer: Optimizer) -> tuple[Tree, Tree]:
    """State of networks and optimizer by the names of the parameters; all processes call it.

    Rank 0 gets it, on the CPU, and other ranks nothing; what lies on the CPU already is not copied.
    """
    weights = get_model_state_dict(model, options=ON_CPU)
    return weights, cast(Tree, get_optimizer_state_dict(model, optimizer, options=ON_CPU))


def load_full_state(
    model: nn.Module, optimizer: Optimizer, path: Path, set_phase: Callable[[int], None]
) -> Tree:
    """Load a checkpoint into networks and optimizer, exactly or not at all; returns all of it.

    `set_phase` gets the checkpoint's last step before the optimizer's state is loaded, for it may
    decide which parameters have one. An `IjepaError` refuses a file that is damaged, of other
    networks, or of weights alone.
    """
    body = load_checkpoint(path)
    if not body["optimizer"]:
        raise IjepaError(
            f"{path} holds weights alone, without the optimizer's state: a run cannot go on from "
            f"it. Remove it to start anew; `ijepa extract` and `finetune` take it as an encoder."
        )
    load_weights(model, body["model"], path)
    set_phase(body["step"] - 1)
    try:
        set_optimizer_state_dict(model, optimizer, body["optimizer"], options=ON_CPU)
    except (KeyError, RuntimeError, ValueError) as error:
        raise IjepaError(f"{path} holds no optimizer state of these networks.") from error
    return body


class CheckpointWriter:
    """Saves a run's state, and says when that is due, as `MOST_OF_TIME` allows."""

    def __init__(self, least_seconds: float, *, writes: bool = True) -> None:
        """Save every `least_seconds` at most; never, unless this process `writes`."""
        self._least_seconds, self._writes = least_seconds, writes
        self._saved, self._cost_seconds = time.monotonic(), 0.0  # of the newest checkpoint

    def is_due(self) -> bool:
        """Whether enough time has passed for saving to take at most `MOST_OF_TIME` of it."""
        least = max(self._least_seconds, self._cost_seconds / MOST_OF_TIME)
        return self._writes and time.monotonic() - self._saved > least

    def save(self, paths: Sequence[Path], body: Tree, began: float) -> None:
        """Write tensors and plain values to all `paths` of one folder, in order; atomic for each.

        `began` is when fetching them began, by `time.monotonic`. An `OSError`, such as a full disk,
        leaves what was there.
        """
        save_state(paths[0], body)
        for path in paths[1:]:
            link_or_copy(paths[0], path)
        self._saved = time.monotonic()
        self._cost_seconds = self._saved - began
