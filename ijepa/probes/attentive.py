"""Attentive heads on patch tokens, as V-JEPA and V-JEPA 2 evaluate their encoders.

A learnt query attends to the tokens of an image, and a linear layer classifies what it gathers.
Source: facebookresearch/jepa and facebookresearch/vjepa2, `src/models/attentive_pooler.py`,
`src/models/utils/modules.py` and `evals/image_classification_frozen/eval.py`.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_, zeros_
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from ijepa.jepa.vit import Block, Mlp
from ijepa.probes.protocols import AttentiveProtocol

MLP_RATIO = 4
INIT_STD = 0.02
NUMBERS_AT_ONCE = 2**24  # of tokens, 64 MB; bounds memory


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
