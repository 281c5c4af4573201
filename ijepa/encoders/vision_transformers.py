"""The baselines of the paper that are Vision Transformers, from the files that were released.

MAE, DINO, iBOT and MSN are timm's VisionTransformer key for key; data2vec and CAE are its BEiT:
biases of queries and values apart, a scale on each branch, and for data2vec one table of relative
positions that all blocks share. Sizes are read from the shapes in the file.
"""

import re
from collections.abc import Callable
from math import isqrt
from typing import NamedTuple

import torch
from timm.layers.norm import LayerNorm
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from ijepa.config import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD
from ijepa.encoders.catalogue import KINDS
from ijepa.encoders.frozen import CLASS_TOKEN, Asked, FrozenEncoder, weights_sha256
from ijepa.encoders.released import (
    EVAL_CROP,
    Weights,
    assign,
    paper_arch,
    read_released,
    released_provenance,
    resize,
    token_pool,
)
from ijepa.errors import IjepaError

PATCHES, HIDDEN = "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
HEADS = {size.dim: size.heads for size in ARCHITECTURES.values()}  # others: 64 wide each


class Size(NamedTuple):
    """What the shapes of a file tell; `side_patches` of the square grid of patches."""

    dim: int
    depth: int
    patch_px: int
    side_patches: int
    mlp_ratio: float


def load(asked: Asked) -> FrozenEncoder:
    """Load a released file, exactly or not at all.

    Raises:
        IjepaError: no readable file, one of another method, or another architecture.
    """
    weights, epoch = read_released(asked)
    size = _size(weights, asked.name)
    network = BUILDERS.get(asked.kind, _vit)(size, weights)
    wanted = {k: v for k, v in weights.items() if not k.endswith("relative_position_index")}
    assign(network, wanted, asked.name)
    digest, own_px = weights_sha256(network.state_dict()), size.side_patches * size.patch_px
    if asked.image_px and asked.image_px != own_px:
        resize(network, (size.patch_px, size.patch_px), asked.image_px)
    network.to(asked.device)
    return FrozenEncoder(
        name=f"{asked.name} ({asked.which})" if KINDS[asked.kind].context else asked.name,
        weights_sha256=digest,
        image_px=asked.image_px or own_px,
        crop_fraction=EVAL_CROP,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        num_layers=size.depth,
        pool=token_pool(network, CLASS_TOKEN),
        provenance=released_provenance(
            asked, epoch, paper_arch(size.dim, size.depth, size.patch_px, own_px)
        ),
        pooling=CLASS_TOKEN,
        network=network,
        which=asked.which,
    )


def _size(weights: Weights, source: str) -> Size:
    """Read off the shapes.

    Raises:
        IjepaError: no Vision Transformer.
    """
    patches, hidden = weights.get(PATCHES), weights.get(HIDDEN)
    table = weights.get("pos_embed", weights.get(SHARED_TABLE))
    wanted = {PATCHES: patches, HIDDEN: hidden, f"pos_embed or {SHARED_TABLE}": table}
    missing = [name for name, value in wanted.items() if value is None or value.ndim < 2]
    if patches is None or hidden is None or table is None or missing:
        raise IjepaError(
            f"{source} holds no Vision Transformer: {missing[0]} missing; it begins with "
            f"{', '.join(list(weights)[:3])}."
        )
    dim = patches.shape[0]
    blocks = {found[0] for name in weights if (found := re.match(r"blocks\.\d+\.", name))}
    return Size(
        dim=dim,
        depth=len(blocks),
        patch_px=patches.shape[-1],
        side_patches=_side(table.shape, source),
        mlp_ratio=(hidden.shape[0] + 0.5) / dim,  # timm rounds down
    )


def _side(shape: torch.Size, source: str) -> int:
    """Side of the grid, of a table (1, 1 + side^2, dim) or ((2 side - 1)^2 + 3, heads)."""
    num_positions = shape[1] - 1 if len(shape) == 3 else shape[0] - 3
    root = isqrt(max(num_positions, 0))
    if root < 1 or root**2 != num_positions:
        raise IjepaError(
            f"{source} has positions of shape {tuple(shape)}; expected a square grid and a class "
            f"token."
        )
    return root if len(shape) == 3 else (root + 1) // 2


def _vit(size: Size, weights: Weights) -> VisionTransformer | Beit:
    del weights
    with torch.device("meta"):  # nothing to initialise: the file's weights take its place
        return VisionTransformer(
            img_size=size.side_patches * size.patch_px,
            patch_size=size.patch_px,
            embed_dim=size.dim,
            depth=size.depth,
            num_heads=_heads(size.dim),
            mlp_ratio=size.mlp_ratio,
            num_classes=0,
            global_pool="token",
            norm_layer=LayerNorm,
            weight_init="skip",
        )


def _data2vec(size: Size, weights: Weights) -> VisionTransformer | Beit:
    table = weights.get(SHARED_TABLE)  # without one, the check says so
    heads = _heads(size.dim) if table is None else table.shape[1]
    return _beit(size, heads, shared_positions=True)


def _cae(size: Size, weights: Weights) -> VisionTransformer | Beit:
    del weights
    heads = 12 if size.dim == 384 else _heads(size.dim)  # cae_small's heads are 32 wide
    return _beit(size, heads, shared_positions=False)


def _beit(size: Size, heads: int, shared_positions: bool) -> VisionTransformer | Beit:
    return Beit(
        img_size=size.side_patches * size.patch_px,
        patch_size=size.patch_px,
        embed_dim=size.dim,
        depth=size.depth,
        num_heads=heads,
        mlp_ratio=size.mlp_ratio,
        init_values=1.0,  # any: the file has its own
        num_classes=0,
        global_pool="token",
        norm_layer=LayerNorm,
        use_abs_pos_emb=not shared_positions,
        use_shared_rel_pos_bias=shared_positions,
    )


def _heads(dim: int) -> int:
    return HEADS.get(dim, max(1, dim // 64))


BUILDERS: dict[str, Callable[[Size, Weights], VisionTransformer | Beit]] = {
    "data2vec": _data2vec,
    "cae": _cae,
}
