"""A classifier on a Vision Transformer, and how fast each of its layers learns.

Source: paper A.2, which takes MAE's settings; facebookresearch/mae `models_vit.py`,
`util/lr_decay.py`, `util/lr_sched.py`; for BEiT's networks microsoft/unilm
`beit/optim_factory.py`.
"""

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ijepa.config import Size
from ijepa.errors import IjepaError
from ijepa.jepa.vit import Encoder, LayerNorm

HEAD_STD = 2e-5  # MAE's: the first steps find the classes before they change the encoder
# Parameters below the first block; others outside of blocks learn as fast as the head.
INPUTS = ("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
SHARED_POSITIONS = "encoder.rel_pos_bias"  # BEiT's, shared by all blocks: as fast as the head

Transformer = Encoder | VisionTransformer | Beit


class Classifier(nn.Module):
    """Encoder, its average patch token or its class token, norm, linear layer.

    As in MAE, average pooling replaces the encoder's final norm with a new one after the pooling;
    with a class token the final norm is kept. The paper does not describe its classifier. I-JEPA's
    position tables stay fixed, those of others are trained.

    The encoder is changed in place. `drop_path` is the chance to skip the last block; the first is
    never skipped. `generator` draws the linear layer's weights. `freeze` is the number of first
    blocks that are not trained, nor is anything below them (patch embedding, tokens, positions).
    """

    def __init__(
        self,
        encoder: Transformer,
        num_classes: int,
        drop_path: float,
        generator: torch.Generator,
        *,
        class_token: bool = False,
        freeze: int = 0,
    ) -> None:
        super().__init__()
        depth = len(encoder.blocks)
        if freeze > depth:
            raise IjepaError(
                f"--freeze {freeze}: the encoder has {depth} blocks; give {depth} at most."
            )
        self.encoder, self.class_token = encoder, class_token
        if class_token:
            self.fc_norm = encoder.fc_norm
        else:
            encoder.norm, self.fc_norm = nn.Identity(), LayerNorm(encoder.embed_dim)
        encoder.fc_norm = nn.Identity()
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        for name, parameter in self.named_parameters():
            is_below = layer_of(name, depth) <= freeze or name.startswith(SHARED_POSITIONS)
            parameter.requires_grad_(not (freeze and is_below))
        if isinstance(encoder, Encoder):
            encoder.pos_embed.requires_grad_(False)
        self._branches: list[DropBranch] = []
        for number, block in enumerate(encoder.blocks):
            pair = [DropBranch(drop_path * number / max(1, depth - 1)) for _ in range(2)]
            block.drop_path1, block.drop_path2 = pair
            self._branches += pair

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """(B, classes) logits of images (B, 3, height, width), normalised.

        `draws` (B, 2 * blocks), uniform in [0, 1), decide which branches each image skips; None
        skips none, as in evaluation.
        """
        for number, branch in enumerate(self._branches):
            branch.draws = None if draws is None else draws[:, number]
        tokens: Tensor = self.encoder.forward_features(images)
        patches = tokens[:, self.encoder.num_prefix_tokens :]
        vectors = tokens[:, 0] if self.class_token else patches.mean(dim=1)
        logits: Tensor = self.head(self.fc_norm(vectors))
        return logits


class DropBranch(nn.Module):
    """timm's `DropPath`, which skips a branch for some images, with random numbers from outside.

    So they do not depend on the number of processes that share a batch.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.draws: Tensor | None = None  # (B,) uniform in [0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D): zero where an image skips the branch, else divided by 1 - `drop_prob`."""
        if self.draws is None or not self.drop_prob:
            return tokens
        kept = (self.draws >= self.drop_prob).to(tokens.dtype) / (1 - self.drop_prob)
        return tokens * kept[:, None, None]


def layer_of(name: str, depth: int) -> int:
    """Number of the layer that a parameter of a `Classifier` belongs to: 0 to depth + 1."""
    parts = name.split(".")
    if parts[0] == "encoder" and parts[1] == "blocks":
        return int(parts[2]) + 1
    return 0 if parts[0] == "encoder" and parts[1] in INPUTS else depth + 1


def parameter_groups(
    model: Classifier, layer_decay: float, weight_decay: float
) -> list[dict[str, object]]:
    """A group for each layer, with and without decay: only matrices decay.

    `lr_scale` of a group is `layer_decay` to the power of the number of layers above it.
    """
    encoder, depth = model.encoder, len(model.encoder.blocks)
    # timm's networks name some; of ours, only `pos_embed`, which is not trained.
    spared = set() if isinstance(encoder, Encoder) else set(encoder.no_weight_decay())
    grouped: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name.removeprefix("encoder.") not in spared
            grouped.setdefault((layer_of(name, depth), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), parameters in grouped.items()
    ]


def step_gflops(model: Classifier, image_size: Size) -> float:
    """GFLOPs of a step's matrix products for one image; leaves the model on the meta device.

    Counts the backward pass of parameters that require gradients. If none does, the forward pass
    alone is counted, as for steps that train the linear layer only.
    """
    channels = model.encoder.patch_embed.proj.in_channels
    images = torch.zeros(1, channels, *image_size, device="meta")
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
        if logits.requires_grad:
            torch.autograd.backward(logits.sum())
    return float(counter.get_total_flops()) / 1e9
