"""Pretrain I-JEPA on a shard set; resumes by itself, exactly, at any step."""

from pathlib import Path

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime
from ijepa.errors import IjepaError
from ijepa.progress import Progress, silent
from ijepa.stores.records import read_metrics
from ijepa.stores.shards import open_shards
from ijepa.stores.stage import StagePlan, exclusive_work

VERSION = 1
PLANNED_BATCHES = 50  # sampled to know how long contexts are


class PretrainResult(Config):
    """A finished run: where it is, and its last numbers."""

    out: Path
    cached: bool
    steps: int
    images: int
    loss: float
    rankme: float
    feature_std: float
    mean_cosine: float
    loss_vs_mean_target: float


class PretrainPlan(Config):
    """What a run would do, found out without doing it.

    Attributes:
        images: in the split.
        encoder_parameters: trained ones, without positions; likewise the predictor's.
        context_patches: mean over sampled batches, after the cut; likewise `target_patches`, each.
    """

    images: int
    steps_per_epoch: int
    steps: int
    images_seen: int
    grid: tuple[int, int]
    encoder_parameters: int
    predictor_parameters: int
    context_patches: float
    target_patches: float


def pretrain(
    shards: Path,
    out: Path,
    config: PretrainConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
) -> PretrainResult:
    """Train the networks of `config` on the split `config.data.split` of a shard set.

    The run folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    one checkpoint every `config.checkpoint_epochs`. Until it is finished it is `<out>.partial`.

    Raises:
        IjepaError: masks that do not fit, too few images, a checkpoint that does not load, a loss
            that is not finite, or another run in that place.
    """
    data = open_shards(shards)
    images = data.split(config.data.split)
    steps_per_epoch(len(images), config)
    inputs = {"data": data.fingerprint}
    plan = StagePlan("pretrain", VERSION, config, inputs, out, precious=True)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            from ijepa.run import Run  # here, so that a cached answer does not wait for torch

            run = Run(work.folder, config, images, runtime)
            run.train(progress)
            work.publish_folder({"seed": config.seed, "device": run.device_name})
        return _result(out, work.cached)


def plan_pretrain(shards: Path, config: PretrainConfig) -> PretrainPlan:
    """Say what `pretrain` would do: sizes, steps and mask statistics.

    Raises:
        IjepaError: as `pretrain` would.
    """
    from ijepa.method.mask_statistics import mask_statistics
    from ijepa.run import model_size

    images = len(open_shards(shards).split(config.data.split))
    per_epoch = steps_per_epoch(images, config)
    steps = per_epoch * config.optimization.epochs
    encoder_parameters, predictor_parameters = model_size(config)
    masks = mask_statistics(config, PLANNED_BATCHES)
    return PretrainPlan(
        images=images,
        steps_per_epoch=per_epoch,
        steps=steps,
        images_seen=steps * config.data.batch_size,
        grid=config.grid,
        encoder_parameters=encoder_parameters,
        predictor_parameters=predictor_parameters,
        context_patches=masks.context_patches,
        target_patches=masks.target_patches,
    )


def steps_per_epoch(num_images: int, config: PretrainConfig) -> int:
    """Full batches only, as published (drop_last).

    Raises:
        IjepaError: there is not even one.
    """
    batch_size = config.data.batch_size
    if num_images < batch_size:
        raise IjepaError(
            f"The data holds {num_images:,} images, fewer than one batch of {batch_size:,}; "
            f"lower it with --set data.batch_size={max(1, num_images // 4)}."
        )
    return num_images // batch_size


def _result(out: Path, cached: bool) -> PretrainResult:
    last = read_metrics(out / "metrics.jsonl")[-1]
    names = ("loss", "rankme", "feature_std", "mean_cosine", "loss_vs_mean_target")
    return PretrainResult(
        out=out,
        cached=cached,
        steps=int(last["step"]),
        images=int(last["images"]),
        **{name: last[name] for name in names},
    )
