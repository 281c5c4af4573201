"""Encoder and predictor: Vision Transformers without class token, on timm's blocks.

Parameter names are timm's and the published code's, so that weights exchange key for key.
Source: paper section 3 and A.1; facebookresearch/ijepa `src/models/vision_transformer.py`.
"""

import re
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ijepa.config import EncoderConfig, PredictorConfig
from ijepa.errors import IjepaError


class LayerNorm(nn.LayerNorm):
    """The Vision Transformer's: eps 1e-6, not PyTorch's 1e-5."""

    def __init__(self, dim: int, eps: float = 1e-6, **factory: Any) -> None:  # noqa: ANN401
        super().__init__(dim, eps=eps, **factory)  # timm >= 1.0.16 hands down device and dtype


class Architecture(NamedTuple):
    """Size of a Vision Transformer; `mlp_ratio` times `dim` is the hidden width."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


ARCHITECTURES = {
    "vit_tiny": Architecture(192, 12, 3),
    "vit_small": Architecture(384, 12, 6),
    "vit_base": Architecture(768, 12, 12),
    "vit_large": Architecture(1024, 24, 16),
    "vit_huge": Architecture(1280, 32, 16),
    "vit_giant": Architecture(1408, 40, 16, 48 / 11),
}

PREDICTOR_MLP_RATIO = 4.0  # also beside vit_giant


def architecture(name: str) -> Architecture:
    """Look up a name of `ARCHITECTURES`, or read `DIMxDEPTHxHEADS` such as `128x4x4`.

    Raises:
        IjepaError: neither, or a width that the heads do not divide.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", name)
    if not numbers:
        known = ", ".join(ARCHITECTURES)
        raise IjepaError(
            f"There is no architecture {name!r}; there are {known}, and DIMxDEPTHxHEADS (128x4x4)."
        )
    dim, depth, heads = (int(number) for number in numbers.groups())
    if min(dim, depth, heads) < 1 or dim % heads or dim % 4:
        raise IjepaError(
            f"Architecture {name}: the width must be a multiple of 4 and of the heads."
        )
    return Architecture(dim, depth, heads)


class Encoder(VisionTransformer):
    """timm's VisionTransformer that can look at some of the patches only.

    Positions are a fixed sin-cos table; there is no class token and no head.
    """

    def __init__(self, size: Architecture, image_px: int, patch_px: int) -> None:
        super().__init__(
            img_size=image_px,
            patch_size=patch_px,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.mlp_ratio,
            class_token=False,
            global_pool="avg",
            fc_norm=False,
            num_classes=0,
            norm_layer=LayerNorm,
            weight_init="skip",
        )
        self.pos_embed = nn.Parameter(torch.zeros_like(self.position_table), requires_grad=False)

    @property
    def position_table(self) -> Tensor:
        """(1, N, dim), fixed."""
        assert self.pos_embed is not None
        return self.pos_embed

    def forward(  # type: ignore[override]  # timm's takes all patches and an attention mask
        self, images: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Encode all patches, or those that `index` names.

        Args:
            images: (B, 3, height, width) float, normalised.
            index: (B, K) int64 patch numbers, row-major; None for all N.

        Returns:
            (B, K or N, dim) after the final norm.
        """
        tokens: Tensor = self.patch_embed(images) + self.position_table
        if index is not None:
            tokens = gather_patches(tokens, index)
        encoded: Tensor = self.norm(self.blocks(tokens))
        return encoded

    def pooled_layers(self, images: Tensor, num_layers: int) -> Tensor:
        """Average-pooled patch tokens of the last blocks, the final norm applied to each.

        Args:
            images: (B, 3, height, width) float, normalised.
            num_layers: at most the depth.

        Returns:
            (B, num_layers, dim); the last layer last. Source: paper A.2; VISSL `concatPOOL4`.
        """
        layers = self.forward_intermediates(
            images, indices=num_layers, norm=True, output_fmt="NLC", intermediates_only=True
        )
        return torch.stack([tokens.mean(dim=1) for tokens in layers], dim=1)  # type: ignore[union-attr]  # intermediates_only gives tensors


class Predictor(nn.Module):
    """Narrow ViT that predicts the tokens of one target block from the context's tokens."""

    def __init__(
        self, encoder_size: Architecture, config: PredictorConfig, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        dim = config.dim
        if dim % encoder_size.heads or dim % 4:
            raise IjepaError(
                f"predictor.dim {dim} must be a multiple of 4 and of the encoder's "
                f"{encoder_size.heads} heads."
            )
        self.predictor_embed = nn.Linear(encoder_size.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor_pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            Block(dim, encoder_size.heads, PREDICTOR_MLP_RATIO, True, norm_layer=LayerNorm)
            for _ in range(config.depth)
        )
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = nn.Linear(dim, encoder_size.dim)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict every target block, each as a sequence of its own: [context; its mask tokens].

        Args:
            context: (B, K, encoder dim) tokens of the context encoder.
            context_index: (B, K) int64, their patches.
            target_index: (M, B, T) int64, the patches of M target blocks.

        Returns:
            (M * B, T, encoder dim); block 0 of all images first.
        """
        num_blocks, batch, num_targets = target_index.shape
        positions = self.predictor_pos_embed.expand(batch, -1, -1)
        seen = self.predictor_embed(context) + gather_patches(positions, context_index)
        hidden = self.mask_token + gather_patches(
            positions.repeat(num_blocks, 1, 1), target_index.flatten(0, 1)
        )
        tokens = torch.cat([seen.repeat(num_blocks, 1, 1), hidden.to(seen.dtype)], dim=1)
        *early, last = self.predictor_blocks
        for block in early:
            tokens = block(tokens)
        assert isinstance(last, Block)
        tokens = _block_for_last(last, tokens, num_targets)
        predicted: Tensor = self.predictor_proj(self.predictor_norm(tokens))
        return predicted


def gather_patches(tokens: Tensor, index: Tensor) -> Tensor:
    """Keep the patch tokens that `index` names, in its order.

    Args:
        tokens: (B, N, D) float; N patches, row-major, no class token.
        index: (B, K) int64 in [0, N).

    Returns:
        (B, K, D).

    Source: facebookresearch/ijepa `src/masks/utils.py`; that one takes a list of masks, this one.
    """
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """The fixed sin-cos table (1, rows * columns, dim), row-major.

    The first half of the features encodes the column, the second the row.
    Source: facebookresearch/ijepa `get_2d_sincos_pos_embed`, which is MAE's.
    """
    rows, columns = grid
    across, down = torch.arange(columns).double(), torch.arange(rows).double()
    frequencies = 10000.0 ** (-torch.arange(dim // 4).double() / (dim // 4))
    column_part = _sin_cos(across, frequencies).expand(rows, columns, -1)
    row_part = _sin_cos(down, frequencies).unsqueeze(1).expand(rows, columns, -1)
    return torch.cat([column_part, row_part], dim=-1).reshape(1, rows * columns, dim).float()


def build_encoder(config: EncoderConfig, image_px: int, generator: torch.Generator) -> Encoder:
    """Make a freshly initialised encoder.

    Args:
        config: architecture, patch size, initialisation, scale of the positions.
        image_px: side of the square images.
        generator: where the random weights come from.
    """
    encoder = Encoder(architecture(config.arch), image_px, config.patch_px)
    table = sincos_positions(encoder.embed_dim, encoder.patch_embed.grid_size)
    encoder.position_table.data.copy_(table * config.position_scale)
    initialise(encoder, config.init, generator)
    return encoder


def build_predictor(
    encoder: EncoderConfig, config: PredictorConfig, image_px: int, generator: torch.Generator
) -> Predictor:
    """Make a freshly initialised predictor for that encoder."""
    side = image_px // encoder.patch_px
    predictor = Predictor(architecture(encoder.arch), config, (side, side))
    predictor.predictor_pos_embed.data.mul_(encoder.position_scale)
    initialise(predictor, encoder.init, generator)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02, generator=generator)
    return predictor


@torch.no_grad()
def initialise(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw every Linear and the patch embedding; biases 0, norms 1 and 0.

    Args:
        model: changed in place.
        init: `published` (normal of std 0.02: the released code's depth scaling is undone by its
            own `init_model`) or `xavier` (uniform, the patch embedding as one matrix; MAE's).
        generator: where the random weights come from.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init == "published":
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def _sin_cos(position: Tensor, frequencies: Tensor) -> Tensor:
    angle = position.unsqueeze(-1) * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _block_for_last(block: Block, tokens: Tensor, num_last: int) -> Tensor:
    """A pre-norm block, computed for the last tokens only: nobody reads the others any more.

    The result equals `block(tokens)[:, -num_last:]`; it saves their queries and their MLP.
    """
    attention: Any = block.attn  # timm lets any class stand here
    batch, length, dim = tokens.shape
    heads = attention.num_heads
    qkv = attention.qkv(block.norm1(tokens)).reshape(batch, length, 3, heads, dim // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query[:, :, -num_last:], key, value)
    attended = attended.transpose(1, 2).reshape(batch, num_last, dim)
    tokens = tokens[:, -num_last:] + attention.proj(attended)
    result: Tensor = tokens + block.mlp(block.norm2(tokens))
    return result
