"""`ijepa convert`."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import ConvertConfig, Runtime
from ijepa_cli.options import app, stage
from ijepa_cli.show import show, shown_progress

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


@stage(app, ConvertConfig, "to which arch license")
def convert(source: In, out: Out, config: ConvertConfig, runtime: Runtime, as_json: bool) -> None:
    """Write weights in another format, bit for bit, with a model card; or an encoder as ONNX.

    Example: ijepa convert runs/scenes scenes-hf --to hf
    """
    from ijepa import convert as library

    with shown_progress() as progress:
        result = library.convert(source, out, config, runtime, progress)
    state = "cached" if result.cached else "written"
    left_out = ", ".join(library.PART_NAMES[part] for part in result.left_out)
    words = f"{result.out} {state}: {result.arch}, {result.holds}"
    words += f" (no room for: {left_out})." if left_out else "."
    if result.largest_difference is not None:
        words += f" onnxruntime gives the same features to {result.largest_difference:.1e}."
    if result.card:
        words += f" Model card: {result.card}"
    words += f"\nLoad it with: {result.load}"
    if config.to in library.FOLDERS:  # the record names files of this machine
        upload = ["hf", "upload", "USER/NAME", str(result.out), "--exclude", "stage.json"]
        words += f"\nUpload it with: {shlex.join(upload)}"
    show(result, as_json, words)
