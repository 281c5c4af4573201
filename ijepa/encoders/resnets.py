"""SimCLR v2 and BYOL: wide ResNets trained in TensorFlow and JAX, in their PyTorch conversions.

Both pad as TensorFlow's `SAME` does where it differs from PyTorch: on images of even size, one
pixel less on top and left. BYOL does so in every convolution; SimCLR v2 only where it pools
(google-research/simclr `resnet.py`), which its conversion has otherwise.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from torch import Tensor

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, Rgb
from ijepa.encoders.frozen import MAP_AVERAGE, Asked, FrozenEncoder, weights_sha256
from ijepa.encoders.released import EVAL_CROP, Weights, assign, read_released, released_provenance
from ijepa.errors import IjepaError

OWN_PX = 224
COUNTER = "num_batches_tracked"  # of batch norms; of no effect on features


class Format(NamedTuple):
    """How a converted file names things, and what the network sees.

    Attributes:
        names: patterns and what they become, from the file's names to timm's.
        mean: of the normalisation; likewise `std`.
        padding: of convolutions, as timm's `create_conv2d` takes it.
    """

    names: tuple[tuple[str, Callable[[re.Match[str]], str]], ...]
    mean: Rgb
    std: Rgb
    padding: str


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


FORMATS = {
    "simclrv2": Format(
        names=(
            (r"net\.0\.0\.", lambda _: "stem.conv."),
            (r"net\.0\.1\.0\.", lambda _: "stem.norm."),
            (r"net\.(\d)\.blocks\.(\d+)\.projection\.(shortcut|bn\.0)\.", _downsample),
            (r"net\.(\d)\.blocks\.(\d+)\.net\.(\d)\.(?:0\.)?", _simclr_block),
        ),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        padding="",
    ),
    "byol": Format(
        names=(
            (r"conv1\.", lambda _: "stem.conv."),
            (r"bn1\.", lambda _: "stem.norm."),
            (r"layer(\d)\.(\d+)\.downsample\.([01])\.", _downsample),
            (r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.", _byol_block),
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        padding="same",
    ),
}


def load(asked: Asked) -> FrozenEncoder:
    """Load a converted file, exactly or not at all; depth and width are read from it.

    Raises:
        IjepaError: no readable file, or another architecture.
    """
    form = FORMATS[asked.kind]
    released = read_released(asked)
    weights = renamed(released.weights, form)
    depths, width = _size(weights, asked.name)
    network = _network(depths, width, form.padding)
    counters = (name for name in network.state_dict() if name.endswith(COUNTER))
    weights |= {name: torch.tensor(0) for name in counters}
    assign(network, weights, asked.name)
    network.to(asked.device)

    def pool(images: Tensor, num_layers: int) -> Tensor:
        del num_layers  # layers differ in width: the last is all there is
        features: Tensor = network(images)
        return features.unsqueeze(1)

    return FrozenEncoder(
        name=asked.name,
        weights_sha256=weights_sha256(network.state_dict()),
        image_px=asked.image_px or OWN_PX,
        crop_fraction=EVAL_CROP,
        mean=form.mean,
        std=form.std,
        num_layers=1,
        pool=pool,
        provenance=released_provenance(asked, released.epoch, _arch(depths, width)),
        pooling=MAP_AVERAGE,
    )


def renamed(weights: Weights, form: Format) -> Weights:
    """By timm's names; what no pattern knows keeps its own, to be named in an error."""
    result = {}
    for old, value in weights.items():
        name = old
        for pattern, name_of in form.names:
            name, found = re.subn(f"^{pattern}", name_of, name)
            if found:
                break
        if not name.endswith(COUNTER):
            result[name] = value
    return result


def _size(weights: Weights, source: str) -> tuple[tuple[int, ...], float]:
    """(blocks of each stage, width as a multiple of 64 channels after the first convolution)."""
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


def _network(depths: tuple[int, ...], width: float, padding: str) -> ResNetV2:
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


def _arch(depths: tuple[int, ...], width: float) -> str:
    return f"RN{3 * sum(depths) + 2}{f' ({width:g}x)' if width != 1 else ''}"
