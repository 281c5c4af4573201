"""Encoder and predictor: Vision Transformers without class token, on timm's blocks.

Parameter names are timm's and the published code's, so that weights exchange key for key.
Source: paper section 3 and A.1; facebookresearch/ijepa `src/models/vision_transformer.py`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ijepa.compute import recompute
from ijepa.config import EncoderConfig, PredictorConfig, PretrainConfig, Size
from ijepa.config.architectures import Architecture, architecture
from ijepa.errors import IjepaError


class LayerNorm(nn.LayerNorm):
    """The Vision Transformer's: eps 1e-6, not PyTorch's 1e-5."""

    def __init__(self, dim: int, eps: float = 1e-6, **factory: Any) -> None:  # noqa: ANN401  # handed on as it is
        super().__init__(dim, eps=eps, **factory)  # timm >= 1.0.16 hands down device and dtype


RECOMPILE_LIMIT = 64  # variants of a block: precision, gradients, recomputing; torch allows 8
PREDICTOR_MLP_RATIO = 4.0  # also beside vit_giant


class Encoder(VisionTransformer):
    """timm's VisionTransformer that can look at some of the patches only.

    Positions are a fixed sin-cos table; there is no class token and no head.
    """

    def __init__(self, size: Architecture, image_size: Size, patch_px: int) -> None:
        super().__init__(
            img_size=image_size,
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

    def forward_layers(
        self, images: Tensor, layers: Sequence[int], index: Tensor | None = None
    ) -> list[Tensor]:
        """Encode as `forward` does, and return the tokens after each of some blocks.

        Args:
            images: (B, 3, height, width) float, normalised.
            layers: numbers of blocks, counted from 1, ascending; later blocks are not computed.
            index: (B, K) int64 patch numbers, row-major; None for all N.

        Returns:
            One (B, K or N, dim) for each of `layers`; only the last block's passes the final norm.
        """
        tokens, found = self.embed(images, index), []
        for number, block in enumerate(self.blocks[: layers[-1]], start=1):
            tokens = block(tokens)
            if number in layers:
                found.append(self.norm(tokens) if number == len(self.blocks) else tokens)
        return found

    def forward(  # type: ignore[override]  # timm's takes all patches and an attention mask
        self, images: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Encode all patches, or those that `index` names.

        Args:
            images: (B, 3, height, width) float, normalised; or their patches by `patchify`,
                (B, N, 3 * patch_px**2), which several encoders can share.
            index: (B, K) int64 patch numbers, row-major; None for all N.

        Returns:
            (B, K or N, dim) after the final norm.
        """
        tokens = self.embed(images, index)
        for block in self.blocks:
            tokens = recompute(block, tokens) if self.grad_checkpointing else block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def forward_features(  # as classifiers on timm's encoders ask for tokens
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, dim) after the final norm, of (B, 3, height, width) normalised images."""
        assert attn_mask is None
        assert not is_causal
        return self(x)  # type: ignore[no-any-return]  # nn.Module is untyped

    def embed(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block: (B, K or N, dim); arguments as of `forward`.

        Only the patches that `index` names are projected, and by a matrix product: a convolution
        whose stride is its width is the same, and slower.
        """
        projection = self.patch_embed.proj
        patches = patchify(images, self.patch_embed.patch_size[0]) if images.ndim == 4 else images
        positions = self.position_table
        if index is not None:
            patches = gather_patches(patches, index)
            positions = F.embedding(index, positions[0])
        patches = patches.to(projection.weight.dtype)
        return F.linear(patches, projection.weight.flatten(1), projection.bias) + positions

    def pooled_layers(self, images: Tensor, num_layers: int) -> Tensor:
        """Average-pooled patch tokens of the last blocks, the final norm applied to each.

        Args:
            images: (B, 3, height, width) float, normalised.
            num_layers: at most the depth.

        Returns:
            (B, num_layers, dim); the last layer last. Source: paper A.2; VISSL `concatPOOL4`.
        """
        tokens, pooled = self.embed(images), []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number > len(self.blocks) - num_layers:
                pooled.append(self.norm(tokens).mean(dim=1))
        return torch.stack(pooled, dim=1)


class Predictor(nn.Module):
    """Narrow ViT that predicts the tokens of one target block from the context's tokens."""

    def __init__(
        self,
        encoder_size: Architecture,
        config: PredictorConfig,
        grid: tuple[int, int],
        target_dim: int,
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
        self.run_block = _block  # may be compiled
        self.grad_checkpointing = False
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = nn.Linear(dim, target_dim)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict every target block, each as a sequence of its own: [context; its mask tokens].

        Args:
            context: (B, K, encoder dim) tokens of the context encoder.
            context_index: (B, K) int64, their patches.
            target_index: (M, B, T) int64, the patches of M target blocks.

        Returns:
            (M * B, T, target dim); block 0 of all images first.
        """
        positions = self.predictor_pos_embed
        seen = self.predictor_embed(context)
        seen = seen + gather_patches(positions.expand(len(context), -1, -1), context_index)
        hidden = (self.mask_token + positions)[0].to(seen.dtype)  # alike in all images: (N, dim)
        first, last = self.predictor_blocks[0], self.predictor_blocks[-1]
        tokens = _sequences(seen, hidden, target_index)
        qkv = _sequences(_qkv(first, seen), _qkv(first, hidden), target_index)
        for block in self.predictor_blocks:
            qkv = qkv if block is first else _qkv(block, tokens)
            num_last = target_index.shape[2] if block is last else tokens.shape[1]
            if self.grad_checkpointing:
                tokens = recompute(self.run_block, block, tokens, qkv, num_last)
            else:
                tokens = self.run_block(block, tokens, qkv, num_last)
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


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """Pixels of each patch: (B, N, 3 * patch_px**2), row-major, channels first within a patch.

    Args:
        images: (B, 3, height, width).
        patch_px: side of the square patches; divides height and width.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_px, width // patch_px
    patches = images.reshape(batch, channels, rows, patch_px, columns, patch_px)
    patches = patches.permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, rows * columns, channels * patch_px**2)


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


def build_encoder(config: EncoderConfig, image_size: Size, generator: torch.Generator) -> Encoder:
    """Make a freshly initialised encoder.

    Args:
        config: architecture, patch size, initialisation, scale of the positions.
        image_size: (height, width) in pixels.
        generator: where the random weights come from.
    """
    encoder = Encoder(architecture(config.arch), image_size, config.patch_px)
    table = sincos_positions(encoder.embed_dim, encoder.patch_embed.grid_size)
    encoder.position_table.data.copy_(table * config.position_scale)
    initialise(encoder, config.init, generator)
    return encoder


def target_dim(config: PretrainConfig) -> int:
    """Numbers that the predictor outputs for a patch: its pixels, or all of `targets.layers`.

    Raises:
        IjepaError: a layer beyond the encoder's depth.
    """
    size, layers = architecture(config.encoder.arch), config.targets.layers
    if config.targets.space != "embeddings":
        return 3 * config.encoder.patch_px**2
    if layers is None:
        return size.dim
    if layers[-1] > size.depth:
        raise IjepaError(
            f"targets.layers names block {layers[-1]}, but {config.encoder.arch} has {size.depth} "
            f"blocks; name blocks from 1 to {size.depth}."
        )
    return len(layers) * size.dim


def build_predictor(config: PretrainConfig, generator: torch.Generator) -> Predictor:
    """Make a freshly initialised predictor of that configuration's targets."""
    encoder, size = config.encoder, architecture(config.encoder.arch)
    predictor = Predictor(size, config.predictor, config.grid, target_dim(config))
    predictor.predictor_pos_embed.data.mul_(encoder.position_scale)
    initialise(predictor, encoder.init, generator)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02, generator=generator)
    return predictor


@torch.no_grad()
def initialise(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw every Linear and the patch embedding; biases 0, norms 1 and 0.

    Args:
        model: changed in place.
        init: `published` (normal of std 0.02), `depth-scaled` (then the last Linear of attention
            and of MLP divided by sqrt(2 * number of the block): the released code's
            `fix_init_weight`, which its own `init_model` undoes) or `xavier` (uniform, the patch
            embedding as one matrix; MAE's).
        generator: where the random weights come from.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init == "xavier":
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            else:
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    if init == "depth-scaled":
        _scale_by_depth(model)


def _scale_by_depth(model: nn.Module) -> None:
    blocks: list[Any] = [module for module in model.modules() if isinstance(module, Block)]
    for number, block in enumerate(blocks, start=1):
        for last in (block.attn.proj, block.mlp.fc2):
            last.weight.div_(math.sqrt(2 * number))


def save_memory(encoder: Encoder, predictor: Predictor) -> None:
    """Keep only what enters each block, and compute the rest again in the backward pass."""
    encoder.grad_checkpointing = predictor.grad_checkpointing = True


def compile_blocks(
    encoders: Iterable[Encoder],
    predictor: Predictor,
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Compile the blocks, once for all of them and for every number of tokens."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for encoder in encoders:
        for block in encoder.blocks:
            block.compile(dynamic=True, backend=backend)
    predictor.run_block = torch.compile(_block, dynamic=True, backend=backend)


def _sin_cos(position: Tensor, frequencies: Tensor) -> Tensor:
    angle = position.unsqueeze(-1) * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _sequences(seen: Tensor, hidden: Tensor, target_index: Tensor) -> Tensor:
    """[context; one target block] for every block and image: (M * B, K + T, D).

    Args:
        seen: (B, K, D), what stands for the context's patches.
        hidden: (N, D), what stands for each patch of the grid where it is hidden.
        target_index: (M, B, T) int64.
    """
    blocks = F.embedding(target_index.flatten(0, 1), hidden)
    return torch.cat([seen.repeat(len(target_index), 1, 1), blocks], dim=1)


def _qkv(block: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401  # timm lets any class stand here
    """Queries, keys and values before they are split into heads: (..., 3 * D)."""
    projected: Tensor = block.attn.qkv(block.norm1(tokens))
    return projected


def _block(block: Any, tokens: Tensor, qkv: Tensor, num_last: int) -> Tensor:  # noqa: ANN401  # handed on as it is
    """A block of timm, its queries, keys and values given, for the last tokens only.

    The first block of the predictor need not project the same context M times, nor a mask token of
    every image; after the last block nobody reads the context. Both save work, and change nothing.
    """
    batch, length, dim = tokens.shape
    heads = block.attn.num_heads
    query, key, value = qkv.reshape(batch, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(query[:, :, -num_last:], key, value)
    attended = attended.transpose(1, 2).reshape(batch, num_last, dim)
    tokens = tokens[:, -num_last:] + block.attn.proj(attended)
    result: Tensor = tokens + block.mlp(block.norm2(tokens))
    return result
