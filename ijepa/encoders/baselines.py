"""The baselines of the paper, from the files that their authors released.

MAE, DINO, iBOT and MSN are timm's VisionTransformer key for key; data2vec and CAE are its BEiT:
biases of queries and values apart, a scale on each branch, and for data2vec one table of relative
positions that all blocks share. SimCLR v2 and BYOL are wide ResNets trained in TensorFlow and JAX,
in their PyTorch conversions. Both pad as TensorFlow's `SAME` does where it differs from PyTorch: on
images of even size, one pixel less on top and left. BYOL does so in every convolution; SimCLR v2
only where it pools (google-research/simclr `resnet.py`), which its conversion has otherwise.
Sizes are read from the shapes in the file.
"""

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from math import isqrt
from typing import Any, NamedTuple

import torch
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm import LayerNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.models.beit import Beit
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ijepa.config import ARCHITECTURES, IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ijepa.encoders.base import (
    CLASS_TOKEN,
    EVAL_CROP,
    MAP_AVERAGE,
    Encoder,
    Pooled,
    check_multiple,
    token_pool,
    weights_sha256,
)
from ijepa.encoders.spec import KINDS, EncoderSpec, paper_rows
from ijepa.errors import IjepaError
from ijepa.provenance import Provenance, paper_arch
from ijepa.weights import check_weights, read_weights, unwrapped

RESNET_PX = 224
COUNTER = "num_batches_tracked"  # of batch norms; of no effect on features
PATCHES, HIDDEN = "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
HEADS = {size.dim: size.heads for size in ARCHITECTURES.values()}  # others: 64 wide each

Weights = dict[str, Tensor]

log = logging.getLogger(__name__)


def load(spec: EncoderSpec) -> Encoder:
    """Load a released file, exactly or not at all.

    Raises:
        IjepaError: no readable file, one of another method, or another architecture.
    """
    weights, epoch = read_released(spec)
    if spec.kind in RESNETS:
        return _resnet(spec, weights, epoch)
    size = vit_size(weights, spec.text)
    network = vit_network(spec.kind, size, weights)
    wanted = {k: v for k, v in weights.items() if not k.endswith("relative_position_index")}
    assign(network, wanted, spec.text)
    digest, own_px = weights_sha256(network.state_dict()), size.side_patches * size.patch_px
    if spec.image_px and spec.image_px != own_px:
        network.set_input_size(img_size=check_multiple(spec.image_px, size.patch_px))
    arch = paper_arch((size.dim, size.depth), size.patch_px, own_px)
    return Encoder(
        network,
        token_pool(network, CLASS_TOKEN),
        DataConfig(image_px=spec.image_px or own_px, eval_crop_fraction=EVAL_CROP),
        name=f"{spec.text} ({spec.which})" if KINDS[spec.kind].context else spec.text,
        weights_sha256=digest,
        provenance=released_provenance(spec, epoch, arch),
        which=spec.which,
    )


def read_released(spec: EncoderSpec) -> tuple[Weights, int | None]:
    """Of all that a file holds, the encoder's own weights by the file's names; the file's epoch.

    Raises:
        IjepaError: no readable file, or nothing in it that such an encoder is kept under.
    """
    assert spec.file is not None
    kind = KINDS[spec.kind]
    body = unwrapped(read_weights(spec.file), spec.file)
    weights = dict(_chosen(body, spec))
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
        raise IjepaError(f"{spec.text} holds {found}; expected {kind.what}.")
    epoch = body.get("epoch")
    return weights, epoch if isinstance(epoch, int) else None


def _chosen(body: Mapping[str, Any], spec: EncoderSpec) -> Mapping[str, Any]:
    """That part of a file which holds the encoder that was asked for."""
    kind = KINDS[spec.kind]
    keys = kind.context if spec.which == "context" else kind.target
    for key in keys:
        if isinstance(body.get(key), Mapping):
            part: Mapping[str, Any] = body[key]
            return part
    place = f" under {' or '.join(keys)}" if keys else ""
    if spec.which == "context":
        raise IjepaError(f"{spec.text} holds no second encoder{place}; leave --which context out.")
    if any(isinstance(value, Tensor) for value in body.values()):
        return body
    found = ", ".join(list(body)[:3]) or "nothing"
    raise IjepaError(f"{spec.text} holds {found}; expected weights{place}: {kind.what}.")


def released_provenance(spec: EncoderSpec, epoch: int | None, arch: str) -> Provenance:
    """Of the paper's encoder of that method and size, unless the file says another epoch.

    Files of weights alone do not say for how long, or on what, they were trained; the user is told
    what they are taken for.
    """
    method = KINDS[spec.kind].method
    found = {row.epochs for row in paper_rows(method) if row.arch == arch} - {None}
    if len(found) != 1:
        return Provenance(method=method, arch=arch)
    epochs = found.pop()
    restarts = spec.kind == "data2vec"  # its second 800 epochs are counted from 0 again
    if epoch is not None and epochs and epoch not in (epochs - 1, epochs) and not restarts:
        return Provenance(method=method, arch=arch, epochs=epoch)
    log.info(
        "%s is taken for the released weights: %s, %s, %d epochs of ImageNet-1K",
        spec.text, method, arch, epochs,
    )  # fmt: skip
    return Provenance(method=method, arch=arch, epochs=epochs, data="IN1k")


def assign(network: nn.Module, weights: Weights, source: str) -> None:
    """Make these the weights of a network, exactly.

    They are taken over, not copied: the pages of a file are read when they are used.

    Raises:
        IjepaError: missing, unexpected or wrongly shaped weights.
    """
    check_weights(network, weights, source)
    network.load_state_dict(weights, assign=True)
    network.float()


class VitSize(NamedTuple):
    """What the shapes of a file tell; `side_patches` of the square grid of patches."""

    dim: int
    depth: int
    patch_px: int
    side_patches: int
    mlp_ratio: float


def vit_size(weights: Weights, source: str) -> VitSize:
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
    # The table is (1, 1 + side^2, dim), or ((2 side - 1)^2 + 3, heads) of relative positions.
    absolute = len(table.shape) == 3
    num_positions = table.shape[1] - 1 if absolute else table.shape[0] - 3
    root = isqrt(max(num_positions, 0))
    if root < 1 or root**2 != num_positions:
        raise IjepaError(
            f"{source} has positions of shape {tuple(table.shape)}; expected a square grid and a "
            f"class token."
        )
    dim = patches.shape[0]
    return VitSize(
        dim=dim,
        depth=len({found[0] for name in weights if (found := re.match(r"blocks\.\d+\.", name))}),
        patch_px=patches.shape[-1],
        side_patches=root if absolute else (root + 1) // 2,
        mlp_ratio=(hidden.shape[0] + 0.5) / dim,  # timm rounds down
    )


def vit_network(kind: str, size: VitSize, weights: Weights) -> VisionTransformer | Beit:
    """Timm's network of that size; its weights are still to be assigned."""
    heads = HEADS.get(size.dim, max(1, size.dim // 64))
    settings: dict[str, Any] = {
        "img_size": size.side_patches * size.patch_px,
        "patch_size": size.patch_px,
        "embed_dim": size.dim,
        "depth": size.depth,
        "mlp_ratio": size.mlp_ratio,
        "num_classes": 0,
        "global_pool": "token",
        "norm_layer": LayerNorm,
    }
    if kind in ("data2vec", "cae"):
        shared = kind == "data2vec"
        if shared and SHARED_TABLE in weights:  # without one, the check says so
            heads = weights[SHARED_TABLE].shape[1]
        if kind == "cae" and size.dim == 384:
            heads = 12  # cae_small's heads are 32 wide
        return Beit(
            num_heads=heads,
            init_values=1.0,  # any: the file has its own
            use_abs_pos_emb=not shared,
            use_shared_rel_pos_bias=shared,
            **settings,
        )
    with torch.device("meta"):  # nothing to initialise: the file's weights take its place
        return VisionTransformer(num_heads=heads, weight_init="skip", **settings)


def _byol_block(found: re.Match[str]) -> str:
    layer = {"bn": "norm", "conv": "conv"}
    return f"stages.{int(found[1]) - 1}.blocks.{found[2]}.{layer[found[3]]}{found[4]}."


def _simclr_block(found: re.Match[str]) -> str:
    place = int(found[3])  # 0 conv, 1 norm, 2 conv, ...
    layer = "norm" if place % 2 else "conv"
    return f"stages.{int(found[1]) - 1}.blocks.{found[2]}.{layer}{place // 2 + 1}."


def _downsample(found: re.Match[str]) -> str:
    layer = {"0": "conv", "1": "norm", "shortcut": "conv", "bn.0": "norm"}[found[3]]
    return f"stages.{int(found[1]) - 1}.blocks.{found[2]}.downsample.{layer}."


Rename = str | Callable[[re.Match[str]], str]
# Patterns of a converted file's names, and what they become in timm; padding of convolutions, as
# timm's `create_conv2d` takes it.
RESNETS: dict[str, tuple[tuple[tuple[str, Rename], ...], str]] = {
    "simclrv2": (
        (
            (r"net\.0\.0\.", "stem.conv."),
            (r"net\.0\.1\.0\.", "stem.norm."),
            (r"net\.(\d)\.blocks\.(\d+)\.projection\.(shortcut|bn\.0)\.", _downsample),
            (r"net\.(\d)\.blocks\.(\d+)\.net\.(\d)\.(?:0\.)?", _simclr_block),
        ),
        "",
    ),
    "byol": (
        (
            (r"conv1\.", "stem.conv."),
            (r"bn1\.", "stem.norm."),
            (r"layer(\d)\.(\d+)\.downsample\.([01])\.", _downsample),
            (r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.", _byol_block),
        ),
        "same",
    ),
}


def _resnet(spec: EncoderSpec, released: Weights, epoch: int | None) -> Encoder:
    names, padding = RESNETS[spec.kind]
    weights = renamed(released, names)
    depths, width = resnet_size(weights, spec.text)
    network = resnet_network(depths, width, padding)
    counters = (name for name in network.state_dict() if name.endswith(COUNTER))
    weights |= {name: torch.tensor(0) for name in counters}
    assign(network, weights, spec.text)

    def features(images: Tensor, num_layers: int) -> Tensor:
        del num_layers  # layers differ in width: the last is all there is
        found: Tensor = network(images)
        return found.unsqueeze(1)

    # SimCLR v2 sees pixels from 0 to 1.
    normalised = spec.kind == "byol"
    data = DataConfig(
        image_px=spec.image_px or RESNET_PX,
        eval_crop_fraction=EVAL_CROP,
        mean=IMAGENET_MEAN if normalised else (0.0, 0.0, 0.0),
        std=IMAGENET_STD if normalised else (1.0, 1.0, 1.0),
    )
    return Encoder(
        network,
        Pooled(features, 1, MAP_AVERAGE),
        data,
        name=spec.text,
        weights_sha256=weights_sha256(network.state_dict()),
        provenance=released_provenance(spec, epoch, resnet_arch(depths, width)),
    )


def renamed(weights: Weights, names: tuple[tuple[str, Rename], ...]) -> Weights:
    """By timm's names; what no pattern knows keeps its own, to be named in an error."""
    result = {}
    for old, value in weights.items():
        name = old
        for pattern, new in names:
            name, found = re.subn(f"^{pattern}", new, name)
            if found:
                break
        if not name.endswith(COUNTER):
            result[name] = value
    return result


def resnet_size(weights: Weights, source: str) -> tuple[tuple[int, ...], float]:
    """(blocks of each stage, width as a multiple of 64 channels after the first convolution).

    Raises:
        IjepaError: no such ResNet.
    """
    if any("mixing_conv" in name for name in weights):
        raise IjepaError(f"{source} has selective kernels; only the sk0 variants can be loaded.")
    stem = weights.get("stem.conv.weight")
    found = [re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name) for name in weights]
    blocks = {(int(one[1]), int(one[2])) for one in found if one}
    if stem is None or {stage for stage, _ in blocks} != {0, 1, 2, 3}:
        raise IjepaError(
            f"{source} holds no such ResNet of four stages; it begins with "
            f"{', '.join(list(weights)[:3])}."
        )
    depths = tuple(1 + max(block for stage, block in blocks if stage == n) for n in range(4))
    return depths, stem.shape[0] / 64


def resnet_network(depths: tuple[int, ...], width: float, padding: str) -> ResNetV2:
    """Timm's network, without numbers."""
    with torch.device("meta"):
        return ResNetV2(
            list(depths),
            width_factor=width,  # type: ignore[arg-type]  # halves are as good
            stem_type="same",
            preact=False,
            num_classes=0,
            norm_layer=partial(BatchNormAct2d, eps=1e-5),
            conv_layer=partial(create_conv2d, padding=padding),
        )


def resnet_arch(depths: tuple[int, ...], width: float) -> str:
    """As the paper has it: `RN152 (2x)`."""
    return f"RN{3 * sum(depths) + 2}{f' ({width:g}x)' if width != 1 else ''}"
