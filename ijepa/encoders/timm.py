"""Any model of timm by its name, with its pretrained weights or with those of a file.

Pretrained weights come from timm's caches, else are fetched.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import huggingface_hub
import timm
import torch
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError of its client
    EntryNotFoundError,
    HTTPError,
    LocalEntryNotFoundError,
)
from timm.data.config import resolve_model_data_config
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ijepa.config import DataConfig
from ijepa.encoders.base import EVAL_CROP, Encoder
from ijepa.encoders.formats import ENCODERS, held_encoder
from ijepa.encoders.pooling import CLASS_TOKEN, PATCH_AVERAGE, Pooling, token_pool
from ijepa.encoders.spec import RELEASED, EncoderSpec
from ijepa.errors import IjepaError
from ijepa.files import no_file, whole_file
from ijepa.provenance import UNKNOWN, Provenance, paper_arch
from ijepa.weights import check_weights, read_weights, unwrapped

POOLINGS = {"token": CLASS_TOKEN, "avg": PATCH_AVERAGE}  # by timm's `global_pool`
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # as timm prefers them
URL_SECONDS = 20.0  # to wait for an answer; torch would wait for minutes


def load(spec: EncoderSpec) -> Encoder:
    """Load a model of timm, exactly or not at all; never with random weights."""
    [file] = weight_files(spec)
    weights = unwrapped(read_weights(file), file)
    holds_two = all(isinstance(weights.get(key), Mapping) for key in ENCODERS.values())
    if holds_two:  # a published I-JEPA file, of which timm takes the context encoder
        weights = {"encoder": weights[ENCODERS[spec.which]]}
    else:
        spec.refuse_context()
    model = _model(spec.name, weights, spec.text)
    cfg = resolve_model_data_config(model)  # type: ignore[no-untyped-call]  # timm's
    height, width = cfg["input_size"][1:]
    provenance = provenance_of(model, spec.name)
    which = spec.which
    if provenance.method == "I-JEPA" and not holds_two:
        which = held_encoder(file)  # the context's, unless the file says other
    data = DataConfig(
        image_px=height if height == width else (height, width),
        eval_crop_fraction=EVAL_CROP if provenance.method else cfg["crop_pct"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )
    pooled_by = getattr(model, "global_pool", None)
    with_prefix = getattr(model, "pool_include_prefix", False)
    if isinstance(model, VisionTransformer | Beit) and pooled_by in POOLINGS and not with_prefix:
        pooling = token_pool(model, POOLINGS[pooled_by])
    else:  # layers of other networks differ in width: what the head sees is all there is
        pooling = Pooling(_before_head, 1, f"the model's own: {pooled_by or 'before its head'}")
    return Encoder(
        model,
        pooling,
        data,
        name=f"{spec.text} ({spec.which})" if holds_two else spec.text,
        provenance=provenance,
        which=which,
    )


def weight_files(spec: EncoderSpec) -> list[Path]:
    """The file that such an encoder is read from; fetched if it must be."""
    name, model = spec.name, spec.name.partition(".")[0]
    file, is_known = spec.file, timm.is_model(model)
    cfg: Any = None
    try:
        cfg = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model has no such tag
        is_known = False
    if not is_known or not (file or (cfg and (cfg.hf_hub_id or cfg.url))):
        near = timm.list_models(f"*{model}*", pretrained=True)[:3] if model else []
        others = f"; it has {', '.join(near)}" if near else ""
        raise IjepaError(
            f"timm {timm.__version__} has no model {name!r} with pretrained weights{others}. "
            f"A file of weights is named as timm:NAME@FILE."
        )
    try:
        file = file or _fetched(cfg)
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise IjepaError(
            f"The weights of timm:{name} are not in the cache and cannot be fetched "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}). Fetch "
            f"{cfg.hf_hub_id or cfg.url} where there is a network, and name the file: "
            f"timm:{name}@FILE."
        ) from error
    if not file.is_file():
        raise IjepaError(f"{no_file(file, 'file of weights')}.")
    return [file]


def _fetched(cfg: Any) -> Path:  # noqa: ANN401  # timm's PretrainedCfg
    """The file of pretrained weights that timm names, from a cache if it is there."""
    if not cfg.hf_hub_id:
        path = Path(torch.hub.get_dir()) / "checkpoints" / str(cfg.url).rpartition("/")[2]
        if not path.is_file():  # where torch.hub, and timm with it, keeps it
            path.parent.mkdir(parents=True, exist_ok=True)
            request = Request(str(cfg.url), headers={"User-Agent": "torch.hub"})
            with urlopen(request, timeout=URL_SECONDS) as answer, whole_file(path) as out:
                shutil.copyfileobj(answer, out)
        return path
    quiet: Any = huggingface_hub.utils.logging.set_verbosity_error
    quiet()  # it would tell of each attempt
    repo, _, revision = cfg.hf_hub_id.partition("@")
    names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_FILES
    for find in (huggingface_hub.try_to_load_from_cache, huggingface_hub.hf_hub_download):
        for name in names:
            try:
                found = find(repo, name, revision=revision or None)
            except LocalEntryNotFoundError:  # the network is gone
                raise
            except EntryNotFoundError:
                continue
            if isinstance(found, str):
                return Path(found)
    raise FileNotFoundError(f"the Hub gives no {' or '.join(names)} of {repo}")


def _model(name: str, weights: dict[str, Any], source: str) -> Any:  # noqa: ANN401  # timm's have no common base
    """With these weights and no head, every weight accounted for."""
    for key in ("model", "state_dict", "encoder"):  # boxes that weights may lie in
        weights = weights[key] if isinstance(weights.get(key), Mapping) else weights
    tensors = {key: value for key, value in weights.items() if isinstance(value, Tensor)}
    if not tensors:
        raise IjepaError(f"{source} holds no weights; name another file, as timm:{name}@FILE.")
    # With as many classes as the head in the file has, timm is strict.
    cfg, num_classes = timm.get_pretrained_cfg(name), 0
    heads = cfg.classifier if cfg is not None and cfg.classifier else ()
    for head in (heads,) if isinstance(heads, str) else heads:
        if not num_classes and f"{head}.weight" in tensors:
            num_classes = len(tensors[f"{head}.weight"])
    overlay = {"state_dict": weights, "num_classes": num_classes, "label_offset": 0}
    try:
        model: Any = timm.create_model(
            name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
        )
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        # Where names are timm's own, this says it better.
        check_weights(timm.create_model(name, num_classes=num_classes), tensors, source)
        reason = " ".join(str(error).split())
        raise IjepaError(f"{source} is of another architecture: {reason[:300]}") from error
    # Timm would resample without a word what has another size, such as patches.
    own = model.state_dict()
    check_weights(model, own | {key: tensors[key] for key in own.keys() & tensors.keys()}, source)
    model.reset_classifier(0)
    return model.float().eval()


def _before_head(
    model: Any,  # noqa: ANN401  # any class of theirs
    images: Tensor,
    num_layers: int,
) -> tuple[Tensor, Tensor | None]:
    del num_layers
    tokens: Tensor = model.forward_features(images)
    found: Tensor = model.forward_head(tokens, pre_logits=True)
    num_prefix = getattr(model, "num_prefix_tokens", None)  # of Transformers alone
    has_patches = num_prefix is not None and tokens.ndim == 3
    return found.flatten(1).unsqueeze(1), tokens[:, num_prefix:] if has_patches else None


def provenance_of(model: Any, name: str) -> Provenance:  # noqa: ANN401  # any class of theirs
    """What is known of a model's training by its name; its size alone for other transformers."""
    cfg = model.pretrained_cfg
    known = RELEASED["timm"].get(name if "." in name else f"{name}.{cfg.get('tag', '')}")
    if known or not isinstance(model, VisionTransformer):
        return known or UNKNOWN
    size = (model.embed_dim, len(model.blocks))
    side_px = cfg["input_size"][-1]
    return Provenance(arch=paper_arch(size, model.patch_embed.patch_size[0], side_px))
