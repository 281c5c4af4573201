"""All weights of a run: shared out over processes (FSDP2), gathered to be saved, and put back.

What is saved is the whole state, named by parameter, however it was shared out: a run may go on
with another number of processes, or with another way to use them.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from ijepa.distributed import is_shared_out
from ijepa.errors import IjepaError
from ijepa.jepa.model import IJepa
from ijepa.weights import check_weights
from ijepa.world import World

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
Tree = dict[str, Any]


def share_out(model: IJepa, device: torch.device, world: World) -> None:
    """Let each process keep its part of every weight, and gather a block when it is computed.

    The predictor is one part: its first and last block are not computed as a whole.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    for encoder in (model.encoder, model.target_encoder):
        for block in encoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(encoder, mesh=mesh, reshard_after_forward=True)  # the target has no backward
        for method in ("pooled_layers", "forward_layers"):
            register_fsdp_forward_method(encoder, method)
    fully_shard(model.predictor, mesh=mesh)


def full_state(model: IJepa, optimizer: Optimizer) -> tuple[Tree, Tree]:
    """State of networks and optimizer, by the names of the parameters.

    Where the weights are shared out it is gathered in the memory of rank 0's machine, and empty on
    the others; all processes must call it. Else it is the tensors of the networks themselves.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=is_shared_out(model))
    weights = get_model_state_dict(model, options=options)
    return weights, cast(Tree, get_optimizer_state_dict(model, optimizer, options=options))


def restore(model: IJepa, optimizer: Optimizer, weights: Tree, state: Tree, source: Path) -> None:
    """Put a whole state back, exactly or not at all.

    Raises:
        IjepaError: it is that of other networks, or weights alone.
    """
    if not state:
        raise IjepaError(
            f"{source} holds weights alone, without the optimizer's state: a run cannot go on from "
            f"it. Remove it to start anew; `ijepa extract` and `finetune` take it as an encoder."
        )
    check_weights(model, weights, source)
    set_model_state_dict(model, weights, options=WHOLE)
    try:
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE)
    except (KeyError, RuntimeError, ValueError) as error:
        raise IjepaError(f"{source} holds no optimizer state of these networks.") from error
    model.renew_teacher()
