"""What each patch looks at: attention of timm's Vision Transformers, per head and rolled out.

The networks compute as they always do, except that the fused kernel, which never writes attention
down, is off while somebody looks.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.errors import IjepaError
from ijepa.jepa.vit import Encoder

See = Callable[[int, Tensor], None]


class Attention(NamedTuple):
    """Attention in one batch of images.

    Attributes:
        heads: (B, heads, T, T) of one block; row q says how query q shares its attention among all
            T tokens, prefix tokens (class, registers) first. Rows sum to 1.
        rollout: (B, T, T) from the input to that block; rows sum to 1.
    """

    heads: Tensor
    rollout: Tensor


@torch.no_grad()
def attention_of(
    network: VisionTransformer | Encoder, images: Tensor, layer: int = -1
) -> Attention:
    """Attention of one block, and rolled out from the first block to it.

    Args:
        network: with a class token or without.
        images: (B, 3, height, width) float, normalised, on the network's device.
        layer: number of the block; negative ones count from the last.

    Raises:
        IjepaError: no such block, or blocks whose attention cannot be seen.
    """
    number = block_number(layer, len(network.blocks))
    heads: list[Tensor] = []
    mixed: list[Tensor] = []

    def see(block: int, shares: Tensor) -> None:
        if block <= number:
            mixed[:] = [rolled_out(shares.float(), *mixed)]
        if block == number:
            heads.append(shares.float())

    with attention_seen_by(network, see):
        network.eval()(images)
    return Attention(heads[0], mixed[0])


@contextlib.contextmanager
def attention_seen_by(network: VisionTransformer | Encoder, see: See) -> Iterator[None]:
    """Call `see(block number, (B, heads, T, T))` whenever a block has shared out its attention.

    Fused attention is off inside, and as it was afterwards.

    Raises:
        IjepaError: a block whose attention is not timm's.
    """
    modules = [_looked_at(network, number) for number in range(len(network.blocks))]
    fused = [module.fused_attn for module in modules]
    hooks = [
        module.attn_drop.register_forward_hook(_told(see, number))
        for number, module in enumerate(modules)
    ]
    try:
        for module in modules:
            module.fused_attn = False
        yield
    finally:
        for module, was, hook in zip(modules, fused, hooks, strict=True):
            module.fused_attn = was
            hook.remove()


def rolled_out(heads: Tensor, before: Tensor | None = None) -> Tensor:
    """Attention from the input through one more block: (B, T, T), rows sum to 1.

    Args:
        heads: (B, heads, T, T) of the block. Their mean is one half of where a token comes from,
            the token itself, by the residual connection, the other.
        before: (B, T, T) through all blocks below; None for the first block.

    Source: Abnar and Zuidema, ACL 2020, section 3.
    """
    mean = heads.mean(dim=1)
    step = (mean + torch.eye(mean.shape[-1], device=mean.device)) / 2
    return step if before is None else step @ before


def block_number(layer: int, depth: int) -> int:
    """Place of a block in [0, depth); -1 is the last.

    Raises:
        IjepaError: there is no such block.
    """
    if not -depth <= layer < depth:
        raise IjepaError(
            f"There is no layer {layer}; this encoder has layers 0 to {depth - 1}, or -{depth} to "
            f"-1 from the end."
        )
    return layer % depth


def _told(see: See, number: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, shares: see(number, shares)


def _looked_at(network: VisionTransformer | Encoder, number: int) -> Any:  # noqa: ANN401  # any attention of timm's
    module = getattr(network.blocks[number], "attn", None)
    if not (hasattr(module, "fused_attn") and hasattr(module, "attn_drop")):
        raise IjepaError(
            f"Attention of {type(network).__name__} cannot be shown: its block {number} is not one "
            f"of timm's Vision Transformers."
        )
    return module
