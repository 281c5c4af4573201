"""`ijepa report`."""

from pathlib import Path
from typing import Annotated

import typer

from ijepa.config import ReportConfig, Runtime
from ijepa_cli.options import app, stage
from ijepa_cli.show import comparison_table, headline, report_tables, show

Sources = Annotated[
    list[Path] | None,
    typer.Argument(
        help="Results of `ijepa probe` or folders of them, runs, pictures of `ijepa visualize`."
    ),
]
Compare = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        help="Two results, or folders of `ijepa finetune`: compare their first encoders image by "
        "image. No page is written."
    ),
]
Out = Annotated[Path, typer.Option(help="Page to write, one self-contained HTML file.")]


@stage(app, ReportConfig, "title paper tables")
def report(
    config: ReportConfig,
    runtime: Runtime,
    as_json: bool,
    sources: Sources = None,
    compare: Compare = None,
    out: Out = Path("report.html"),
) -> None:
    """Collect scores, training curves and pictures in tables and one HTML page.

    Numbers that may not be compared are never in one column. A table of the paper is shown if a
    result fills one of its rows exactly. A run that is still training is shown as far as it is.

    Example: ijepa report runs/scenes.probes/*.json runs/scenes --out report.html

    Example: ijepa report --compare mine.json theirs.json
    """
    if compare:
        from ijepa.results.compare import compare as run_compare

        found = run_compare(*compare)
        show(found, as_json, comparison_table(found))
        return
    from ijepa.report import report as run

    result = run(sources or [], out, config, runtime)
    words = headline("made", result.out, result.cached, "open it in a browser")
    show(result, as_json, *report_tables(result), words)
