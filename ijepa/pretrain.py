"""Pretrain I-JEPA on a shard set; resumes by itself, exactly, at any step."""

from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime, StrPath
from ijepa.data.shards import SplitReader, is_remote, open_shards
from ijepa.encoders.spec import weights_fingerprint
from ijepa.errors import IjepaError
from ijepa.files import read_metrics, write_bytes
from ijepa.progress import Progress, silent
from ijepa.recipes import dump_yaml
from ijepa.stage import StagePlan, Work, exclusive_work
from ijepa.world import World, together

if TYPE_CHECKING:
    from ijepa.data.stream import RemoteSplit

VERSION = 2
# May change while a run is going. Not so the limits that end a run or take it back.
WATCHING = "every_steps", "grad_norm_steps", "num_images", "label"
PLANNED_BATCHES = 50  # sampled to know how long contexts are


class PretrainResult(Config):
    """A finished run: where it is, and its last numbers."""

    out: Path
    cached: bool
    steps: int
    batch_size: int
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
        batch_size: images of a step, over all devices.
        encoder_parameters: trained ones, without positions; likewise the predictor's.
        context_patches: mean over sampled batches, after the cut; likewise `target_patches`, each.
        gflops_per_image: of matrix products, forward and backward, at these mean lengths.
        largest_context: patches that a context of the sampled batches has at most.
        passes_per_step: of context encoder and predictor, each: one for every group of masks in
            every micro-batch, where one process has the whole batch.
        mask_shapes: how many pairs of context and target length the sampled batches have; kernels
            that are planned or captured for a shape gain where they are few.
        memory_gb: weights, gradients, optimizer and, for the largest masks, activations of one
            process that computes `images_at_a_time`; an estimate, in bf16 for `bf16`.
    """

    images: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    images_seen: int
    grid: tuple[int, int]
    encoder_parameters: int
    predictor_parameters: int
    context_patches: float
    target_patches: float
    gflops_per_image: float
    largest_context: int
    passes_per_step: int
    mask_shapes: int
    images_at_a_time: int
    bf16: bool
    memory_gb: float


def pretrain(
    shards: StrPath,
    out: StrPath,
    config: PretrainConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = silent,
    *,
    init: StrPath | None = None,
    prolong: StrPath | None = None,
) -> PretrainResult:
    """Train the networks of `config` on the split `config.data.split` of a shard set.

    The run folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    one checkpoint every `config.checkpoint_epochs`. Until it is finished it is `<out>.partial`.
    Under torchrun every process calls this: rank 0 holds the output, all train.

    Args:
        shards: folder of a shard set; or an address that `data.remote.open_remote` takes, which is
            streamed.
        out: run folder to make.
        config: what to train, and how.
        runtime: what leaves the result as it is.
        progress: told of images done and of the newest numbers.
        init: a run, checkpoint or file of I-JEPA's weights. Both encoders start from its encoders,
            or from its only one, and the predictor from its predictor if it has one of that size.
        prolong: a finished run of fewer epochs, all else equal. The run goes on from its newest
            state that the schedules of both pass through; `out` itself may be named.

    Raises:
        IjepaError: masks that do not fit, too few images, a checkpoint that does not load, a loss
            that is not finite, another run in that place, or weights that do not fit.
    """
    images, inputs = _open(shards, config)
    steps_per_epoch(len(images), config)
    config = started(config, init, prolong)
    in_place = prolong is not None and Path(prolong).resolve() == Path(out).resolve()
    plain = PretrainConfig().model_dump(mode="json")  # of settings that leave the weights alone
    beside = {f"watch.{name}": plain["watch"][name] for name in WATCHING}
    beside["checkpoint_epochs"] = plain["checkpoint_epochs"]
    if "read" not in inputs:
        beside |= {f"stream.{name}": value for name, value in plain["stream"].items()}
    precious = not (runtime.replace or in_place)
    plan = StagePlan(
        "pretrain", VERSION, config, inputs, Path(out), precious, is_folder=True, beside=beside
    )
    with together(exclusive_work(plan, runtime), runtime.device) as (work, world):
        if not work.cached:
            told = progress if world.is_rank_0 else silent
            started_from = {"init": init, "prolonged": prolong}
            _train(work, config, images, runtime, told, world, started_from)
    return _result(plan.out, config, work.cached)


def _train(
    work: Work,
    config: PretrainConfig,
    images: "SplitReader | RemoteSplit",
    runtime: Runtime,
    progress: Progress,
    world: World,
    started_from: dict[str, StrPath | None],
) -> None:
    """Take the steps that are left, and let rank 0 publish; all processes call it."""
    from ijepa.distributed import from_rank_0
    from ijepa.encoders.formats import read_networks
    from ijepa.train import checkpoint, loop, pretraining, stopping

    init, prolong = (Path(path) if path else None for path in started_from.values())
    last, networks = work.folder / checkpoint.LAST, None

    def begin() -> None:
        if config.data.batch_size % world.size:
            raise IjepaError(
                f"data.batch_size {config.data.batch_size} cannot be shared evenly by "
                f"{world.size} processes."
            )
        if prolong and not last.exists():
            checkpoint.take_over(prolong, work, config, steps_per_epoch(len(images), config))

    from_rank_0(world, begin)
    if init and not last.exists():
        networks = str(init), read_networks(init, config.encoder.arch).parts
    task = pretraining.PretrainTask(config, images, runtime, world, networks, progress)
    if world.is_rank_0:
        write_bytes(work.folder / "config.yaml", dump_yaml(config).encode())
    with stopping.stop_requests():  # a signal after the last step does not keep it from its end
        loop.fit(task, work.folder, progress)
        facts: dict[str, object] = {
            "seed": config.seed,
            "device": task.device_name(),
            "command": runtime.command,
            "source": open_shards(images.folder).source if isinstance(images, SplitReader) else "",
            "images": len(images),
            **{name: str(path) for name, path in started_from.items() if path},
        }
        from_rank_0(world, lambda: work.publish_folder(facts))


def started(
    config: PretrainConfig, init: StrPath | None = None, prolong: StrPath | None = None
) -> PretrainConfig:
    """The configuration with the digest of `init` filled in.

    Raises:
        IjepaError: no such weights, other weights than the recipe names, or two kinds of start.
    """
    if init and prolong:
        raise IjepaError("--init starts a run and --prolong goes on with one; choose one of them.")
    if init and not Path(init).exists():
        raise IjepaError(f"There are no weights {init} for --init; name a run or a file.")
    digest = weights_fingerprint(Path(init)) if init else None
    if config.init and config.init != digest and not prolong:
        raise IjepaError(
            f"The recipe starts from weights of digest {config.init[:12]}; name them with --init, "
            f"or set init=null for random ones."
        )
    return config.model_copy(update={"init": digest or config.init})


def plan_pretrain(
    shards: StrPath, config: PretrainConfig, runtime: Runtime = RUNTIME
) -> PretrainPlan:
    """Say what `pretrain` would do: sizes, steps, masks, cost; no network is allocated.

    Raises:
        IjepaError: as `pretrain` would.
    """
    from ijepa.distributed import pick_device

    on_gpu = pick_device(runtime.device).type == "cuda"
    return plan_training(len(_open(shards, config)[0]), config, runtime, on_gpu=on_gpu)


def plan_training(
    images: int, config: PretrainConfig, runtime: Runtime = RUNTIME, *, on_gpu: bool
) -> PretrainPlan:
    """The same for data that need not be there yet: only the number of its images is asked for."""
    import torch

    from ijepa.jepa import flops, masks
    from ijepa.jepa.model import build_ijepa
    from ijepa.jepa.step import micro_batches

    per_epoch = steps_per_epoch(images, config)
    steps = per_epoch * config.optimization.epochs
    with torch.device("meta"):
        model = build_ijepa(config)
    encoder_parameters, predictor_parameters = (
        sum(p.numel() for p in network.parameters() if p.requires_grad)
        for network in (model.encoder, model.predictor)
    )
    lengths, drawn = masks.mask_statistics(config, PLANNED_BATCHES), masks.batch_masks(config, 0)
    cost = flops.step_flops(config, lengths.context_patches, lengths.target_patches)
    at_a_time = min(runtime.micro_batch or config.data.batch_size, config.data.batch_size)
    precision = config.optimization.precision
    bf16 = precision == "bf16" or (precision == "auto" and on_gpu)
    memory = flops.step_bytes(
        config,
        (encoder_parameters, predictor_parameters),
        (lengths.largest_context, lengths.largest_target),
        images=at_a_time,
        bf16=bf16,
        recompute=runtime.recompute,
    )
    return PretrainPlan(
        images=images,
        batch_size=config.data.batch_size,
        steps_per_epoch=per_epoch,
        steps=steps,
        images_seen=steps * config.data.batch_size,
        grid=config.grid,
        encoder_parameters=encoder_parameters,
        predictor_parameters=predictor_parameters,
        context_patches=lengths.context_patches,
        target_patches=lengths.target_patches,
        gflops_per_image=cost.total / 1e9,
        largest_context=lengths.largest_context,
        passes_per_step=sum(len(p) for _, p in micro_batches(drawn, at_a_time)),
        mask_shapes=len({shape[1:] for shape in lengths.shapes}),
        images_at_a_time=at_a_time,
        bf16=bf16,
        memory_gb=memory / 1e9,
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


def _open(
    shards: StrPath, config: PretrainConfig
) -> tuple["SplitReader | RemoteSplit", dict[str, str]]:
    """The images, and fingerprints of what they are and of how they are read."""
    if is_remote(shards):
        from ijepa.data.stream import open_remote

        remote = open_remote(str(shards), config.data.split, config.stream.epoch_images)
        return remote, {"data": remote.fingerprint, "read": "streamed"}
    data = open_shards(Path(shards))
    return data.split(config.data.split), {"data": data.fingerprint}


def _result(out: Path, config: PretrainConfig, cached: bool) -> PretrainResult:
    last = read_metrics(out / "metrics.jsonl")[-1]
    names = ("loss", "rankme", "feature_std", "mean_cosine", "loss_vs_mean_target")
    return PretrainResult(
        out=out,
        cached=cached,
        steps=int(last["step"]),
        batch_size=config.data.batch_size,
        images=int(last["images"]),
        **{name: last[name] for name in names},
    )
