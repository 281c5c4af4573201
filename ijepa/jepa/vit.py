"""The encoder: a Vision Transformer without class token.

Parameter names are timm's and the published code's, so that weights exchange key for key, and
blocks compute what timm's do.
Source: paper section 3 and A.1; facebookresearch/ijepa `src/models/vision_transformer.py`.
"""

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ijepa.compute import recompute
from ijepa.config import Architecture, EncoderConfig, Size, architecture

LayerNorm = functools.partial(nn.LayerNorm, eps=1e-6)  # PyTorch's own eps is 1e-5


class Attention(nn.Module):
    """Multi-head self-attention from queries, keys and values that are projected already."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Identity()  # named as in timm, for code that hooks the attention
        self.fused_attn = True

    def forward(self, qkv: Tensor, num_last: int | None = None) -> Tensor:
        """Attend from the last `num_last` tokens (None: from all) to all: (B, N or num_last, D).

        Queries, keys and values are (B, N, 3 * D), what `self.qkv` makes of the tokens.
        """
        batch, length, width = qkv.shape
        heads, dim = self.num_heads, width // 3
        query, key, value = qkv.reshape(batch, length, 3, heads, dim // heads).permute(
            2, 0, 3, 1, 4
        )  # (B, heads, N, D / heads) each
        if num_last is not None:
            query, length = query[:, :, -num_last:], num_last
        if self.fused_attn:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:
            shares = (query * (dim // heads) ** -0.5) @ key.transpose(-2, -1)
            attended = self.attn_drop(shares.softmax(dim=-1)) @ value
        projected: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, length, dim))
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        changed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return changed


class Block(nn.Module):
    """Transformer block with the norms before attention and MLP; submodules are named as timm's."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.drop_path1: nn.Module = nn.Identity()
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2: nn.Module = nn.Identity()

    def project(self, tokens: Tensor) -> Tensor:
        """Queries, keys and values before they are split into heads: (..., 3 * D)."""
        projected: Tensor = self.attn.qkv(self.norm1(tokens))
        return projected

    def forward(
        self, tokens: Tensor, qkv: Tensor | None = None, num_last: int | None = None
    ) -> Tensor:
        """Mix the tokens (B, N, D): (B, N or num_last, D).

        Two optimizations for the predictor; neither changes the result: `qkv` reuses one projection
        of the shared context and mask tokens; `num_last` skips the context after the last block.
        """
        attended = self.attn(self.project(tokens) if qkv is None else qkv, num_last)
        tokens = tokens if num_last is None else tokens[:, -num_last:]
        tokens = tokens + self.drop_path1(attended)
        mixed: Tensor = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return mixed


class PatchEmbed(nn.Module):
    """The linear projection of patches, with the sizes that timm keeps beside it."""

    def __init__(self, image_size: Size, patch_px: int, dim: int, channels: int) -> None:
        super().__init__()
        self.patch_size = (patch_px, patch_px)
        self.resize(image_size)
        self.proj = nn.Conv2d(channels, dim, patch_px, patch_px)  # its weight is (dim, C, px, px)

    def resize(self, image_size: Size) -> None:
        """Expect images of that (height, width) from now on."""
        self.grid_size = (image_size[0] // self.patch_size[0], image_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]


class Encoder(nn.Module):
    """A Vision Transformer that can encode some of the patches only.

    Positions are a fixed sin-cos table; there is no class token and no head.
    """

    num_prefix_tokens = 0
    cls_token = None

    def __init__(
        self, size: Architecture, image_size: Size, patch_px: int, channels: int = 3
    ) -> None:
        super().__init__()
        self.embed_dim = size.dim
        self.grad_checkpointing = False  # whether only the inputs of blocks are kept
        self.patch_embed = PatchEmbed(image_size, patch_px, size.dim, channels)
        self.blocks = nn.ModuleList(
            Block(size.dim, size.heads, size.mlp_ratio) for _ in range(size.depth)
        )
        self.norm: nn.Module = LayerNorm(size.dim)
        self.fc_norm: nn.Module = nn.Identity()  # set by classifiers
        table = torch.zeros(1, self.patch_embed.num_patches, size.dim)
        self.pos_embed = nn.Parameter(table, requires_grad=False)

    def resize(self, image_size: Size) -> None:
        """Expect images of that (height, width) from now on; positions are interpolated."""
        grid, table = self.patch_embed.grid_size, self.pos_embed.data
        self.patch_embed.resize(image_size)
        if grid != self.patch_embed.grid_size:
            table = table.reshape(1, *grid, -1).permute(0, 3, 1, 2).float()
            size = self.patch_embed.grid_size
            table = F.interpolate(table, size, mode="bicubic", antialias=True)
            self.pos_embed.data = table.permute(0, 2, 3, 1).flatten(1, 2).to(self.pos_embed.dtype)

    def forward_layers(
        self,
        images: Tensor,
        layers: Sequence[int],
        index: Tensor | None = None,
        *,
        norm: bool = False,
    ) -> list[Tensor]:
        """Tokens (B, K or N, dim) after each of some blocks; images and index as for `forward`.

        `layers` are numbers of blocks, counted from 1, ascending; later blocks are not computed.
        With `norm`, the final norm is applied to each, not to the last block's alone.
        """
        tokens, chosen = self.embed(images, index), []
        for number, block in enumerate(self.blocks[: layers[-1]], start=1):
            tokens = block(tokens)
            if number in layers:
                is_last = number == len(self.blocks)
                chosen.append(self.norm(tokens) if norm or is_last else tokens)
        return chosen

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Encode all patches, or those that `index` names: (B, K or N, dim) after the final norm.

        Images are (B, C, height, width) float, normalised; or their patches by `patchify`, (B, N, C
        * patch_px**2), which several encoders can share. `index` (B, K) int64 are patch numbers,
        row-major; None for all N.
        """
        tokens = self.embed(images, index)
        for block in self.blocks:
            tokens = recompute(block, tokens) if self.grad_checkpointing else block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def forward_features(self, images: Tensor) -> Tensor:
        """As `forward` of whole images, by the name that timm's networks have."""
        tokens: Tensor = self(images)
        return tokens

    def embed(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Tokens that enter the first block: (B, K or N, dim); arguments as of `forward`.

        Only the patches that `index` names are projected, by a matrix product: the same as a
        convolution whose stride is its width, and faster.
        """
        projection = self.patch_embed.proj
        patches = patchify(images, self.patch_embed.patch_size[0]) if images.ndim == 4 else images
        positions: Tensor = self.pos_embed
        if index is not None:
            patches = gather_patches(patches, index)
            positions = F.embedding(index, positions[0])
        patches = patches.to(projection.weight.dtype)
        return F.linear(patches, projection.weight.flatten(1), projection.bias) + positions


def gather_patches(tokens: Tensor, index: Tensor) -> Tensor:
    """Keep the tokens (B, N, D) that `index` (B, K) int64 names, in its order: (B, K, D).

    Source: facebookresearch/ijepa `src/masks/utils.py`; that one takes a list of masks, this one.
    """
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """Pixels of each patch: (B, N, C * patch_px**2), row-major, channels first within a patch.

    Images are (B, C, height, width), multiples of `patch_px`.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch_px, width // patch_px
    patches = images.reshape(batch, channels, rows, patch_px, columns, patch_px)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """The fixed sin-cos table (1, rows * columns, dim), row-major.

    The first half of the features encodes the column, the second the row.
    Source: facebookresearch/ijepa `get_2d_sincos_pos_embed`, which is MAE's.
    """
    frequencies = 10000.0 ** (-torch.arange(dim // 4).double() / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(n).double() for n in grid), indexing="ij")
    angles = [places.unsqueeze(-1) * frequencies for places in (columns, rows)]
    parts = [part for angle in angles for part in (angle.sin(), angle.cos())]
    return torch.cat(parts, dim=-1).reshape(1, -1, dim).float()


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Weights (dim, 3, h, w) that project RGB images, for images of other channels.

    Each channel gets the mean over red, green and blue, times 3 / channels: channels that are equal
    give the same tokens as grey RGB images. timm's `adapt_input_conv` repeats the three in turn.
    """
    return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1) * (3 / channels)


def adaptation(channels: int) -> str:
    """What `adapt_channels` does, for logs and records."""
    each = "1 channel," if channels == 1 else f"{channels} channels, each"  # in hashes of weights
    return f"RGB weights to {each} the mean over R, G, B times 3/{channels}"


def build_encoder(
    config: EncoderConfig, image_size: Size, generator: torch.Generator, channels: int = 3
) -> Encoder:
    """Make a freshly initialised encoder of (height, width) images."""
    encoder = Encoder(architecture(config.arch), image_size, config.patch_px, channels)
    table = sincos_positions(encoder.embed_dim, encoder.patch_embed.grid_size)
    encoder.pos_embed.data.copy_(table * config.position_scale)
    initialise(encoder, config.init, generator)
    return encoder


@torch.no_grad()
def initialise(model: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw every Linear and the patch embedding in place; biases 0, norms 1 and 0.

    `init` is `published` (normal of std 0.02), `depth-scaled` (then the last Linear of attention
    and of MLP divided by sqrt(2 * number of the block): the released code's `fix_init_weight`,
    which its own `init_model` undoes) or `xavier` (uniform, the patch embedding as one matrix;
    MAE's).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init == "xavier":
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            else:
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
            nn.init.zeros_(cast(Tensor, module.bias))
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    if init == "depth-scaled":
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for number, block in enumerate(blocks, start=1):
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.div_(math.sqrt(2 * number))
