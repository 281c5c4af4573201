"""`ijepa probe`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from ijepa.config import ProbeConfig, Runtime
from ijepa.errors import IjepaError
from ijepa_cli.options import stage
from ijepa_cli.score_table import score_table
from ijepa_cli.show import show, shown_progress

Name = Annotated[
    Literal["logistic", "linear", "knn", "few-shot", "low-level"],
    typer.Argument(
        help="Which probe to fit; low-level: count and distance on CLEVR, as published."
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
Subset = Annotated[
    list[Path] | None,
    typer.Option(
        "--subset",
        help="few-shot: a list of training images, one file name a line, in place of a draw; "
        "repeatable.",
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


def register(app: typer.Typer) -> None:
    """Add the command."""
    stage(app, ProbeConfig, "protocol label shots seed", "device")(probe)


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
    subsets: Subset = None,
) -> None:
    """Fit a probe on frozen features; baselines stand in the same table with a paired test.

    Example: ijepa probe logistic --train train.h5 --test val.h5 --label count --out count.json

    Example: ijepa probe linear --protocol vissl-cifar100 --train train.h5 --test val.h5 --out r
    """
    _refuse_unread(name, config.model_fields_set, subsets or [])
    trains, tests = [train, *(baseline_train or [])], [test, *(baseline_test or [])]
    if len(trains) != len(tests):
        raise IjepaError("Give as many --baseline-test as --baseline-train, in the same order.")
    if runtime.device != "cpu":  # scikit-learn on a GPU; SciPy reads it when it is imported
        os.environ.setdefault("SCIPY_ARRAY_API", "1")
    from ijepa.probe import FeaturePair, low_level
    from ijepa.probe import probe as run

    pairs = [FeaturePair(*pair) for pair in zip(trains, tests, strict=True)]
    with shown_progress() as progress:
        if name == "low-level":
            both = low_level(pairs[0], pairs[1:], out, config, runtime, progress)
            outcomes = both.outcomes
        else:
            config = config.model_copy(update={"name": name})
            outcomes = (run(pairs[0], pairs[1:], out, config, runtime, progress, subsets or []),)
    cached = all(one.cached for one in outcomes)
    table = score_table([one.scores for one in outcomes], cached=cached)
    show(both if name == "low-level" else outcomes[0], as_json, table)


def _refuse_unread(name: str, given: set[str], lists: list[Path]) -> None:
    """No option that was given is without effect."""
    unread = (given | ({"subset"} if lists else set())) & UNREAD[name]
    unread = unread or (given & {"shots", "draws"} if lists else set())
    if unread:
        beside = " with --subset" if name == "few-shot" and lists else ""
        raise IjepaError(f"--{min(unread)} changes nothing in {name}{beside}; leave it out.")
