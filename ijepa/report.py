"""Results, runs and pictures as one page, one table, one JSON object."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime, StrPath, validated
from ijepa.errors import IjepaError
from ijepa.recipes import parse_yaml
from ijepa.records import read_metrics
from ijepa.results.beside import PaperTable, beside_paper
from ijepa.results.embed import PICTURES
from ijepa.results.groups import Group, grouped
from ijepa.results.pretraining import known_settings
from ijepa.results.record import RESULT, ProbeResult, is_result, read_result
from ijepa.results.scaled import ScaledTable, scaled_tables
from ijepa.results.stand_ins import StandInTable, stand_in_tables
from ijepa.stage import (
    StagePlan,
    exclusive_work,
    file_sha256,
    read_json,
    read_record,
    record_path,
    refuse_changed,
    write_bytes,
)

if TYPE_CHECKING:
    from ijepa.results.run_view import RunView

VERSION = 5
METRICS = "metrics.jsonl"  # of a run that has begun


class ReportConfig(Config):
    """What the inputs do not say: which results (by seal) make up which table."""

    tables: dict[int, tuple[str, ...]]


class ReportOutcome(Config):
    """A finished page, and what is in it.

    Attributes:
        paper: every table of the paper, with ours beside it where it was made.
        stand_ins: tables of the paper filled by encoders that stand for its rows.
        scaled: ablations of the paper at the scale of other data.
        groups: all scores, comparable ones together.
    """

    out: Path
    cached: bool
    paper: tuple[PaperTable, ...]
    stand_ins: tuple[StandInTable, ...]
    scaled: tuple[ScaledTable, ...]
    groups: tuple[Group, ...]
    results: tuple[ProbeResult, ...]
    runs: tuple[Path, ...]
    pictures: tuple[Path, ...]


class _Sources(NamedTuple):
    """What a page is made of; pretrainings are those of the runs."""

    results: dict[Path, ProbeResult]
    runs: list[Path]
    pictures: list[Path]


def report(
    sources: Sequence[StrPath],
    out: StrPath,
    runtime: Runtime = RUNTIME,
    tables: Mapping[int, Sequence[StrPath]] | None = None,
) -> ReportOutcome:
    """Gather results, run folders and pictures into one self-contained HTML page.

    Args:
        sources: result files of `ijepa probe`, and folders of them; folders of `ijepa pretrain`,
            finished or not, and of `ijepa finetune`; pictures and pages of `ijepa visualize`.
        out: the page to make.
        runtime: `force` makes it again.
        tables: further results and folders of `ijepa finetune`, by the number of the table of the
            paper that their encoders stand for rows of.

    Raises:
        IjepaError: nothing to show, something that is none of these, or no such table.
    """
    out = Path(out)
    named = {number: [Path(path) for path in paths] for number, paths in (tables or {}).items()}
    every = [*map(Path, sources), *(path for paths in named.values() for path in paths)]
    found = _sorted(list(dict.fromkeys(every)))
    if not any(found):
        raise IjepaError("There is nothing to report; name results of `ijepa probe`, or runs.")
    results = tuple(found.results.values())
    configs = {run: _pretraining(run) for run in found.runs}
    known = known_settings(results, [config for config in configs.values() if config])
    groups = grouped(results)
    meant = ReportConfig(tables={n: _seals(paths, found) for n, paths in named.items()})
    outcome = ReportOutcome(
        out=out,
        cached=False,
        paper=beside_paper(groups, known),
        stand_ins=stand_in_tables(results, {n: set(ids) for n, ids in meant.tables.items()}),
        scaled=scaled_tables(groups, known),
        groups=groups,
        results=results,
        runs=tuple(found.runs),
        pictures=tuple(found.pictures),
    )
    plan = StagePlan("report", VERSION, meant, _inputs(found), out)
    with exclusive_work(plan, force=runtime.force) as work:
        if not work.cached:
            text = _page(outcome, configs)
            write_bytes(work.folder / out.name, text.encode())
            work.publish_file({"command": runtime.command})
    return outcome.model_copy(update={"cached": work.cached})


def _sorted(sources: Sequence[Path]) -> _Sources:
    """Each source as what it is; a result that is named twice counts once."""
    named = [one for path in sources for one in _named(path)]
    runs = [path for path in named if path.is_dir()]
    pictures = [path for path in named if path not in runs and path.suffix.lower() in PICTURES]
    files = [path for path in named if path not in runs and path not in pictures]
    files += [run / RESULT for run in runs if is_result(run / RESULT)]
    results: dict[str, tuple[Path, ProbeResult]] = {}
    for path in files:
        result = read_result(path)
        results.setdefault(result.seal, (path, result))
    for path in pictures:
        if not path.is_file():
            raise IjepaError(f"There is no picture {path}; make one with `ijepa visualize`.")
    return _Sources(dict(results.values()), runs, pictures)


def _named(path: Path) -> list[Path]:
    """The run or file itself; of another folder the results in it.

    A run that is going on may be called by its name or by that of its folder, `NAME.partial`. A
    shell's `*` also names records and other unfinished work beside outputs: they are no source.
    """
    going_on = path.with_name(f"{path.name}.partial")
    if not path.exists() and (going_on / METRICS).is_file():
        path = going_on
    is_run = (path / METRICS).is_file()
    if path.name.endswith((".stage.json", ".partial", ".lock", ".outdated")) and not is_run:
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


def _seals(paths: Sequence[Path], found: _Sources) -> tuple[str, ...]:
    """Of the results at these paths, or in the folders that stand there."""
    read = {str(path): result.seal for path, result in found.results.items()}
    named = [one for path in paths for one in _named(path)]
    files = [one / RESULT if one.is_dir() else one for one in named]
    return tuple(read[str(file)] if str(file) in read else read_result(file).seal for file in files)


def _inputs(found: _Sources) -> dict[str, str]:
    """Fingerprints of all that the page shows."""
    inputs = {f"result {path}": result.seal for path, result in found.results.items()}
    inputs |= {f"run {path}": file_sha256(path / METRICS) for path in found.runs}
    shown = [path for run in found.runs for path in (run / "config.yaml", run / "stage.json")]
    shown += [file for path in found.pictures for file in (path, record_path(path))]
    return inputs | {f"file {path}": file_sha256(path) for path in shown if path.is_file()}


def _pretraining(run: Path) -> PretrainConfig | None:
    """The settings of a pretraining; None for other runs, and for a run without any."""
    path = run / "config.yaml"
    if _record(run).get("stage", "pretrain") != "pretrain" or not path.is_file():
        return None
    try:
        body = parse_yaml(path.read_text())
    except ValueError as error:
        raise IjepaError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return validated(PretrainConfig, body or {}, str(path))


def _record(run: Path) -> Mapping[str, Any]:
    """Of a run that is finished, or of one that is still going."""
    note = run / "work.json"
    return read_record(run) or (read_json(note) if note.is_file() else {})


def _page(outcome: ReportOutcome, configs: Mapping[Path, PretrainConfig | None]) -> str:
    from ijepa.results.embed import picture
    from ijepa.results.page import Contents, page

    contents = Contents(
        paper=outcome.paper,
        stand_ins=outcome.stand_ins,
        scaled=outcome.scaled,
        groups=outcome.groups,
        results=outcome.results,
        runs=[_view(run, config) for run, config in configs.items()],
        pictures=[picture(path, read_record(path)) for path in outcome.pictures],
    )
    return page(contents)


def _view(run: Path, config: PretrainConfig | None) -> "RunView":
    from ijepa.results.run_view import RunView, mask_view, run_charts

    refuse_changed(run, METRICS, "config.yaml")
    records, record = read_metrics(run / METRICS), _record(run)
    last = records[-1]
    seconds, device = record.get("seconds"), record.get("device", "unknown device")
    summary = (
        f"{int(last['step']):,} steps, {int(last.get('images', 0)):,} images seen; "
        f"{f'{seconds:,.0f} s on {device}' if seconds else 'not finished'}; "
        f"run {str(record.get('fingerprint', ''))[:12]}."
    )
    path = run / "config.yaml"
    return RunView(
        name=str(run),
        summary=summary,
        charts=run_charts(records),
        masks=mask_view(config) if config else None,
        config=path.read_text() if path.is_file() else "",
        command=str(record.get("command", "")),
    )
