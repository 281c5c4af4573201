"""Weights of I-JEPA read from four formats: ours, the published one, timm's and transformers'.

`read_networks` tells the format by the content of a file.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ijepa.config import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataConfig,
    EncoderConfig,
    PretrainConfig,
    Rgb,
    architecture,
    validated,
)
from ijepa.encoders.spec import PART_NAMES
from ijepa.errors import IjepaError
from ijepa.files import BEST, CHECKPOINTS, LAST, parse_json, read_json
from ijepa.jepa.model import Predictor, target_dim
from ijepa.jepa.vit import Encoder as Vit
from ijepa.paper import pretraining_set
from ijepa.provenance import UNKNOWN, Provenance, run_provenance
from ijepa.records import read_record
from ijepa.weights import (
    PATCHES,
    check_weights,
    checkpoint_of,
    count_blocks,
    load_weights,
    read_weights,
    safetensors_notes,
    state_of,
    unwrapped,
    vit_size,
)

ENCODERS = {"target": "target_encoder", "context": "encoder"}
ALL_PARTS = "all"  # in notes: a file of ours with all parts, named `part.weight`
NOTES = "ijepa"  # metadata key under which converted files keep our config and provenance
# What IJepaModel must be set to for its features to be ours.
SAME_NETWORK = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
BLOCK = {  # modules of a block of ours, and of IJepaModel
    "norm1": ["layernorm_before"],
    "attn.qkv": [f"attention.attention.{part}" for part in ("query", "key", "value")],
    "attn.proj": ["attention.output.dense"],
    "norm2": ["layernorm_after"],
    "mlp.fc1": ["intermediate.dense"],
    "mlp.fc2": ["output.dense"],
}

Weights = dict[str, Tensor]

log = logging.getLogger(__name__)


class Networks(NamedTuple):
    """Weights by part, some of `PART_NAMES`; tensors may be views of a mapped file."""

    source: str  # the file or folder, for messages
    # What they are weights of; without `provenance.settings`, only architecture, patches and image
    # size are known, and all else is the default.
    config: PretrainConfig
    parts: dict[str, Weights]  # state dicts by the names of `IJepa`
    provenance: Provenance

    def encoder(self, which: str) -> Vit:
        """The `target` or `context` encoder, exactly or not at all; its weights are not copied."""
        encoder = self._empty_encoder()
        weights = {name: value.float() for name, value in self.encoder_weights(which).items()}
        load_weights(encoder, weights, f"{self.source} ({which} encoder)", assign=True)
        return encoder

    def encoder_weights(self, which: str) -> Weights:
        """State dict of the `target` or `context` encoder; an `IjepaError` if it is not there."""
        part = ENCODERS[which]
        if part not in self.parts:
            others = [name for name, other in ENCODERS.items() if other in self.parts]
            hint = "".join(f", but the {one} encoder: take --which {one}" for one in others)
            raise IjepaError(f"{self.source} holds no {which} encoder{hint}.")
        return self.parts[part]

    def check(self) -> None:
        """Raise an `IjepaError` that names the first faults, if a part does not fit the config."""
        size, config = architecture(self.config.encoder.arch), self.config
        with torch.device("meta"):
            predictor = Predictor(size, config.predictor, config.grid, target_dim(config))
        for name, weights in self.parts.items():
            module = predictor if name == "predictor" else self._empty_encoder()
            check_weights(module, weights, f"{self.source} ({name})")

    def _empty_encoder(self) -> Vit:
        config, data = self.config.encoder, self.config.data
        size = architecture(config.arch)
        with torch.device("meta"):  # nothing is allocated or drawn that the file has, too
            return Vit(size, data.image_size, config.patch_px, data.num_channels)


def read_networks(path: Path, arch: str | None = None) -> Networks:
    """Read a run or checkpoint of ours, a published file, timm's or transformers'.

    Weights stay on disk until they are used, if the file can be mapped.

    Args:
        path: file or folder.
        arch: for files that do not tell the number of heads, see `inferred_config`.

    Raises:
        IjepaError: none of these, not whole, or recorded as another `arch`.
    """
    networks = _read(path, arch)
    held = architecture(networks.config.encoder.arch)
    if arch and architecture(arch)[:3] != held[:3]:
        raise IjepaError(
            f"{networks.source} records that it is {networks.config.encoder.arch}, not {arch}; "
            f"ask for the same architecture, or for none."
        )
    return networks


def _read(path: Path, arch: str | None) -> Networks:
    if (path / LAST).is_file():
        path = path / LAST
    elif (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        if "pretrained_cfg" not in settings:
            return _of_transformers(path, settings)
        path = path / "model.safetensors"
    if path.is_dir():
        raise IjepaError(f"{path} is neither a finished run nor a folder of transformers' weights.")
    body = unwrapped(read_weights(path), path)
    if "schema" in body:
        return _ours(path, body)
    if "encoder" in body or "target_encoder" in body:
        parts = {part: _weights(path, part, body[part]) for part in PART_NAMES if part in body}
        epoch = body.get("epoch") if isinstance(body.get("epoch"), int) else None
        known = Provenance(origin="published", method="I-JEPA", epochs=epoch)
        return _described(path, parts, arch, known, body.get(NOTES))
    return _of_tensors(path, body, arch)


def _of_tensors(path: Path, body: dict[str, Any], arch: str | None) -> Networks:
    """Tensors by name alone: all parts, as our notes say, or one encoder by timm's names."""
    part, notes = _notes_in(path)
    if part == ALL_PARTS:
        return _described(path, _by_part(_weights(path, "its body", body)), None, UNKNOWN, notes)
    if PATCHES in body:
        parts = {part: _weights(path, "its body", body)}
        return _described(path, parts, arch, Provenance(origin="timm"), notes)
    keys = ", ".join(str(key) for key in list(body)[:3])
    raise IjepaError(
        f"{path} is no checkpoint of ours, no published I-JEPA file and no timm file: its keys are "
        f"{keys or 'none'} ..."
    )


def held_encoder(path: Path) -> str:
    """Which encoder a file of timm or folder of transformers holds: context, unless noted."""
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]
    part = _notes_in(files[0])[0] if files else "encoder"
    return next((which for which, name in ENCODERS.items() if name == part), "target")


def _ours(path: Path, body: dict[str, Any]) -> Networks:
    state = checkpoint_of(path, state_of(path, body))
    begun = state["config"].get("encoder")
    if isinstance(begun, str):  # of fine-tuning or a decoder
        raise IjepaError(
            f"{path} is not of `ijepa pretrain`, and no other run's encoder can be loaded; name "
            f"the encoder that it began with, {begun}."
        )
    config = validated(PretrainConfig, state["config"], str(path))
    parts = _by_part(_weights(path, "model", state["model"]))
    if noted := state["facts"].get("provenance"):
        notes = {"config": config, "provenance": noted}
        return _described(path, parts, None, UNKNOWN, notes)
    folder = path.absolute().parent  # of a relative path, too
    record = (read_record(folder.parent) if folder.name == CHECKPOINTS.name else None) or {}
    data = pretraining_set(str(record.get("source", "")), int(record.get("images", 0)))
    done, checkpoint = state["step"], "best" if path.name == BEST.name else None
    if checkpoint is None and done < (total := state["facts"].get("total_steps", done)):
        checkpoint = f"step {done} of {total}"
    known = run_provenance(
        config,
        checkpoint=checkpoint,
        origin="run",
        data=None if config.init else data,  # the given weights have seen what nobody knows
        steps=done,
        images=done * config.data.batch_size,
        shards=record.get("inputs", {}).get("data"),
        adapted=record.get("adapted"),
    )
    return Networks(str(path), config, parts, known)


def _of_transformers(folder: Path, settings: Mapping[str, Any]) -> Networks:
    """Weights of a folder of `save_pretrained`, one file or several."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise IjepaError(f"{folder} has a config.json, but no model.safetensors beside it.")
    if settings.get("model_type") != "ijepa":
        raise IjepaError(
            f"{folder} is a {settings.get('model_type')!r} model; `ijepa convert` takes "
            f"transformers' 'ijepa'. Any other can be an encoder: --encoder hf:{folder}."
        )
    for name, value in SAME_NETWORK.items():
        if settings.get(name, value) != value:
            raise IjepaError(f"{folder}: {name} is {settings[name]!r}, I-JEPA's is {value!r}.")
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes = [settings.get(name) for name in names]
    weights: Weights = {}
    for file in files:
        weights |= _weights(file, "its body", unwrapped(read_weights(file), file))
    part, notes = _notes_in(files[0])
    parts = {part: ours_of_transformers(weights, folder)}
    if notes is None:
        warn_of_processor(folder, "I-JEPA")
    known = Provenance(origin="hf", method="I-JEPA")
    return _described(folder, parts, "{}x{}x{}".format(*sizes), known, notes)


def warn_of_processor(folder: Path, method: str) -> None:
    """Warn where transformers' image processor normalises otherwise than a method was trained."""
    mean, std = processor_normalisation(folder) or (IMAGENET_MEAN, IMAGENET_STD)
    pairs = zip((*mean, *std), (*IMAGENET_MEAN, *IMAGENET_STD), strict=True)
    if any(abs(theirs - trained) > 1e-3 for theirs, trained in pairs):
        log.warning(
            "%s: its processor says mean %s, std %s, but %s was trained with mean %s, std %s, "
            "ImageNet's, which are taken",
            folder, list(mean), list(std), method, list(IMAGENET_MEAN), list(IMAGENET_STD),
        )  # fmt: skip


def processor_normalisation(folder: Path) -> tuple[Rgb, Rgb] | None:
    """(mean, std) of transformers' image processor; None if it is not there or does not say."""
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.is_file() else {}
    if said.get("do_normalize", True) is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("image_mean") is None or said.get("image_std") is None:
        return None
    try:
        (r, g, b), (u, v, w) = (map(float, said[name]) for name in ("image_mean", "image_std"))
    except (ValueError, TypeError) as error:
        raise IjepaError(f"{path} is not readable ({error}).") from error
    return (r, g, b), (u, v, w)


def _notes_in(file: Path) -> tuple[str, object]:
    """The part that a safetensors file holds, the context's unless noted; other notes."""
    notes = safetensors_notes(file).get(NOTES)
    try:
        body = parse_json(notes) if notes else None
    except ValueError as error:
        raise IjepaError(f"{file} has notes of ijepa that are no JSON ({error}).") from error
    part = body.pop("part", None) if isinstance(body, dict) else "encoder"
    if part not in (*ENCODERS.values(), ALL_PARTS):
        raise IjepaError(f"{file} has notes of ijepa that do not say which encoder it is.")
    return part, body


def _described(
    path: Path, parts: dict[str, Weights], arch: str | None, known: Provenance, notes: object
) -> Networks:
    """Networks as our notes describe them; without notes, as their shapes do."""
    source = str(path)
    if not isinstance(notes, Mapping):
        return Networks(source, inferred_config(parts, arch, source), parts, known)
    config = validated(PretrainConfig, notes.get("config"), f"Notes of ijepa in {path}")
    known = validated(Provenance, notes.get("provenance"), f"Notes of ijepa in {path}")
    return Networks(source, config, parts, known)


def _by_part(weights: Weights) -> dict[str, Weights]:
    parts: dict[str, Weights] = {}
    for name, value in weights.items():
        part, _, inside = name.partition(".")
        parts.setdefault(part, {})[inside] = value
    return parts


def _weights(path: Path, part: str, body: object) -> Weights:
    if not isinstance(body, Mapping):
        raise IjepaError(f"{path}: {part} is a {type(body).__name__}, not weights by name.")
    for name, value in body.items():
        if not isinstance(value, Tensor):
            raise IjepaError(f"{path}: {name} of {part} is a {type(value).__name__}, no tensor.")
    return dict(body)


def inferred_config(parts: Mapping[str, Weights], arch: str | None, source: str) -> PretrainConfig:
    """Read architecture, patch and image size from the shapes of the weights.

    Args:
        parts: at least one encoder, perhaps the predictor.
        arch: name or DIMxDEPTHxHEADS; needed where width and depth are not of `ARCHITECTURES`,
            because no shape tells the number of heads.
        source: for messages.
    """
    weights = parts.get("target_encoder") or parts.get("encoder", {})
    dim, depth, hidden, patch_px, side = vit_size(weights, source, prefix_tokens=0)
    if (channels := weights[PATCHES].shape[1]) != 3:
        raise IjepaError(
            f"{source} takes images of {channels} channels, and holds no notes of ijepa on their "
            f"mean and std; take the run that it was converted from."
        )
    for name, size in ARCHITECTURES.items():
        is_same = (dim, depth, hidden) == (*size[:2], int(size.dim * size.mlp_ratio))
        if is_same and (not arch or architecture(arch).heads == size.heads):
            arch = name
    if not arch:
        raise IjepaError(
            f"{source} is {dim} wide and {depth} blocks deep, no named architecture, and "
            f"the number of heads cannot be read from the weights. Name it: --encoder "
            f"published:{dim}x{depth}xHEADS@FILE, or `ijepa convert --arch {dim}x{depth}xHEADS`."
        )
    body: dict[str, Any] = {
        "data": DataConfig(image_px=side * patch_px),
        "encoder": EncoderConfig(arch=arch, patch_px=patch_px),
    }
    embed = parts.get("predictor", {}).get("predictor_embed.weight")
    if embed is not None and embed.ndim:
        num_blocks = count_blocks(parts["predictor"], "predictor_blocks")
        body["predictor"] = {"dim": len(embed), "depth": num_blocks}
    return validated(PretrainConfig, body, source)


def transformers_names(depth: int) -> dict[str, list[str]]:
    """What IJepaModel calls each weight of ours; queries, keys and values are three matrices there.

    Source: the files `facebook/ijepa_*`, whose names transformers reads and writes in all versions.
    """
    modules = {
        "patch_embed.proj": ["embeddings.patch_embeddings.projection"],
        "norm": ["layernorm"],
    }
    for n in range(depth):
        for ours, theirs in BLOCK.items():
            modules[f"blocks.{n}.{ours}"] = [f"encoder.layer.{n}.{one}" for one in theirs]
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
