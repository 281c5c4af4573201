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
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)
from rich.table import Table
from rich.text import Text

from ijepa.errors import IjepaError
from ijepa.progress import Progress
from ijepa.stage import DryRun
from ijepa.text import printable
from ijepa.world import current_world


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
    if stderr.is_terminal:
        with _Bars() as bars:
            yield bars
    else:
        yield _Lines()


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
        if name in leave_out:
            continue
        rows.add_row(name.replace("_", " "), _cell(value))
    return rows


class _Bars:
    """One bar a task: done of total, rate, values, elapsed and remaining time."""

    def __init__(self) -> None:
        self._rich = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=stderr,
        )
        self._tasks: dict[str, TaskID] = {}
        self._rates: dict[str, _Rate] = {}

    def __enter__(self) -> "_Bars":
        self._rich.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.stop()

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        if task not in self._tasks:
            self._tasks[task] = self._rich.add_task(
                printable(task), total=total, completed=done, note=""
            )
            self._rates[task] = _Rate(done)
        if self._rates[task].is_before(done):  # the same again, such as for another encoder
            self._rich.reset(self._tasks[task], total=total)
            self._rates[task] = _Rate(done)
        note = "  ".join([self._rates[task].text(done), *_shown(values)])
        self._rich.update(self._tasks[task], completed=done, total=total, note=note)


class _Lines:
    """The same for logs: a line a task every ten seconds and when it ends."""

    def __init__(self, every_seconds: float = 10.0) -> None:
        self._every = every_seconds
        self._last: dict[str, float] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        if task in self._rates and self._rates[task].is_before(done):
            del self._rates[task]
        rate = self._rates.setdefault(task, _Rate(done))
        now = time.monotonic()
        finished = total is not None and done >= total
        if not finished and now - self._last.get(task, 0.0) < self._every:
            return
        self._last[task] = now
        parts = [f"{task}: {done:,}" + (f" of {total:,}" if total else ""), rate.text(done)]
        parts += [rate.remaining(done, total), *_shown(values)]
        stderr.print("  ".join(part for part in parts if part), highlight=False, soft_wrap=True)


class _Rate:
    """Units a second since this process began the task."""

    def __init__(self, done: int) -> None:
        self._start, self._first, self._last = time.monotonic(), done, done

    def is_before(self, done: int) -> bool:
        """Is this less than what was done before? Then the task has begun again."""
        before, self._last = self._last, done
        return done < before

    def per_second(self, done: int) -> float:
        return (done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def text(self, done: int) -> str:
        return f"{self.per_second(done):,.1f}/s" if done > self._first else ""

    def remaining(self, done: int, total: int | None) -> str:
        rate = self.per_second(done)
        if not total or rate <= 0 or done >= total:
            return ""
        return f"{(total - done) / rate:,.0f} s left"


def _shown(values: Mapping[str, float] | None) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in (values or {}).items()]


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
