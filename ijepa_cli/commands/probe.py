"""`ijepa probe`."""

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from ijepa.config import ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa_cli.options import app, stage
from ijepa_cli.show import (
    about,
    counted,
    headline,
    next_command,
    result_tables,
    show,
    shown_progress,
)

Probe = Literal[
    "logistic", "linear", "attentive", "knn", "retrieval", "few-shot", "low-level", "segmentation",
    "depth",
]  # fmt: skip
Name = Annotated[
    Probe,
    typer.Argument(
        help="Which probe to fit; attentive, segmentation and depth need features of `extract "
        "--tokens`, the last two of images with a dense label; low-level is count and distance on "
        "CLEVR, as published."
    ),
]
Train = Annotated[Path, typer.Option(help="Feature file to fit on.")]
Test = Annotated[Path, typer.Option(help="Feature file to score on, from the same encoder.")]
BaselineTrain = Annotated[
    list[Path] | None,
    typer.Option(help="Training features of another encoder to compare with; repeatable."),
]
BaselineTest = Annotated[
    list[Path] | None,
    typer.Option(help="Test features of that encoder; as many, in the same order."),
]
Out = Annotated[
    Path, typer.Option(help="Result to write, such as knn.json; for low-level a folder.")
]
Subset = Annotated[
    list[Path] | None,
    typer.Option(help="few-shot: a file that lists the training images, one per line; repeatable."),
]
PROBES = {*get_args(Probe)} - {"low-level"}
READ_BY = {  # options that not every probe reads
    "shots": {"few-shot"}, "draws": {"few-shot"}, "subset": {"few-shot"}, "scale": {"logistic"},
    "precision": {"linear", "attentive", "low-level"}, "protocol": PROBES, "label": PROBES,
}  # fmt: skip


@stage(app, ProbeConfig, "protocol label shots seed", "device")
def probe(
    name: Name,
    train: Train,
    test: Test,
    out: Out,
    config: ProbeConfig,
    runtime: Runtime,
    as_json: bool,
    baseline_train: BaselineTrain = None,
    baseline_test: BaselineTest = None,
    subset: Subset = None,
) -> None:
    """Fit a probe on frozen features and compare it with baselines by a paired test.

    Example: ijepa probe logistic --train train.h5 --test val.h5 --label count --out count.json

    Example: ijepa probe linear --protocol vissl-cifar100 --train train.h5 --test val.h5 --out r
    """
    given = config.model_fields_set | ({"subset"} if subset else set())
    unread = {option for option in given if name not in READ_BY.get(option, {name})}
    unread = unread or (given & {"shots", "draws"} if subset else unread)
    if unread:
        beside = " with --subset" if subset and name == "few-shot" else ""
        raise IjepaError(f"--{min(unread)} changes nothing in {name}{beside}; leave it out.")
    trains, tests = [train, *(baseline_train or [])], [test, *(baseline_test or [])]
    if len(trains) != len(tests):
        raise IjepaError("Give as many --baseline-test as --baseline-train, in the same order.")
    from ijepa import probe as library

    what = name if name == "low-level" else f"{name} of label {config.label}"
    others = f", with {counted(len(trains) - 1, 'baseline')}" if len(trains) > 1 else ""
    runtime = about(runtime, f"probe: {what} on {train}, tested on {test}{others}")
    pair, *baselines = zip(trains, tests, strict=True)
    how = (pair, baselines, out, config.model_copy(update={"name": name}), runtime)
    with shown_progress() as progress:
        both = library.low_level(*how, progress) if name == "low-level" else None
        fits = both.results if both else (library.probe(*how, progress, subset or []),)
    cached = all(one.cached for one in fits)
    scores = [one.scores for one in fits]
    encoders = ", ".join(dict.fromkeys(score.encoder for score in scores[0]))
    first = headline("fitted", both.out if both else out, cached, encoders)
    page = out.with_name(f"{out.name if both else out.stem}.html")
    lead = scores[0][0].encoder
    run = Path(lead.rpartition(" (")[0] or lead)  # that of the encoder is on the page, too
    runs = [run] if (run / "metrics.jsonl").is_file() else []
    last = next_command("report", out, *runs, "--out", page)
    show(both or fits[0], as_json, first, *result_tables(scores), last)
