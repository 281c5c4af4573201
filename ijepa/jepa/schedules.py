"""Learning rate, weight decay and EMA momentum of every step, as pure functions of the step.

Steps count from 0. The published trainer raises its counter before it reads the learning rate and
the weight decay, so that step 0 already takes the first increment; we do the same.
Source: facebookresearch/ijepa `src/utils/schedulers.py`, `src/train.py`. `hold-then-cool` is
V-JEPA 2's warmup-constant-decay schedule (`WSDSchedule` of facebookresearch/vjepa2
`src/utils/schedulers.py`): it cools on a straight line, and the weight decay is held.
"""

import math
from typing import NamedTuple

from ijepa.config import OptimizationConfig, PretrainConfig
from ijepa.errors import IjepaError


class Schedules(NamedTuple):
    """The three schedules of one run of `steps_per_epoch` optimizer steps an epoch."""

    config: OptimizationConfig
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Steps that are really taken."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def scheduled_steps(self) -> int:
        """Steps over which the schedules stretch; rounded as published, factors in this order."""
        return int(self.config.schedule_scale * self.config.epochs * self.steps_per_epoch)

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return int(self.config.warmup_epochs * self.steps_per_epoch)

    def lr(self, step: int) -> float:
        """Linear from `start_lr` to `lr` over the warm-up, then as `config.schedule` says."""
        config, count = self.config, step + 1
        if count < self.warmup_steps:
            progress = count / max(1, self.warmup_steps)
            return config.start_lr + progress * (config.lr - config.start_lr)
        if config.schedule == "hold-then-cool":
            # Over steps really taken: a run that ended before its schedule would not cool at all.
            cool_steps = config.cool_fraction * self.total_steps
            cool_steps = min(cool_steps, self.total_steps - self.warmup_steps)
            cooled = max(0.0, 1.0 - (self.total_steps - count) / max(1.0, cool_steps))
            return (1.0 - cooled) * config.lr + cooled * config.final_lr
        rest = max(1, self.scheduled_steps - self.warmup_steps)
        progress = (count - self.warmup_steps) / rest
        return max(config.final_lr, _cosine(config.lr, config.final_lr, progress))

    def weight_decay(self, step: int) -> float:
        """Held, or cosine from `weight_decay` to `final_weight_decay` (the paper says linear)."""
        if self.config.schedule == "hold-then-cool":
            return self.config.weight_decay
        start, end = self.config.weight_decay, self.config.final_weight_decay
        value = _cosine(start, end, (step + 1) / max(1, self.scheduled_steps))
        return max(end, value) if end <= start else min(end, value)

    def ema(self, step: int) -> float:
        """Linear between the two momenta, over a length that is not rounded, as published."""
        start, end = self.config.ema
        length = self.config.schedule_scale * self.total_steps
        return min(1.0, start + step * (end - start) / length)


def warmup_cosine(done: float, peak: float, end: float, warmup: float) -> float:
    """Linear from 0 to `peak` over the warm-up, then half a cosine down to `end`.

    `done`, the steps that are taken, and `warmup` are fractions of all steps.
    """
    if done < warmup:
        return peak * done / warmup
    return _cosine(peak, end, (done - warmup) / max(1e-12, 1 - warmup))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def steps_per_epoch(num_images: int, config: PretrainConfig) -> int:
    """Full batches only, as published (drop_last); an `IjepaError` if there is none."""
    batch_size, held_out = config.data.batch_size, config.watch.num_images
    num_trained = num_images - held_out if config.watch.held_out else num_images
    if num_trained < batch_size and num_trained < num_images:
        raise IjepaError(
            f"The data holds {num_images:,} images, and watch.held_out leaves {held_out:,} of them "
            f"out: fewer than one batch of {batch_size:,} are left. Lower watch.num_images or "
            f"data.batch_size, or take --recipe auto, which fits a recipe to its images."
        )
    if num_images == 1:
        raise IjepaError("The data holds 1 image, and health checks compare images; take more.")
    if num_trained < batch_size:
        raise IjepaError(
            f"The data holds {num_images:,} images, fewer than one batch of {batch_size:,}; "
            f"lower it with --set data.batch_size={max(1, num_images // 4)}."
        )
    return num_trained // batch_size
