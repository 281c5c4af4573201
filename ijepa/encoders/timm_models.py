"""Any model of timm by its name, with its pretrained weights or with those of a file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.config import Size, height_width
from ijepa.encoders.fetching import fetched
from ijepa.encoders.frozen import (
    CLASS_TOKEN,
    PATCH_AVERAGE,
    Asked,
    FrozenEncoder,
    Pool,
    weights_sha256,
)
from ijepa.encoders.reading import held_encoder
from ijepa.encoders.released import EVAL_CROP, paper_arch, resize, token_pool
from ijepa.encoders.released_names import TIMM
from ijepa.errors import IjepaError
from ijepa.provenance import UNKNOWN, Provenance
from ijepa.weights import check_weights, read_weights, unwrapped

PUBLISHED = {"target": "target_encoder", "context": "encoder"}
POOLINGS = {"token": CLASS_TOKEN, "avg": PATCH_AVERAGE}  # by timm's `global_pool`


def load(asked: Asked) -> FrozenEncoder:
    """Load a model of timm, exactly or not at all; never with random weights.

    Raises:
        IjepaError: no such model, weights that cannot be had, or that are not this model's.
    """
    name, file = _name_and_file(asked.rest)
    body = unwrapped(read_weights(file), file)
    model = _model(name, _weights(body, asked), asked.name)
    digest = weights_sha256(model.state_dict())
    cfg = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm's
    own_px: Size = tuple(cfg["input_size"][1:])
    if asked.image_px and height_width(asked.image_px) != own_px:
        _resize(model, asked.image_px, asked.name)
    model.to(asked.device)
    has_tokens = _pools_tokens(model)
    pooling = POOLINGS[model.global_pool] if has_tokens else f"the model's own: {_own_pool(model)}"
    provenance = _provenance(model, name)
    return FrozenEncoder(
        name=f"{asked.name} ({asked.which})" if _holds_two(body) else asked.name,
        weights_sha256=digest,
        image_px=asked.image_px or (own_px[0] if own_px[0] == own_px[1] else own_px),
        crop_fraction=EVAL_CROP if provenance.method else cfg["crop_pct"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        num_layers=len(model.blocks) if has_tokens else 1,
        pool=token_pool(model, pooling) if has_tokens else _last_layer(model),
        provenance=provenance,
        pooling=pooling,
        network=model if isinstance(model, VisionTransformer | Beit) else None,
        which=_which(asked, body, file, provenance),
    )


def weight_files(rest: str) -> list[Path]:
    """The file that such an encoder is read from; fetched if it must be.

    Raises:
        IjepaError: no such model, or no such file.
    """
    file = _name_and_file(rest)[1]
    if not file.is_file():
        raise IjepaError(f"There is no file {file}.")
    return [file]


def _name_and_file(rest: str) -> tuple[str, Path]:
    name, at, file = rest.partition("@")
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{re.split(r'[.:/]', name)[0]}*")[:3] if name else []
        known = f"; it has {', '.join(near)}" if near else ""
        raise IjepaError(f"timm {timm.__version__} has no model {name!r}{known}.")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise IjepaError(f"timm {timm.__version__} has no {name}{_others(name)}.") from error
    if at and not file:
        raise IjepaError(f"timm:{name}@ names no file; it is timm:NAME@FILE.")
    return name, Path(file) if at else _pretrained(name)


def _others(name: str) -> str:
    known = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*")[:3])
    return f"; it has {known}" if known else ""


def _pretrained(name: str) -> Path:
    """The pretrained weights in timm's caches, fetched if they are not there.

    Raises:
        IjepaError: there are none, or they cannot be fetched.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise IjepaError(
            f"timm has no pretrained weights for {name}: name a file, timm:{name}@FILE"
            f"{_others(name)}."
        )
    try:
        return fetched(cfg)
    except (OSError, ValueError, RuntimeError) as error:
        raise IjepaError(
            f"The weights of timm:{name} are not in the cache and cannot be fetched "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Fetch "
            f"{cfg.hf_hub_id or cfg.url} where there is a network, and name the file: "
            f"timm:{name}@FILE."
        ) from error


def _weights(body: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """Of a published I-JEPA file the encoder that was asked for, where timm takes the context's."""
    if _holds_two(body):
        return {"encoder": body[PUBLISHED[asked.which]]}
    if asked.which == "context":
        raise IjepaError(f"{asked.name} holds one encoder; leave --which context out.")
    return body


def _which(asked: Asked, body: Mapping[str, Any], file: Path, provenance: Provenance) -> str:
    """Of I-JEPA's two encoders a file for one holds the context's, unless it says other."""
    if provenance.method != "I-JEPA" or _holds_two(body):
        return asked.which
    return held_encoder(file)


def _holds_two(body: Mapping[str, Any]) -> bool:
    return all(isinstance(body.get(key), Mapping) for key in PUBLISHED.values())


def _model(name: str, weights: dict[str, Any], source: str) -> Any:  # noqa: ANN401  # timm's have no common base
    """With these weights and no head, every weight accounted for."""
    flat = _flat(weights)
    if not any(isinstance(value, Tensor) for value in flat.values()):
        raise IjepaError(f"{source} holds no weights; name another file, as timm:{name}@FILE.")
    num_classes = _num_classes(timm.get_pretrained_cfg(name), flat)
    # With as many classes as the file has, timm is strict.
    overlay = {"state_dict": flat, "num_classes": num_classes, "label_offset": 0}
    try:
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
        )
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError) as error:
        tensors = {key: value for key, value in flat.items() if isinstance(value, Tensor)}
        # Where names are timm's own, this says it better.
        check_weights(timm.create_model(name, num_classes=num_classes), tensors, source)
        reason = " ".join(str(error).split())
        raise IjepaError(f"{source} is of another architecture: {reason[:300]}") from error
    _check_shapes(model, flat, source)
    model.reset_classifier(0)
    return model.float().eval().requires_grad_(False)


def _flat(weights: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights by name, without the boxes that they may lie in."""
    for key in ("model", "state_dict", "encoder"):
        weights = weights[key] if isinstance(weights.get(key), Mapping) else weights
    return weights


def _num_classes(cfg: Any, flat: Mapping[str, Any]) -> int:  # noqa: ANN401  # any class of theirs
    """Of the head that stands in the file; 0 without one."""
    names = cfg.classifier if cfg is not None and cfg.classifier else ()
    for name in (names,) if isinstance(names, str) else names:
        if f"{name}.weight" in flat:
            return int(flat[f"{name}.weight"].shape[0])
    return 0


def _check_shapes(model: Any, flat: Mapping[str, Any], source: str) -> None:  # noqa: ANN401  # any class of theirs
    """Refuse what timm would resample without a word, such as patches of another size."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in flat.items() if name in expected}
    faults = [
        f"{name} is {shape}, expected {expected[name]}"
        for name, shape in found.items()
        if shape != expected[name]
    ]
    if faults:
        raise IjepaError(
            f"{source} is of another architecture: {'; '.join(faults[:3])}"
            f"{f' and {len(faults) - 3} more' if len(faults) > 3 else ''}."
        )


def _resize(model: Any, image_px: int | Size, source: str) -> None:  # noqa: ANN401  # any class of theirs
    if hasattr(model, "set_input_size"):
        patch_px = getattr(getattr(model, "patch_embed", None), "patch_size", (1, 1))
        resize(model, patch_px, image_px)
    elif model.pretrained_cfg.get("fixed_input_size"):
        raise IjepaError(f"{source} takes no --image-size but its own: timm cannot resize it.")
    if isinstance(model, VisionTransformer | Beit):
        return
    try:  # other networks take multiples of what nobody says
        with torch.inference_mode():
            model.forward_features(torch.zeros(1, 3, *height_width(image_px)))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise IjepaError(f"{source} does not take --image-size {image_px} ({reason}).") from error


def _last_layer(model: Any) -> Pool:  # noqa: ANN401  # any class of theirs
    """What the head would see; layers of other networks differ in width."""

    def pool(images: Tensor, num_layers: int) -> Tensor:
        del num_layers
        features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return features.flatten(1).unsqueeze(1)

    return pool


def _pools_tokens(model: Any) -> bool:  # noqa: ANN401  # any class of theirs
    """Is it a Vision Transformer whose features of any layer are made of tokens simply?"""
    return (
        isinstance(model, VisionTransformer | Beit)
        and model.global_pool in POOLINGS
        and not getattr(model, "pool_include_prefix", False)
    )


def _own_pool(model: Any) -> str:  # noqa: ANN401  # any class of theirs
    return str(getattr(model, "global_pool", None) or "before its head")


def _provenance(model: Any, name: str) -> Provenance:  # noqa: ANN401  # any class of theirs
    """Of a name whose training is known; of any other Vision Transformer its size alone."""
    cfg = model.pretrained_cfg
    known = TIMM.get(name if "." in name else f"{name}.{cfg.get('tag', '')}")
    if known:
        return known.provenance
    if not isinstance(model, VisionTransformer):
        return UNKNOWN
    return Provenance(
        arch=paper_arch(
            model.embed_dim,
            len(model.blocks),
            model.patch_embed.patch_size[0],
            cfg["input_size"][-1],
        )
    )
