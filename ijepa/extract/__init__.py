"""Frozen features of every image of a split, in an HDF5 feature store."""

from pathlib import Path

from ijepa.config import RUNTIME, Config, ExtractConfig, Runtime, StrPath
from ijepa.data.index import check_shards
from ijepa.data.shards import open_shards
from ijepa.encoders.spec import EncoderSpec
from ijepa.errors import IjepaError
from ijepa.features.diagnose import describe
from ijepa.features.store import read_header
from ijepa.progress import Progress, automatic, silent
from ijepa.stage import CACHED, DryRun, StagePlan, exclusive_work
from ijepa.world import together

VERSION = 12


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
    try:
        with together(exclusive_work(plan, runtime), runtime) as (work, world):
            if not work.cached:
                from ijepa.extract.encode import encode

                told = progress if world.is_rank_0 else silent
                encode(work, config, spec, data, runtime, told, world)
    except DryRun as outlook:
        if not config.tokens or outlook.state == CACHED:
            raise
        from ijepa.extract.encode import Extraction

        size = Extraction(config, spec, data, runtime, "cpu").size  # tells what --tokens costs
        raise DryRun(plan, outlook.state, f"{outlook.why}; {size}") from None
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


def check_data(path: StrPath, shards: StrPath, progress: Progress = automatic) -> None:
    """See that a feature file was made from this shard set, and that the set is undamaged."""
    if read_header(Path(path)).data_fingerprint != open_shards(Path(shards)).fingerprint:
        raise IjepaError(f"{path} was made from other images than those of {shards}.")
    check_shards(Path(shards), progress)
