"""`ijepa features`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ijepa_cli.options import Json, app
from ijepa_cli.show import show, shown_progress, table

File = Annotated[Path, typer.Argument(help="Feature file written by `ijepa extract`.")]
Data = Annotated[Path | None, typer.Option(help="Shard set of the file, to check it too.")]
Label = Annotated[str, typer.Option(help="Label whose classes are compared; '' for none.")]
files = typer.Typer(
    name="features",
    help="Inspect feature files: what they hold, whether they are undamaged, how good they are.",
    no_args_is_help=True,
    epilog="Example: ijepa features diagnose train.h5",
)
app.add_typer(files)


@files.command()
def info(file: File, as_json: Json = False) -> None:
    """Show what a file holds and where it comes from, without reading its numbers.

    Example: ijepa features info train.h5
    """
    from ijepa.extract import describe

    found = describe(file)
    rows = table(found, str(file), leave_out={"header", "layers", "classes"})
    facts = dict(found.header) | {"layers": ", ".join(map(str, found.header.layers))}
    del facts["num_views"]  # said by `views`
    facts |= {name: value for name, value in facts.pop("provenance") if value is not None}
    facts.pop("settings", None)
    for label, names in facts.pop("class_names").items():
        shown = ", ".join([*names[:10], "..."][: len(names)]) if names else "plain integers"
        facts[f"label {label}"] = f"{found.classes[label]:,} classes here, of {shown}"
    for name, value in facts.items():
        rows.add_row(name.replace("_", " "), str(value))
    show(found, as_json, rows)


@files.command()
def check(file: File, data: Data = None, as_json: Json = False) -> None:
    """Read a whole file and compare it with its checksums.

    Example: ijepa features check train.h5 --data shards/photos
    """
    from ijepa.extract import check_features

    with shown_progress() as progress:
        found = check_features(file, data, progress)
    both = f", and so is {data}" if data else ""
    show(found, as_json, f"{file} ({found.images:,} images) is whole and undamaged{both}")


@files.command()
def diagnose(file: File, label: Label = "class", as_json: Json = False) -> None:
    """Measure whether the encoder has collapsed, layer by layer: dimensions, spread, neighbours.

    Example: ijepa features diagnose train.h5 --label count
    """
    from ijepa.features.diagnose import diagnose as run

    with shown_progress() as progress:
        state = run(file, label or None, progress)
    rows = Table(title=f"{state.encoder}, {state.images:,} images", title_justify="left")
    for name in type(state.layers[0]).model_fields:
        rows.add_column(name.replace("_", " "), justify="right")
    for layer in state.layers:
        rows.add_row(*("" if value is None else f"{value:.4g}" for _, value in layer))
    show(state, as_json, rows)
