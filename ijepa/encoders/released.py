"""From a file that others released to the weights of its encoder, and what all kinds share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.config import Size, height_width
from ijepa.encoders.catalogue import KINDS
from ijepa.encoders.frozen import CLASS_TOKEN, Asked, Pool
from ijepa.errors import IjepaError
from ijepa.method.vit import ARCHITECTURES
from ijepa.stores.checkpoint import check_weights
from ijepa.stores.weights import read_weights

EVAL_CROP = 224 / 256  # all methods of the paper resize to 256 and cut 224 out

Weights = dict[str, Tensor]


def released_weights(asked: Asked) -> Weights:
    """The encoder's own weights in the file that `asked` names, by the file's names.

    Raises:
        IjepaError: no readable file, or nothing in it that such an encoder is kept under.
    """
    kind, source = KINDS[asked.kind], asked.name
    weights = _chosen(read_weights(Path(asked.rest)), asked)
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    if kind.part and any(name.startswith(kind.part) for name in weights):
        weights = {
            name.removeprefix(kind.part): value
            for name, value in weights.items()
            if name.startswith(kind.part)
        }
    weights = {k: v for k, v in weights.items() if not k.startswith(kind.others)}
    strange = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if strange or not weights:
        found = f"{strange[0]}, which is no tensor" if strange else "no weights"
        raise IjepaError(f"{source} holds {found}; expected {kind.what}.")
    return weights


def _chosen(body: Mapping[str, Any], asked: Asked) -> Mapping[str, Any]:
    """That part of a file which holds the encoder that was asked for."""
    kind = KINDS[asked.kind]
    keys = kind.context if asked.which == "context" else kind.target
    for key in keys:
        if isinstance(body.get(key), Mapping):
            part: Mapping[str, Any] = body[key]
            return part
    if asked.which == "context":
        wanted = f" under {' or '.join(keys)}" if keys else ""
        raise IjepaError(
            f"{asked.name} holds no second encoder{wanted}; leave --which context out."
        )
    if any(isinstance(value, Tensor) for value in body.values()):
        return body
    found = ", ".join(list(body)[:3]) or "nothing"
    place = f" under {' or '.join(keys)}" if keys else ""
    raise IjepaError(f"{asked.name} holds {found}; expected weights{place}: {kind.what}.")


def assign(network: nn.Module, weights: Weights, source: str) -> None:
    """Make these the weights of a network, exactly, and freeze it.

    They are taken over, not copied: the pages of a file are read when they are used.

    Raises:
        IjepaError: missing, unexpected or wrongly shaped weights.
    """
    check_weights(network, weights, source)
    network.load_state_dict(weights, assign=True)
    network.float().eval().requires_grad_(False)


def resize(network: Any, patch_px: Size, image_px: int | Size) -> None:  # noqa: ANN401  # timm's have no common base
    """Interpolate the positions of a timm network for another image size.

    Raises:
        IjepaError: no multiple of the patch.
    """
    size = height_width(image_px)
    if any(side % patch for side, patch in zip(size, patch_px, strict=True)):
        raise IjepaError(
            f"--image-size {image_px} is no multiple of the patch's {patch_px[0]} pixels."
        )
    network.set_input_size(img_size=size)


def token_pool(network: VisionTransformer | Beit, pooling: str) -> Pool:
    """Features of the last blocks of a timm network, the final norm applied to each."""

    def pool(images: Tensor, num_layers: int) -> Tensor:
        layers: Any = network.forward_intermediates(
            images,
            indices=num_layers,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if pooling == CLASS_TOKEN:
            vectors = [prefix[:, 0] for _, prefix in layers]
        else:  # without prefix tokens, timm gives the patch tokens alone
            patches = [layer if isinstance(layer, Tensor) else layer[0] for layer in layers]
            vectors = [tokens.mean(dim=1) for tokens in patches]
        features: Tensor = network.fc_norm(torch.stack(vectors, dim=1))  # where the norm comes last
        return features

    return pool


def paper_arch(dim: int, depth: int, patch_px: int) -> str:
    """`ViT-H/14` for the widths and depths of the paper; else `DIMxDEPTH/PATCH`."""
    sizes = {(size.dim, size.depth): name for name, size in ARCHITECTURES.items()}
    name = sizes.get((dim, depth), "")
    return f"{f'ViT-{name[4].upper()}' if name else f'{dim}x{depth}'}/{patch_px}"
