"""One optimizer step of I-JEPA. Source: facebookresearch/ijepa `src/train.py`."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ijepa.config import OptimizationConfig
from ijepa.distributed import unshared_gradients, whole
from ijepa.method.jepa import IJepa, parameter_groups
from ijepa.method.masking import Masks, part_of
from ijepa.method.products import quick_products
from ijepa.method.schedules import Schedules
from ijepa.method.targets import prediction_loss


class Outcome(NamedTuple):
    """What a step leaves behind, still on its device.

    Attributes:
        loss: () float32, mean over the images of the step that this process has.
        grad_norm: () float32, of all trained parameters together, before the update.
        predictions: (M * B, T, dim) of the last group of masks, before the update.
        targets: (M * B, T, dim), likewise.
    """

    loss: Tensor
    grad_norm: Tensor
    predictions: Tensor
    targets: Tensor


class Trainer:
    """Networks, optimizer and schedules; `step` is all there is to training."""

    def __init__(
        self,
        model: IJepa,
        config: OptimizationConfig,
        steps_per_epoch: int,
        micro_batch: int | None = None,
    ) -> None:
        """Prepare to train `model` in place, `micro_batch` images at a time (None: all).

        `forward` may be set to a wrapper of the model that averages gradients over processes.
        """
        self.model, self.micro_batch = model, micro_batch
        self.forward: nn.Module = model
        self.schedules = Schedules(config, steps_per_epoch)
        groups = parameter_groups([model.encoder, model.predictor])
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self._trained = [p for group in groups for p in group["params"]]
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)

    def step(self, step: int, images: Tensor, groups: list[Masks]) -> Outcome:
        """Forward, backward, AdamW, EMA.

        Args:
            step: counted from 0; sets learning rate, weight decay and EMA momentum.
            images: (B, 3, height, width) float, normalised.
            groups: masks of these images, in their order.
        """
        self._schedule(step)
        total, answers = images.new_zeros(()), []
        for chosen, pieces in micro_batches(groups, self.micro_batch or len(images)):
            with self._gathering(is_last=chosen.stop == len(images)):
                with self._precision(), quick_products(self._device):
                    answers = self.forward(images[chosen], pieces)
                loss = self._loss(answers, pieces) * (_count(pieces) / len(images))
                torch.autograd.backward(loss)
            total += loss.detach()
        grads = [parameter.grad for parameter in self._trained if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(grads))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_target(self.schedules.ema(step))
        return Outcome(total, norm, answers[-1][0].detach(), answers[-1][1])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    def _gathering(self, *, is_last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step, with its last part."""
        return contextlib.nullcontext() if is_last else unshared_gradients(self.forward)

    def _loss(self, answers: list[tuple[Tensor, Tensor]], groups: list[Masks]) -> Tensor:
        """Mean over the images of all groups."""
        name, whole = self.model.config.loss, _count(groups)
        losses = [
            prediction_loss(predicted.float(), target.float(), name) * (_count([masks]) / whole)
            for (predicted, target), masks in zip(answers, groups, strict=True)
        ]
        return torch.stack(losses).sum()

    def _schedule(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            group["weight_decay"] = self.schedules.weight_decay(step) if group["decays"] else 0.0


def micro_batches(groups: list[Masks], size: int) -> Iterator[tuple[slice, list[Masks]]]:
    """Parts of a batch of `size` images, the last may be smaller, with their masks.

    A group that spans two parts is cut in two; its contexts keep their common length, so that the
    masks do not depend on how much fits into memory.
    """
    batch = _count(groups)
    for start in range(0, batch, size):
        chosen = slice(start, min(start + size, batch))
        yield chosen, part_of(groups, chosen)


def _count(groups: list[Masks]) -> int:
    return sum(len(masks.context) for masks in groups)
