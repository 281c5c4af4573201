"""Results, runs and pictures as one page, one set of tables, one JSON object."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ijepa.config import (
    RUNTIME,
    Config,
    PretrainConfig,
    ReportConfig,
    Runtime,
    StrPath,
    validated,
)
from ijepa.errors import IjepaError
from ijepa.files import BESIDE, file_sha256, no_file, write_bytes
from ijepa.paper import TABLES
from ijepa.recipes import parse_yaml
from ijepa.records import read_record, record_path
from ijepa.results.page import PICTURES, verdict
from ijepa.results.paper_tables import tables_of_paper
from ijepa.results.record import RESULT, Scores, is_result, read_result, result_id
from ijepa.results.tables import TableView, grouped, score_tables
from ijepa.stage import StagePlan, exclusive_work, work_note

VERSION = 12
NO_SOURCES = "shard", "extract", "convert", "report"  # stages whose outputs no page shows
METRICS = "metrics.jsonl"  # of a run that has begun
DEFAULTS = ReportConfig()

log = logging.getLogger(__name__)


class ReportResult(Config):
    """A finished page, and what is in it."""

    out: Path
    cached: bool = False
    title: str
    verdict: tuple[str, ...]  # what the scores say, in sentences
    # Those of the paper that were chosen or hold a number of ours; its ablations at the scale of
    # other data; scores, one table a label, then one a probe with all numbers.
    tables: tuple[TableView, ...]
    paper_cells: tuple[int, int]  # numbers of the paper with one of ours beside them; all of them
    results: tuple[Scores, ...]
    runs: tuple[Path, ...]
    pictures: tuple[Path, ...]


def report(
    sources: Sequence[StrPath],
    out: StrPath,
    config: ReportConfig = DEFAULTS,
    runtime: Runtime = RUNTIME,
) -> ReportResult:
    """Gather results, run folders and pictures into one self-contained HTML page.

    Args:
        sources: result files of `ijepa probe`, and folders of them; folders of `ijepa pretrain`,
            finished or not, and of `ijepa finetune`; pictures and pages of `ijepa visualize`.
        out: the page to make.
        config: its title, and tables of the paper to show beside those that a result fills.
        runtime: `force` rebuilds it.

    Raises:
        IjepaError: nothing to show, something that is none of these, or no such table.
    """
    config = config.model_copy(update={"tables": tuple(sorted({*config.tables}))})
    if unknown := {*config.tables} - {table.number for table in TABLES}:
        known = ", ".join(str(table.number) for table in TABLES)
        raise IjepaError(f"The paper has no table {min(unknown)} of scores; choose from {known}.")
    out = Path(out)
    results, runs, pictures = _sorted(list(dict.fromkeys(map(Path, sources))))
    if not (results or runs or pictures):
        raise IjepaError("There is nothing to report; name results of `ijepa probe`, or runs.")
    configs = {run: _pretraining(run) for run in runs}
    scores = list(results.values())
    groups = grouped(scores)
    pretrained = [config for config in configs.values() if config]
    shown = [*tables_of_paper(scores, groups, pretrained), *score_tables(groups)]
    made = [cell for one in shown if one.kind == "paper" for cell in one.made]
    summary = ReportResult(
        out=out,
        title=config.title or (short_run(runs[0]) if runs else "Scores"),
        verdict=tuple(verdict(scores)),
        tables=_chosen(shown, config),
        paper_cells=(sum(made), len(made)),
        results=tuple(scores),
        runs=tuple(runs),
        pictures=tuple(pictures),
    )
    inputs = {f"result {path}": result_id(result) for path, result in results.items()}
    inputs |= {f"run {path}": file_sha256(path / METRICS) for path in runs}
    notes = ("config.yaml", "stage.json", "work.json")
    files = [run / name for run in runs for name in notes]
    files += [file for path in pictures for file in (path, record_path(path))]
    inputs |= {f"file {path}": file_sha256(path) for path in files if path.is_file()}
    plan = StagePlan("report", VERSION, config, inputs, out)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            from ijepa.report.drawing import drawn

            paper_first = bool(config.tables or summary.paper_cells[0])
            text = drawn(summary, configs, paper_first)
            write_bytes(work.folder / out.name, text.encode())
            work.publish({"command": runtime.command})
    return summary.model_copy(update={"cached": work.cached})


def _chosen(shown: Sequence[TableView], config: ReportConfig) -> tuple[TableView, ...]:
    """All tables but those of the paper that neither hold a number of ours nor were chosen."""
    numbers = {one.number for one in shown if one.kind == "paper" and any(one.made)}
    numbers |= {table.number for table in TABLES} if config.paper else {*config.tables}
    return tuple(one for one in shown if one.kind != "paper" or one.number in numbers)


def short_run(run: Path) -> str:
    """Name of a run, finished or not."""
    return run.name.removesuffix(".partial")


def _sorted(sources: Sequence[Path]) -> tuple[dict[Path, Scores], list[Path], list[Path]]:
    """Results, runs and pictures; a result that is named twice counts once."""
    found = {path: _named(path) for path in sources}
    if passed := [
        path for path, named in found.items() if not (named or path.name.endswith(BESIDE))
    ]:
        more = f" and {len(passed) - 1} more" if len(passed) > 1 else ""
        log.warning("passed over, for a report does not show them: %s%s", passed[0], more)
    named = list(dict.fromkeys(one for several in found.values() for one in several))
    runs = [path for path in named if path.is_dir()]
    pictures = [path for path in named if path not in runs and path.suffix.lower() in PICTURES]
    files = [path for path in named if path not in runs and path not in pictures]
    files += [run / RESULT for run in runs if is_result(run / RESULT)]
    results: dict[str, tuple[Path, Scores]] = {}
    for path in files:
        result = read_result(path)
        results.setdefault(result_id(result), (path, result))
    for path in pictures:
        if not path.is_file():
            raise IjepaError(f"{no_file(path, 'picture')}; make one with `ijepa visualize`.")
    return dict(results.values()), runs, pictures


def _named(path: Path) -> list[Path]:
    """The run or file itself; of another folder the results in it.

    A run may be called by its name or by that of its folder while it goes on, `NAME.partial`. A
    shell's `*` also names records and other unfinished work beside outputs, and what lies beside
    runs, such as shard sets and feature files: they are no source.
    """
    if not path.exists():
        names = f"{path.name}.partial", path.name.removesuffix(".partial")
        others = map(path.with_name, names)
        path = next((other for other in others if (other / METRICS).is_file()), path)
    is_run = (path / METRICS).is_file()
    if path.name.endswith(BESIDE) and not is_run and path.exists():
        return []
    if record_of(path).get("stage") in NO_SOURCES:
        return []
    if not path.is_dir() or is_run:
        return [path]
    found = [file for file in sorted(path.glob("*.json")) if is_result(file)]
    if not found:
        raise IjepaError(
            f"{path} is not a run folder of `ijepa pretrain` (there is no {METRICS}), and holds no "
            f"result of `ijepa probe`."
        )
    return found


def _pretraining(run: Path) -> PretrainConfig | None:
    """The settings of a pretraining; None for other runs, and for a run without any."""
    path = run / "config.yaml"
    if record_of(run).get("stage", "pretrain") != "pretrain" or not path.is_file():
        return None
    try:
        body = parse_yaml(path.read_text())
    except ValueError as error:
        raise IjepaError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return validated(PretrainConfig, body or {}, str(path))


def record_of(run: Path) -> Mapping[str, Any]:
    """Of a run that is finished, or of one that is still going."""
    return read_record(run) or work_note(run) or {}
