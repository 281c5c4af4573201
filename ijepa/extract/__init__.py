"""Frozen features of every image of a split, in an HDF5 feature store."""

from pathlib import Path

import numpy as np

from ijepa.config import RUNTIME, Config, ExtractConfig, Runtime, StrPath
from ijepa.data.index import check_shards
from ijepa.data.shards import open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.features.store import FeatureHeader, open_features, read_header
from ijepa.progress import Progress, automatic, silent
from ijepa.stage import StagePlan, exclusive_work
from ijepa.world import together

VERSION = 13


class ExtractResult(Config):
    """A finished feature file and what is in it."""

    out: Path
    cached: bool
    encoder: str
    images: int
    views: int
    layers: int
    dim: int
    labels: tuple[str, ...]
    tokens: tuple[int, int, int] | None = None  # rows and columns of patches, width of a token
    dense: tuple[str, ...] = ()  # dense labels whose maps stand beside the tokens


class FeatureInfo(Config):
    """What a file says of itself; `classes`: how many different values each label has."""

    path: Path
    images: int
    views: int
    layers: int
    dim: int
    dtype: str
    classes: dict[str, int]
    num_bytes: int
    header: FeatureHeader


def extract(
    shards: StrPath,
    out: StrPath,
    config: ExtractConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
) -> ExtractResult:
    """Write pooled features of the last layers of `config.encoder` to `out`.

    Killed and started again, it goes on after the last whole batch. Under torchrun each process
    encodes its share of the batches.

    Raises:
        IjepaError: the encoder does not load, the split is not there, an image does not decode.
    """
    data = open_shards(Path(shards))
    config = config.model_copy(update={"split": data.named_split(config.split)})
    spec = EncoderSpec.of(config)
    inputs = {"data": data.fingerprint, "encoder": spec.fingerprint(progress)}
    plan = StagePlan("extract", VERSION, config, inputs, Path(out))
    with together(exclusive_work(plan, runtime), runtime) as (work, world):
        if not work.cached:
            from ijepa.extract.encode import Extraction

            told = progress if world.is_rank_0 else silent
            Extraction(config, spec, data, runtime).encode(work, told, world)
    made = describe(plan.out)  # without its numbers: its record has the digest of the file
    return ExtractResult(
        out=plan.out,
        cached=work.cached,
        encoder=made.header.encoder,
        labels=tuple(made.classes),
        tokens=made.header.tokens,
        dense=tuple(made.header.dense),
        **made.model_dump(include={"images", "views", "layers", "dim"}),
    )


def describe(path: StrPath, *, check: bool = False) -> FeatureInfo:
    """Say what a feature file holds; with `check`, read all of it against its checksums.

    Raises:
        IjepaError: it is not whole, or, with `check`, damaged.
    """
    path = Path(path)
    has_tokens = check and read_header(path).tokens is not None
    with open_features(path, check_numbers=check, check_tokens=has_tokens) as store:
        rows, layers, dim = store.shape
        views, labels = 1 + store.header.num_views, store.labels
        return FeatureInfo(
            path=path,
            images=rows // views,
            views=views,
            layers=layers,
            dim=dim,
            dtype=store.dtype,
            classes={name: len(np.unique(found[found >= 0])) for name, found in labels.items()},
            num_bytes=path.stat().st_size,
            header=store.header,
        )


def check_features(
    path: StrPath, shards: StrPath | None = None, progress: Progress = automatic
) -> FeatureInfo:
    """Read a whole feature file against its checksums; with `shards`, the set it was made from too.

    Raises:
        IjepaError: one of them is damaged, or the file was made from another shard set.
    """
    found = describe(path, check=True)
    if shards is not None:
        if found.header.data_fingerprint != open_shards(Path(shards)).fingerprint:
            raise IjepaError(f"{path} was made from other images than those of {shards}.")
        check_shards(Path(shards), progress)
    return found
