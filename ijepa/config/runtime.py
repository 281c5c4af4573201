"""How to run, not what to compute."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ijepa.config.values import Batch, Positive, Settings

CPU_WORKERS = 2  # where nobody says how many, and no GPU waits for them


class Runtime(Settings):
    """How to run, not what to compute: leaves every result as it is.

    Attributes:
        device: `auto` takes a CUDA device when there is one.
        workers: processes that read and decode; 0 does it in the main process; None leaves it to
            the device, see `ijepa.distributed.num_workers`.
        checkpoint_seconds: how often to save, or more rarely where saving would take over 2% of the
            time: the most work that a kill may cost.
        micro_batch: images that one process computes at a time, gradients added up; None takes all
            of its share of the batch. Changes memory and rounding, not masks.
        recompute: keep only what enters each block for the backward pass; less memory, more time.
        compile: torch.compile the blocks; minutes at the start, faster afterwards on a GPU. On AMD
            CPUs it is slower.
        parallel: what processes share: with `ddp` the batch, with `fsdp` the weights, too.
        cache: `decoded` keeps all images in the device's memory and crops them there, batch by
            batch; a value may differ by one level of 255 from that of `none`.
        force: make the output again even if it is there.
        replace: what a run was made of may change; without it, a run is replaced by `force` only.
        command: what the user typed, to be written down beside the result.
    """

    device: str = "auto"
    workers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    checkpoint_seconds: Positive = 60.0
    micro_batch: Batch | None = None
    recompute: bool = False
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    cache: Literal["none", "decoded"] = "none"
    force: bool = False
    replace: bool = False
    command: str = ""


RUNTIME = Runtime()
