"""What the report's page shows: its plots, charts, sentences, and the facts of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ijepa.config import PretrainConfig
from ijepa.figures.charts import Dot, health_curve, interval_plot, run_curves
from ijepa.files import read_metrics
from ijepa.paper import TABLES
from ijepa.records import read_record, refuse_changed
from ijepa.report import METRICS, ReportResult, record_of, short_run
from ijepa.results.page import file_picture, page, short_name
from ijepa.results.tables import Group, Line, data_names, grouped, score_name
from ijepa.text import duration

MOST_STRIPS = 8  # probes on the first screen; the tables have all
MOST_CURVES = 6  # runs in the health curve of the first screen, as many as the page has colours
ENCODER_COLOURS = 6  # colours of encoders

Records = list[dict[str, float]]


def drawn(
    summary: ReportResult, configs: Mapping[Path, PretrainConfig | None], paper_first: bool
) -> str:
    """The whole page, with tables of the paper first if asked for."""
    for run in summary.runs:
        refuse_changed(run, METRICS, "config.yaml")
    metrics = {run: read_metrics(run / METRICS) for run in summary.runs}
    short = {run: short_run(run) for run in metrics}
    told_apart = len({*short.values()}) == len(short)
    named = {short[run] if told_apart else str(run): records for run, records in metrics.items()}
    # A probe of many settings, such as few-shot, comes after those of one.
    groups = sorted(grouped(summary.results), key=lambda group: bool(group.score.setting))
    made, cells = summary.paper_cells
    health, not_drawn = health_curve(named, MOST_CURVES)
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
        health=health,
        not_drawn=", ".join(not_drawn),
        results=summary.results,
        runs=[_view(run, config, metrics[run]) for run, config in configs.items()],
        pictures=[file_picture(path, read_record(path)) for path in summary.pictures],
    )


def _facts(summary: ReportResult) -> dict[str, str]:
    """Data, runs, and of the first run date, version, device and duration; what is known of it."""
    records = [record_of(run) for run in summary.runs]
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
        "Duration": duration(seconds) if seconds else "",
    }
    return {name: value for name, value in facts.items() if value}


def _interval_plot(groups: Sequence[Group]) -> Markup:
    """Every encoder on every probe; its interval, or the standard deviation over seeds."""
    if not groups:
        return Markup()
    colours: dict[str, int] = {}

    def dot(line: Line) -> Dot:
        mean, std = line.mean("top1"), line.std("top1")
        low, high = line.score.top1_interval if std is None else (mean - std, mean + std)
        colour = colours.setdefault(line.encoder, len(colours) % ENCODER_COLOURS + 1)
        return short_name(line.score.encoder), mean, low, high, colour

    data = data_names(group.score for group in groups)
    strips = [
        (
            " of ".join(filter(None, [score_name(group.score), data[group.score.source]])),
            group.score.chance,
            [dot(line) for line in group.lines],
        )
        for group in groups
    ]
    return interval_plot(strips)


def _view(run: Path, config: PretrainConfig | None, metrics: Records) -> dict[str, object]:
    """What the page shows of a run."""
    record, last = record_of(run), metrics[-1]
    path = run / "config.yaml"
    settings = record.get("config") or (config.model_dump() if config else {})
    charts, constant = run_curves(metrics)
    return {
        "name": str(run),
        "steps": int(last["step"]),
        "images": int(last.get("images", 0)),
        "duration": duration(record["seconds"]) if "seconds" in record else "",
        "fingerprint": str(record.get("fingerprint", "unknown"))[:12],
        "running": "" if read_record(run) else _running(settings, last, record.get("ended", "")),
        "ended": record.get("ended", ""),
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
