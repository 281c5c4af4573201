"""Linear heads trained by SGD on stored features, all in one pass.

Source: paper A.2; VISSL's `eval_mlp` and its schedule for CIFAR-100 and ImageNet-1K.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.config import ProbeConfig
from ijepa.probes.arrays import Fit, Ints, Labelled, hold_out

EPOCHS, STEPS_DOWN = 28, (8, 16, 24)  # the learning rate falls to a tenth at these epochs
BATCH = 256
LEARNING_RATES = (0.1, 0.01, 0.001)  # VISSL's 0.01 at a batch of 256, and its neighbours
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4


class Head(NamedTuple):
    """One way to put a linear classifier on features."""

    features: str  # `last` or `concat`
    batch_norm: bool
    lr: float

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.features}, {'BN + ' if self.batch_norm else ''}linear, lr {self.lr:g}"


HEADS = tuple(
    Head(features, batch_norm, lr)
    for features in ("last", "concat")
    for batch_norm in (False, True)
    for lr in LEARNING_RATES
)


def linear(train: Labelled, test: Labelled, config: ProbeConfig) -> list[Fit]:
    """Train every head on the larger part of train, choose one on the held-out part.

    `best_on_test` is what the paper reports: the best of all heads on the test set itself.
    """
    fitted, held = hold_out(train.labels, config.holdout, config.seed)
    classes = np.unique(train.labels)
    part = train.take(fitted)
    models = train_heads(part._replace(labels=np.searchsorted(classes, part.labels)), config.seed)
    held_accuracy = [
        np.mean(classes[_predict(model, head, train.take(held))] == train.labels[held])
        for head, model in zip(HEADS, models, strict=True)
    ]
    predictions = [
        classes[_predict(model, head, test)] for head, model in zip(HEADS, models, strict=True)
    ]
    best = int(np.argmax(held_accuracy))
    choices = {"head": HEADS[best].name, "held_out_accuracy": float(held_accuracy[best])}
    on_test = max(float(np.mean(found == test.labels)) for found in predictions)
    return [Fit("", predictions[best][np.newaxis], choices, on_test)]


def train_heads(train: Labelled, seed: int) -> list[nn.Module]:
    """All of `HEADS`, trained together on the same batches.

    Args:
        train: labels count from 0 without gaps.
        seed: of the heads' weights and of the order of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.from_numpy(getattr(train, name)) for name in ("last", "concat")}
    labels = torch.from_numpy(train.labels)
    num_classes = int(labels.max()) + 1
    models = [
        _model(head, inputs[head.features].shape[1], num_classes, generator) for head in HEADS
    ]
    groups = [
        {"params": layer.parameters(), "lr": head.lr, "weight_decay": decay}
        for head, model in zip(HEADS, models, strict=True)
        for layer, decay in _layers(model)
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, foreach=True)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, STEPS_DOWN)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(labels), generator=generator), BATCH):
            if len(rows) > 1:  # batch norm needs two
                _step(models, inputs, labels, rows, optimizer)
        schedule.step()
    return [model.eval() for model in models]


def _layers(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """Layers with their weight decay: of the linear one, bias included, not of batch norm."""
    if isinstance(model, nn.Sequential):
        norm, layer = model
        return [(norm, 0.0), (layer, WEIGHT_DECAY)]
    return [(model, WEIGHT_DECAY)]


def _step(
    models: list[nn.Module],
    inputs: dict[str, Tensor],
    labels: Tensor,
    rows: Tensor,
    optimizer: torch.optim.Optimizer,
) -> None:
    batch = {name: values[rows] for name, values in inputs.items()}
    losses = [
        F.cross_entropy(model(batch[head.features]), labels[rows])
        for head, model in zip(HEADS, models, strict=True)
    ]
    optimizer.zero_grad()
    torch.autograd.backward(losses)
    optimizer.step()


def _model(head: Head, dim: int, num_classes: int, generator: torch.Generator) -> nn.Module:
    layer = nn.Linear(dim, num_classes)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.BatchNorm1d(dim), layer) if head.batch_norm else layer


@torch.inference_mode()
def _predict(model: nn.Module, head: Head, data: Labelled) -> Ints:
    logits = model(torch.from_numpy(getattr(data, head.features)))
    found: Ints = logits.argmax(dim=1).numpy()
    return found
