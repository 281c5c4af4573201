"""The predictor: a narrow Vision Transformer from the context's tokens to those of target blocks.

Parameter names are the published code's. Source: paper section 3 and A.1; facebookresearch/ijepa
`src/models/vision_transformer.py`.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.compute import recompute
from ijepa.config import Architecture, PredictorConfig, PretrainConfig, architecture
from ijepa.errors import IjepaError
from ijepa.jepa.vit import Block, Encoder, LayerNorm, gather_patches, initialise, sincos_positions

RECOMPILE_LIMIT = 64  # variants of a block: precision, gradients, recomputing; torch allows 8
PREDICTOR_MLP_RATIO = 4.0  # also beside vit_giant


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
            Block(dim, encoder_size.heads, PREDICTOR_MLP_RATIO) for _ in range(config.depth)
        )
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
        blocks = [cast(Block, block) for block in self.predictor_blocks]
        first, last = blocks[0], blocks[-1]
        tokens = _sequences(seen, hidden, target_index)
        qkv = _sequences(first.project(seen), first.project(hidden), target_index)
        for block in blocks:
            qkv = qkv if block is first else block.project(tokens)
            inputs = tokens, qkv, target_index.shape[2] if block is last else tokens.shape[1]
            tokens = recompute(block, *inputs) if self.grad_checkpointing else block(*inputs)
        predicted: Tensor = self.predictor_proj(self.predictor_norm(tokens))
        return predicted


def build_predictor(config: PretrainConfig, generator: torch.Generator) -> Predictor:
    """Make a freshly initialised predictor of that configuration's targets."""
    encoder, size = config.encoder, architecture(config.encoder.arch)
    predictor = Predictor(size, config.predictor, config.grid, target_dim(config))
    predictor.predictor_pos_embed.data.mul_(encoder.position_scale)
    initialise(predictor, encoder.init, generator)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02, generator=generator)
    return predictor


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
    blocks = [block for encoder in encoders for block in encoder.blocks]
    for block in [*blocks, *predictor.predictor_blocks]:
        block.compile(dynamic=True, backend=backend)


def _sequences(seen: Tensor, hidden: Tensor, target_index: Tensor) -> Tensor:
    """[context; one target block] for every block and image: (M * B, K + T, D).

    Args:
        seen: (B, K, D), what stands for the context's patches.
        hidden: (N, D), what stands for each patch of the grid where it is hidden.
        target_index: (M, B, T) int64.
    """
    blocks = F.embedding(target_index.flatten(0, 1), hidden)
    return torch.cat([seen.repeat(len(target_index), 1, 1), blocks], dim=1)
