"""I-JEPA: context encoder, predictor, EMA target encoder, and the loss between them.

Parameter names are the published code's. Source: paper section 3 and A.1; facebookresearch/ijepa
`src/train.py`, `src/models/vision_transformer.py`.
"""

import contextlib
import copy
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.compute import recompute
from ijepa.config import Architecture, PredictorConfig, PretrainConfig, TargetConfig, architecture
from ijepa.errors import IjepaError
from ijepa.jepa.masks import Masks, with_images
from ijepa.jepa.vit import (
    Block,
    Encoder,
    LayerNorm,
    build_encoder,
    gather_patches,
    initialise,
    patchify,
    sincos_positions,
)

# By the name in `targets.loss`, each a mean over all numbers. The paper says L2, the released code
# takes smooth-L1 with beta 1.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "smooth_l1": F.smooth_l1_loss,
    "l2": F.mse_loss,
    "l1": F.l1_loss,
}
RECOMPILE_LIMIT = 64  # variants of a block: precision, gradients, recomputing; torch allows 8
PREDICTOR_MLP_RATIO = 4.0  # also beside vit_giant


class Predictor(nn.Module):
    """Narrow ViT that predicts the tokens of one target block from the context's tokens."""

    def __init__(
        self, size: Architecture, config: PredictorConfig, grid: tuple[int, int], target_dim: int
    ) -> None:
        """Make it for an encoder of this `size`, with as many heads."""
        super().__init__()
        dim = config.dim
        if dim % size.heads or dim % 4:
            raise IjepaError(
                f"predictor.dim {dim} must be a multiple of 4 and of the encoder's "
                f"{size.heads} heads."
            )
        self.predictor_embed = nn.Linear(size.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.predictor_pos_embed = nn.Parameter(sincos_positions(dim, grid), requires_grad=False)
        self.predictor_blocks = nn.ModuleList(
            Block(dim, size.heads, PREDICTOR_MLP_RATIO) for _ in range(config.depth)
        )
        self.grad_checkpointing = False  # whether only the inputs of blocks are kept
        self.predictor_norm = LayerNorm(dim)
        self.predictor_proj = nn.Linear(dim, target_dim)

    def forward(self, context: Tensor, context_index: Tensor, target_index: Tensor) -> Tensor:
        """Predict every target block, each as a sequence of its own: [context; its mask tokens].

        Tokens of the context encoder are (B, K, encoder dim), their patches (B, K) int64, those of
        M target blocks (M, B, T). Returns (M * B, T, target dim); block 0 of all images first.
        """
        positions, num_blocks = self.predictor_pos_embed, len(target_index)

        def sequences(seen: Tensor, hidden: Tensor) -> Tensor:
            """Concatenate, per target block, the context and the mask tokens at its patches.

            `seen` is (B, K, D), `hidden` (N, D) for all patches; the result (M * B, K + T, D).
            """
            targets = F.embedding(target_index.flatten(0, 1), hidden)
            return torch.cat([seen.repeat(num_blocks, 1, 1), targets], dim=1)

        seen = self.predictor_embed(context)  # (B, K, D)
        seen = seen + gather_patches(positions.expand(len(context), -1, -1), context_index)
        hidden = (self.mask_token + positions)[0].to(seen.dtype)  # alike in all images: (N, D)
        blocks = [cast(Block, block) for block in self.predictor_blocks]
        first, last = blocks[0], blocks[-1]
        tokens = sequences(seen, hidden)
        qkv = sequences(first.project(seen), first.project(hidden))
        for block in blocks:
            qkv = qkv if block is first else block.project(tokens)
            inputs = tokens, qkv, target_index.shape[2] if block is last else tokens.shape[1]
            tokens = recompute(block, *inputs) if self.grad_checkpointing else block(*inputs)
        predicted: Tensor = self.predictor_proj(self.predictor_norm(tokens))
        return predicted


class IJepa(nn.Module):
    """The three networks; attribute names are the published checkpoint's."""

    def __init__(
        self, encoder: Encoder, predictor: Predictor, target_encoder: Encoder, config: TargetConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.predictor = predictor
        self.target_encoder = target_encoder
        target_encoder.requires_grad_(False)
        self._bf16_copy: list[Encoder] = []  # a list, so that it is no part of the state dict

    @property
    def teacher(self) -> Encoder:
        """The network that computes targets: the target encoder, or its bfloat16 copy if any."""
        return self._bf16_copy[0] if self._bf16_copy else self.target_encoder

    @torch.no_grad()
    def keep_bf16_teacher(self) -> None:
        """From now on compute targets wholly in bfloat16, residual stream included.

        No gradient flows through targets, so this precision is enough. Autocast would cast all
        weights in every step; the copy is renewed with the EMA, which itself stays in float32.
        """
        self._bf16_copy = [copy.deepcopy(self.target_encoder).bfloat16()]

    @torch.no_grad()
    def renew_teacher(self) -> None:
        """Bring the copy up to date after the target encoder has changed."""
        for encoder in self._bf16_copy:
            newest = tuple(self.target_encoder.parameters())
            torch._foreach_copy_(tuple(encoder.parameters()), newest)

    def forward(self, images: Tensor, groups: list[Masks]) -> list[tuple[Tensor, Tensor]]:
        """Predictions and targets of each group of masks, both (M * images, T, target dim).

        Block 0 of all images comes first. Images are (B, C, height, width) float, normalised; the
        groups are masks of these images, in their order, draw by draw.
        """
        patches = patchify(images, self.encoder.patch_embed.patch_size[0])
        precision: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._bf16_copy:  # the copy needs no autocast
            precision = torch.autocast(images.device.type, enabled=False)
        with precision:
            targets = Targets(self.config, self.teacher, patches)
        answers = []
        for chosen, masks in with_images(groups, len(images)):
            with precision:
                wanted = targets.of(chosen, masks.targets)
            answers.append((self.predictions(patches[chosen], masks), wanted))
        return answers

    def predictions(self, images: Tensor, masks: Masks) -> Tensor:
        """(M * B, T, target dim) from the context alone, of images or of their patches."""
        context = self.encoder(images, masks.context)
        predicted: Tensor = self.predictor(context, masks.context, masks.targets)
        return predicted

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder towards the context encoder: p_k = m p_k + (1 - m) p_q."""
        slow: list[Tensor] = [*self.target_encoder.parameters()]
        fast: list[Tensor] = [*self.encoder.parameters()]
        torch._foreach_lerp_(slow, fast, 1.0 - momentum)
        self.renew_teacher()


def build_ijepa(config: PretrainConfig) -> IJepa:
    """Make the networks of step 0; the target encoder starts as a copy of the context encoder."""
    generator, data = torch.Generator().manual_seed(config.seed), config.data
    encoder = build_encoder(config.encoder, data.image_size, generator, data.num_channels)
    size = architecture(config.encoder.arch)
    predictor = Predictor(size, config.predictor, config.grid, target_dim(config))
    predictor.predictor_pos_embed.data.mul_(config.encoder.position_scale)
    initialise(predictor, config.encoder.init, generator)
    nn.init.trunc_normal_(predictor.mask_token, std=0.02, generator=generator)
    return IJepa(encoder, predictor, copy.deepcopy(encoder), config.targets)


def target_dim(config: PretrainConfig) -> int:
    """Numbers that the predictor outputs for a patch: its pixels, or all of `targets.layers`.

    An `IjepaError` refuses a layer beyond the encoder's depth.
    """
    size, layers = architecture(config.encoder.arch), config.targets.layers
    if config.targets.space != "embeddings":
        return config.data.num_channels * config.encoder.patch_px**2
    if layers is None:
        return size.dim
    if layers[-1] > size.depth:
        raise IjepaError(
            f"targets.layers names block {layers[-1]}, but {config.encoder.arch} has {size.depth} "
            f"blocks; name blocks from 1 to {size.depth}."
        )
    return len(layers) * size.dim


def parameter_groups(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Two optimizer groups: with weight decay, and without (biases and 1-D parameters).

    The mask token has three dimensions and is decayed, as in the released code.
    """
    decayed, exempt = list[Tensor](), list[Tensor]()
    for name, parameter in (named for module in modules for named in module.named_parameters()):
        if parameter.requires_grad:
            is_exempt = parameter.ndim == 1 or name.endswith("bias")
            (exempt if is_exempt else decayed).append(parameter)
    return [
        {"params": decayed, "decays": True},
        {"params": exempt, "decays": False, "weight_decay": 0.0},
    ]


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


class Targets:
    """Targets of a batch of images; what all masks of an image share is computed once."""

    @torch.no_grad()
    def __init__(self, config: TargetConfig, encoder: Encoder, images: Tensor) -> None:
        """Encode images, or their patches (`Encoder.forward`), unless targets see masked input."""
        self._config, self._encoder, self._images = config, encoder, images
        self._tokens: Tensor | None = None  # (B, N, target dim)
        if config.space != "embeddings":
            patch_px = encoder.patch_embed.patch_size[0]
            pixels = patchify(images, patch_px) if images.ndim == 4 else images
            self._tokens = standardise(pixels) if config.space == "normalised-pixels" else pixels
        elif config.masked == "output":
            self._tokens = target_tokens(config, encoder, images)

    @torch.no_grad()
    def of(self, images: slice, target_index: Tensor) -> Tensor:
        """Targets of B' of the images: (M * B', T, target dim); block 0 of all images first.

        `target_index` (M, B', T) int64 are the patches of their M blocks.
        """
        if self._tokens is not None:
            return gather_blocks(self._tokens[images], target_index)
        some = self._images[images]
        blocks = some.repeat(len(target_index), *[1] * (some.ndim - 1))
        return target_tokens(self._config, self._encoder, blocks, target_index.flatten(0, 1))


def target_tokens(
    config: TargetConfig, encoder: Encoder, images: Tensor, index: Tensor | None = None
) -> Tensor:
    """Tokens of the target encoder after `config.norm`: (B, K or N, target dim).

    All layers of `config.layers` lie side by side, the last one last; `images` and `index` are as
    for `Encoder.forward`.
    """
    if config.layers is None:
        return NORMS[config.norm](encoder(images, index))
    layers = encoder.forward_layers(images, config.layers, index)
    return torch.cat([NORMS[config.norm](tokens) for tokens in layers], dim=-1)


def last_layer(tokens: Tensor, config: TargetConfig) -> Tensor:
    """The last layer's part (..., dim) of targets or predictions (..., target dim).

    Targets of one layer, and pixels, are returned as they are.
    """
    return tokens if config.layers is None else tokens.chunk(len(config.layers), dim=-1)[-1]


def gather_blocks(tokens: Tensor, target_index: Tensor) -> Tensor:
    """Keep the tokens of M blocks of each image, without a copy of all tokens for every block.

    Tokens (B, N, D) and patches (M, B, T) int64 make (M * B, T, D); block 0 of all images first.
    """
    first = torch.arange(len(tokens), device=tokens.device).unsqueeze(1) * tokens.shape[1]
    return F.embedding((target_index + first).flatten(0, 1), tokens.flatten(0, 1))


def layer_norm(tokens: Tensor) -> Tensor:
    """Normalise each token, without affine, with PyTorch's default eps."""
    return F.layer_norm(tokens, tokens.shape[-1:])


# By `targets.norm`.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer": layer_norm,
    # A DyT layer at its initial values (Zhu et al., CVPR 2025), which stay.
    "dyntanh": lambda tokens: torch.tanh(tokens / 2),
    "none": lambda tokens: tokens,
}


def standardise(pixels: Tensor) -> Tensor:
    """Mean 0 and variance 1 within each patch; unbiased variance and eps 1e-6, as MAE."""
    mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
    return (pixels - mean) / (variance + 1e-6).sqrt()
