"""`ijepa pretrain`."""

import logging
import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ijepa.config import Config, PretrainConfig, Runtime, ShardConfig
from ijepa.errors import IjepaError, optional
from ijepa.files import is_remote, read_metrics, sibling
from ijepa.jepa.schedules import steps_per_epoch
from ijepa.jepa.verdict import outcome
from ijepa.recipes import load_recipe, recipe_note
from ijepa.records import read_record
from ijepa.stage import CACHED, WOULD_RUN, DryRun, StagePlan, outlook
from ijepa.world import current_world
from ijepa_cli.options import FLAGS, Set, app, stage
from ijepa_cli.show import (
    about,
    counted,
    headline,
    images_of,
    is_main_process,
    next_command,
    opened,
    outlook_shown,
    print_json,
    print_text,
    show,
    shown_progress,
    stderr,
)

if TYPE_CHECKING:
    from ijepa.pretrain import PretrainResult

log = logging.getLogger(__name__)

OWN = ShardConfig(val_fraction=0.1, resize_px=512)  # how a shard set is made of your own images
OWN_OPTIONS = ("--val-fraction", "0.1", "--resize", "512")
THREE_DAYS = 3 * 24 * 60  # in minutes
WAIT_SECONDS = 2.0  # between two looks for the shard set that rank 0 makes

Recipe = Annotated[
    str,
    typer.Option(
        help="A name from `ijepa recipes`, or a YAML file. auto chooses by image size and device."
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="A folder of images, or another source of `ijepa shard`; they are written to "
        "OUT.shards first. Or a shard set, also by its address (s3://, https://, ...)."
    ),
]
Out = Annotated[Path, typer.Option(help="Run folder to write.")]
Init = Annotated[
    Path | None,
    typer.Option(help="Start from these weights: a run, a checkpoint or a published file."),
]
Prolong = Annotated[
    Path | None, typer.Option(help="Continue this finished run for more epochs; may be OUT itself.")
]


def _option(text: str, least: int | None = None) -> Any:  # noqa: ANN401  # what Typer reads
    return typer.Option(help=text, min=least, rich_help_panel="Cluster")


Launcher = Annotated[
    Literal["here", "slurm", "local"],
    _option("slurm submits a job; local runs it the same way on this machine, to try it."),
]
Nodes = Annotated[int, _option("Number of machines of the job.", 1)]
GpusPerNode = Annotated[int, _option("Number of GPUs, and so of processes, on each machine.", 1)]
Minutes = Annotated[int, _option("Time limit of the job; it is queued again and continues.", 1)]
Slurm = Annotated[
    list[str] | None, _option("Another option of sbatch, such as partition=gpu; repeatable.")
]
RUN = "device workers checkpoint_seconds micro_batch recompute compile cache track"


@stage(app, run=f"{RUN} pictures replace")
def pretrain(
    data: Data,
    out: Out,
    runtime: Runtime,
    as_json: bool,
    recipe: Recipe = "auto",
    overrides: Set = None,
    init: Init = None,
    prolong: Prolong = None,
    launcher: Launcher = "here",
    nodes: Nodes = 1,
    gpus_per_node: GpusPerNode = 1,
    minutes: Minutes = THREE_DAYS,
    slurm: Slurm = None,
) -> None:
    """Pretrain I-JEPA on images or a shard set; started again, it continues where it stopped.

    Example: ijepa pretrain --data photos --out runs/photos

    Example: ijepa pretrain --recipe scenes-mini --data shards/scenes --out runs/scenes
    """
    has_job = (nodes, gpus_per_node, minutes, slurm) != (1, 1, THREE_DAYS, None)
    _refuse(has_job=has_job and launcher == "here", prolong=prolong)
    from ijepa import pretrain as library

    # A mistake in a recipe is said before images are read.
    config = None if recipe == "auto" else load_recipe(recipe, overrides or ())
    shards = _shard_set(data, out, runtime)
    if config is None:
        recipe, config, added = _chosen(shards, out, overrides or [], prolong, runtime, launcher)
        typed = ["--recipe", recipe, *(word for one in added for word in ("--set", one))]
        command = f"{runtime.command} {shlex.join(typed)}"
        runtime = runtime.model_copy(update={"command": command})
    if note := recipe_note(recipe, config):
        log.warning(note)  # now, and below the summary when all is done
    cost = None
    if runtime.dry_run or launcher != "here":  # what cannot run is not submitted
        cost = library.plan_pretrain(shards, library.started(config, init, prolong), runtime)
    if launcher != "here" and not runtime.dry_run:
        optional("submitit", "--launcher")
        from ijepa_cli.slurm import submit

        told = submit(out, launcher, nodes, gpus_per_node, minutes, slurm or [])
        print_json({"out": str(out), "job": told}) if as_json else print_text(told + "\n")
        return
    if not runtime.dry_run:
        runtime = about(runtime, _plan(recipe, shards, config))
    with outlook_shown(as_json, cost, note), shown_progress() as progress:
        result = library.pretrain(
            shards, out, config, runtime, progress, init=init, prolong=prolong
        )
    if not runtime.dry_run:
        text = None if as_json else _summary(result, shards, config)
        show(result, as_json, f"{text}\n{note}".rstrip())


def _refuse(*, has_job: bool, prolong: Path | None) -> None:
    """Refuse options of a job that is none, and a run to prolong that is not there."""
    if has_job:
        raise IjepaError(
            "--nodes, --gpus-per-node, --minutes and --slurm describe a job: add --launcher slurm, "
            "or leave them out. On one machine, torchrun starts a process for each GPU."
        )
    if prolong and (read_record(prolong) or {}).get("stage") != "pretrain":
        raise IjepaError(f"{prolong} is no finished run of `ijepa pretrain`; check --prolong.")


def _shard_set(data: str, out: Path, runtime: Runtime) -> str:
    """The shard set to train on: `data` if it is one, else `OUT.shards`, made of it if need be.

    Where torchrun started several processes, rank 0 makes it and the others wait; torchrun ends
    them if it fails.
    """
    from ijepa import shard as library

    if is_remote(data) or (Path(data) / library.INDEX).is_file():
        return data
    library.refuse_place(Path(data), out)
    plan = library.plan_shard(data, sibling(out, ".shards"), OWN)
    state, why = outlook(plan)
    if state == CACHED:
        _say(f"{plan.out} holds the images of {data} (cached)")
    elif runtime.dry_run:
        later = StagePlan("pretrain", 0, Config(), {}, out, is_folder=True)
        unknown = f"its cost is known when {plan.out} is made"
        raise ExceptionGroup("", [DryRun(plan, state, why), DryRun(later, WOULD_RUN, unknown)])
    elif current_world().is_rank_0:
        _make_shards(data, plan.out, out, runtime)
    else:
        while outlook(plan)[0] != CACHED:
            time.sleep(WAIT_SECONDS)
    return str(plan.out)


def _make_shards(data: str, shards: Path, out: Path, runtime: Runtime) -> None:
    """Make the shard set; refuse to replace the images that a run at `out` has seen."""
    from ijepa.shard import shard

    is_begun = out.exists() or sibling(out, ".partial").exists()
    if is_begun and read_record(shards) and not (runtime.replace or runtime.force):
        raise IjepaError(
            f"{data} is not as it was when {shards} was made of it for {out}. Go on with the "
            f"images as they were with --data {shards}, choose another --out, or train again on "
            f"the new images with --replace."
        )
    try:
        with shown_progress() as progress:
            made = shard(data, shards, OWN, runtime.model_copy(update={"force": False}), progress)
    except IjepaError as error:
        options = {
            FLAGS.get(name, f"--{name.replace('_', '-')}") for name in ShardConfig.model_fields
        }
        helps = options & set(re.findall(r"--[a-z-]+", str(error)))
        if type(error) is not IjepaError or not helps:  # it was stopped, or no option helps
            raise
        command = shlex.join(["ijepa", "shard", data, str(shards), *OWN_OPTIONS])
        raise IjepaError(
            f"{error} Give that option to `{command}`, then run this command again."
        ) from error
    counts = ", ".join(f"{name} {samples:,}" for name, samples in made.splits.items())
    left_out = sum(made.left_out.values())
    _say(f"{shards} made of {data}: {counts}{f'; {left_out:,} left out' if left_out else ''}")


def _chosen(
    shards: str,
    out: Path,
    overrides: list[str],
    prolong: Path | None,
    runtime: Runtime,
    launcher: str,
) -> tuple[str, PretrainConfig, list[str]]:
    """For `--recipe auto`: a recipe, all settings, and those that the number of images added."""
    if prolong:
        begun = str(prolong / "config.yaml")
        return begun, load_recipe(begun, overrides), []

    from ijepa.pretrain import auto_recipe

    def has_gpu() -> bool:
        from ijepa.distributed import pick_device

        return launcher == "slurm" or pick_device(runtime.device).type == "cuda"

    recipe, config, added, why = auto_recipe(shards, out, overrides, has_gpu)
    passes = counted(config.optimization.epochs, "epoch")
    _say(f"recipe {recipe}: {why}; {passes} in batches of {config.data.batch_size:,}")
    return recipe, config, added


def _say(line: str) -> None:
    """Tell what was decided for the user, once."""
    if is_main_process():
        stderr.print(line, highlight=False, soft_wrap=True)


def _plan(recipe: str, data: str, config: PretrainConfig) -> str:
    """What will run, on what, how much."""
    split = config.data.split
    if is_remote(data):
        epochs = counted(config.optimization.epochs, "epoch")
        return f"pretrain: {recipe} on {data} ({split}), {epochs}"
    images = len(opened(data).split(split))
    steps = steps_per_epoch(images, config) * config.optimization.epochs
    seen, watch = steps * config.data.batch_size, config.watch
    held_out = f", {watch.num_images:,} of them held out" if watch.held_out else ""
    told = f"pretrain: {recipe} on {images_of(data, split)}{held_out}"
    return f"{told}, {seen:,} images in {steps:,} steps"


def _summary(result: "PretrainResult", data: str, config: PretrainConfig) -> str:
    """Health at the start and at the end, a word on it, and what to type next."""
    checks = [record for record in read_metrics(result.out / "metrics.jsonl") if "rankme" in record]
    first, last = checks[0], checks[-1]
    done = f"{result.steps:,} steps, {result.images:,} images, loss {result.loss:.3g}"
    lines = [headline("pretrained", result.out, result.cached, done)]
    best = None
    if "neighbour_accuracy" in first:
        before, after = first["neighbour_accuracy"], last["neighbour_accuracy"]
        lines += [f"  nearest neighbours {before:.1%} -> {after:.1%} right"]
        best = max(checks[1:], key=lambda check: check["neighbour_accuracy"])
    if best and best is not last and config.watch.keep_best:
        told = f"{best['neighbour_accuracy']:.1%} at step {best['step']:,}"
        lines += [f"  best               {told}; to use it: --checkpoint best"]
    ranks = f"{first['rankme']:.1f} -> {last['rankme']:.1f}"
    lines += [f"  RankMe             {ranks} dimensions in use"]
    images, split = (read_record(result.out) or {}).get("images", 2**63), config.data.split
    watched = last.get("labelled_images", min(config.watch.num_images, images))
    lines += [f"  {outcome(first, last, watched)}"]
    if not is_remote(data):
        features = result.out.with_name(f"{result.out.name}-{split}.h5")
        words = ("--encoder", result.out, "--data", data, "--split", split, "--out", features)
        lines += [next_command("extract", *words)]
    return "\n".join(lines)
