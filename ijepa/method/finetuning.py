"""A classifier on a Vision Transformer, and how fast each of its layers learns.

Source: paper A.2, which takes MAE's settings; facebookresearch/mae `models_vit.py`,
`util/lr_decay.py`, `util/lr_sched.py`.
"""

import math

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ijepa.method.vit import Encoder, LayerNorm

HEAD_STD = 2e-5  # MAE's: the first steps find the classes before they change the encoder


class Classifier(nn.Module):
    """Encoder, average of the patch tokens, LayerNorm, linear layer.

    As in MAE with average pooling, the encoder's own final norm gives way to one after the pooling,
    which starts afresh. The paper does not say what its classifier looks like. Position tables stay
    fixed.
    """

    def __init__(
        self, encoder: Encoder, num_classes: int, drop_path: float, generator: torch.Generator
    ) -> None:
        """Take over an encoder that is trained from now on.

        Args:
            encoder: changed in place.
            num_classes: labels count from 0.
            drop_path: chance to skip the last block; the first is never skipped.
            generator: of the linear layer's weights.
        """
        super().__init__()
        encoder.norm = nn.Identity()
        self.encoder = encoder
        self.fc_norm = LayerNorm(encoder.embed_dim)
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        for parameter in encoder.parameters():
            parameter.requires_grad_(True)
        encoder.position_table.requires_grad_(False)
        last = max(1, len(encoder.blocks) - 1)
        for number, block in enumerate(encoder.blocks):
            chance = drop_path * number / last
            block.drop_path1, block.drop_path2 = DropPath(chance), DropPath(chance)

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits of (B, 3, height, width) normalised images."""
        logits: Tensor = self.head(self.fc_norm(self.encoder(images).mean(dim=1)))
        return logits


def layer_of(name: str, depth: int) -> int:
    """Number of the layer that a parameter of a `Classifier` belongs to: 0 to depth + 1."""
    parts = name.split(".")
    if parts[0] != "encoder":
        return depth + 1
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0


def parameter_groups(
    model: Classifier, layer_decay: float, weight_decay: float
) -> list[dict[str, object]]:
    """One group a layer and kind: matrices decay, biases and norms do not.

    Args:
        model: whose trained parameters are grouped.
        layer_decay: `lr_scale` of a group is this to the power of the layers above it.
        weight_decay: of matrices.
    """
    depth = len(model.encoder.blocks)
    groups: dict[tuple[int, bool], dict[str, object]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = layer_of(name, depth), parameter.ndim > 1
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": layer_decay ** (depth + 1 - layer),
            },
        )
        group["params"].append(parameter)  # type: ignore[attr-defined]  # a list, of this key alone
    return list(groups.values())


def learning_rate(done: float, lr: float, final_lr: float, warmup: float) -> float:
    """Linear from 0 over the warm-up, then half a cosine down.

    Args:
        done: share of all steps that are taken, 0 to 1.
        lr: at its highest.
        final_lr: at the end.
        warmup: share of all steps.
    """
    if done < warmup:
        return lr * done / warmup
    rest = (done - warmup) / max(1e-12, 1 - warmup)
    return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * rest))
