"""From a file that others released to the weights of its encoder, and what all kinds share."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.config import ARCHITECTURES, Size, height_width
from ijepa.encoders.catalogue import KINDS, paper_epochs
from ijepa.encoders.frozen import CLASS_TOKEN, Asked, Pool
from ijepa.errors import IjepaError
from ijepa.provenance import Provenance
from ijepa.weights import check_weights, read_weights, unwrapped

EVAL_CROP = 224 / 256  # all methods of the paper resize to 256 and cut 224 out

Weights = dict[str, Tensor]

log = logging.getLogger(__name__)


class Released(NamedTuple):
    """What a file holds: an encoder's weights by the file's names, and its epoch if it says one."""

    weights: Weights
    epoch: int | None


def read_released(asked: Asked) -> Released:
    """Read the file that `asked` names: of all that is in it, the encoder's own weights.

    Raises:
        IjepaError: no readable file, or nothing in it that such an encoder is kept under.
    """
    kind, source = KINDS[asked.kind], asked.name
    body = unwrapped(read_weights(Path(asked.rest)), asked.rest)
    weights = dict(_chosen(body, asked))
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
    epoch = body.get("epoch")
    return Released(weights, epoch if isinstance(epoch, int) else None)


def released_provenance(asked: Asked, epoch: int | None, arch: str) -> Provenance:
    """Of the paper's encoder of that method and size, unless the file says another epoch.

    Files of weights alone do not say for how long, or on what, they were trained; the user is told
    what they are taken for.
    """
    method = KINDS[asked.kind].method
    epochs = paper_epochs(method, arch)
    if epochs is None:
        return Provenance(method=method, arch=arch)
    restarts = asked.kind == "data2vec"  # its second 800 epochs are counted from 0 again
    if epoch is not None and epoch not in (epochs - 1, epochs) and not restarts:
        return Provenance(method=method, arch=arch, epochs=epoch)
    log.info(
        "%s is taken for the released weights: %s, %s, %d epochs of ImageNet-1K",
        asked.name, method, arch, epochs,
    )  # fmt: skip
    return Provenance(method=method, arch=arch, epochs=epochs, data="IN1k")


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


def paper_arch(dim: int, depth: int, patch_px: int, image_px: int = 224) -> str:
    """`ViT-H/14`, `ViT-H/16 448` for the paper's widths and depths; else `DIMxDEPTH/PATCH`."""
    sizes = {(size.dim, size.depth): name for name, size in ARCHITECTURES.items()}
    name = sizes.get((dim, depth), "")
    size_px = " 448" if image_px == 448 else ""
    return f"{f'ViT-{name[4].upper()}' if name else f'{dim}x{depth}'}/{patch_px}{size_px}"
