"""Pretrain I-JEPA on a shard set; resumes by itself, exactly, at any step."""

import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, DataConfig, PretrainConfig, Runtime, StrPath
from ijepa.data.decode import image_size
from ijepa.data.shards import SplitReader, open_shards
from ijepa.encoders.spec import weights_fingerprint
from ijepa.errors import IjepaError
from ijepa.files import is_remote, read_metrics, sibling
from ijepa.jepa.schedules import steps_per_epoch
from ijepa.progress import Progress, automatic, silent
from ijepa.recipes import begun_with, choose, load_recipe, settings_for
from ijepa.records import read_record
from ijepa.stage import StagePlan, exclusive_work, work_note
from ijepa.world import together

if TYPE_CHECKING:
    from ijepa.data.stream import RemoteSplit
    from ijepa.jepa.flops import PretrainPlan

VERSION = 3
# May change while a run is going. Not so the limits that end a run or take it back, and not the
# images and the label of health checks, which are held against the first one.
WATCHING = "every_steps", "grad_norm_steps", "keep_best"
MEASURED_IMAGES = 256  # whose size chooses a recipe
DEFAULT_LABEL = PretrainConfig().watch.label  # stands for no label, too

log = logging.getLogger(__name__)


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


def pretrain(
    shards: StrPath,
    out: StrPath,
    config: PretrainConfig,
    runtime: Runtime = RUNTIME,
    progress: Progress = automatic,
    *,
    init: StrPath | None = None,
    prolong: StrPath | None = None,
) -> PretrainResult:
    """Train the networks of `config` on the split `config.data.split` of a shard set.

    The run folder gets `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/last.pt` and
    one checkpoint every `config.checkpoint_epochs`. Until it is finished it is `<out>.partial`.
    Under torchrun every process calls this: rank 0 holds the output, all train.

    Args:
        shards: folder of a shard set, or an address, from which it is streamed.
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
    images, inputs, data = _open(shards, config)
    if data.channels and not config.data.channels:
        log.info("data.channels=%d, data.mean and data.std: those of %s", data.channels, shards)
    config = config.model_copy(update={"data": data})
    steps_per_epoch(len(images), config)
    config = started(config, init, prolong)
    in_place = prolong is not None and Path(prolong).resolve() == Path(out).resolve()
    plain = PretrainConfig().model_dump(mode="json")  # of settings that leave the weights alone
    ignored = {f"watch.{name}": plain["watch"][name] for name in WATCHING}
    ignored["checkpoint_epochs"] = plain["checkpoint_epochs"]
    if "read" not in inputs:
        ignored |= {f"stream.{name}": value for name, value in plain["stream"].items()}
    precious = not (runtime.replace or in_place)
    plan = StagePlan(
        "pretrain", VERSION, config, inputs, Path(out), precious, is_folder=True, ignored=ignored
    )
    start = tuple(Path(path) if path else None for path in (init, prolong))
    with together(exclusive_work(plan, runtime), runtime) as (work, world):
        if not work.cached:
            from ijepa.pretrain.training import train  # torch, for which no cached answer waits

            told = progress if world.is_rank_0 else silent
            train(work, world, config, images, runtime, start, told)
    last = read_metrics(plan.out / "metrics.jsonl")[-1]
    numbers = {name: last[name] for name in PretrainResult.model_fields if name in last}
    size, steps = config.data.batch_size, last["step"]
    return PretrainResult(out=plan.out, cached=work.cached, batch_size=size, steps=steps, **numbers)


def started(
    config: PretrainConfig, init: StrPath | None = None, prolong: StrPath | None = None
) -> PretrainConfig:
    """The configuration with the digest of `init` filled in, if it is what the recipe names."""
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


def auto_recipe(
    shards: StrPath,
    out: StrPath,
    overrides: Sequence[str] = (),
    has_gpu: Callable[[], bool] = lambda: False,
) -> tuple[str, PretrainConfig, list[str], str]:
    """Choose a recipe by the size and number of the images, and by the device.

    Returns its name, all settings, those added for the images (as `a.b=c`), and why. A run that is
    at `out`, finished or not, keeps the recipe that it was begun with, on any device. An
    `IjepaError` refuses shards that are elsewhere, or lack the split to train on.
    """
    if is_remote(shards):
        raise IjepaError(
            f"--recipe auto measures images on this machine, not those of {shards}; name a recipe "
            f"of `ijepa recipes`."
        )
    named = [one.partition("=")[2] for one in overrides if one.startswith("data.split=")]
    split = open_shards(Path(shards)).split([DataConfig().split, *named][-1])
    count, step = len(split), -(-len(split) // MEASURED_IMAGES)
    sides = [min(image_size(split.read_image(number))) for number in range(0, count, step)]
    image_px = int(statistics.median(sides))
    found = []
    for folder in (Path(out), sibling(Path(out), ".partial")):
        if (read_record(folder) or work_note(folder) or {}).get("stage") == "pretrain":
            found.append(begun_with(folder / "config.yaml", count, overrides))
    choice, why = next((one for one in found if one), None), f"{out} was begun with it"
    if choice is None:
        on_gpu = has_gpu()
        choice, why = choose(image_px, on_gpu=on_gpu), "a GPU" if on_gpu else "no GPU"
    added = settings_for(choice, count, overrides)
    config = load_recipe(choice.recipe, [*added, *overrides])
    size = f"images are {image_px} px (median short side)"
    if image_px < min(config.data.image_size):
        size += f", enlarged to {config.data.image_px}"
    return choice.recipe, config, added, f"{size}, {why}"


def plan_pretrain(
    shards: StrPath, config: PretrainConfig, runtime: Runtime = RUNTIME
) -> "PretrainPlan":
    """Say what `pretrain` would do: sizes, steps, masks, cost; raises as it would."""
    from ijepa.pretrain.training import plan

    images, _, data = _open(shards, config)
    return plan(config.model_copy(update={"data": data}), len(images), runtime)


def _open(
    shards: StrPath, config: PretrainConfig
) -> tuple["SplitReader | RemoteSplit", dict[str, str], DataConfig]:
    """The images, fingerprints of what and how they are read, and settings that fit them."""
    label = config.watch.label
    if is_remote(shards):
        from ijepa.data.stream import open_remote

        stream = config.stream
        chosen = stream.epoch_images, stream.member, stream.max_bad
        remote = open_remote(str(shards), config.data.split, *chosen)
        if remote.counted and label not in (*remote.label_names, DEFAULT_LABEL):
            known = ", ".join(remote.label_names) or "none"
            raise IjepaError(f"{shards} has no label {label!r}; its labels are: {known}.")
        fitted = config.data.fitted(remote.pixels, shards)
        return remote, {"data": remote.fingerprint, "read": "streamed"}, fitted
    without_effect = config.stream.model_dump(exclude={"lanes", "buffer"}, exclude_defaults=True)
    without_effect |= {"max_bad": config.stream.max_bad} if config.stream.max_bad else {}
    for name in without_effect:
        log.warning("stream.%s has no effect: %s is not streamed", name, shards)
    data = open_shards(Path(shards))
    images = data.split(config.data.split)
    if label != DEFAULT_LABEL:
        images.refuse_unknown(label)
    return images, {"data": data.fingerprint}, config.data.fitted(data.pixels, shards)
