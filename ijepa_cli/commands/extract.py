"""`ijepa extract`."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from ijepa.config import ExtractConfig, Runtime
from ijepa.errors import IjepaError
from ijepa_cli.options import Data, app, stage
from ijepa_cli.show import (
    about,
    counted,
    headline,
    images_of,
    next_command,
    opened,
    show,
    shown_progress,
    without_options,
)

if TYPE_CHECKING:
    from ijepa.extract import ExtractResult

Out = Annotated[Path, typer.Option(help="Feature file to write, such as val.h5.")]


SHOWN = "encoder split which checkpoint layers tokens image_px crop views augment"


@stage(app, ExtractConfig, SHOWN, "device workers")
def extract(data: Data, out: Out, config: ExtractConfig, runtime: Runtime, as_json: bool) -> None:
    """Store frozen features of every image of a split.

    Example: ijepa extract --encoder runs/scenes --data shards/scenes --split val --out val.h5
    """
    from ijepa.extract import extract as run

    config = config.model_copy(update={"split": opened(data).named_split(config.split)})
    layers = f"last {counted(config.layers, 'layer')}"
    where = images_of(data, config.split)
    runtime = about(runtime, f"extract: {config.encoder} on {where}, {layers}")
    with shown_progress() as progress:
        result = run(data, out, config, runtime, progress)
    show(result, as_json, None if as_json else _summary(result, data, config, runtime.command))


def _summary(result: "ExtractResult", data: Path, config: ExtractConfig, command: str) -> str:
    """What is in the file, and what to type next."""
    views = f" in {result.views} views" if result.views > 1 else ""
    layers = counted(result.layers, "layer")
    numbers = f"{result.images:,} images{views}, {layers} of {result.dim:,} numbers"
    if result.tokens:
        numbers += ", {} x {} patch tokens of {:,}".format(*result.tokens)
    if result.dense:
        numbers += f", dense labels {', '.join(result.dense)}"
    labels = f"labels {', '.join(result.labels) or 'none'}"
    words = f"{result.encoder}, {numbers}, {labels}, {decimal(result.out.stat().st_size)}"
    return "\n".join([headline("extracted", result.out, result.cached, words),
                      _next(result, data, config.split, command)])  # fmt: skip


def _next(result: "ExtractResult", data: Path, split: str, command: str) -> str:
    """The same for the other split; a probe if that is there; a map where there is no other."""
    out, labels, probe = result.out, result.labels, "attentive" if result.tokens else "logistic"
    label = "class" if "class" in labels else labels[0] if labels else None
    known, other = opened(data), None
    with contextlib.suppress(IjepaError):  # that to score on, or beside it `train`
        other = known.named_split("evaluation")
    if other == split:
        other = "train" if "train" in known.splits else None
    if other is None or not (label or result.dense):
        shown = ("--label", label) if label else ("--set", "label=null")
        files = ("--features", out, *shown, "--out", out.with_suffix(".html"))
        return next_command("visualize", "embedding", *files)
    if label is None:  # tokens with maps
        label = result.dense[0]
        kind = known.split(known.named_split(split)).index.dense[label].kind
        probe = "depth" if kind == "depth" else "segmentation"
    bare = out.with_name(out.stem.removesuffix(f"-{split}") + out.suffix)  # names no split
    others = (other, "test") if split == "train" else (other,)
    named = [_renamed(out, split, name) for name in others]
    beside = next((file for file in (bare, *named) if file != out and file.exists()), None)
    if beside is None:
        changed, typed = ("--split", "--out"), shlex.split(command)[1:]
        words = without_options(typed, changed, ("--json", "--force", "--dry-run"))
        return next_command(*words, "--split", other, "--out", named[0])
    train, test = (beside, out) if other == "train" else (out, beside)
    scores = _renamed(out, split, probe).with_suffix(".json")
    chosen = ("--label", label) if label != "class" else ()
    return next_command("probe", probe, "--train", train, "--test", test, *chosen, "--out", scores)


def _renamed(out: Path, split: str, other: str) -> Path:
    """A file beside `out` whose name says `other` in place of `split`, or of a test."""
    pattern = rf"(?<![a-zA-Z0-9])({re.escape(split)}|evaluation|test)(?![a-zA-Z0-9])"
    stem, found = re.subn(pattern, other, out.stem)
    return out.with_name((stem if found else f"{out.stem}-{other}") + out.suffix)
