"""`ijepa convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ijepa.config import ConvertConfig, Runtime
from ijepa_cli.options import stage
from ijepa_cli.show import show, shown_progress

if TYPE_CHECKING:
    from ijepa.convert import ConvertResult

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="A run, a checkpoint, a published .pth.tar, or weights of timm or transformers; for "
        "onnx also an encoder such as timm:NAME.",
    ),
]
Out = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="File to write; for hf and timm a folder, for onnx either."),
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(help="Result of `ijepa probe` to show in the model card; repeatable."),
]
Private = Annotated[
    bool, typer.Option("--private", help="With --push: make a new model on the hub private.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    stage(app, ConvertConfig, "to which arch license push")(convert)


def convert(
    source: In,
    out: Out,
    config: ConvertConfig,
    runtime: Runtime,
    as_json: bool,
    scores: Scores = None,
    private: Private = False,
) -> None:
    """Write weights in another format, bit for bit, with a model card; or an encoder as ONNX.

    Example: ijepa convert runs/scenes scenes-hf --to hf
    """
    from ijepa.convert import convert as run

    with shown_progress() as progress:
        result = run(source, out, config, runtime, progress, scores or [], private)
    show(result, as_json, _sentence(result))


def _sentence(result: "ConvertResult") -> str:
    from ijepa.encoders.spec import PARTS

    left_out = ", ".join(PARTS[part] for part in result.left_out)
    pushed = f"\nUploaded to {result.url}" if result.url else ""
    difference, checked = result.largest_difference, ""
    if difference is not None:
        checked = f" onnxruntime gives the same features to {difference:.1e}."
    return (
        f"{result.out} {'cached' if result.cached else 'written'}: {result.arch}, {result.holds}"
        f"{f' (no room for: {left_out})' if left_out else ''}.{checked}"
        f"{f' Model card: {result.card}' if result.card else ''}\n"
        f"Load it with: {result.load}{pushed}"
    )
