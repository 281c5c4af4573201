"""`ijepa probe`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ijepa.config import Precision, ProbeConfig, validated
from ijepa.errors import IjepaError
from ijepa_cli.console import Device, Force, Json, Seed, runtime, show, shown_progress
from ijepa_cli.score_table import score_table

Name = Annotated[
    Literal["logistic", "linear", "knn", "few-shot", "low-level"],
    typer.Argument(
        help="Which probe to fit; low-level: count and distance on CLEVR, as published."
    ),
]
Protocol = Annotated[
    str,
    typer.Option(
        help="Exact published settings: linear: vissl-cifar100, vissl-places205, vissl-inat18, "
        "vissl-in1k, vissl-in1k-lars, paper-in1k-lars, vissl-clevr-count, vissl-clevr-dist, "
        "mae-lars, mae-lars-50, dinov2-linear; logistic: msn, msn-5-shot, dinov2; few-shot: msn. "
        "ijepa is ours."
    ),
]
Train = Annotated[Path, typer.Option(help="Features to fit on, F.h5.")]
Test = Annotated[Path, typer.Option(help="Features to score on, of the same encoder.")]
BaselineTrain = Annotated[
    list[Path] | None, typer.Option(help="Another encoder's, shown beside; repeatable.")
]
BaselineTest = Annotated[
    list[Path] | None, typer.Option(help="That encoder's test features, in the same order.")
]
Out = Annotated[Path, typer.Option(help="Result to make, R.json; low-level: a folder of two.")]
Label = Annotated[str, typer.Option(help="Which stored label, such as class, count or dist.")]
Scale = Annotated[
    Literal["columns", "rows", "none"] | None,
    typer.Option(help="logistic: how to scale features, in place of the protocol's way."),
]
Precise = Annotated[
    Precision,
    typer.Option(
        help="linear, low-level: what heads multiply matrices in; auto: bf16 on a GPU, fp32 on a "
        "CPU. Weights stay fp32; other probes compute in fp32 or fp64."
    ),
]
Shots = Annotated[
    list[float] | None,
    typer.Option(help="few-shot: images a class, or a fraction below 1; repeatable."),
]
Draws = Annotated[int, typer.Option(help="few-shot: how many subsets to draw.", min=1)]
Subset = Annotated[
    list[Path] | None,
    typer.Option(
        help="few-shot: a list of training images, one file name a line, in place of a draw; "
        "repeatable."
    ),
]


FEW_SHOT = {"shots", "draws", "subset"}
UNREAD = {
    "logistic": FEW_SHOT | {"precision"},
    "linear": FEW_SHOT | {"scale"},
    "knn": FEW_SHOT | {"scale", "precision"},
    "few-shot": {"scale", "precision"},
    "low-level": FEW_SHOT | {"scale", "protocol", "label"},
}


def probe(
    ctx: typer.Context,
    name: Name,
    train: Train,
    test: Test,
    out: Out,
    protocol: Protocol = "ijepa",
    label: Label = "class",
    scale: Scale = None,
    baseline_train: BaselineTrain = None,
    baseline_test: BaselineTest = None,
    shots: Shots = None,
    draws: Draws = 5,
    subset: Subset = None,
    precision: Precise = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit a probe on frozen features; baselines stand in the same table with a paired test.

    Example: ijepa probe logistic --train train.h5 --test val.h5 --label count --out count.json

    Example: ijepa probe linear --protocol vissl-cifar100 --train train.h5 --test val.h5 --out r
    """
    given = {option for option in ctx.params if _is_typed(ctx, option)}
    _refuse_unread(name, given, subset)
    both = name == "low-level"
    choices = {"name": "linear" if both else name, "label": label, "draws": draws, "seed": seed}
    choices |= {"protocol": protocol, "scale": scale, "precision": precision}
    choices |= {"shots": shots} if shots else {}
    config = validated(ProbeConfig, choices, "options")
    baselines = list(zip(baseline_train or [], baseline_test or [], strict=False))
    if len(baseline_train or []) != len(baseline_test or []):
        raise IjepaError("Give as many --baseline-test as --baseline-train, in the same order.")
    if device != "cpu":  # scikit-learn on a GPU; SciPy reads it when it is imported
        os.environ.setdefault("SCIPY_ARRAY_API", "1")
    from ijepa.probe import FeaturePair, low_level
    from ijepa.probe import probe as run

    pairs = FeaturePair(train, test), [FeaturePair(*pair) for pair in baselines]
    how = runtime(device, 0, force)
    with shown_progress() as progress:
        if both:
            found = low_level(*pairs, out, config, how, progress)
            outcomes = found.outcomes
        else:
            outcome = run(*pairs, out, config, how, progress, subset or [])
            outcomes = (outcome,)
    cached = all(one.cached for one in outcomes)
    table = score_table([one.scores for one in outcomes], cached=cached)
    show(found if both else outcome, as_json, table)


def _is_typed(ctx: typer.Context, option: str) -> bool:
    """By name, for the enumeration is click's, which some versions of typer carry within."""
    source = ctx.get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_unread(name: str, given: set[str], listed: list[Path] | None) -> None:
    """No option that was given is without effect."""
    unread = given & UNREAD[name] or (given & {"shots", "draws"} if listed else set())
    if unread:
        beside = " with --subset" if name == "few-shot" and listed else ""
        raise IjepaError(f"--{min(unread)} changes nothing in {name}{beside}; leave it out.")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(probe)
