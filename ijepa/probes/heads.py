"""Many linear heads on frozen features, trained together on the same batches.

Features have no gradient here. So a batch is normalised once for all heads, logits of all heads are
one product of matrices, and the gradient of the cross-entropy is written down instead of traced.
Each head's weights are a slice of one tensor, which torch's and timm's optimisers see as a
parameter of its own: a head learns what it would learn alone.
"""

from collections.abc import Iterator, Sequence
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

    Attributes:
        numbers: of its heads in the protocol.
        weight: (H, C, D), bias: (H, C).
        scale, shift: (H, D) of batch norm, where it has any.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        head: Head,
        dim: int,
        num_classes: int,
        protocol: LinearProtocol,
    ) -> None:
        """Allocate; `reset` gives values."""
        super().__init__()
        self.numbers, self.features, self.norm = list(numbers), head.features, head.norm
        self._eps, self._init, self._bf16 = protocol.norm_eps, protocol.init, protocol.bf16
        count = len(self.numbers)
        self.weight = nn.Parameter(torch.empty(count, num_classes, dim))
        self.bias = nn.Parameter(torch.empty(count, num_classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.mean: Tensor
        self.variance: Tensor
        if self.norm == "batch":
            self.scale = nn.Parameter(torch.ones(count, dim))
            self.shift = nn.Parameter(torch.zeros(count, dim))

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw each head's weights by its own number, whatever other heads there are."""
        for place, number in enumerate(self.numbers):
            [own_seed] = np.random.SeedSequence([seed, number]).generate_state(1)
            generator = torch.Generator().manual_seed(int(own_seed))
            weight, bias = self.weight[place], self.bias[place]
            bound = weight.shape[1] ** -0.5
            drawn, offset = torch.empty(weight.shape), torch.zeros(bias.shape)
            if self._init == "normal":
                drawn.normal_(0, 0.01, generator=generator)
            else:  # as torch.nn.Linear
                drawn.uniform_(-bound, bound, generator=generator)
                offset.uniform_(-bound, bound, generator=generator)
            weight.copy_(drawn)
            bias.copy_(offset)

    def add_gradients(self, inputs: Tensor, labels: Tensor) -> None:
        """Put the gradient of each head's mean cross-entropy into `.grad`.

        Args:
            inputs: (B, D) features, before batch norm.
            labels: (B,) class numbers from 0.
        """
        inputs = self._normalised_batch(inputs)
        weight, bias = self._folded()
        count, num_classes, dim = weight.shape
        flat, offset = weight.detach().view(-1, dim), bias.detach().view(-1)
        weight_gradient, bias_gradient = torch.zeros_like(flat), torch.zeros_like(offset)
        at_once = max(1, LOGITS_AT_ONCE // (count * num_classes))
        for some, true in zip(
            torch.split(inputs, at_once), torch.split(labels, at_once), strict=True
        ):
            errors = self._product(some, flat, offset).view(len(some), count, num_classes)
            errors = errors.softmax(dim=2)
            errors[torch.arange(len(some), device=true.device), :, true] -= 1
            errors = errors.view(len(some), -1).div_(len(inputs))
            weight_gradient += self._product(errors.T, some.T)
            bias_gradient += errors.sum(dim=0)
        torch.autograd.backward(
            [weight, bias], [weight_gradient.view_as(weight), bias_gradient.view_as(bias)]
        )

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """(H, B) class numbers of (B, D) features, by the statistics of the training.

        Always in float32: rounded logits would tie.
        """
        if self.norm != "none":
            inputs = (inputs - self.mean) * (self.variance + self._eps).rsqrt()
        weight, bias = self._folded()
        logits = F.linear(inputs, weight.view(-1, weight.shape[2]), bias.view(-1))
        return logits.view(len(inputs), *bias.shape).argmax(dim=2).T

    @torch.no_grad()
    def _product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """(n, out) float32 of inputs (n, in), weight (out, in) and bias (out,).

        In bfloat16 what is multiplied and the product are rounded; it is added up in float32.
        """
        if not self._bf16:
            return F.linear(inputs, weight, bias)
        found = F.linear(inputs.bfloat16(), weight.bfloat16()).float()
        return found if bias is None else found.add_(bias)

    @torch.no_grad()
    def _normalised_batch(self, inputs: Tensor) -> Tensor:
        if self.norm == "none":
            return inputs
        return F.batch_norm(
            inputs, self.mean, self.variance, None, None, True, NORM_MOMENTUM, self._eps
        )

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with batch norm's own scale and shift taken into them."""
        if self.norm != "batch":
            return self.weight, self.bias
        shifted = torch.einsum("hcd,hd->hc", self.weight, self.shift)
        return self.weight * self.scale.unsqueeze(1), self.bias + shifted


class _Slice:
    """One head's part of a tensor of all heads: a parameter that shares its memory."""

    def __init__(self, whole: nn.Parameter, place: int, lr: float, decay: float) -> None:
        self.parameter = nn.Parameter(whole.data[place])
        self.lr = lr
        self._whole, self._place, self._decay = whole, place, decay

    def take_gradient(self) -> None:
        """Point at the head's part of the gradient, its weight decay added."""
        assert self._whole.grad is not None
        gradient = self._whole.grad[self._place]
        if self._decay:
            gradient.add_(self.parameter.data, alpha=self._decay)
        self.parameter.grad = gradient


class Heads:
    """All heads of a protocol, with their optimiser."""

    def __init__(
        self,
        protocol: LinearProtocol,
        dims: dict[str, int],
        num_classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Draw the heads.

        Args:
            protocol: which heads, trained how.
            dims: of the `last` layer and of `concat`.
            num_classes: labels count from 0.
            seed: of the weights.
            device: where they are trained.
        """
        self._groups: list[HeadGroup] = []
        order = sorted(enumerate(protocol.heads), key=lambda item: _input(item[1]))
        for _, items in groupby(order, key=lambda item: _input(item[1])):
            numbers, heads = zip(*items, strict=True)
            group = HeadGroup(numbers, heads[0], dims[heads[0].features], num_classes, protocol)
            group.reset(seed)
            self._groups.append(group.to(device))
        self._slices = [part for group in self._groups for part in _slices(group, protocol)]
        self._optimizer = _optimizer(self._slices, protocol)

    def step(self, inputs: dict[str, Tensor], labels: Tensor, factor: float) -> None:
        """One update of every head.

        Args:
            inputs: (B, D) by `last` and `concat`.
            labels: (B,) class numbers from 0.
            factor: on each head's own learning rate.
        """
        for group in self._groups:
            group.zero_grad()
            group.add_gradients(inputs[group.features], labels)
        for part in self._slices:
            part.take_gradient()
        for settings in self._optimizer.param_groups:
            settings["lr"] = settings["whole_lr"] * factor
        self._optimizer.step()

    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        """(heads, B) class numbers, heads in the protocol's order."""
        found: dict[int, Tensor] = {}
        for group in self._groups:
            found |= zip(group.numbers, group.predict(inputs[group.features]), strict=True)
        return torch.stack([found[number] for number in sorted(found)])

    def state(self) -> dict[str, Any]:
        """All that further steps depend on, of tensors and plain values."""
        groups = [group.state_dict() for group in self._groups]
        return {"groups": groups, "optimizer": self._optimizer.state_dict()}

    def take_up(self, state: dict[str, Any]) -> None:
        """Become what `state` was asked of: heads of the same protocol, dims and classes."""
        for group, values in zip(self._groups, state["groups"], strict=True):
            group.load_state_dict(values)
        self._optimizer.load_state_dict(deepcopy(state["optimizer"]))  # of mapped files


def _input(head: Head) -> tuple[str, str]:
    return head.features, head.norm


def _slices(group: HeadGroup, protocol: LinearProtocol) -> Iterator[_Slice]:
    """Every parameter of every head; what of it decays is said by the optimiser of the protocol."""
    for place, number in enumerate(group.numbers):
        head = protocol.heads[number]
        for name, whole in group.named_parameters():
            decays = name in ("weight", "bias")  # not batch norm's own
            yield _Slice(whole, place, head.lr, head.weight_decay if decays else 0.0)


def _optimizer(slices: Sequence[_Slice], protocol: LinearProtocol) -> Optimizer:
    """Of the protocol; decay is in the gradients, where LARS has it (mae:util/lars.py)."""
    rates = sorted({part.lr for part in slices})
    groups = []
    for lr, matrices in product(rates, (True, False)):
        found = [part.parameter for part in slices if part.lr == lr]
        members = [parameter for parameter in found if (parameter.ndim > 1) == matrices]
        settings = {"always_adapt": matrices} if protocol.optimizer == "lars" else {}
        groups.append({"params": members, "whole_lr": lr, **settings})
    if protocol.optimizer == "lars":
        return Lars(groups, lr=0.0, momentum=MOMENTUM)
    return SGD(
        groups, lr=0.0, momentum=MOMENTUM, nesterov=protocol.optimizer == "sgd", foreach=True
    )
