"""Weights of I-JEPA in four formats: ours, the published one, timm's and transformers'.

`read_networks` tells the format by the content of a file; `WRITERS` write the same numbers in
another. Where a format has no room for configuration and provenance, our files carry them as notes.
"""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ijepa.config import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataConfig,
    EncoderConfig,
    PretrainConfig,
    architecture,
)
from ijepa.errors import IjepaError
from ijepa.files import parse_json, read_json, write_json
from ijepa.jepa.augment import resized_px
from ijepa.jepa.model import Predictor, target_dim
from ijepa.jepa.vit import Encoder as Vit
from ijepa.paper import pretraining_set
from ijepa.provenance import Provenance, run_provenance
from ijepa.records import read_record
from ijepa.weights import (
    Checkpoint,
    check_weights,
    checkpoint_of,
    read_weights,
    safetensors_notes,
    save_checkpoint,
    unwrapped,
    write_weights,
)

ENCODERS = {"target": "target_encoder", "context": "encoder"}
PARTS = ("encoder", "predictor", "target_encoder")
LAST = Path("checkpoints") / "last.pt"
NOTES = "ijepa"  # under which our own files of foreign formats say what those have no room for
# What IJepaModel must be set to for its features to be ours.
SAME_NETWORK = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}
BILINEAR = 2  # PIL's number
# Names of timm whose network is ours without another argument.
TIMM_NAMES = {
    "vit_huge/14@224": "vit_huge_patch14_gap_224",
    "vit_huge/16@448": "vit_huge_patch16_gap_448",
    "vit_giant/16@224": "vit_giant_patch16_gap_224",
}

Weights = dict[str, Tensor]
Noted = TypeVar("Noted", PretrainConfig, Provenance)

log = logging.getLogger(__name__)


class Networks(NamedTuple):
    """Weights by part, some of `PARTS`; tensors may be views of a mapped file.

    Attributes:
        source: the file or folder, for messages.
        config: what they are weights of; without `provenance.settings`, only architecture, patches
            and image size are known, and all else is the default.
        parts: state dicts by the names of `IJepa`.
        provenance: where they come from.
    """

    source: str
    config: PretrainConfig
    parts: dict[str, Weights]
    provenance: Provenance

    def encoder(self, which: str) -> Vit:
        """The `target` or `context` encoder, without a copy of its weights.

        Raises:
            IjepaError: it is not there, or of another architecture.
        """
        weights, encoder = self.encoder_weights(which), self._empty_encoder()
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
        size, config = architecture(self.config.encoder.arch), self.config
        with torch.device("meta"):
            predictor = Predictor(size, config.predictor, config.grid, target_dim(config))
        for name, weights in self.parts.items():
            module = predictor if name == "predictor" else self._empty_encoder()
            check_weights(module, weights, f"{self.source} ({name})")

    def _empty_encoder(self) -> Vit:
        config = self.config.encoder
        with torch.device("meta"):  # nothing is allocated or drawn that the file has, too
            return Vit(architecture(config.arch), self.config.data.image_size, config.patch_px)


def read_networks(path: Path, arch: str | None = None) -> Networks:
    """Read a run or checkpoint of ours, a published file, timm's or transformers'.

    Weights stay on disk until they are used, if the file can be mapped.

    Args:
        path: file or folder.
        arch: for files that do not tell the number of heads, see `inferred_config`.

    Raises:
        IjepaError: none of these, or not whole.
    """
    if (path / LAST).is_file():
        return read_networks(path / LAST)
    if (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        if "pretrained_cfg" in settings:
            return read_networks(path / "model.safetensors", arch)
        return _of_transformers(path, settings)
    if path.is_dir():
        raise IjepaError(f"{path} is neither a finished run nor a folder of transformers' weights.")
    body = unwrapped(read_weights(path), path)
    if "schema" in body:
        return _ours(path, body)
    if "encoder" in body or "target_encoder" in body:
        parts = {part: _weights(path, part, body[part]) for part in PARTS if part in body}
        epoch = body.get("epoch") if isinstance(body.get("epoch"), int) else None
        known = Provenance(origin="published", method="I-JEPA", epochs=epoch)
        return _described(path, parts, arch, known, body.get(NOTES))
    if "patch_embed.proj.weight" in body:
        part, notes = _notes_in(path)
        parts = {part: _weights(path, "its body", body)}
        return _described(path, parts, arch, Provenance(origin="timm"), notes)
    keys = ", ".join(str(key) for key in list(body)[:3])
    raise IjepaError(
        f"{path} is no checkpoint of ours, no published I-JEPA file and no timm file: its keys are "
        f"{keys or 'none'} ..."
    )


def held_encoder(path: Path) -> str:
    """Which encoder a file has that has room for one: the context's, unless our notes say other.

    Args:
        path: file of timm's form, or folder of transformers'.
    """
    files = sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]
    part = _notes_in(files[0])[0] if files else "encoder"
    return next(which for which, name in ENCODERS.items() if name == part)


def _ours(path: Path, body: dict[str, Any]) -> Networks:
    state = checkpoint_of(path, body)
    parts = {
        part: {
            name.removeprefix(f"{part}."): value
            for name, value in state.model.items()
            if name.startswith(f"{part}.")
        }
        for part in PARTS
    }
    parts = {name: weights for name, weights in parts.items() if weights}
    if noted := state.facts.get("provenance"):
        return Networks(str(path), state.config, parts, _noted(path, Provenance, noted))
    record, config = read_record(path.parent.parent) or {}, state.config
    data = pretraining_set(str(record.get("source", "")), int(record.get("images", 0)))
    known = run_provenance(
        config,
        origin="run",
        data=None if config.init else data,  # the given weights have seen what nobody knows
        steps=state.step,
        images=state.step * config.data.batch_size,
        shards=record.get("inputs", {}).get("data"),
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
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = [settings.get(name) for name in names]
    if not all(isinstance(size, int) for size in sizes):
        raise IjepaError(f"{folder / 'config.json'} does not say {', '.join(names)}.")
    dim, depth, heads, hidden = (int(size or 0) for size in sizes)
    arch = next(
        (name for name, size in ARCHITECTURES.items()
         if (dim, depth, heads, hidden) == (*size[:3], int(size.dim * size.mlp_ratio))),
        f"{dim}x{depth}x{heads}",
    )  # fmt: skip
    weights: Weights = {}
    for file in files:
        weights |= _weights(file, "its body", unwrapped(read_weights(file), file))
    part, notes = _notes_in(files[0])
    known = Provenance(origin="hf", method="I-JEPA")
    parts = {part: ours_of_transformers(weights, folder)}
    networks = _described(folder, parts, arch, known, notes)
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.is_file() and notes is None else {}
    mean, std = said.get("image_mean", IMAGENET_MEAN), said.get("image_std", IMAGENET_STD)
    if (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD):
        log.warning(
            "%s normalises with mean %s and std %s; I-JEPA was trained with ImageNet's, which are "
            "taken.",
            path, mean, std,
        )  # fmt: skip
    return networks


def _notes_in(file: Path) -> tuple[str, object]:
    """Of a safetensors file: the part that it holds, the context's unless noted; other notes."""
    notes = safetensors_notes(file).get(NOTES)
    try:
        body = parse_json(notes) if notes else None
    except ValueError as error:
        raise IjepaError(f"{file} has notes of ijepa that are no JSON ({error}).") from error
    part = body.pop("part", None) if isinstance(body, dict) else "encoder"
    if part not in ENCODERS.values():
        raise IjepaError(f"{file} has notes of ijepa that do not say which encoder it is.")
    return part, body


def _described(
    path: Path, parts: dict[str, Weights], arch: str | None, known: Provenance, notes: object
) -> Networks:
    if isinstance(notes, Mapping):
        config = _noted(path, PretrainConfig, notes.get("config"))
        return Networks(str(path), config, parts, _noted(path, Provenance, notes.get("provenance")))
    return Networks(str(path), inferred_config(parts, arch, str(path)), parts, known)


def _noted(path: Path, kind: type[Noted], body: object) -> Noted:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise IjepaError(f"{path} has notes of ijepa that this version does not know.") from error


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

    Raises:
        IjepaError: not I-JEPA's weights, or of unknown heads.
    """
    encoder = parts.get("target_encoder") or parts["encoder"]
    patch = _tensor(encoder, "patch_embed.proj.weight", 4, source)
    num_patches = _tensor(encoder, "pos_embed", 3, source).shape[1]
    dim, patch_px, side = patch.shape[0], patch.shape[-1], math.isqrt(num_patches)
    if side**2 != num_patches:
        raise IjepaError(
            f"{source} has positions for {num_patches} tokens, no square of patches: not I-JEPA's "
            f"weights, or of images that are not square."
        )
    hidden = _tensor(encoder, "blocks.0.mlp.fc1.weight", 2, source).shape[0]
    arch = _arch(arch, (dim, _depth(encoder, "blocks"), hidden), source)
    body: dict[str, Any] = {
        "data": DataConfig(image_px=side * patch_px),
        "encoder": EncoderConfig(arch=arch, patch_px=patch_px),
    }
    if "predictor" in parts:
        width = _tensor(parts["predictor"], "predictor_embed.weight", 2, source).shape[0]
        depth = _depth(parts["predictor"], "predictor_blocks")
        body["predictor"] = {"dim": width, "depth": depth}
    try:
        return PretrainConfig.model_validate(body)
    except ValidationError as error:
        raise IjepaError(f"{source}: {error.errors()[0]['msg']}.") from error


def _arch(arch: str | None, found: tuple[int, int, int], source: str) -> str:
    """The architecture of (width, depth, hidden width); `arch` must agree with it."""
    dim, depth, hidden = found
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


# Names of one encoder's weights here (which are timm's) and in transformers' IJepaModel; there,
# queries, keys and values are three matrices.
# Source: the files `facebook/ijepa_*`, whose names transformers reads and writes in all versions.

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


def write_ours(networks: Networks, out: Path, which: str) -> None:
    """All parts, without optimizer: an encoder for every command, but no run goes on from it."""
    del which
    model = {
        f"{part}.{name}": _owned(value)
        for part, weights in networks.parts.items()
        for name, value in weights.items()
    }
    facts = {"provenance": networks.provenance.model_dump(mode="json")}
    steps = networks.provenance.steps or 0
    save_checkpoint(out, Checkpoint(steps, networks.config, model, {}, facts))


def write_published(networks: Networks, out: Path, which: str) -> None:
    """All parts by the names of facebookresearch/ijepa `src/train.py`, without optimizer."""
    held = networks.held("published", which)
    if len(held) < len(networks.parts):
        log.warning(
            "%s predicts layers %s, which the predictor of facebookresearch/ijepa does not; it is "
            "left out of %s.",
            networks.source, networks.config.targets.layers, out.name,
        )  # fmt: skip
    body: dict[str, Any] = {
        part: {f"module.{name}": _owned(value) for name, value in networks.parts[part].items()}
        for part in held
    }
    body |= {"epoch": networks.provenance.epochs, NOTES: _notes(networks)}
    write_weights(out, body)


def write_timm(networks: Networks, out: Path, which: str) -> None:
    """One encoder, as `timm.create_model("local-dir:OUT", pretrained=True)` takes it.

    The configuration says how images are cut and normalised, for
    `timm.data.resolve_model_data_config`.
    """
    out.mkdir(exist_ok=True)
    name, settings = timm_network(networks.config)
    data = networks.config.data
    body = {
        "architecture": name,
        "num_classes": 0,
        "num_features": architecture(networks.config.encoder.arch).dim,
        "global_pool": "avg",
        "model_args": settings,
        "pretrained_cfg": {
            "input_size": [3, *data.image_size],
            "interpolation": "bilinear",
            "crop_pct": data.eval_crop_fraction,
            "crop_mode": "center",
            "mean": list(data.mean),
            "std": list(data.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_json(out / "config.json", body)
    _save_safetensors(networks, networks.encoder_weights(which), out / "model.safetensors", which)


def timm_network(config: PretrainConfig) -> tuple[str, dict[str, Any]]:
    """A name of timm, and the arguments beside it that make the encoder's very network."""
    encoder, size = config.encoder, architecture(config.encoder.arch)
    name = TIMM_NAMES.get(f"{encoder.arch}/{encoder.patch_px}@{config.data.image_px}")
    if name:
        return name, {}
    return "vit_base_patch16_224", {
        "img_size": config.data.image_px,
        "patch_size": encoder.patch_px,
        "embed_dim": size.dim,
        "depth": size.depth,
        "num_heads": size.heads,
        **({} if size.mlp_ratio == 4 else {"mlp_ratio": size.mlp_ratio}),
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }


def write_transformers(networks: Networks, out: Path, which: str) -> None:
    """One encoder, as `transformers.AutoModel.from_pretrained(OUT)` takes it, and its processor.

    The processor resizes the shorter side to such a length that the centre crop is ours.

    Raises:
        IjepaError: images that are not square, which the processor could not cut.
    """
    data, size = networks.config.data, architecture(networks.config.encoder.arch)
    if not isinstance(data.image_px, int):
        raise IjepaError(
            f"{networks.source} is of images of {data.image_px} pixels; the image processors of "
            f"transformers cut squares. Convert it to published, timm or ours."
        )
    out.mkdir(exist_ok=True)
    settings = {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": size.dim,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.heads,
        "intermediate_size": int(size.dim * size.mlp_ratio),
        "image_size": data.image_px,
        "patch_size": networks.config.encoder.patch_px,
        "num_channels": 3,
        "dtype": "float32",
        **SAME_NETWORK,
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized_px(data.image_px, data.eval_crop_fraction)[0]},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": data.image_px, "width": data.image_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }
    write_json(out / "config.json", settings)
    write_json(out / "preprocessor_config.json", processor)
    weights = transformers_of_ours(networks.encoder_weights(which))
    _save_safetensors(networks, weights, out / "model.safetensors", which)


WRITERS: dict[str, Callable[[Networks, Path, str], None]] = {
    "ours": write_ours,
    "published": write_published,
    "timm": write_timm,
    "hf": write_transformers,
}


def _notes(networks: Networks) -> dict[str, Any]:
    return {
        "config": networks.config.model_dump(mode="json"),
        "provenance": networks.provenance.model_dump(mode="json"),
    }


def _save_safetensors(networks: Networks, weights: Weights, out: Path, which: str) -> None:
    notes = json.dumps({"part": ENCODERS[which], **_notes(networks)})
    owned = {name: _owned(value) for name, value in weights.items()}
    try:
        save_file(owned, out, metadata={"format": "pt", NOTES: notes})
    except SafetensorError as error:
        raise IjepaError(f"{out} could not be written: {error}.") from error
    mask = os.umask(0)  # it can be asked for by setting it only
    os.umask(mask)
    out.chmod(0o666 & ~mask)  # safetensors lets nobody else read what it writes


def _owned(value: Tensor) -> Tensor:
    """Contiguous, and alone in its storage: what is written is this tensor and no more."""
    value = value.detach().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()
