"""Results and runs as one page, one table, one JSON object."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa.config import RUNTIME, Config, Runtime
from ijepa.errors import IjepaError
from ijepa.stores.records import read_metrics
from ijepa.stores.results import ProbeResult, read_result
from ijepa.stores.stage import (
    StagePlan,
    exclusive_work,
    file_sha256,
    read_record,
    write_bytes,
)
from ijepa.views.seeds import OverSeeds, over_seeds

if TYPE_CHECKING:
    from ijepa.views.page import RunView

VERSION = 2


class ReportConfig(Config):
    """Nothing to choose yet; the inputs say it all."""


class ReportOutcome(Config):
    """A finished page, and the results in it."""

    out: Path
    cached: bool
    results: tuple[ProbeResult, ...]
    over_seeds: tuple[OverSeeds, ...]
    runs: tuple[Path, ...]


def report(sources: Sequence[Path], out: Path, runtime: Runtime = RUNTIME) -> ReportOutcome:
    """Gather probe results and run folders into one self-contained HTML page.

    Args:
        sources: result files of `ijepa probe`, and run folders of `ijepa pretrain`.
        out: the page to make.
        runtime: `force` makes it again.

    Raises:
        IjepaError: nothing to show, or something that is neither.
    """
    if not sources:
        raise IjepaError("There is nothing to report; name results of `ijepa probe`, or runs.")
    runs = [path for path in sources if path.is_dir()]
    # A shell's `*.json` also names the records that stages leave beside their outputs.
    files = [p for p in sources if not p.is_dir() and not p.name.endswith(".stage.json")]
    results = tuple(read_result(path) for path in files)
    inputs = {
        f"result {path}": result.fingerprint for path, result in zip(files, results, strict=True)
    }
    inputs |= {f"run {path}": file_sha256(_metrics(path)) for path in runs}
    plan = StagePlan("report", VERSION, ReportConfig(), inputs, out)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            from ijepa.views.page import page

            text = page(results, [_view(path) for path in runs], over_seeds(results))
            write_bytes(work.folder / out.name, text.encode())
            work.publish_file({})
    return ReportOutcome(
        out=out,
        cached=work.cached,
        results=results,
        over_seeds=over_seeds(results),
        runs=tuple(runs),
    )


def _metrics(run: Path) -> Path:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise IjepaError(f"{run} is not a run folder of `ijepa pretrain`: there is no {path}.")
    return path


def _view(run: Path) -> "RunView":
    from ijepa.views.page import RunView, run_charts

    records = read_metrics(_metrics(run))
    record = read_record(run) or {}
    last = records[-1]
    seconds, device = record.get("seconds"), record.get("device", "unknown device")
    summary = (
        f"{int(last['step']):,} steps, {int(last.get('images', 0)):,} images seen; "
        f"{f'{seconds:,.0f} s on {device}' if seconds else 'not finished'}; "
        f"run {str(record.get('fingerprint', ''))[:12]}."
    )
    config = run / "config.yaml"
    text = config.read_text() if config.is_file() else ""
    return RunView(str(run), summary, run_charts(records), text)
