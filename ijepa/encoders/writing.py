"""Write weights of I-JEPA: a checkpoint of ours, a published file, or for timm or transformers."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ijepa.config import Architecture, architecture
from ijepa.encoders.names import transformers_of_ours
from ijepa.encoders.networks import ENCODERS, Networks, Weights
from ijepa.encoders.reading import NOTES, SAME_NETWORK
from ijepa.errors import IjepaError
from ijepa.files import write_json
from ijepa.jepa.augment import resized_px
from ijepa.weights import Checkpoint, save_checkpoint, write_weights

BILINEAR = 2  # PIL's number
# Names of timm whose network is ours without another argument.
TIMM_NAMES = {
    "vit_huge/14@224": "vit_huge_patch14_gap_224",
    "vit_huge/16@448": "vit_huge_patch16_gap_448",
    "vit_giant/16@224": "vit_giant_patch16_gap_224",
}

log = logging.getLogger(__name__)


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
            networks.source,
            networks.config.targets.layers,
            out.name,
        )
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
    name, settings = timm_network(networks)
    data = networks.config.data
    view = {
        "input_size": [3, *data.image_size],
        "interpolation": "bilinear",
        "crop_pct": data.eval_crop_fraction,
        "crop_mode": "center",
        "mean": list(data.mean),
        "std": list(data.std),
    }
    pretrained_cfg = {
        **view,
        "num_classes": 0,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    body = {
        "architecture": name,
        "num_classes": 0,
        "num_features": _size(networks).dim,
        "global_pool": "avg",
        "model_args": settings,
        "pretrained_cfg": pretrained_cfg,
    }
    write_json(out / "config.json", body)
    _save_safetensors(networks, networks.encoder_weights(which), out / "model.safetensors", which)


def write_transformers(networks: Networks, out: Path, which: str) -> None:
    """One encoder, as `transformers.AutoModel.from_pretrained(OUT)` takes it, and its processor.

    Raises:
        IjepaError: images that are not square, which the processor could not cut.
    """
    data, size = networks.config.data, _size(networks)
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
    write_json(out / "config.json", settings)
    write_json(out / "preprocessor_config.json", _processor(networks, data.image_px))
    weights = transformers_of_ours(networks.encoder_weights(which))
    _save_safetensors(networks, weights, out / "model.safetensors", which)


def _processor(networks: Networks, side_px: int) -> dict[str, Any]:
    """Shorter side to such a length that the centre crop is ours; a processor that can crop."""
    data = networks.config.data
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resized_px(side_px, data.eval_crop_fraction)[0]},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": side_px, "width": side_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }


def timm_call(out: str) -> str:
    """The call of timm that makes the network in a folder of `write_timm`."""
    return f"timm.create_model({f'local-dir:{out}'!r}, pretrained=True)"


def timm_network(networks: Networks) -> tuple[str, dict[str, Any]]:
    """A name of timm, and the arguments beside it that make this very network."""
    size, config = _size(networks), networks.config
    network_key = f"{config.encoder.arch}/{config.encoder.patch_px}@{config.data.image_px}"
    name = TIMM_NAMES.get(network_key)
    if name:
        return name, {}
    return "vit_base_patch16_224", {
        "img_size": config.data.image_px,
        "patch_size": config.encoder.patch_px,
        "embed_dim": size.dim,
        "depth": size.depth,
        "num_heads": size.heads,
        **({} if size.mlp_ratio == 4 else {"mlp_ratio": size.mlp_ratio}),
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }


def _size(networks: Networks) -> Architecture:
    return architecture(networks.config.encoder.arch)


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
        out.chmod(0o666 & ~_umask())  # safetensors lets nobody else read what it writes
    except SafetensorError as error:
        raise IjepaError(f"{out} could not be written: {error}.") from error


def _umask() -> int:
    mask = os.umask(0)  # it can be asked for by setting it only
    os.umask(mask)
    return mask


def _owned(value: Tensor) -> Tensor:
    """Contiguous, and alone in its storage: what is written is this tensor and no more."""
    value = value.detach().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


WRITERS: dict[str, Callable[[Networks, Path, str], None]] = {
    "ours": write_ours,
    "published": write_published,
    "timm": write_timm,
    "hf": write_transformers,
}
