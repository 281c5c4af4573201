"""Every choice that changes a result: typed, frozen, checked when it is made.

Defaults are the published recipe (facebookresearch/ijepa configs/in1k_vith14_ep300.yaml) unless a
comment says otherwise. What does not change a result (device, workers, logging) is in `Runtime`.
"""

from ijepa.config.convert import ConvertConfig
from ijepa.config.decoder import DecoderConfig
from ijepa.config.evaluation import ExtractConfig, ProbeConfig
from ijepa.config.finetune import FinetuneConfig
from ijepa.config.masks import BlockMasks, MaskConfig, MultiblockMasks, RandomMasks, RasterizedMasks
from ijepa.config.pretrain import (
    DataConfig,
    EncoderConfig,
    OptimizationConfig,
    PredictorConfig,
    PretrainConfig,
    StreamConfig,
    TargetConfig,
    WatchConfig,
)
from ijepa.config.runtime import CPU_WORKERS, RUNTIME, Runtime
from ijepa.config.shard import MAX_PIXELS, ShardConfig
from ijepa.config.validation import validated
from ijepa.config.values import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Config,
    Interpolation,
    Precision,
    Rgb,
    Size,
    StrPath,
    height_width,
)

__all__ = [
    "CPU_WORKERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "RUNTIME",
    "BlockMasks",
    "Config",
    "ConvertConfig",
    "DataConfig",
    "DecoderConfig",
    "EncoderConfig",
    "ExtractConfig",
    "FinetuneConfig",
    "Interpolation",
    "MaskConfig",
    "MultiblockMasks",
    "OptimizationConfig",
    "Precision",
    "PredictorConfig",
    "PretrainConfig",
    "ProbeConfig",
    "RandomMasks",
    "RasterizedMasks",
    "Rgb",
    "Runtime",
    "ShardConfig",
    "Size",
    "StrPath",
    "StreamConfig",
    "TargetConfig",
    "WatchConfig",
    "height_width",
    "validated",
]
