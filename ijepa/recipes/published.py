"""Configuration files of facebookresearch/ijepa (`configs/*.yaml`), in our words."""

import logging
from collections.abc import Mapping
from typing import Any

from ijepa.errors import IjepaError

GLOBAL_BATCH = 2048  # of the published runs; their files say only how many images one GPU takes

# published name -> ours
SETTINGS = {
    "data.crop_size": "data.image_px",
    "data.crop_scale": "data.crop_scale",
    "data.use_horizontal_flip": "data.flip",
    "data.batch_size": "masks.group_size",
    "mask.patch_size": "encoder.patch_px",
    "mask.num_pred_masks": "masks.num_targets",
    "mask.pred_mask_scale": "masks.target_scale",
    "mask.aspect_ratio": "masks.target_aspect",
    "mask.enc_mask_scale": "masks.context_scale",
    "mask.min_keep": "masks.min_keep",
    "meta.model_name": "encoder.arch",
    "meta.pred_depth": "predictor.depth",
    "meta.pred_emb_dim": "predictor.dim",
    "optimization.ema": "optimization.ema",
    "optimization.epochs": "optimization.epochs",
    "optimization.warmup": "optimization.warmup_epochs",
    "optimization.start_lr": "optimization.start_lr",
    "optimization.lr": "optimization.lr",
    "optimization.final_lr": "optimization.final_lr",
    "optimization.weight_decay": "optimization.weight_decay",
    "optimization.final_weight_decay": "optimization.final_weight_decay",
    "optimization.ipe_scale": "optimization.schedule_scale",
}
# Where data lie, how many processes read them, where to log: not of the method.
PLACES = {
    "data.image_folder", "data.num_workers", "data.pin_mem", "data.root_path", "logging.folder",
    "logging.write_tag", "meta.copy_data", "meta.load_checkpoint", "meta.read_checkpoint",
}  # fmt: skip
# What we do not do; every published file has these values.
ONLY = {
    "data.use_gaussian_blur": False,
    "data.use_color_distortion": False,
    "data.color_jitter_strength": 0.0,
    "mask.allow_overlap": False,
    "mask.num_enc_masks": 1,
}

log = logging.getLogger(__name__)


def is_published(body: Mapping[str, Any]) -> bool:
    """Is it a file of the released code? Theirs say `mask` and `meta`, ours `masks`."""
    return "mask" in body and "meta" in body


def translate(body: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A released configuration as one of ours.

    The batch of one GPU becomes `masks.group_size`, over which the released code cuts contexts;
    the batch of all GPUs, which no file states, becomes the published 2,048.

    Raises:
        IjepaError: a setting that the released files do not have, or a value we cannot honour.
    """
    ours: dict[str, Any] = {}
    for name, value in _flat(body):
        if name in ONLY and value != ONLY[name]:
            raise IjepaError(f"recipe {source}: {name} is {value!r}; only {ONLY[name]!r} is done.")
        if name == "meta.use_bfloat16":
            _put(ours, "optimization.precision", "bf16" if value else "fp32")
        elif name in SETTINGS:
            _put(ours, SETTINGS[name], value)
        elif name not in ONLY and name not in PLACES:
            raise IjepaError(f"recipe {source}: {name} is not a setting of facebookresearch/ijepa.")
    _put(ours, "data.batch_size", GLOBAL_BATCH)
    log.info(
        "%s: its batch of %s images on each GPU is taken as masks.group_size; data.batch_size, of "
        "all GPUs together, is the published %d.",
        source,
        ours.get("masks", {}).get("group_size"),
        GLOBAL_BATCH,
    )
    return ours


def _flat(body: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [
        (f"{group}.{name}", value)
        for group, settings in body.items()
        for name, value in (settings or {}).items()
    ]


def _put(body: dict[str, Any], dotted: str, value: object) -> None:
    group, name = dotted.split(".")
    body.setdefault(group, {})[name] = value
