"""One optimizer step of I-JEPA. Source: facebookresearch/ijepa `src/train.py`."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ijepa.config import OptimizationConfig
from ijepa.distributed import uses_bf16
from ijepa.jepa.masks import Masks, part_of
from ijepa.jepa.model import LOSSES, IJepa, parameter_groups
from ijepa.jepa.schedules import Schedules


class Outcome(NamedTuple):
    """Results of a step, still on its device."""

    loss: Tensor  # () float32, mean over the images of the step that this process has
    grad_norm: Tensor | None  # () float32, of all trained parameters, before the update; if asked
    predictions: Tensor  # (M * B, T, dim) of the last group of masks, before the update
    targets: Tensor  # (M * B, T, dim) of the same group


class Trainer:
    """Networks, optimizer and schedules; `step` trains them."""

    def __init__(
        self,
        model: IJepa,
        config: OptimizationConfig,
        steps_per_epoch: int,
        micro_batch: int | None = None,
    ) -> None:
        """Train `model` in place, `micro_batch` images at a time (None: all).

        `forward` may be set to a wrapper of the model that averages gradients over processes.
        """
        self.model, self.micro_batch = model, micro_batch
        self.forward: nn.Module = model
        self.schedules = Schedules(config, steps_per_epoch)
        groups = parameter_groups([model.encoder, model.predictor])
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self._trained = [p for group in groups for p in group["params"]]
        self._device = next(model.parameters()).device
        self._bf16 = uses_bf16(config.precision, self._device)
        encodes = model.config.space == "embeddings"
        if encodes and self._bf16 and config.teacher == "bf16":
            model.keep_bf16_teacher()

    def step(
        self, step: int, images: Tensor, groups: list[Masks], *, with_norm: bool = True
    ) -> Outcome:
        """Forward, backward, AdamW, EMA; with the schedules at `step`, counted from 0.

        Images are (B, C, height, width) float, normalised; the groups are their masks, in their
        order, draw by draw.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            group["weight_decay"] = self.schedules.weight_decay(step) if group["decays"] else 0.0
        total, answers, norm = images.new_zeros(()), [], None
        size, loss_of = len(images), LOSSES[self.model.config.loss]
        # DDP's `no_sync` sums gradients up in this process alone.
        unshared = getattr(self.forward, "no_sync", contextlib.nullcontext)
        for chosen, pieces in micro_batches(groups, size, self.micro_batch or size):
            is_last = chosen.stop == size  # processes exchange gradients in the last part
            with contextlib.nullcontext() if is_last else unshared():
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
                    answers = self.forward(images[chosen], pieces)
                whole = _count(pieces)
                losses = [
                    loss_of(made.float(), true.float()) * (_count([masks]) / whole)
                    for (made, true), masks in zip(answers, pieces, strict=True)
                ]
                loss = torch.stack(losses).sum() * (whole / _count(groups))
                torch.autograd.backward(loss)
            total += loss.detach()
        if with_norm:
            grads = [parameter.grad for parameter in self._trained if parameter.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_target(self.schedules.ema(step))
        return Outcome(total, norm, answers[-1][0].detach(), answers[-1][1])


def micro_batches(
    groups: list[Masks], batch: int, size: int
) -> Iterator[tuple[slice, list[Masks]]]:
    """Parts of a batch of at most `size` images, as equal as can be, with their masks.

    A group that spans two parts is cut in two; its contexts keep their common length, so that the
    masks do not depend on how much fits into memory.
    """
    parts = -(-batch // size)
    ends = [batch * number // parts for number in range(parts + 1)]
    for chosen in itertools.starmap(slice, itertools.pairwise(ends)):
        yield chosen, part_of(groups, chosen, batch)


def _count(groups: list[Masks]) -> int:
    return sum(len(masks.context) for masks in groups)
