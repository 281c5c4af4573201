"""How images become features: what a network gives, pooled from the tokens of its last layers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.jepa.vit import Encoder as Vit

CLASS_TOKEN = "class token after the final norm"
PATCH_AVERAGE = "average of patch tokens after the final norm"
MAP_AVERAGE = "average of the last feature map"

Transformer = Vit | VisionTransformer | Beit


class Pooling(NamedTuple):
    """How one vector is made from each layer of a network."""

    # (network, normalised images (B, C, height, width), n) -> features (B, n, dim) of the last n
    # layers, and patch tokens (B, N, dim) of the last one, None where there are none. It holds no
    # network itself, so that an encoder can be copied and pickled.
    pool: Callable[[Any, Tensor, int], tuple[Tensor, Tensor | None]]
    num_layers: int  # how many layers it can give
    name: str  # in words, such as `PATCH_AVERAGE`


def token_pool(network: Transformer, pooling: str) -> Pooling:
    """Features of the last blocks, the final norm applied to each."""
    if isinstance(network, Vit):
        return Pooling(_own_layers, len(network.blocks), PATCH_AVERAGE)
    return Pooling(partial(_pooled_layers, pooling), len(network.blocks), pooling)


def _own_layers(network: Vit, images: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
    depth = len(network.blocks)
    layers = network.forward_layers(images, range(depth - num_layers + 1, depth + 1), norm=True)
    return torch.stack([tokens.mean(dim=1) for tokens in layers], dim=1), layers[-1]


def _pooled_layers(
    pooling: str,
    network: Any,  # noqa: ANN401  # VisionTransformer | Beit
    images: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor]:
    layers: Any = network.forward_intermediates(
        images,
        indices=num_layers,
        return_prefix_tokens=True,
        norm=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    # Without prefix tokens, timm gives the patch tokens alone.
    patches = [layer if isinstance(layer, Tensor) else layer[0] for layer in layers]
    if pooling == CLASS_TOKEN:
        vectors = [prefix[:, 0] for _, prefix in layers]
    else:
        vectors = [tokens.mean(dim=1) for tokens in patches]
    # Where the norm comes after pooling, tokens are those before it.
    return network.fc_norm(torch.stack(vectors, dim=1)), patches[-1]
