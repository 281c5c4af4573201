"""What commands print: what will run and what to type next, results, bars, what a dry run finds.

Results go to stdout, progress and warnings to stderr.
"""

import contextlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from ijepa.config import Runtime, StrPath
from ijepa.errors import IjepaError
from ijepa.progress import Bars, Progress, silent
from ijepa.records import read_record
from ijepa.stage import DryRun
from ijepa.text import duration, printable
from ijepa.world import current_world

if TYPE_CHECKING:
    from ijepa.data.shards import ShardSet
    from ijepa.report import ReportResult
    from ijepa.results.compare import Comparisons
    from ijepa.results.record import Scores
    from ijepa.results.tables import TableView


class Screen(Console):
    """Shows text as it is: no markup, no emoji codes, nothing that the terminal would obey."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # rich's own
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  # rich's own
        """Text in a table or alone, as rich asks for it."""
        return super().render_str(printable(text), **options)


GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of CUDA, of CUDA under WSL, of ROCm

screen = Screen(width=None if sys.stdout.isatty() else 140)  # piped tables need not be narrow
stderr = Screen(stderr=True)


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Draw bars with rate and time left on stderr; where they have no room, a line each 10 s."""
    if not is_main_process():
        yield silent
        return
    columns = 0
    with contextlib.suppress(OSError):  # no terminal, whatever FORCE_COLOR makes of it
        columns = os.get_terminal_size(sys.stderr.fileno()).columns
    has_room = stderr.is_terminal and columns > 0
    with contextlib.closing(Bars(lines=not has_room)) as bars:
        yield bars


def show(result: BaseModel, as_json: bool, *parts: str | Table | None) -> None:
    """Print a result: as JSON for machines, else its `parts`; once, if torchrun started several."""
    if as_json and is_main_process():
        print_json(result.model_dump(mode="json"))
    elif is_main_process():
        for part in filter(None, parts):
            screen.print(part, highlight=False, soft_wrap=isinstance(part, str))


@contextlib.contextmanager
def outlook_shown(as_json: bool, cost: BaseModel | None = None, note: str = "") -> Iterator[None]:
    """Print what the stages inside would do, if it is a dry run; with the counted cost."""
    try:
        yield
    except* DryRun as group:
        runs = [one for one in group.exceptions if isinstance(one, DryRun)]
        facts = [
            {"stage": one.plan.stage, "out": str(one.plan.out), "state": one.state, "why": one.why}
            for one in runs
        ]
        if as_json and is_main_process():
            counted = cost.model_dump(mode="json") if cost else {}
            print_json({"runs": facts} if len(facts) > 1 else facts[0] | counted)
        elif is_main_process():
            for one in runs:
                screen.print(str(one), highlight=False)
            if cost:
                screen.print(table(cost, "what would run", note=note))


def is_main_process() -> bool:
    """Is this the only process, or rank 0 of those that torchrun started?"""
    try:
        return current_world().is_rank_0
    except IjepaError:  # who it is cannot be known, and that must be said by somebody
        return True


class _ToStderr(logging.Handler):
    """Notes as they are, warnings as such; a bar that is drawn stays below them."""

    def emit(self, record: logging.LogRecord) -> None:
        line = Text(printable(self.format(record)))
        if record.levelno >= logging.WARNING:
            line = Text.assemble((f"{record.levelname.lower()}:", "yellow"), " ", line)
        with tqdm.external_write_mode(sys.stderr):
            stderr.print(line, highlight=False, soft_wrap=True)


def log_to_stderr() -> None:
    """Let the library's notes and warnings reach the user, once."""
    logging.basicConfig(
        level=logging.WARNING, handlers=[_ToStderr()], format="%(message)s", force=True
    )
    logging.getLogger("ijepa").setLevel(logging.INFO)


def print_text(text: str) -> None:
    """Print plain text on stdout."""
    sys.stdout.write(printable(text))


def print_json(body: Mapping[str, Any]) -> None:
    """Print an object on stdout; numbers that JSON does not have are null."""
    finite = json.loads(json.dumps(body), parse_constant=lambda _: None)
    print_text(json.dumps(finite, indent=2, ensure_ascii=False) + "\n")


def table(result: BaseModel, title: str, leave_out: Collection[str] = (), note: str = "") -> Table:
    """A result's fields, one a row, and below them a note."""
    rows = Table(title=title, title_justify="left", show_header=False)
    rows.caption, rows.caption_justify = Text(note) if note else None, "left"
    for name, value in result:
        if name not in leave_out:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            digits = ",.4g" if isinstance(value, float) else ","
            rows.add_row(name.replace("_", " "), f"{value:{digits}}" if is_number else str(value))
    return rows


def about(runtime: Runtime, text: str) -> Runtime:
    """The runtime of a stage that says `text` and its device when it begins."""
    where = f"on {runtime.device}"
    if runtime.device == "auto":  # as far as that can be known without torch
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
        has_gpu = not hidden and any(Path(path).exists() for path in GPU_DRIVERS)
        has_gpu |= sys.platform == "darwin"  # Apple's
        where = "on a GPU if torch can use it" if has_gpu else "on the CPU"
    return runtime.model_copy(update={"about": f"{text}, {where}"})


def opened(data: StrPath) -> "ShardSet":
    """A shard set; what opens it is imported here, for `--help` must not wait for it."""
    from ijepa.data.shards import open_shards

    return open_shards(data)


def images_of(data: StrPath, split: str, train: str = "train") -> str:
    """Such as `shards/cifar10 (train, 50,000 images)`."""
    shards = opened(data)
    reader = shards.split(shards.named_split(split, train))
    return f"{data} ({reader.name}, {len(reader):,} images)"


def counted(number: int, noun: str) -> str:
    """Such as `1 epoch`, `50 epochs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def headline(state: str, out: StrPath, cached: bool, words: str) -> str:
    """First line of a summary, such as `pretrained runs/a in 22 min 5 s: 9,372 steps`."""
    if cached:
        return f"cached: {out} is up to date; {words}"
    seconds = (read_record(Path(out)) or {}).get("seconds")
    took = "" if seconds is None else f" in {duration(seconds)}"
    return f"{state} {out}{took}: {words}"


def next_command(*words: StrPath) -> str:
    """The line that shows the next command to type."""
    return f"next: {shlex.join(['ijepa', *map(str, words)])}"


def without_options(
    words: Iterable[str], valued: Container[str], switches: Container[str] = ()
) -> Iterator[str]:
    """The words of a command without some options: `valued` ones have a value, `switches` none."""
    left = iter(words)
    for word in left:
        flag, equals, _ = word.partition("=")
        if flag in valued and not equals:
            next(left, None)
        elif flag not in valued and flag not in switches:
            yield word


def report_tables(result: "ReportResult") -> Iterator[Table | str]:
    """Tables of the paper that hold a number of ours, ablations at scale, scores, the verdict."""
    yield from _as_tables(result.tables)
    yield from result.verdict
    if result.results:
        made, total = result.paper_cells
        yield f"the paper's tables: {made} of {total} numbers have a result beside them (--paper)"


def result_tables(results: "Sequence[Scores]") -> Iterator[Table | str]:
    """Tables of the scores that a command made, as a report has them; below, further measures."""
    from ijepa.results.tables import grouped, measured, score_tables

    yield from _as_tables(score_tables(grouped(results)))
    for score in (score for scores in results for score in scores):
        if score.measures:
            yield f"{score.encoder}: {', '.join(measured(score))}"


def _as_tables(tables: "Iterable[TableView]") -> Iterator[Table]:
    """All but details, and tables of the paper that hold no number of ours."""
    for shown in tables:
        if shown.kind == "details" or not any(shown.made):
            continue
        places = [n for n, head in enumerate(shown.columns) if not head.startswith("+")]
        heads = [shown.columns[place] for place in places]
        rows = [
            [f"{c.text} ({c.note})" if c.note else c.text for c in (row[place] for place in places)]
            for row in shown.rows
        ]
        if shown.kind == "scores":  # a row a probe: few encoders and many probes fit the width
            named = [head.lstrip("#") for head in heads]
            (_, *encoders), *probes = zip(named, *rows, strict=True)
            heads, rows = ["probe", *(f"#{name}" for name in encoders)], [*map(list, probes)]
        number = f"Table {shown.number}: " if shown.number else ""
        made = _score_table(f"{number}{shown.title}", *heads)
        for row in rows:
            made.add_row(*row)
        for column in made.columns:
            column.no_wrap = False
        made.caption = "\n".join([shown.caption, *shown.notes])
        yield made


def _score_table(title: str | None, *heads: str) -> Table:
    """An empty table; a column whose head begins with `#` holds numbers."""
    table = Table(
        title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for head in heads:
        number = head.startswith("#")
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(head.lstrip("#"), justify=side, overflow="fold", no_wrap=number)
    return table


def comparison_table(found: "Comparisons") -> Table:
    """One row a setting: the difference of two encoders on the same images."""
    table = _score_table(
        f"{found.protocol}, {found.label}, {found.test_rows:,} test images",
        "setting", "first", "second", "#top-1 %", "#difference (95% CI)", "#mean per class",
        "#right alone", "#p",
    )  # fmt: skip

    def points(value: float, ends: tuple[float, float]) -> str:
        return f"{100 * value:+.2f} ({100 * ends[0]:+.2f} to {100 * ends[1]:+.2f})"

    for row in found.rows:
        table.add_row(
            row.setting,
            *row.encoders,
            f"{100 * row.top1[0]:.2f}, {100 * row.top1[1]:.2f}",
            points(row.difference, row.interval),
            points(row.mean_class_difference, row.mean_class_interval),
            f"{row.only_first:,}, {row.only_second:,}",
            f"{row.p_value:.2g}",
        )
    return table
