"""`ijepa encoders`."""

from rich.table import Table

from ijepa_cli.options import Json, app
from ijepa_cli.show import show


@app.command()
def encoders(as_json: Json = False) -> None:
    """List what --encoder accepts, where to download weights, and their rows in the paper.

    Example: ijepa encoders --json
    """
    from ijepa.encoders.spec import CATALOGUE

    table = Table(title="What --encoder takes", title_justify="left", show_lines=True)
    for title in ("encoder", "what", "pooling", "weights, licence", "in the paper"):
        table.add_column(title, overflow="fold")
    for entry in CATALOGUE.encoders:
        weights = f"{entry.source}\n({entry.licence})" if entry.source else ""
        rows = [f"{arch}: table {', '.join(map(str, n))}" for arch, n in entry.paper.items()]
        paper = "\n".join([entry.method or "", *rows]).strip()
        table.add_row(entry.encoder, entry.what, entry.pooling, weights, paper)
    show(CATALOGUE, as_json, table)
