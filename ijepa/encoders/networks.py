"""Weights of the networks of one pretraining, and what they are weights of."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from ijepa.config import (
    ARCHITECTURES,
    Config,
    DataConfig,
    EncoderConfig,
    PretrainConfig,
    architecture,
)
from ijepa.errors import IjepaError
from ijepa.jepa.predictor import Predictor, target_dim
from ijepa.jepa.vit import Encoder
from ijepa.weights import check_weights

Weights = dict[str, Tensor]
ENCODERS = {"target": "target_encoder", "context": "encoder"}
PARTS = ("encoder", "predictor", "target_encoder")


class Known(Config):
    """What is known of a pretraining beside its configuration; None where it is not known.

    Attributes:
        origin: `run` for one of ours; else the kind of file that the weights came in first.
        method: `I-JEPA` where that is certain.
        epochs: that are done; likewise `steps`, and `images` seen.
        data: fingerprint of the shard set.
        recorded: does the configuration say how the weights were trained? Otherwise all but
            architecture, patches and image size are defaults.
    """

    origin: str
    method: str | None = None
    epochs: int | None = None
    steps: int | None = None
    images: int | None = None
    data: str | None = None
    recorded: bool = False


class Networks(NamedTuple):
    """Weights by part, some of `PARTS`; tensors may be views of a mapped file.

    Attributes:
        source: the file or folder, for messages.
        config: what they are weights of.
        parts: state dicts by the names of `IJepa`.
        provenance: where they come from.
    """

    source: str
    config: PretrainConfig
    parts: dict[str, Weights]
    provenance: Known

    def encoder(self, which: str) -> Encoder:
        """The `target` or `context` encoder, without a copy of its weights.

        Raises:
            IjepaError: it is not there, or of another architecture.
        """
        weights = self.encoder_weights(which)
        with torch.device("meta"):  # nothing is allocated or drawn that the file has, too
            encoder = _encoder(self.config)
        check_weights(encoder, weights, f"{self.source} ({which} encoder)")
        encoder.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
        return encoder

    def encoder_weights(self, which: str) -> Weights:
        """State dict of the `target` or `context` encoder.

        Raises:
            IjepaError: it is not there.
        """
        part = ENCODERS[which]
        if part not in self.parts:
            others = [name for name, other in ENCODERS.items() if other in self.parts]
            raise IjepaError(
                f"{self.source} holds no {which} encoder, but the {' and '.join(others)} encoder; "
                f"take it with --which {others[0] if others else which}."
            )
        return self.parts[part]

    def held(self, to: str, which: str) -> list[str]:
        """Parts for which a file of format `to` has room, `which` encoder where it holds but one.

        The published code's predictor predicts the last layer alone.
        """
        if to in ("timm", "hf"):
            return [ENCODERS[which]]
        depth = architecture(self.config.encoder.arch).depth
        others_layers = self.config.targets.layers not in (None, (depth,))
        left_out = {"predictor"} if to == "published" and others_layers else set()
        return [part for part in self.parts if part not in left_out]

    def check(self) -> None:
        """Does every part fit the configuration?

        Raises:
            IjepaError: naming the first faults.
        """
        with torch.device("meta"):
            encoder = _encoder(self.config)
            predictor = _predictor(self.config) if "predictor" in self.parts else None
        for name, weights in self.parts.items():
            module = predictor if name == "predictor" else encoder
            assert module is not None
            check_weights(module, weights, f"{self.source} ({name})")


def inferred_config(parts: Mapping[str, Weights], arch: str | None, source: str) -> PretrainConfig:
    """Read architecture, patch and image size from the shapes of the weights.

    Args:
        parts: at least one encoder, perhaps the predictor.
        arch: name or DIMxDEPTHxHEADS; needed where width and depth are not of `ARCHITECTURES`,
            because no shape tells the number of heads.
        source: for messages.

    Raises:
        IjepaError: not I-JEPA's weights, or of unknown heads.
    """
    encoder = parts.get("target_encoder") or parts["encoder"]
    patch, positions = (
        _tensor(encoder, name, axes, source)
        for name, axes in (("patch_embed.proj.weight", 4), ("pos_embed", 3))
    )
    dim, patch_px, side = patch.shape[0], patch.shape[-1], math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1]:
        raise IjepaError(
            f"{source} has positions for {positions.shape[1]} tokens, no square of patches: not "
            f"I-JEPA's weights, or of images that are not square."
        )
    hidden = _tensor(encoder, "blocks.0.mlp.fc1.weight", 2, source).shape[0]
    body: dict[str, Any] = {
        "data": DataConfig(image_px=side * patch_px),
        "encoder": EncoderConfig(
            arch=_arch(arch, dim, _depth(encoder, "blocks"), hidden, source), patch_px=patch_px
        ),
    }
    if "predictor" in parts:
        width = _tensor(parts["predictor"], "predictor_embed.weight", 2, source).shape[0]
        depth = _depth(parts["predictor"], "predictor_blocks")
        body["predictor"] = {"dim": width, "depth": depth}
    try:
        return PretrainConfig.model_validate(body)
    except ValidationError as error:
        raise IjepaError(f"{source}: {error.errors()[0]['msg']}.") from error


def arch_name(dim: int, depth: int, heads: int, hidden: int) -> str:
    """The name of `ARCHITECTURES` for these sizes, or DIMxDEPTHxHEADS."""
    for name, size in ARCHITECTURES.items():
        if (dim, depth, heads, hidden) == (*size[:3], int(size.dim * size.mlp_ratio)):
            return name
    return f"{dim}x{depth}x{heads}"


def _arch(arch: str | None, dim: int, depth: int, hidden: int, source: str) -> str:
    if arch:
        size = architecture(arch)
        if (size.dim, size.depth) != (dim, depth):
            raise IjepaError(
                f"{source} is {dim} wide and {depth} blocks deep, {arch} is {size.dim} and "
                f"{size.depth}."
            )
        return arch
    for name, size in ARCHITECTURES.items():
        if (dim, depth, hidden) == (size.dim, size.depth, int(size.dim * size.mlp_ratio)):
            return name
    raise IjepaError(
        f"{source} is {dim} wide and {depth} blocks deep, no architecture with a name, and weights "
        f"do not tell the number of heads. Say it: --encoder published:{dim}x{depth}xHEADS@FILE, "
        f"or `ijepa convert --arch {dim}x{depth}xHEADS`."
    )


def _tensor(weights: Weights, name: str, axes: int, source: str) -> Tensor:
    value = weights.get(name)
    if value is None or value.ndim != axes:
        shape = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise IjepaError(f"{source} holds no I-JEPA weights: {name} is {shape}.")
    return value


def _depth(weights: Weights, blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d+)\.", name) for name in weights)
    return len({match[1] for match in found if match})


def _encoder(config: PretrainConfig) -> Encoder:
    encoder = config.encoder
    return Encoder(architecture(encoder.arch), config.data.image_size, encoder.patch_px)


def _predictor(config: PretrainConfig) -> Predictor:
    size = architecture(config.encoder.arch)
    return Predictor(size, config.predictor, config.grid, target_dim(config))
