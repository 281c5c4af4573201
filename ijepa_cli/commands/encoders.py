"""`ijepa encoders`."""

from typing import TYPE_CHECKING

import typer
from rich.table import Table

from ijepa_cli.options import Json
from ijepa_cli.show import show

if TYPE_CHECKING:
    from ijepa.encoders.spec import Catalogue, Entry


def encoders(as_json: Json = False) -> None:
    """List what --encoder takes, where weights are, and the paper's rows that they stand for.

    Example: ijepa encoders --json
    """
    from ijepa.encoders.spec import catalogue

    found = catalogue()
    show(found, as_json, _table(found))


def _table(found: "Catalogue") -> Table:
    table = Table(title="What --encoder takes", title_justify="left", show_lines=True)
    for title in ("encoder", "what", "pooling", "weights, licence", "in the paper"):
        table.add_column(title, overflow="fold")
    for entry in found.encoders:
        weights = f"{entry.source}\n({entry.licence})" if entry.source else ""
        cells = (entry.encoder, entry.what, entry.pooling, weights, _rows(entry))
        table.add_row(*cells)
    return table


def _rows(entry: "Entry") -> str:
    """Architectures, each with the tables that have it: `ViT-H/14: table 1, 2`."""
    tables: dict[str, dict[str, None]] = {}  # each number once, in order
    for row in entry.paper:
        tables.setdefault(row.arch, {})[str(row.table)] = None
    lines = [f"{arch}: table {', '.join(numbers)}" for arch, numbers in tables.items()]
    return "\n".join([entry.method or "", *lines]).strip()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(encoders)
