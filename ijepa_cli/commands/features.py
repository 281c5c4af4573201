"""`ijepa features`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ijepa_cli.options import Json
from ijepa_cli.show import show, shown_progress, table

if TYPE_CHECKING:
    from ijepa.features.diagnose import FeatureInfo, FeatureState

File = Annotated[Path, typer.Argument(help="Feature file of `ijepa extract`, F.h5.")]
Data = Annotated[
    Path | None, typer.Option(help="Shard set that it was made from, to be checked, too.")
]
Label = Annotated[str, typer.Option(help="By which classes are told apart.")]
NoLabel = Annotated[bool, typer.Option("--no-label", help="Do not look at labels.")]

SHOWN_NAMES = 10

files = typer.Typer(
    help="Look into feature files: what they are, whether they are whole, what state they are in.",
    no_args_is_help=True,
    epilog="Example: ijepa features diagnose train.h5",
)


@files.command()
def info(file: File, as_json: Json = False) -> None:
    """Say what a file holds, and where it comes from; reads no numbers.

    Example: ijepa features info train.h5
    """
    from ijepa.features.diagnose import describe

    found = describe(file)
    show(found, as_json, _info(found))


@files.command()
def check(file: File, data: Data = None, as_json: Json = False) -> None:
    """Read all of a file, to see that each number is what was written.

    Example: ijepa features check train.h5 --data shards/photos
    """
    from ijepa.extract import check_data
    from ijepa.features.diagnose import describe

    found = describe(file, check=True)
    if data is not None:
        with shown_progress() as progress:
            check_data(file, data, progress)
    both = f" and so is {data}, which it was made from" if data else ""
    show(found, as_json, f"{file}: {found.images:,} images, whole and undamaged{both}")


@files.command()
def diagnose(
    file: File, label: Label = "class", no_label: NoLabel = False, as_json: Json = False
) -> None:
    """Measure each layer: effective dimensions, spectrum, spread, how far classes stand apart.

    Example: ijepa features diagnose train.h5 --label count
    """
    from ijepa.features.diagnose import diagnose as run

    with shown_progress() as progress:
        state = run(file, None if no_label else label, progress)
    show(state, as_json, _state(state))


def _info(found: "FeatureInfo") -> Table:
    rows = table(found, str(found.path), leave_out={"header", "layers", "classes"})
    facts = dict(found.header) | {"layers": ", ".join(map(str, found.header.layers))}
    del facts["num_views"]  # said by `views`
    provenance = {name: value for name, value in facts.pop("provenance") if name != "settings"}
    classes = facts.pop("class_names")
    facts |= {name: value for name, value in provenance.items() if value is not None}
    for label, names in classes.items():
        facts[f"label {label}"] = f"{found.classes[label]:,} classes here, of {_names(names)}"
    for name, value in facts.items():
        rows.add_row(name.replace("_", " "), str(value))
    return rows


def _names(names: list[str] | None) -> str:
    """The first of many."""
    if names is None:
        return "plain integers"
    rest = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def _state(state: "FeatureState") -> Table:
    title = f"{state.encoder}, {state.images:,} images"
    rows = Table(title=title, title_justify="left")
    names = [name for name in type(state.layers[0]).model_fields if name != "layer"]
    for name in ("layer", *names):
        rows.add_column(name.replace("_", " "), justify="right")
    for layer in state.layers:
        values = [getattr(layer, name) for name in names]
        rows.add_row(str(layer.layer), *("" if v is None else f"{v:.4g}" for v in values))
    return rows


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(files, name="features")
