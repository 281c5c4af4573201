"""Every choice that changes a result: typed, frozen, checked when it is made.

Defaults are the published recipe (facebookresearch/ijepa configs/in1k_vith14_ep300.yaml) unless a
field says otherwise. What does not change a result (device, workers, logging) is in `Runtime`.
"""

from ijepa.config.pictures import (
    AttentionConfig,
    EmbeddingConfig,
    EncodersConfig,
    MasksConfig,
    NeighborsConfig,
    PcaConfig,
    PictureConfig,
    PredictionsConfig,
    RetrievalConfig,
)
from ijepa.config.pretrain import (
    ARCHITECTURES,
    Architecture,
    BlockMasks,
    DataConfig,
    EncoderConfig,
    MaskConfig,
    MultiblockMasks,
    OptimizationConfig,
    PredictorConfig,
    PretrainConfig,
    RandomMasks,
    RasterizedMasks,
    StreamConfig,
    TargetConfig,
    WatchConfig,
    architecture,
)
from ijepa.config.stages import (
    MAX_PIXELS,
    ConvertConfig,
    DecoderConfig,
    ExtractConfig,
    FinetuneConfig,
    ProbeConfig,
    ShardConfig,
)
from ijepa.config.values import (
    CPU_WORKERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RUNTIME,
    Config,
    Interpolation,
    Precision,
    Rgb,
    Runtime,
    Settings,
    Size,
    StrPath,
    height_width,
    validated,
)

__all__ = [
    "ARCHITECTURES", "CPU_WORKERS", "IMAGENET_MEAN", "IMAGENET_STD", "MAX_PIXELS", "RUNTIME",
    "Architecture", "AttentionConfig", "BlockMasks", "Config", "ConvertConfig", "DataConfig",
    "DecoderConfig", "EmbeddingConfig", "EncoderConfig", "EncodersConfig", "ExtractConfig",
    "FinetuneConfig", "Interpolation", "MaskConfig", "MasksConfig", "MultiblockMasks",
    "NeighborsConfig", "OptimizationConfig", "PcaConfig", "PictureConfig", "Precision",
    "PredictionsConfig", "PredictorConfig", "PretrainConfig", "ProbeConfig", "RandomMasks",
    "RasterizedMasks", "RetrievalConfig", "Rgb", "Runtime", "Settings", "ShardConfig", "Size",
    "StrPath", "StreamConfig", "TargetConfig", "WatchConfig", "architecture", "height_width",
    "validated",
]  # fmt: skip
