"""The page of settings: every field of every stage's settings, with its default."""

from collections.abc import Iterator
from inspect import isclass

from pydantic.fields import FieldInfo

from ijepa.config import (
    AttentionConfig,
    BlockMasks,
    ConvertConfig,
    DecoderConfig,
    EmbeddingConfig,
    ExtractConfig,
    FinetuneConfig,
    MultiblockMasks,
    NeighborsConfig,
    PcaConfig,
    PredictionsConfig,
    PretrainConfig,
    ProbeConfig,
    RandomMasks,
    RasterizedMasks,
    ReportConfig,
    RetrievalConfig,
    Settings,
    ShardConfig,
)

STAGES = {
    "shard": ShardConfig,
    "pretrain": PretrainConfig,
    "extract": ExtractConfig,
    "probe": ProbeConfig,
    "finetune": FinetuneConfig,
    "train-decoder": DecoderConfig,
    "visualize attention": AttentionConfig,
    "visualize pca": PcaConfig,
    "visualize neighbors": NeighborsConfig,
    "visualize retrieval": RetrievalConfig,
    "visualize embedding": EmbeddingConfig,
    "visualize predictions": PredictionsConfig,
    "report": ReportConfig,
    "convert": ConvertConfig,
}
MASKS = (MultiblockMasks, RasterizedMasks, BlockMasks, RandomMasks)
INTRODUCTION = """# Settings

What changes a result of a stage. `--set NAME=VALUE` sets any of them; those without a dot are also
options of the command, as `--name`. In recipes, a dot is a level of the YAML file.
"""


def settings_page() -> str:
    """A table a stage; `masks` has one a kind."""
    parts = [INTRODUCTION]
    for name, kind in STAGES.items():
        parts.append(f"## {name}\n\n{_table(fields(kind))}")
    for masks in MASKS:
        words = " ".join((masks.__doc__ or "").split("\n\n")[0].split())
        parts.append(
            f"### masks.kind={masks().kind}\n\n{words}\n\n{_table(fields(masks, 'masks.'))}"
        )
    return "\n\n".join(parts) + "\n"


def fields(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Settings by dotted name, those of groups included; masks apart, which have kinds."""
    for name, field in kind.model_fields.items():
        if isclass(field.annotation) and issubclass(field.annotation, Settings):
            yield from fields(field.annotation, f"{prefix}{name}.")
        elif field.description:
            yield prefix + name, field


def _table(rows: Iterator[tuple[str, FieldInfo]]) -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, field in rows:
        default = "*required*" if field.is_required() else f"`{field.default!r}`"
        lines.append(f"| `{name}` | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(lines)
