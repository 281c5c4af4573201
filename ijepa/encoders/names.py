"""Names of one encoder's weights here (which are timm's) and in transformers' IJepaModel.

Source: names of the files `facebook/ijepa_*`, which transformers reads and writes in all versions;
there, queries, keys and values are three matrices.
"""

import re

import torch

from ijepa.encoders.networks import Weights
from ijepa.errors import IjepaError

OUTSIDE = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
ATTENTION = "attention.attention"
QUERY_KEY_VALUE = ("query", "key", "value")
OURS_OUTSIDE = {theirs: ours for ours, theirs in OUTSIDE.items()}
OURS_IN_BLOCK = {theirs: ours for ours, theirs in IN_BLOCK.items()}


def transformers_of_ours(weights: Weights) -> Weights:
    """An encoder's state dict by the names of IJepaModel; the same numbers."""
    renamed: Weights = {}
    for name, value in weights.items():
        block, inside, kind = _parts(name, "blocks")
        if inside == "attn.qkv":
            for part, third in zip(QUERY_KEY_VALUE, value.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.{ATTENTION}.{part}{kind}"] = third
        elif block:
            renamed[f"encoder.layer.{block}.{IN_BLOCK[inside]}{kind}"] = value
        else:
            renamed[f"{OUTSIDE[inside]}{kind}"] = value
    return renamed


def ours_of_transformers(weights: Weights, source: object) -> Weights:
    """The way back.

    Raises:
        IjepaError: a name that IJepaModel does not have.
    """
    renamed: Weights = {}
    for name, value in weights.items():
        block, inside, kind = _parts(name, r"encoder\.layer")
        attention, _, part = inside.rpartition(".")
        if block and attention == ATTENTION and part in QUERY_KEY_VALUE:
            names = [f"encoder.layer.{block}.{ATTENTION}.{p}{kind}" for p in QUERY_KEY_VALUE]
            if part == "query" and all(each in weights for each in names):
                renamed[f"blocks.{block}.attn.qkv{kind}"] = torch.cat([weights[n] for n in names])
        elif inside in (OURS_IN_BLOCK if block else OURS_OUTSIDE):
            ours = f"blocks.{block}.{OURS_IN_BLOCK[inside]}" if block else OURS_OUTSIDE[inside]
            renamed[f"{ours}{kind}"] = value
        else:
            raise IjepaError(f"{source}: {name} is no weight of transformers' IJepaModel.")
    return renamed


def _parts(name: str, blocks: str) -> tuple[str, str, str]:
    """Number of the block or nothing, name in it, and `.weight`, `.bias` or nothing."""
    match = re.fullmatch(rf"(?:{blocks}\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    assert match
    return match[1] or "", match[2], match[3] or ""
