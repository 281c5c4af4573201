"""Heads on frozen features, trained together on the same batches: linear and attentive ones.

Features have no gradient here. So for linear heads a batch is normalised once, logits of all heads
are one product of matrices, and the gradient of the cross-entropy is written down instead of
traced. Each head's weights are a slice of one tensor, which torch's and timm's optimizers see as a
parameter of its own: a head learns what it would learn alone.

An attentive head has a learnt query that attends to the patch tokens of an image, and a linear
layer that classifies what it gathers. Source: facebookresearch/jepa and facebookresearch/vjepa2,
`src/models/attentive_pooler.py`, `src/models/utils/modules.py` and
`evals/image_classification_frozen/eval.py`.
"""

import math
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
from torch.nn.init import trunc_normal_, zeros_
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW, Optimizer

from ijepa.jepa.vit import Block, Mlp
from ijepa.probes.protocols import AttentiveProtocol, Head, LinearProtocol

MOMENTUM = 0.9
NORM_MOMENTUM = 0.1
LOGITS_AT_ONCE = 2**24  # bounds memory; 64 MB
MLP_RATIO = 4  # of attentive heads
INIT_STD = 0.02
NUMBERS_AT_ONCE = 2**24  # of tokens; bounds memory as well


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
        rates = sorted({head.lr for head in protocol.heads})
        groups = [
            # SGD passes over what LARS alone reads: `always_adapt`.
            {"params": members[lr, matrices], "whole_lr": lr, "always_adapt": matrices}
            for lr, matrices in product(rates, (True, False))
        ]
        nesterov = protocol.optimizer == "sgd"
        self._optimizer: Optimizer = (
            Lars(groups, lr=0.0, momentum=MOMENTUM)
            if protocol.optimizer == "lars"
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


class AttentiveHead(nn.Module):
    """Self-attention blocks if the protocol has any, one cross-attention block, a linear layer."""

    def __init__(self, protocol: AttentiveProtocol, dim: int, num_classes: int) -> None:
        """Draw the weights with torch's global generator."""
        super().__init__()
        self.num_heads = math.gcd(dim, protocol.num_heads)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(
            Block(dim, self.num_heads, MLP_RATIO) for _ in range(protocol.depth - 1)
        )
        self.norm1 = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim) if protocol.projects else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, MLP_RATIO * dim)
        trunc_normal_(self.query, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                zeros_(module.bias)
                trunc_normal_(module.weight, std=INIT_STD)
        # Residual branches are scaled down with their depth; `vjepa2` counts the last block twice.
        branches = [(max(1, len(self.blocks)), [self.proj, self.mlp.fc2])]
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            block.norm1.eps = block.norm2.eps = self.norm1.eps
            branches.append((number, [block.attn.proj, block.mlp.fc2]))
        for number, layers in branches:
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    layer.weight.data /= math.sqrt(2 * number)
        self.linear = nn.Linear(dim, num_classes)  # as torch draws it

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, classes) of patch tokens (B, N, dim).

        With one query, the query can be multiplied by the keys' weights first, and the gathered
        tokens by the values' weights last. No token is projected: the same result as in V-JEPA's
        order, for dim / heads times less work. The norm's scale is applied with the weights; the
        keys' bias drops out of the softmax.
        """
        for block in self.blocks:
            tokens = block(tokens)
        dim, heads = tokens.shape[-1], self.num_heads
        normed, scale = F.layer_norm(tokens, (dim,), eps=self.norm1.eps), self.norm1.weight
        key, value = self.kv.weight.view(2, heads, dim // heads, dim)
        query = self.q(self.query).view(heads, dim // heads) * (dim // heads) ** -0.5
        looks_for = torch.einsum("hd,hdc->hc", query, key) * scale
        shares = (normed @ looks_for.T).softmax(dim=1)  # (B, N, heads)
        gathered = (shares.transpose(1, 2).to(normed.dtype) @ normed) * scale + self.norm1.bias
        values = torch.einsum("bhc,hdc->bhd", gathered, value).flatten(1) + self.kv.bias[dim:]
        pooled = self.query[0] + self.proj(values)
        pooled = pooled + self.mlp(self.norm2(pooled))
        logits: Tensor = self.linear(pooled)
        return logits


class AttentiveHeads:
    """All heads of a protocol, each with its optimizer, trained on the same batches."""

    def __init__(
        self,
        protocol: AttentiveProtocol,
        dim: int,
        num_classes: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Make the heads on a device, all with the same weights: only their settings differ."""
        self._protocol, self._at_once = protocol, max(1, NUMBERS_AT_ONCE // dim)  # tokens
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = AttentiveHead(protocol, dim, num_classes)
        self._heads = [deepcopy(drawn).to(device) for _ in protocol.heads]
        self._optimizers = []
        for head in self._heads:
            decayed = [w for w in head.parameters() if w.ndim > 1 or protocol.decays_all]
            others = [w for w in head.parameters() if not (w.ndim > 1 or protocol.decays_all)]
            groups = [{"params": decayed, "decays": 1.0}, {"params": others, "decays": 0.0}]
            self._optimizers.append(AdamW([group for group in groups if group["params"]]))

    def step(self, inputs: dict[str, Tensor], labels: Tensor, done: float) -> None:
        """One update of every head, with its settings when this share of the training is done.

        Inputs are `tokens` (B, N, dim), labels (B,) class numbers from 0.
        """
        tokens = inputs["tokens"]
        for settings, head, optimizer in zip(
            self._protocol.heads, self._heads, self._optimizers, strict=True
        ):
            lr, decay = settings.at(done)
            for group in optimizer.param_groups:
                group |= {"lr": lr, "weight_decay": decay * group["decays"]}
            optimizer.zero_grad()
            for part, true in zip(self._split(tokens), self._split(labels, tokens), strict=True):
                loss = F.cross_entropy(self._logits(head, part), true, reduction="sum")
                torch.autograd.backward(loss / len(labels))
            if self._protocol.clip:
                clip_grad_norm_(head.parameters(), self._protocol.clip)
            optimizer.step()

    @torch.no_grad()
    def predict(self, inputs: dict[str, Tensor]) -> Tensor:
        """(heads, B) class numbers, heads in the protocol's order."""
        parts = self._split(inputs["tokens"])
        answers = [
            torch.cat([self._logits(head, part).argmax(1) for part in parts])
            for head in self._heads
        ]
        return torch.stack(answers)

    def state_dict(self) -> dict[str, Any]:
        """All that further steps depend on, in tensors and plain values."""
        return state_of(self._heads, self._optimizers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned for heads of the same protocol, width and classes."""
        load_state_of(self._heads, self._optimizers, state)

    def _logits(self, head: AttentiveHead, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._protocol.bf16):
            logits: Tensor = head(tokens.float())
        return logits.float()

    def _split(self, values: Tensor, tokens: Tensor | None = None) -> tuple[Tensor, ...]:
        """Parts of consecutive images, as large as memory allows for their `tokens`."""
        length = (values if tokens is None else tokens).shape[1]
        return torch.split(values, max(1, self._at_once // length))


def state_of(heads: Sequence[nn.Module], optimizers: Sequence[AdamW]) -> dict[str, Any]:
    """All that further steps of heads depend on, in tensors and plain values."""
    return {
        "heads": [head.state_dict() for head in heads],
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }


def load_state_of(
    heads: Sequence[nn.Module], optimizers: Sequence[AdamW], state: dict[str, Any]
) -> None:
    """Load what `state_of` returned."""
    for head, values in zip(heads, state["heads"], strict=True):
        head.load_state_dict(values)
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(deepcopy(values))  # it may be a mapped file
