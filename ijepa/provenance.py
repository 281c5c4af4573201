"""Where an encoder comes from, in the words of the paper's tables."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from ijepa.config import ARCHITECTURES, Config, PretrainConfig
from ijepa.files import fingerprint_of

LARGE_PX = 448  # the paper's tables name this size of images behind the network


class Provenance(Config):
    """What is known about an encoder beyond its weights; None where it is not known.

    Feature files, scores and converted weights hold this record.
    """

    method: str | None = None  # such as `I-JEPA` or `MAE`, as the paper's tables have it
    arch: str | None = None  # such as `ViT-H/14`; with images of 448 px `ViT-H/16 448`
    epochs: int | None = None  # of pretraining, as planned, see `checkpoint`
    data: str | None = None  # what it was pretrained on: `IN1k` or `IN22k` for those sets, whole
    family: str | None = None  # 64 hexadecimal digits; equal for encoders of different seeds
    seed: int | None = None  # of the pretraining, or of the random weights
    settings: dict[str, JsonValue] | None = None  # of our own pretraining, all but the seed
    # None for the end of a run; `best` for the state of the health check with the best nearest
    # neighbours; `step 14 of 28` for any other state, which is not as far as `epochs`.
    checkpoint: str | None = None
    origin: str | None = None  # `run` for weights of ours; else the kind of file they came in first
    steps: int | None = None  # of our own pretraining
    images: int | None = None  # that it saw
    shards: str | None = None  # fingerprint of the shard set that it saw
    adapted: str | None = None  # how RGB weights were made to take other channels, if they were


UNKNOWN = Provenance()
NO_POOLING = "none: every pixel"  # pooling of raw pixels, which have no weights to know them by


def run_provenance(
    config: PretrainConfig,
    *,
    trained: bool = True,
    checkpoint: str | None = None,
    **facts: Any,  # noqa: ANN401  # fields
) -> Provenance:
    """Where the encoder of our run comes from, or with `trained=False` its initial weights."""
    method = "I-JEPA" if trained else None
    settings = config.model_dump(mode="json", exclude={"seed"})
    return Provenance(
        method=method,
        arch=paper_arch(config.encoder.arch, config.encoder.patch_px, config.data.image_px),
        epochs=config.optimization.epochs if trained else 0,
        family=run_family(method, settings | ({"checkpoint": checkpoint} if checkpoint else {})),
        checkpoint=checkpoint,
        seed=config.seed,
        settings=settings if trained else None,
        **facts,
    )


def run_family(method: str | None, settings: Mapping[str, Any]) -> str:
    """The family of encoders of a method (None: what a run started from) with equal settings."""
    return fingerprint_of([method, settings])


def paper_arch(arch: str | tuple[int, int], patch_px: int, image_px: object = None) -> str:
    """`vit_huge`, or its (width, depth), with patches of 14 pixels is the paper's `ViT-H/14`.

    Other sizes keep their numbers. The paper names the image size only where it is 448 px.
    """
    if isinstance(arch, tuple):
        names = {(size.dim, size.depth): name for name, size in ARCHITECTURES.items()}
        arch = names.get(arch, "{}x{}".format(*arch))
    size = arch.removeprefix("vit_")
    name = f"ViT-{size[0].upper()}" if size != arch else arch
    return f"{name}/{patch_px}{' 448' if image_px == LARGE_PX else ''}"
