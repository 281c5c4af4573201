"""Names of an encoder's weights in transformers' IJepaModel, and ours."""

import re

import torch
from torch import Tensor

from ijepa.errors import IjepaError


def count_blocks(weights: dict[str, Tensor], name: str) -> int:
    """How many different numbers follow `name` in the names of weights."""
    return len({found[0] for key in weights if (found := re.match(rf"{name}\.\d+\.", key))})


def transformers_names(depth: int) -> dict[str, list[str]]:
    """What IJepaModel calls each weight of ours; queries, keys and values are three matrices there.

    Source: the files `facebook/ijepa_*`, whose names transformers reads and writes in all versions.
    """
    modules = {
        "patch_embed.proj": ["embeddings.patch_embeddings.projection"],
        "norm": ["layernorm"],
    }
    for n in range(depth):
        ours, theirs = f"blocks.{n}", f"encoder.layer.{n}"
        modules |= {
            f"{ours}.norm1": [f"{theirs}.layernorm_before"],
            f"{ours}.attn.qkv": [
                f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")
            ],
            f"{ours}.attn.proj": [f"{theirs}.attention.output.dense"],
            f"{ours}.norm2": [f"{theirs}.layernorm_after"],
            f"{ours}.mlp.fc1": [f"{theirs}.intermediate.dense"],
            f"{ours}.mlp.fc2": [f"{theirs}.output.dense"],
        }
    names = {"pos_embed": ["embeddings.position_embeddings"]}
    for ours, found in modules.items():
        for kind in ("weight", "bias"):
            names[f"{ours}.{kind}"] = [f"{theirs}.{kind}" for theirs in found]
    return names


def ours_of_transformers(weights: dict[str, Tensor], source: object) -> dict[str, Tensor]:
    """An encoder's state dict by our names; the same numbers."""
    names = transformers_names(count_blocks(weights, r"encoder\.layer"))
    if strange := weights.keys() - {one for theirs in names.values() for one in theirs}:
        raise IjepaError(f"{source}: {min(strange)} is no weight of transformers' IJepaModel.")
    return {
        ours: weights[theirs[0]] if len(theirs) == 1 else torch.cat([weights[n] for n in theirs])
        for ours, theirs in names.items()
        if weights.keys() >= set(theirs)
    }
