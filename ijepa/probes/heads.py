"""Many linear heads on frozen features, trained together on the same batches.

Features have no gradient here. So a batch is normalised once for all heads, logits of all heads are
one product of matrices, and the gradient of the cross-entropy is written down instead of traced.
Each head's weights are a slice of one tensor, which torch's and timm's optimizers see as a
parameter of its own: a head learns what it would learn alone.
"""

from collections import defaultdict
from collections.abc import Sequence
from copy import deepcopy
from itertools import groupby, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from ijepa.probes.protocols import Head, LinearProtocol

MOMENTUM = 0.9
NORM_MOMENTUM = 0.1
LOGITS_AT_ONCE = 2**24  # bounds memory; 64 MB


class HeadGroup(nn.Module):
    """Heads that see the same input: H linear layers of C classes on D features.

    `numbers` are those of the heads in the protocol, `weight` is (H, C, D), `bias` (H, C), and
    `scale` and `shift` of batch norm (H, D).
    """

    def __init__(
        self,
        numbers: Sequence[int],
        head: Head,
        dim: int,
        num_classes: int,
        protocol: LinearProtocol,
        seed: int,
    ) -> None:
        """Draw each head's weights by its own number, whatever other heads there are."""
        super().__init__()
        self.numbers, self.features, self.norm = list(numbers), head.features, head.norm
        self._eps, self._bf16 = protocol.norm_eps, protocol.bf16
        count, bound = len(self.numbers), dim**-0.5
        weight, bias = torch.empty(count, num_classes, dim), torch.zeros(count, num_classes)
        for place, number in enumerate(self.numbers):
            [own_seed] = np.random.SeedSequence([seed, number]).generate_state(1)
            generator = torch.Generator().manual_seed(int(own_seed))
            if protocol.init == "normal":
                weight[place].normal_(0, 0.01, generator=generator)
            else:  # as torch.nn.Linear
                weight[place].uniform_(-bound, bound, generator=generator)
                bias[place].uniform_(-bound, bound, generator=generator)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.mean: Tensor
        self.variance: Tensor
        if self.norm == "batch":
            self.scale = nn.Parameter(torch.ones(count, dim))
            self.shift = nn.Parameter(torch.zeros(count, dim))

    def add_gradients(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the gradient of each head's mean cross-entropy into `.grad`.

        Inputs are (B, D) features before batch norm, labels (B,) class numbers from 0.
        """
        if self.norm != "none":
            inputs = F.batch_norm(
                inputs, self.mean, self.variance, None, None, True, NORM_MOMENTUM, self._eps
            )
        weight, bias = self._folded()
        count, num_classes, dim = weight.shape
        flat, offset = weight.detach().view(-1, dim), bias.detach().view(-1)
        weight_gradient, bias_gradient = torch.zeros_like(flat), torch.zeros_like(offset)
        at_once = max(1, LOGITS_AT_ONCE // (count * num_classes))
        parts = zip(torch.split(inputs, at_once), torch.split(labels, at_once), strict=True)
        for part, true in parts:
            errors = self._product(part, flat, offset).view(len(part), count, num_classes)
            errors = errors.softmax(dim=2)
            errors[torch.arange(len(part), device=true.device), :, true] -= 1
            errors = errors.view(len(part), -1).div_(len(inputs))
            weight_gradient += self._product(errors.T, part.T)
            bias_gradient += errors.sum(dim=0)
        torch.autograd.backward(
            [weight, bias], [weight_gradient.view_as(weight), bias_gradient.view_as(bias)]
        )

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """(H, B) class numbers of (B, D) features, normalised by the statistics of the training.

        Always in float32, because rounded logits would tie.
        """
        if self.norm != "none":
            inputs = (inputs - self.mean) * (self.variance + self._eps).rsqrt()
        weight, bias = self._folded()
        logits = F.linear(inputs, weight.view(-1, weight.shape[2]), bias.view(-1))
        return logits.view(len(inputs), *bias.shape).argmax(dim=2).T

    @torch.no_grad()
    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, out) float32 of inputs (n, in), weight (out, in) and bias (out,).

        In bfloat16 factors and product are rounded; sums are accumulated in float32.
        """
        if not self._bf16:
            return F.linear(inputs, weight, bias)
        product = F.linear(inputs.bfloat16(), weight.bfloat16()).float()
        return product if bias is None else product.add_(bias)

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias, multiplied by batch norm's own scale and shift."""
        if self.norm != "batch":
            return self.weight, self.bias
        shifted = torch.einsum("hcd,hd->hc", self.weight, self.shift)
        return self.weight * self.scale.unsqueeze(1), self.bias + shifted


class Heads:
    """All heads of a protocol, with their optimizer."""

    def __init__(
        self,
        protocol: LinearProtocol,
        dims: dict[str, int],
        num_classes: int,
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Draw the heads on a device; `dims` are those of the `last` layer and of `concat`.

        `batch` is the number of images in a step, with which learning rates grow.
        """
        self._protocol, self._batch = protocol, batch
        self._groups: list[HeadGroup] = []
        order = sorted(enumerate(protocol.heads), key=lambda item: _input(item[1]))
        for _, items in groupby(order, key=lambda item: _input(item[1])):
            numbers, heads = zip(*items, strict=True)
            dim = dims[heads[0].features]
            group = HeadGroup(numbers, heads[0], dim, num_classes, protocol, seed)
            self._groups.append(group.to(device))
        # One head's part of a tensor of all heads is a parameter that shares its memory.
        self._parts: list[tuple[nn.Parameter, nn.Parameter, int, float]] = []
        members: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for group in self._groups:
            for (place, number), (name, whole) in product(
                enumerate(group.numbers), group.named_parameters()
            ):
                head, part = protocol.heads[number], nn.Parameter(whole.data[place])
                decays = name in ("weight", "bias")  # not batch norm's own
                self._parts.append((part, whole, place, head.weight_decay if decays else 0.0))
                members[head.lr, part.ndim > 1].append(part)
        rates, lars = sorted({head.lr for head in protocol.heads}), protocol.optimizer == "lars"
        groups = [
            {
                "params": members[lr, matrices],
                "whole_lr": lr,
                **({"always_adapt": matrices} if lars else {}),
            }
            for lr, matrices in product(rates, (True, False))
        ]
        nesterov = protocol.optimizer == "sgd"
        self._optimizer: Optimizer = (
            Lars(groups, lr=0.0, momentum=MOMENTUM)
            if lars
            else SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=nesterov, foreach=True)
        )

    def step(self, inputs: dict[str, Tensor], labels: Tensor, done: float) -> None:
        """One update of every head, at its learning rate when this share of the training is done.

        Inputs are (B, D) by `last` and `concat`, labels (B,) class numbers from 0.
        """
        for group in self._groups:
            group.zero_grad()
            group.add_gradients(inputs[group.features], labels)
        for part, whole, place, decay in self._parts:
            assert whole.grad is not None
            gradient = whole.grad[place]
            if decay:  # in the gradients, where LARS has it (mae:util/lars.py)
                gradient.add_(part.data, alpha=decay)
            part.grad = gradient
        factor = self._protocol.rate_factor(done, self._batch)
        for settings in self._optimizer.param_groups:
            settings["lr"] = settings["whole_lr"] * factor
        self._optimizer.step()

    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        """(heads, B) class numbers, heads in the protocol's order."""
        by_number: dict[int, Tensor] = {}
        for group in self._groups:
            by_number |= zip(group.numbers, group.predict(inputs[group.features]), strict=True)
        return torch.stack([by_number[number] for number in sorted(by_number)])

    def state_dict(self) -> dict[str, Any]:
        """All that further steps depend on, in tensors and plain values."""
        groups = [group.state_dict() for group in self._groups]
        return {"groups": groups, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned for heads of the same protocol, dims and classes."""
        for group, values in zip(self._groups, state["groups"], strict=True):
            group.load_state_dict(values)
        self._optimizer.load_state_dict(deepcopy(state["optimizer"]))  # it may be a mapped file


def _input(head: Head) -> tuple[str, str]:
    return head.features, head.norm
