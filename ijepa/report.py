"""Results, runs and pictures as one page, one set of tables, one JSON object."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ijepa.config import RUNTIME, Config, PretrainConfig, Runtime, StrPath, validated
from ijepa.errors import IjepaError
from ijepa.files import file_sha256, read_json, read_metrics, write_bytes
from ijepa.recipes import parse_yaml
from ijepa.records import read_record, record_path, refuse_changed
from ijepa.results.page import PICTURES, Picture, RunView, file_picture, map_picture, page
from ijepa.results.paper_tables import tables
from ijepa.results.record import RESULT, Result, is_result, read_result, result_id
from ijepa.results.tables import Shown
from ijepa.stage import StagePlan, exclusive_work

VERSION = 7
METRICS = "metrics.jsonl"  # of a run that has begun
MASK_IMAGES = 2000  # over which the masks of a run are counted


class ReportConfig(Config):
    """What the page says beside its inputs."""

    title: str = "ijepa report"


class ReportOutcome(Config):
    """A finished page, and what is in it.

    Attributes:
        tables: those of the paper, with ours beside it where it was made; its ablations at the
            scale of other data; all scores, comparable ones together.
    """

    out: Path
    cached: bool = False
    tables: tuple[Shown, ...]
    results: tuple[Result, ...]
    runs: tuple[Path, ...]
    pictures: tuple[Path, ...]


def report(
    sources: Sequence[StrPath],
    out: StrPath,
    runtime: Runtime = RUNTIME,
    title: str = "ijepa report",
) -> ReportOutcome:
    """Gather results, run folders and pictures into one self-contained HTML page.

    Args:
        sources: result files of `ijepa probe`, and folders of them; folders of `ijepa pretrain`,
            finished or not, and of `ijepa finetune`; pictures and pages of `ijepa visualize`.
        out: the page to make.
        runtime: `force` makes it again.
        title: of the page.

    Raises:
        IjepaError: nothing to show, or something that is none of these.
    """
    out = Path(out)
    results, runs, pictures = _sorted(list(dict.fromkeys(map(Path, sources))))
    if not (results or runs or pictures):
        raise IjepaError("There is nothing to report; name results of `ijepa probe`, or runs.")
    configs = {run: _pretraining(run) for run in runs}
    shown = tables([*results.values()], [config for config in configs.values() if config])
    outcome = ReportOutcome(
        out=out, tables=shown, results=results.values(), runs=runs, pictures=pictures
    )
    inputs = {f"result {path}": result_id(result) for path, result in results.items()}
    inputs |= {f"run {path}": file_sha256(path / METRICS) for path in runs}
    files = [path for run in runs for path in (run / "config.yaml", run / "stage.json")]
    files += [file for path in pictures for file in (path, record_path(path))]
    inputs |= {f"file {path}": file_sha256(path) for path in files if path.is_file()}
    plan = StagePlan("report", VERSION, ReportConfig(title=title), inputs, out)
    with exclusive_work(plan, runtime) as work:
        if not work.cached:
            views = [_view(run, config) for run, config in configs.items()]
            shown_pictures = [file_picture(path, read_record(path)) for path in pictures]
            text = page(title, outcome.tables, outcome.results, views, shown_pictures)
            write_bytes(work.folder / out.name, text.encode())
            work.publish({"command": runtime.command})
    return outcome.model_copy(update={"cached": work.cached})


def _sorted(sources: Sequence[Path]) -> tuple[dict[Path, Result], list[Path], list[Path]]:
    """Results, runs and pictures; a result that is named twice counts once."""
    named = [one for path in sources for one in _named(path)]
    runs = [path for path in named if path.is_dir()]
    pictures = [path for path in named if path not in runs and path.suffix.lower() in PICTURES]
    files = [path for path in named if path not in runs and path not in pictures]
    files += [run / RESULT for run in runs if is_result(run / RESULT)]
    results: dict[str, tuple[Path, Result]] = {}
    for path in files:
        result = read_result(path)
        results.setdefault(result_id(result), (path, result))
    for path in pictures:
        if not path.is_file():
            raise IjepaError(f"There is no picture {path}; make one with `ijepa visualize`.")
    return dict(results.values()), runs, pictures


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


def _view(run: Path, config: PretrainConfig | None) -> RunView:
    from ijepa.figures.curves import run_curves

    refuse_changed(run, METRICS, "config.yaml")
    records, record = read_metrics(run / METRICS), _record(run)
    last = records[-1]
    seconds, device = record.get("seconds"), record.get("device", "unknown device")
    path = run / "config.yaml"
    masks, maps = _masks(config) if config else ("", [])
    return RunView(
        name=str(run),
        summary=(
            f"{int(last['step']):,} steps, {int(last.get('images', 0)):,} images seen; "
            f"{f'{seconds:,.0f} s on {device}' if seconds else 'not finished'}; "
            f"run {str(record.get('fingerprint', ''))[:12]}."
        ),
        masks=masks,
        maps=maps,
        charts=[Picture("", svg, caption) for svg, caption in run_curves(records)],
        config=path.read_text() if path.is_file() else "",
        command=str(record.get("command", "")),
    )


def _masks(config: PretrainConfig) -> tuple[str, list[Picture]]:
    """What the masks of a run come to: in a sentence, and as maps of how often a patch is seen."""
    from ijepa.figures.masks import heat_map
    from ijepa.jepa.masks import mask_statistics

    batches = max(1, MASK_IMAGES // config.data.batch_size)
    found, (rows, columns) = mask_statistics(config, batches), config.grid
    patches = rows * columns
    summary = (
        f"{config.masks.kind}, draw {config.masks.draw}, {rows}x{columns} patches: contexts of "
        f"{found.context_patches:.1f} patches ({found.context_patches / patches:.3f} of all), "
        f"target blocks of {found.target_patches:.1f} ({found.target_patches / patches:.3f}); "
        f"{found.target_seen.mean():.3f} of all patches are in a target. First {batches:,} "
        f"batches of {config.data.batch_size:,}, seed {config.seed}."
    )
    named = {"in the context": found.context_seen, "in a target": found.target_seen}
    return summary, [
        map_picture(
            heat_map(share),
            f"Share of images in which a patch is {name}: {share.min():.2f} (white) to "
            f"{share.max():.2f} (dark), mean {share.mean():.2f}.",
        )
        for name, share in named.items()
    ]
