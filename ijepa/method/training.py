"""One optimizer step of I-JEPA. Source: facebookresearch/ijepa `src/train.py`."""

from typing import NamedTuple

import torch
from torch import Tensor

from ijepa.config import OptimizationConfig
from ijepa.method.jepa import IJepa, jepa_loss, parameter_groups
from ijepa.method.masking import Masks
from ijepa.method.schedules import Schedules


class Outcome(NamedTuple):
    """What a step leaves behind, still on its device.

    Attributes:
        loss: () float32.
        predictions: (M * B, T, dim), before the update.
        targets: (M * B, T, dim), before the update.
    """

    loss: Tensor
    predictions: Tensor
    targets: Tensor


class Trainer:
    """Networks, optimizer and schedules; `step` is all there is to training."""

    def __init__(self, model: IJepa, config: OptimizationConfig, steps_per_epoch: int) -> None:
        self.model = model
        self.schedules = Schedules(config, steps_per_epoch)
        groups = parameter_groups([model.encoder, model.predictor])
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)

    def step(self, step: int, images: Tensor, masks: Masks) -> Outcome:
        """Forward, backward, AdamW, EMA.

        Args:
            step: counted from 0; sets learning rate, weight decay and EMA momentum.
            images: (B, 3, height, width) float, normalised.
            masks: of these images.
        """
        self._schedule(step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            predictions, targets = self.model(images, masks)
        loss = jepa_loss(predictions.float(), targets.float())
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.update_target(self.schedules.ema(step))
        return Outcome(loss.detach(), predictions.detach(), targets)

    def _schedule(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedules.lr(step)
            group["weight_decay"] = self.schedules.weight_decay(step) if group["decays"] else 0.0
