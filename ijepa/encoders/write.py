"""Weights of I-JEPA written in five formats, and any encoder as ONNX.

Where a format has no room for configuration and provenance, our files carry them as notes.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ijepa.config import PretrainConfig, architecture
from ijepa.encoders.base import Encoder
from ijepa.encoders.formats import (
    ALL_PARTS,
    ENCODERS,
    NOTES,
    SAME_NETWORK,
    Networks,
    Weights,
    transformers_names,
)
from ijepa.encoders.spec import WRITTEN
from ijepa.errors import IjepaError, optional
from ijepa.files import write_json
from ijepa.jepa.augment import resized_px
from ijepa.weights import save_state, write_weights

INPUT, OUTPUTS = "images", ("patch_tokens", "features")
TOLERANCE = 1e-4  # of the largest difference, where numbers are above 1 in proportion to them
CHECKED_BATCHES = (1, 3)
FILE_BYTES = 2_000_000_000  # protobuf holds no more; larger weights get a file of their own

log = logging.getLogger(__name__)


def kept_parts(networks: Networks, to: str, which: str) -> list[str]:
    """Parts for which a file of format `to` has room, `which` encoder where it holds but one."""
    if to in ("timm", "hf", "onnx"):
        return [ENCODERS[which]]
    last = architecture(networks.config.encoder.arch).depth
    if to in ("ours", "safetensors") or networks.config.targets.layers in (None, (last,)):
        return list(networks.parts)
    # The published code's predictor predicts the last layer alone.
    return [part for part in networks.parts if part != "predictor"]


def write_ours(networks: Networks, out: Path, which: str) -> None:
    """All parts, without optimizer: an encoder for every command, but no run goes on from it."""
    del which
    model, notes = _all_parts(networks), _notes(networks)
    facts = {"provenance": notes["provenance"]}
    steps = networks.provenance.steps or 0
    body = {"step": steps, "config": notes["config"], "model": model, "optimizer": {}}
    save_state(out, body | {"facts": facts})


def write_safetensors(networks: Networks, out: Path, which: str) -> None:
    """All parts in one file of tensors alone, by the names of `IJepa`; an encoder as of `ours`."""
    del which
    _save(out, _all_parts(networks), {"part": ALL_PARTS, **_notes(networks)})


def write_published(networks: Networks, out: Path, which: str) -> None:
    """All parts by the names of facebookresearch/ijepa `src/train.py`, without optimizer."""
    kept = kept_parts(networks, "published", which)
    if len(kept) < len(networks.parts):
        log.warning(
            "%s predicts layers %s, which the predictor of facebookresearch/ijepa does not; it is "
            "left out of %s.",
            networks.source, networks.config.targets.layers, out.name,
        )  # fmt: skip
    body: dict[str, Any] = {
        part: {f"module.{name}": _owned(value) for name, value in networks.parts[part].items()}
        for part in kept
    }
    write_weights(out, body | {"epoch": networks.provenance.epochs, NOTES: _notes(networks)})


def write_timm(networks: Networks, out: Path, which: str) -> None:
    """One encoder, as `timm.create_model("local-dir:OUT", pretrained=True)` takes it.

    The configuration says how images are cut and normalised, for
    `timm.data.resolve_model_data_config`.
    """
    data = networks.config.data
    body = {
        **WRITTEN["timm"],
        "num_features": architecture(networks.config.encoder.arch).dim,
        "model_args": timm_settings(networks.config),
        "pretrained_cfg": {
            **WRITTEN["timm_pretrained_cfg"],
            "input_size": [data.num_channels, *data.image_size],
            "crop_pct": data.eval_crop_fraction,
            "mean": list(data.mean),
            "std": list(data.std),
        },
    }
    _write_folder(networks, out, which, networks.encoder_weights(which), body)


def timm_settings(config: PretrainConfig) -> dict[str, Any]:
    """Arguments with which timm builds the same network."""
    size = architecture(config.encoder.arch)
    return {
        "img_size": config.data.image_px,
        **({"in_chans": config.data.channels} if config.data.channels else {}),
        "patch_size": config.encoder.patch_px,
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
    """
    data, size = networks.config.data, architecture(networks.config.encoder.arch)
    if not isinstance(data.image_px, int) or data.num_channels != 3:
        raise IjepaError(
            f"{networks.source} is of images of {data.image_px} pixels and {data.num_channels} "
            f"channels; the image processors of transformers cut squares of RGB. Convert it to "
            f"published, timm or ours."
        )
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
        **WRITTEN["hf_processor"],
        "size": {"shortest_edge": resized_px(data.image_px, data.eval_crop_fraction)[0]},
        "crop_size": {"height": data.image_px, "width": data.image_px},
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }
    names = transformers_names(size.depth)
    weights: Weights = {}
    for ours, value in networks.encoder_weights(which).items():
        weights |= zip(names[ours], value.chunk(len(names[ours])), strict=True)
    _write_folder(networks, out, which, weights, settings)
    write_json(out / "preprocessor_config.json", processor)


WRITERS: dict[str, Callable[[Networks, Path, str], None]] = {
    "ours": write_ours,
    "published": write_published,
    "timm": write_timm,
    "hf": write_transformers,
    "safetensors": write_safetensors,
}


def _all_parts(networks: Networks) -> Weights:
    return {
        f"{part}.{name}": _owned(value)
        for part, weights in networks.parts.items()
        for name, value in weights.items()
    }


def _notes(networks: Networks) -> dict[str, Any]:
    return {
        "config": networks.config.model_dump(mode="json"),
        "provenance": networks.provenance.model_dump(mode="json"),
    }


def _write_folder(
    networks: Networks, out: Path, which: str, weights: Weights, config: dict[str, Any]
) -> None:
    out.mkdir(exist_ok=True)
    write_json(out / "config.json", config)
    owned = {name: _owned(value) for name, value in weights.items()}
    _save(out / "model.safetensors", owned, {"part": ENCODERS[which], **_notes(networks)})


def _save(path: Path, weights: Weights, notes: dict[str, Any]) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(weights, path, metadata={"format": "pt", NOTES: json.dumps(notes)})
    except SafetensorError as error:
        raise IjepaError(f"{path} could not be written: {error}.") from error
    path.chmod(mode)  # safetensors lets nobody else read what it writes


def _owned(value: Tensor) -> Tensor:
    """Contiguous, and alone in its storage: what is written is this tensor and no more."""
    value = value.detach().contiguous()
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


class _Graph(nn.Module):
    """Normalised images (n, C, height, width) -> patch tokens (n, N, dim), features (n, dim)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.network, self._pool = encoder.network, encoder._pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, tokens = self._pool(self.network, images, 1)
        assert tokens is not None  # refused before
        return tokens, features[:, 0]


def write_onnx(encoder: Encoder, out: Path, notes: Mapping[str, object]) -> float:
    """Write `out` with a dynamic batch, and compute some images by it and by the encoder.

    Args:
        encoder: on the CPU, with patch tokens.
        out: file to make; weights above 2 GB are written beside it, as `OUT.data`.
        notes: what the file's metadata says beside the encoder's view of images, by name.

    Returns:
        The largest difference of any number, relative to the largest number if that is above 1.

    Raises:
        IjepaError: the encoder has no patch tokens, cannot be exported, or differs by over 1e-4.
    """
    packages = "onnx onnxruntime onnxscript"
    onnxruntime = optional("onnxruntime", "--to onnx", packages)
    optional("onnxscript", "--to onnx", packages)  # of torch's exporter
    data = encoder.data
    channels = data.num_channels
    images = torch.zeros(max(CHECKED_BATCHES), channels, *data.image_size)
    _, tokens = encoder.features_and_tokens(images)
    metadata: dict[str, object] = {
        "input": f"float32 (n, {channels}, height, width): integers over the largest of their "
        "type, floats as they are, minus mean, over std",
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "interpolation": "bilinear, antialiased",
        "crop": f"center, {data.eval_crop_fraction:.6g} of the short side",
        "patches": tokens.shape[1],
        "pooling": encoder.pooling,
        **notes,
    }
    program: Any
    try:
        program = torch.onnx.export(
            _Graph(encoder).eval(),
            (images,),
            dynamo=True,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise IjepaError(f"{encoder.name} cannot be exported to ONNX ({reason}).") from error
    for name, value in metadata.items():
        program.model.metadata_props[name] = value if isinstance(value, str) else json.dumps(value)
    program.save(out, external_data=weight_bytes(encoder) > FILE_BYTES)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    difference = _largest_difference(encoder, session)
    if not difference <= TOLERANCE:
        out.unlink()
        raise IjepaError(
            f"The ONNX file of {encoder.name} gives other features than the encoder, by up to "
            f"{difference:.1e}; more than {TOLERANCE:g} is not published. Try another version of "
            f"torch or onnxruntime."
        )
    return difference


def weight_bytes(encoder: Encoder) -> int:
    """Bytes of all weights."""
    return sum(value.nbytes for value in encoder.state_dict().values())


def _largest_difference(encoder: Encoder, session: Any) -> float:  # noqa: ANN401  # onnxruntime has no types
    rng, differences = torch.Generator().manual_seed(0), []
    for batch in CHECKED_BATCHES:
        images = torch.randn(
            batch, encoder.data.num_channels, *encoder.data.image_size, generator=rng
        )
        features, tokens = encoder.features_and_tokens(images)
        for ours, theirs in zip(
            (tokens.numpy(), features[:, 0].numpy()),
            session.run(OUTPUTS, {INPUT: images.numpy()}),
            strict=True,
        ):
            differences.append(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max()))
    return float(np.max(differences))  # nan if any is
