"""Read weights of I-JEPA, whatever file they are in; which it is, is told by its content."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from ijepa.config import IMAGENET_MEAN, IMAGENET_STD, PretrainConfig
from ijepa.encoders.names import ours_of_transformers
from ijepa.encoders.networks import (
    ENCODERS,
    PARTS,
    Known,
    Networks,
    Weights,
    arch_name,
    inferred_config,
)
from ijepa.errors import IjepaError
from ijepa.files import parse_json, read_json
from ijepa.records import read_record
from ijepa.weights import checkpoint_of, read_weights, safetensors_notes, unwrapped

LAST = Path("checkpoints") / "last.pt"
NOTES = "ijepa"  # under which our own files of foreign formats say what those have no room for
# What IJepaModel must be set to for its features to be ours.
SAME_NETWORK = {"hidden_act": "gelu", "layer_norm_eps": 1e-6, "qkv_bias": True}

Noted = TypeVar("Noted", PretrainConfig, Known)

log = logging.getLogger(__name__)


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
        return _transformers(path, settings)
    if path.is_dir():
        raise IjepaError(f"{path} is neither a finished run nor a folder of transformers' weights.")
    body = unwrapped(read_weights(path), path)
    for belongs, read in READERS:
        if belongs(body):
            return read(path, body, arch)
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
    notes = safetensors_notes(files[0]).get(NOTES) if files else None
    part = _part(path, notes)[0]
    return next(which for which, name in ENCODERS.items() if name == part)


def _ours(path: Path, body: dict[str, Any], arch: str | None) -> Networks:
    del arch  # the configuration says it
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
    noted = state.facts.get("provenance")
    known = _noted(path, Known, noted) if noted else _of_run(path, state.step, state.config)
    return Networks(str(path), state.config, parts, known)


def _of_run(path: Path, steps: int, config: PretrainConfig) -> Known:
    record = read_record(path.parent.parent) or {}
    return Known(
        origin="run",
        method="I-JEPA",
        epochs=config.optimization.epochs,
        steps=steps,
        images=steps * config.data.batch_size,
        data=record.get("inputs", {}).get("data"),
        recorded=True,
    )


def _published(path: Path, body: dict[str, Any], arch: str | None) -> Networks:
    parts = {part: _weights(path, part, body[part]) for part in PARTS if part in body}
    epoch = body.get("epoch")
    known = Known(
        origin="published", method="I-JEPA", epochs=epoch if isinstance(epoch, int) else None
    )
    return _described(path, parts, arch, known, body.get(NOTES))


def _timm(path: Path, body: dict[str, Any], arch: str | None) -> Networks:
    weights = _weights(path, "its body", body)
    notes = safetensors_notes(path).get(NOTES)
    return _single(path, weights, arch, Known(origin="timm"), notes)


def _transformers(folder: Path, settings: Mapping[str, Any]) -> Networks:
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
    weights: Weights = {}
    for file in files:
        weights |= _weights(file, "its body", unwrapped(read_weights(file), file))
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = [settings.get(name) for name in names]
    if not all(isinstance(size, int) for size in sizes):
        raise IjepaError(f"{folder / 'config.json'} does not say {', '.join(names)}.")
    notes = safetensors_notes(files[0]).get(NOTES)
    known = Known(origin="hf", method="I-JEPA")
    arch = arch_name(*(int(size or 0) for size in sizes))
    networks = _single(folder, ours_of_transformers(weights, folder), arch, known, notes)
    return networks if notes else _normalised(folder, networks)


def _normalised(folder: Path, networks: Networks) -> Networks:
    """Say so where the hub's processor disagrees with how I-JEPA was trained."""
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.is_file() else {}
    mean, std = said.get("image_mean", IMAGENET_MEAN), said.get("image_std", IMAGENET_STD)
    if (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD):
        log.warning(
            "%s normalises with mean %s and std %s; I-JEPA was trained with ImageNet's, which are "
            "taken.",
            path,
            mean,
            std,
        )
    return networks


def _single(
    path: Path, weights: Weights, arch: str | None, known: Known, notes: str | None
) -> Networks:
    """Of a format for one encoder."""
    part, body = _part(path, notes)
    return _described(path, {part: weights}, arch, known, body)


def _part(path: Path, notes: str | None) -> tuple[str, object]:
    """The context's, as timm and transformers have, unless noted; and what else is noted."""
    try:
        body = parse_json(notes) if notes else None
    except ValueError as error:
        raise IjepaError(f"{path} has notes of ijepa that are no JSON ({error}).") from error
    part = body.pop("part", None) if isinstance(body, dict) else "encoder"
    if part not in ENCODERS.values():
        raise IjepaError(f"{path} has notes of ijepa that do not say which encoder it is.")
    return part, body


def _described(
    path: Path, parts: dict[str, Weights], arch: str | None, known: Known, notes: object
) -> Networks:
    if isinstance(notes, Mapping):
        config = _noted(path, PretrainConfig, notes.get("config"))
        return Networks(str(path), config, parts, _noted(path, Known, notes.get("provenance")))
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


Belongs = Callable[[dict[str, Any]], bool]
Reader = Callable[[Path, dict[str, Any], str | None], Networks]
READERS: tuple[tuple[Belongs, Reader], ...] = (
    (lambda body: "schema" in body, _ours),
    (lambda body: "encoder" in body or "target_encoder" in body, _published),
    (lambda body: "patch_embed.proj.weight" in body, _timm),
)
