"""Results, runs and pictures as one page, one set of tables, one JSON object."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime, StrPath, validated
from ijepa.errors import IjepaError
from ijepa.files import BESIDE, file_sha256, no_file, read_metrics, write_bytes
from ijepa.paper import TABLES
from ijepa.recipes import parse_yaml
from ijepa.records import read_record, record_path, refuse_changed
from ijepa.results.page import PICTURES, file_picture, page
from ijepa.results.paper_tables import tables_of_paper
from ijepa.results.record import RESULT, Scores, is_result, read_result, result_id
from ijepa.results.tables import (
    Group,
    Line,
    TableView,
    data_names,
    grouped,
    score_name,
    score_tables,
)
from ijepa.results.verdict import short_name, verdict
from ijepa.stage import StagePlan, exclusive_work, work_note

VERSION = 9
METRICS = "metrics.jsonl"  # of a run that has begun
MASK_IMAGES = 2000  # over which the masks of a run are counted
MOST_STRIPS = 8  # probes on the first screen; the tables have all
MOST_CURVES = 6  # runs in the health curve of the first screen, as many as the page has colours
ENCODER_COLOURS = 6  # colours of encoders

Records = list[dict[str, float]]


class ReportConfig(Config):
    """What the page says beside its inputs."""

    title: str = ""  # heading of the page; empty: the name of the first run
    paper: bool = False  # show every table of the paper, also those that no result fills
    tables: tuple[int, ...] = ()  # numbers of tables of the paper to show in any case


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
    runtime: Runtime = RUNTIME,
    title: str = "",
    *,
    paper: bool = False,
    paper_tables: Sequence[int] = (),
) -> ReportResult:
    """Gather results, run folders and pictures into one self-contained HTML page.

    Args:
        sources: result files of `ijepa probe`, and folders of them; folders of `ijepa pretrain`,
            finished or not, and of `ijepa finetune`; pictures and pages of `ijepa visualize`.
        out: the page to make.
        runtime: `force` rebuilds it.
        title: of the page; empty: the name of the first run.
        paper: show every table of the paper; otherwise only those that hold a number of ours.
        paper_tables: numbers of tables of the paper to show in any case.

    Raises:
        IjepaError: nothing to show, something that is none of these, or no such table.
    """
    config = ReportConfig(title=title, paper=paper, tables=tuple(sorted({*paper_tables})))
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
        title=title or (_short(runs[0]) if runs else "Scores"),
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
            paper_first = bool(config.tables or summary.paper_cells[0])
            text = _page(summary, configs, paper_first)
            write_bytes(work.folder / out.name, text.encode())
            work.publish({"command": runtime.command})
    return summary.model_copy(update={"cached": work.cached})


def _chosen(shown: Sequence[TableView], config: ReportConfig) -> tuple[TableView, ...]:
    """All tables but those of the paper that neither hold a number of ours nor were chosen."""
    numbers = {one.number for one in shown if one.kind == "paper" and any(one.made)}
    numbers |= {table.number for table in TABLES} if config.paper else {*config.tables}
    return tuple(one for one in shown if one.kind != "paper" or one.number in numbers)


def _page(
    summary: ReportResult, configs: Mapping[Path, PretrainConfig | None], paper_first: bool
) -> str:
    from ijepa.figures.charts import health_curve

    for run in summary.runs:
        refuse_changed(run, METRICS, "config.yaml")
    metrics = {run: read_metrics(run / METRICS) for run in summary.runs}
    short = {run: _short(run) for run in metrics}
    told_apart = len({*short.values()}) == len(short)
    named = {short[run] if told_apart else str(run): records for run, records in metrics.items()}
    # A probe of many settings, such as few-shot, comes after those of one.
    groups = sorted(grouped(summary.results), key=lambda group: bool(group.score.setting))
    made, cells = summary.paper_cells
    is_whole = {t.number for t in summary.tables if t.kind == "paper"} >= {t.number for t in TABLES}
    return page(
        summary.tables,
        paper_first=paper_first,
        paper=f"{made} of {cells} numbers in the paper's tables have a result of this page beside "
        f"them. {'' if is_whole else '`ijepa report --paper` shows all tables.'}",
        title=summary.title,
        facts=_facts(summary),
        verdict=summary.verdict,
        plot=_interval_plot(groups[:MOST_STRIPS]),
        left_out=len(groups[MOST_STRIPS:]),
        health=health_curve(dict(list(named.items())[:MOST_CURVES])),
        not_drawn=", ".join(list(named)[MOST_CURVES:]),
        results=summary.results,
        runs=[_view(run, config, metrics[run]) for run, config in configs.items()],
        pictures=[file_picture(path, read_record(path)) for path in summary.pictures],
    )


def _short(run: Path) -> str:
    """Name of a run, finished or not."""
    return run.name.removesuffix(".partial")


def _facts(summary: ReportResult) -> dict[str, str]:
    """Data, runs, and of the first run date, version, device and duration; what is known of it."""
    records = [_record(run) for run in summary.runs]
    first: Mapping[str, Any] = records[0] if records else {}
    scores = [score for result in summary.results for score in result]
    data = [str(record.get("source", "")) for record in records] + [s.source for s in scores]
    finished = str(first.get("finished", ""))
    seconds = first.get("seconds") if len(records) == 1 else None
    facts = {
        "Data": ", ".join(filter(None, dict.fromkeys(data))),
        "Runs": ", ".join(map(str, summary.runs)),
        "Date": f"{finished[:10]} {finished[11:16]}".strip(),
        "Commit": str(first.get("commit", "")),
        "ijepa": first.get("libraries", {}).get("ijepa", ""),
        "Device": str(first.get("device", "")),
        "Duration": _duration(seconds) if seconds else "",
    }
    return {name: value for name, value in facts.items() if value}


def _duration(seconds: float) -> str:
    """Such as `2 h 5 min`; the two largest units."""
    if seconds < 60:  # a minute
        return f"{seconds:.0f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{hours[0]} h {hours[1]} min" if hours[0] else f"{minutes[0]} min {minutes[1]} s"


def _interval_plot(groups: Sequence[Group]) -> Markup:
    """Every encoder on every probe; its interval, or the standard deviation over seeds."""
    from ijepa.figures.charts import Dot, Strip, interval_plot

    if not groups:
        return Markup()
    kinds: dict[str, int] = {}

    def dot(line: Line) -> Dot:
        mean, std = line.mean("top1"), line.std("top1")
        low, high = line.score.top1_interval if std is None else (mean - std, mean + std)
        kind = kinds.setdefault(line.encoder, len(kinds) % ENCODER_COLOURS + 1)
        return Dot(short_name(line.score.encoder), mean, low, high, kind)

    data = data_names(group.score for group in groups)
    strips = [
        Strip(
            " of ".join(filter(None, [score_name(group.score), data[group.score.source]])),
            group.score.chance,
            [dot(line) for line in group.lines],
        )
        for group in groups
    ]
    return interval_plot(strips)


def _sorted(sources: Sequence[Path]) -> tuple[dict[Path, Scores], list[Path], list[Path]]:
    """Results, runs and pictures; a result that is named twice counts once."""
    named = [one for path in sources for one in _named(path)]
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
    shell's `*` also names records and other unfinished work beside outputs: they are no source.
    """
    if not path.exists():
        names = f"{path.name}.partial", path.name.removesuffix(".partial")
        others = map(path.with_name, names)
        path = next((other for other in others if (other / METRICS).is_file()), path)
    is_run = (path / METRICS).is_file()
    if path.name.endswith(BESIDE) and not is_run and path.exists():
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
    if _record(run).get("stage", "pretrain") != "pretrain" or not path.is_file():
        return None
    try:
        body = parse_yaml(path.read_text())
    except ValueError as error:
        raise IjepaError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    return validated(PretrainConfig, body or {}, str(path))


def _record(run: Path) -> Mapping[str, Any]:
    """Of a run that is finished, or of one that is still going."""
    return read_record(run) or work_note(run) or {}


def _view(run: Path, config: PretrainConfig | None, metrics: Records) -> dict[str, object]:
    """What the page shows of a run; `masks` is empty where no pretraining has any."""
    from ijepa.figures.charts import run_curves

    record, last = _record(run), metrics[-1]
    path = run / "config.yaml"
    settings = record.get("config") or (config.model_dump() if config else {})
    charts, constant = run_curves(metrics)
    return {
        "name": str(run),
        "steps": int(last["step"]),
        "images": int(last.get("images", 0)),
        "duration": _duration(record["seconds"]) if "seconds" in record else "",
        "fingerprint": str(record.get("fingerprint", "unknown"))[:12],
        "running": "" if read_record(run) else _running(settings, last, record.get("ended", "")),
        "ended": record.get("ended", ""),
        "masks": _masks(config) if config else "",
        "charts": charts,
        "constant": constant,
        "config": path.read_text() if path.is_file() else "",
        "command": str(record.get("command", "")),
    }


def _running(settings: Mapping[str, Any], last: Mapping[str, float], ended: str) -> str:
    """How far an unfinished run is, as its last record says, and the error that ended it."""
    epochs = settings.get("optimization", settings).get("epochs")
    if epochs and settings.get("linear_first"):
        epochs += settings["linear_first"]  # a fine-tuning counts those, too
    steps = settings.get("steps")  # of a decoder
    step, epoch = int(last["step"]), last.get("epoch", 0.0)
    if epochs and epoch:
        steps = round(step * epochs / epoch)
    said = f"Step {step:,}" + (f" of {steps:,} ({100 * step / steps:.0f}%)" if steps else "")
    more = "All numbers of this run are provisional; build the page again for newer ones."
    return f"{said}. {ended or more}"


def _masks(config: PretrainConfig) -> str:
    """Sizes of a run's masks in a sentence."""
    from ijepa.jepa.masks import mask_statistics

    batches = max(1, MASK_IMAGES // config.data.batch_size)
    found, (rows, columns) = mask_statistics(config, batches), config.grid
    patches = rows * columns
    return (
        f"Masks ({config.masks.kind}, drawn {config.masks.draw}) on a grid of {rows}x{columns} "
        f"patches: the context has {found.context_patches:.1f} patches on average "
        f"({found.context_patches / patches:.0%}), a target block {found.target_patches:.1f} "
        f"({found.target_patches / patches:.0%}); {found.target_seen.mean():.0%} of all patches "
        f"are in a target. Counted over the first {batches:,} batches of "
        f"{config.data.batch_size:,} images, seed {config.seed}."
    )
