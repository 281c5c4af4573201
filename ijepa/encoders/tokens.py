"""Patch tokens before they are pooled, and the networks that give them."""

from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.config import DataConfig
from ijepa.encoders.load import load_encoder
from ijepa.errors import IjepaError
from ijepa.jepa.vit import Encoder


class Network(NamedTuple):
    """A frozen Vision Transformer to look into.

    Attributes:
        name: for people.
        vit: timm's (BEiT's, too), in evaluation mode, on its device.
        data: how images are cut and normalised for it.
    """

    name: str
    vit: VisionTransformer | Encoder
    data: DataConfig

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (rows, columns)."""
        rows, columns = self.vit.patch_embed.grid_size
        return rows, columns

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)


def load_network(name: str, which: str, seed: int, device: torch.device) -> Network:
    """Make a frozen network from its name; arguments as of `load_encoder`.

    Raises:
        IjepaError: as `load_encoder`, or an encoder that is no Vision Transformer of timm's.
    """
    found = load_encoder(name, which=which, seed=seed, device=device)
    if not isinstance(found.network, VisionTransformer | Encoder):
        raise IjepaError(
            f"{name} is no Vision Transformer of timm's, so there is no looking into it."
        )
    return Network(found.name, found.network.eval().requires_grad_(False), found.data)


@torch.inference_mode()
def patch_tokens(vit: VisionTransformer | Encoder, images: Tensor, layer: int) -> Tensor:
    """Patch tokens after one block and the final norm, without class token or registers.

    Args:
        vit: with a class token or without.
        images: (B, 3, height, width) float, normalised, on the network's device.
        layer: number of the block in [0, depth).

    Returns:
        (B, N, dim) float32; N patches, row-major.
    """
    if isinstance(vit, Encoder):
        [tokens] = vit.forward_layers(images, [layer + 1], norm=True)
        return tokens.float()
    layers = vit.forward_intermediates(
        images, indices=[layer], norm=True, output_fmt="NLC", intermediates_only=True
    )
    assert isinstance(layers, list)
    found: Tensor = layers[0].float()
    return found
