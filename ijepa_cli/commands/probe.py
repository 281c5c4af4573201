"""`ijepa probe`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ijepa.config import ProbeConfig, validated
from ijepa.errors import IjepaError
from ijepa_cli.console import Force, Json, Seed, runtime, show, shown_progress
from ijepa_cli.score_table import score_table

Name = Annotated[
    Literal["logistic", "linear", "knn", "few-shot"], typer.Argument(help="Which probe to fit.")
]
Train = Annotated[Path, typer.Option(help="Features to fit on, F.h5.")]
Test = Annotated[Path, typer.Option(help="Features to score on, of the same encoder.")]
BaselineTrain = Annotated[
    list[Path] | None, typer.Option(help="Another encoder's, shown beside; repeatable.")
]
BaselineTest = Annotated[
    list[Path] | None, typer.Option(help="That encoder's test features, in the same order.")
]
Out = Annotated[Path, typer.Option(help="Result to make, R.json.")]
Label = Annotated[str, typer.Option(help="Which stored label, such as class, count or dist.")]
Shots = Annotated[
    list[float] | None,
    typer.Option(help="few-shot: images a class, or a fraction below 1; repeatable."),
]
Draws = Annotated[int, typer.Option(help="few-shot: how many subsets to draw.", min=1)]


def probe(
    name: Name,
    train: Train,
    test: Test,
    out: Out,
    label: Label = "class",
    baseline_train: BaselineTrain = None,
    baseline_test: BaselineTest = None,
    shots: Shots = None,
    draws: Draws = 5,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit a probe on frozen features; baselines stand in the same table with a paired test.

    Example: ijepa probe logistic --train train.h5 --test val.h5 --label count --out count.json
    """
    choices = {"name": name, "label": label, "draws": draws, "seed": seed}
    config = validated(ProbeConfig, choices | ({"shots": shots} if shots else {}), "options")
    baselines = list(zip(baseline_train or [], baseline_test or [], strict=False))
    if len(baseline_train or []) != len(baseline_test or []):
        raise IjepaError("Give as many --baseline-test as --baseline-train, in the same order.")
    from ijepa.probe import FeaturePair
    from ijepa.probe import probe as run

    with shown_progress() as progress:
        outcome = run(
            FeaturePair(train, test),
            [FeaturePair(*pair) for pair in baselines],
            out,
            config,
            runtime("cpu", 0, force),
            progress,
        )
    show(outcome, as_json, score_table([outcome.result], cached=outcome.cached))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(probe)
