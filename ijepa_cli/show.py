"""What commands print: results as tables or JSON, progress bars, what a dry run finds.

Results go to stdout, progress and warnings to stderr.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from rich import progress as rich_progress
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.stage import DryRun
from ijepa.text import printable
from ijepa.world import current_world

LINE_SECONDS = 10.0  # between two lines of progress of a task


class Screen(Console):
    """Shows text as it is: no markup, no emoji codes, nothing that the terminal would obey."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  # rich's own
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  # rich's own
        """Text in a table or alone, as rich asks for it."""
        return super().render_str(printable(text), **options)


screen = Screen(width=None if sys.stdout.isatty() else 140)  # piped tables need not be narrow
stderr = Screen(stderr=True)


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Draw bars with rate and ETA on stderr; without a terminal, a line every ten seconds."""
    if not stderr.is_terminal:
        yield _Lines()
        return
    with rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
        console=stderr,
    ) as bars:
        yield _Bars(bars)


def show(result: BaseModel, as_json: bool, text: str | Table | None = None) -> None:
    """Print a result: as JSON for machines, else as `text`; once, if torchrun started several."""
    if not is_main_process():
        return
    if as_json:
        print_json(result.model_dump(mode="json"))
    elif text is not None:
        screen.print(text)


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
        if as_json:
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


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """Let the library's warnings reach the user, once."""
    handler = RichHandler(console=stderr, show_path=False, show_time=False, markup=False)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
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


class _Rates:
    """Units a second of each task, since this process began it or began it again."""

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}  # time, and what was done by then
        self._last: dict[str, int] = {}

    def per_second(self, task: str, done: int) -> tuple[float, bool]:
        """The rate, and whether the task begins here; also the same again with less done."""
        begins = done < self._last.get(task, done + 1)
        if begins:
            self._began[task] = time.monotonic(), done
        self._last[task] = done
        start, first = self._began[task]
        return (done - first) / max(time.monotonic() - start, 1e-9), begins


class _Bars:
    """One bar a task: done of total, rate, values, elapsed and remaining time."""

    def __init__(self, bars: rich_progress.Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, rich_progress.TaskID] = {}
        self._rates = _Rates()

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        rate, begins = self._rates.per_second(task, done)
        if task not in self._tasks:
            name = printable(task)
            self._tasks[task] = self._bars.add_task(name, total=total, completed=done, note="")
        elif begins:
            self._bars.reset(self._tasks[task], total=total)
        note = "  ".join([f"{rate:,.1f}/s" if rate else "", *_shown(values)])
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)


class _Lines:
    """The same for logs: a line a task every ten seconds and when it ends."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._rates = _Rates()

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        rate, _ = self._rates.per_second(task, done)
        now, finished = time.monotonic(), total is not None and done >= total
        if not finished and now - self._told.get(task, 0.0) < LINE_SECONDS:
            return
        self._told[task] = now
        parts = [f"{task}: {done:,}" + (f" of {total:,}" if total else "")]
        parts += [f"{rate:,.1f}/s"] if rate else []
        parts += [f"{(total - done) / rate:,.0f} s left"] if rate and total and not finished else []
        stderr.print("  ".join([*parts, *_shown(values)]), highlight=False, soft_wrap=True)


def _shown(values: Mapping[str, float] | None) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in (values or {}).items()]
