"""`ijepa convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ijepa.config import ConvertConfig, validated
from ijepa_cli.console import Force, Json, runtime, show, shown_progress

if TYPE_CHECKING:
    from ijepa.convert import ConvertResult

In = Annotated[
    Path,
    typer.Argument(
        metavar="IN",
        help="Run, checkpoint, published .pth.tar, file or folder of timm, folder of IJepaModel.",
    ),
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="File to make; for hf and timm, folder.")]
To = Annotated[
    Literal["published", "timm", "hf", "ours"],
    typer.Option(
        help="Format: facebookresearch/ijepa, timm, transformers, or a checkpoint of ours."
    ),
]
Which = Annotated[
    Literal["target", "context"],
    typer.Option(help="Encoder, for timm and hf, which have room for one; the paper's: target."),
]
Arch = Annotated[
    str | None,
    typer.Option(help="DIMxDEPTHxHEADS of weights of no known architecture, such as 48x3x3."),
]
Scores = Annotated[
    list[Path] | None,
    typer.Option(help="Result of `ijepa probe` for the model card; may be repeated."),
]


def convert(
    source: In,
    out: Out,
    to: To,
    which: Which = "target",
    arch: Arch = None,
    scores: Scores = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write weights in another format, bit for bit, and a model card beside them.

    Example: ijepa convert runs/scenes scenes-hf --to hf
    """
    config = validated(ConvertConfig, {"to": to, "which": which, "arch": arch}, "options")
    from ijepa.convert import convert as run

    with shown_progress() as progress:
        result = run(source, out, config, runtime("cpu", 0, force), progress, scores or [])
    show(result, as_json, _sentence(result))


def _sentence(result: "ConvertResult") -> str:
    left_out = ", ".join(part.replace("_", " ") for part in result.left_out)
    return (
        f"{result.out} {'cached' if result.cached else 'written'}: {result.arch}, {result.holds}"
        f"{f' (no room for: {left_out})' if left_out else ''}. Model card: {result.card}\n"
        f"Load it with: {result.load}"
    )


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(convert)
