"""Train a decoder that draws a block's pixels from its average embedding, and measure it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ijepa.config import RUNTIME, Config, DecoderConfig, ExtractConfig, Runtime, StrPath, validated
from ijepa.data.shards import ShardSet, open_shards
from ijepa.encoders.identity import encoder_fingerprint
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.recipes import apply_override, dump_yaml
from ijepa.records import read_metrics
from ijepa.stage import (
    StagePlan,
    Work,
    exclusive_work,
    read_json,
    write_bytes,
    write_json,
)
from ijepa.world import is_one_of_many

VERSION = 3
RESULT = "result.json"


class DecoderOutcome(Config):
    """A finished decoder, and how honest it is.

    Attributes:
        loss: mean over the last tenth of the steps.
        images: held-out images that the distances below are means over.
        true: cosine distance, in the frozen encoder's features, from a block's embedding to that
            of a sample of this embedding; `shuffled` of a sample of another image's embedding of
            the same place, `predicted` of a sample of the predictor's output, `resized` of the
            true pixels at the decoder's resolution.
        gain: shuffled less true, with its 95% interval (paired) in `gain_interval`.
        closer: share of images whose true sample is closer than the shuffled one.
    """

    out: Path
    cached: bool
    steps: int
    loss: float
    images: int
    true: float
    shuffled: float
    predicted: float
    resized: float
    gain: float
    gain_interval: tuple[float, float]
    closer: float


class DecoderPlan(Config):
    """What would run."""

    train_images: int
    test_images: int
    grid: tuple[int, int]
    condition: str
    image_px: int
    steps: int
    blocks_seen: int
    parameters: int


def decoder_config(settings: dict[str, Any], overrides: Iterable[str]) -> DecoderConfig:
    """Settings of the command line, and `a=b` overrides.

    Raises:
        IjepaError: an unknown setting or a value out of range.
    """
    body = dict(settings)
    for override in overrides:
        apply_override(body, override)
    return validated(DecoderConfig, body, "options")


def train_decoder(
    shards: StrPath,
    out: StrPath,
    config: DecoderConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> DecoderOutcome:
    """Train on blocks of `config.split`, and measure samples on `config.test_split`.

    The folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    `result.json`. Until it is finished it is `<out>.partial`.

    Args:
        shards: of `ijepa shard`.
        out: folder to make.
        config: what to train, and how.
        runtime: what leaves the result as it is.
        progress: told of steps done.

    Raises:
        IjepaError: diffusers is missing, the encoder has no predictor or does not predict
            embeddings, its target blocks are no rectangles, too few images.
    """
    shards, out = Path(shards), Path(out)
    if is_one_of_many():
        raise IjepaError("ijepa train-decoder runs in one process; start it without torchrun.")
    data = open_shards(shards)
    config = _with_named_split(config, data)
    inputs = {"data": data.fingerprint, "encoder": _encoder_fingerprint(config)}
    plan = StagePlan(
        "train-decoder", VERSION, config, inputs, out, precious=not runtime.replace, is_folder=True
    )
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            _train(work, data, config, runtime, progress)
        return DecoderOutcome(out=out, cached=work.cached, **read_json(out / RESULT))


def plan_decoder(shards: StrPath, config: DecoderConfig) -> DecoderPlan:
    """Say what `train_decoder` would do; raises as it would."""
    shards = Path(shards)
    import torch

    from ijepa.decoder.model import build_decoder
    from ijepa.encoders.jepa import load_jepa

    data = open_shards(shards)
    config = _with_named_split(config, data)
    trained = load_jepa(config.encoder)
    _check(data, config, trained.config.targets.space)
    with torch.device("meta"):
        decoder = build_decoder(config, trained.jepa.encoder.embed_dim)
    return DecoderPlan(
        train_images=len(data.split(config.split)),
        test_images=len(data.split(config.test_split)),
        grid=trained.config.grid,
        condition=config.condition,
        image_px=config.image_px,
        steps=config.steps,
        blocks_seen=config.steps * config.batch_size,
        parameters=sum(parameter.numel() for parameter in decoder.parameters()),
    )


def _with_named_split(config: DecoderConfig, data: ShardSet) -> DecoderConfig:
    name = data.named_split(config.test_split, config.split)
    return config.model_copy(update={"test_split": name})


def _train(
    work: Work, data: ShardSet, config: DecoderConfig, runtime: Runtime, progress: Progress
) -> None:
    from ijepa.decoder.honesty import measure_honesty
    from ijepa.decoder.model import Decoded, TrainedDecoder
    from ijepa.decoder.training import DecoderRun
    from ijepa.encoders.frozen import weights_sha256
    from ijepa.encoders.jepa import load_jepa

    trained = load_jepa(config.encoder)
    _check(data, config, trained.config.targets.space)
    source, sha256 = (
        Decoded(trained.jepa, trained.config),
        weights_sha256(trained.jepa.state_dict()),
    )
    images = data.split(config.split)
    run = DecoderRun(work.folder, source, sha256, images, config, runtime)
    run.train(progress)
    made = TrainedDecoder(run.averaged, config)
    found = measure_honesty(source, made, data.split(config.test_split), runtime, progress)
    losses = [record["loss"] for record in read_metrics(work.folder / "metrics.jsonl")]
    last = losses[-max(1, len(losses) // 10) :]
    facts = {"steps": config.steps, "loss": sum(last) / len(last), **found.model_dump(mode="json")}
    write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
    write_json(work.folder / RESULT, facts)
    work.publish_folder(
        {"seed": config.seed, "device": run.device_name, "command": runtime.command}
    )


def _check(data: ShardSet, config: DecoderConfig, space: str) -> None:
    if space != "embeddings":
        raise IjepaError(
            f"{config.encoder} predicts {space}, which need no decoder; take a run whose "
            f"targets.space is embeddings."
        )
    images = len(data.split(config.split))
    if images < config.batch_size:
        raise IjepaError(
            f"{config.split} holds {images:,} images, fewer than one batch of "
            f"{config.batch_size}; lower it with --set batch_size={max(2, images // 4)}."
        )


def _encoder_fingerprint(config: DecoderConfig) -> str:
    return encoder_fingerprint(ExtractConfig(encoder=config.encoder))
