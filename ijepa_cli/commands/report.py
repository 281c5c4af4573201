"""`ijepa report`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa_cli.console import Force, Json, runtime, screen, show
from ijepa_cli.score_table import score_table

Sources = Annotated[list[Path], typer.Argument(help="Results of `ijepa probe`, and run folders.")]
Out = Annotated[Path, typer.Option(help="Page to make, one self-contained HTML file.")]


def report(
    sources: Sources,
    out: Out = Path("report.html"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Gather scores and training curves in a table and a page.

    Example: ijepa report runs/scenes.probes/*.json runs/scenes --out report.html
    """
    from ijepa.report import report as run

    outcome = run(sources, out, runtime("cpu", 0, force))
    show(outcome, as_json, score_table(outcome.results, cached=outcome.cached))
    if not as_json:
        screen.print(f"page: {outcome.out}", highlight=False)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
