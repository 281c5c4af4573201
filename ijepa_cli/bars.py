"""Progress of tasks: bars in a terminal, else a line now and then."""

import itertools
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ijepa.progress import in_words
from ijepa.text import printable

LINE_SECONDS = 10.0  # between two lines of a task, where there is no terminal
APART_SECONDS = 1.0  # between two reports that count for the pace: batches may come in bursts
REPORTS = 30  # the newest ones make the pace
MANY = 6  # of so many spans between reports, the slowest is left out: a health check, a checkpoint
BAR, SHORTEST_BAR, SHORTEST_NAME = 40, 5, 8  # columns


@dataclass
class Task:
    """One task as it runs in this process, and how fast it is now."""

    name: str
    unit: str
    done: int
    total: int | None
    values: list[str] = field(default_factory=list)  # in words
    told: float = 0.0  # when a line was last printed
    began: float = field(default_factory=time.monotonic)
    now: float = 0.0  # when it was last reported

    def __post_init__(self) -> None:
        self.first = self.done  # done before: by an earlier process, or at the first report
        self._reports = deque([(self.began, self.done)], maxlen=REPORTS)

    def report(self, done: int, total: int | None, values: Mapping[str, float] | None) -> None:
        """Take note of what is done by now; less than before if the task begins again."""
        self.now = now = time.monotonic()
        if done < self.done:
            self.first, self.began = done, now
        self.done, self.total, self.values = done, total, in_words(values)
        if done == self.first:  # start-up so far
            self._reports = deque([(now, done)], maxlen=REPORTS)
            return
        last = [when for when, _ in self._reports][-2:]
        if len(last) == 2 and last[1] - last[0] < APART_SECONDS:
            self._reports.pop()
        self._reports.append((now, done))
        if len(self._reports) > 3 and self._reports[0][1] == self.first:
            self._reports.popleft()  # the first step is slow: kernels and workers start in it

    @property
    def per_second(self) -> float:
        """Units a second by the newest reports; 0 until something is done."""
        pairs = itertools.pairwise(self._reports)
        spans = [(then - since, done - before) for (since, before), (then, done) in pairs]
        if len(spans) >= MANY:
            spans.remove(max(spans, key=lambda span: span[0] / max(span[1], 1)))
        seconds, units = (sum(span[place] for span in spans) for place in (0, 1))
        return float(units / max(seconds, 1e-9))

    @property
    def is_finished(self) -> bool:
        """Whether all units are done."""
        return self.total is not None and self.done >= self.total

    @property
    def percent(self) -> str:
        """Such as `42%`; 100% only at the end, empty where the total is unknown."""
        return f"{int(100 * self.done / self.total)}%" if self.total else ""

    @property
    def rate(self) -> str:
        """Such as `226/s`, or `3.1/min`."""
        rate = self.per_second
        return f"{short(rate)}/s" if rate >= 1 or not rate else f"{60 * rate:.1f}/min"

    @property
    def seconds_left(self) -> float | None:
        """By the pace, less what has passed since the last report; None while unknown."""
        if not (self.total and self.per_second):
            return None
        waited = time.monotonic() - self.now
        return max(0.0, (self.total - self.done) / self.per_second - waited)


def short(number: float) -> str:
    """At most five characters: 2.3, 226, 9,372, 36.2k, 126k, 1.28M."""
    if number < 10_000:
        return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"
    size, letter = next(pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= pair[0])
    digits = max(0, 3 - len(str(int(number / size))))
    return f"{number / size:.{digits if letter != 'k' else min(digits, 1)}f}{letter}"


def clock(seconds: float) -> str:
    """At most seven characters: 0:41, 12:34, 3h12m, 12d03h."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 100 else f"{hours // 24}d{hours % 24:02}h"


def in_minutes(seconds: float) -> str:
    """A duration in words: under 1 min, 20 min, 3 h 12 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return "under 1 min"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class Lines:
    """For logs: a line at the start of a task, at its first step, every ten seconds, at its end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tasks: dict[str, Task] = {}  # by the name that is reported

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Report, see `ijepa.progress.Progress`."""
        if task not in self.tasks:
            name, _, unit = printable(task).rpartition(" ")
            self.tasks[task] = Task(name or unit, unit, done, total)
        one = self.tasks[task]
        before = one.done
        one.report(done, total, values)
        self.show(one, is_first_step=before == one.first < done)

    def show(self, one: Task, *, is_first_step: bool) -> None:
        """Print a line of a task that was reported, if one is due."""
        if not (one.is_finished or is_first_step) and one.now - one.told < LINE_SECONDS:
            return
        one.told = one.now
        total = f" of {one.total:,}" if one.total else ""
        left = f"{in_minutes(one.seconds_left)} left" if one.seconds_left else ""
        counts = f"{one.done:,}{total} {one.unit}"
        parts = [one.percent, counts, one.rate if one.per_second else "", left, *one.values]
        line = "  ".join(part for part in parts if part)
        self.console.print(f"{one.name}: {line}", highlight=False, soft_wrap=True)


class Bars(Lines):
    """Two lines a task: its bar, per cent, counts, rate and time left; below it its numbers."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.live = Live(get_renderable=lambda: self, console=console, redirect_stdout=False)

    def show(self, one: Task, *, is_first_step: bool) -> None:
        """Draw all tasks, from the first report on."""
        del one, is_first_step
        if not self.live.is_started:
            self.live.start(refresh=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the tasks, each within the width of the terminal."""
        for task in list(self.tasks.values()):
            yield _bar_line(task, options.max_width)
            numbers, room = "", options.max_width - 2
            for words in () if task.is_finished else task.values:
                if len(numbers) + len(words) > room:
                    break
                numbers += f"{words}  "
            if numbers:
                yield Text(f"  {numbers.rstrip()}", style="dim", no_wrap=True)


def _bar_line(task: Task, width: int) -> Table:
    """Name, bar, per cent, done of total, rate, time left; what does not fit is left out."""
    left = task.seconds_left
    if task.is_finished:
        time_left = f"in {clock(task.now - task.began)}"
    else:
        time_left = "ETA --:--" if left is None else f"ETA {clock(left)}"
    total, whole = short(task.total or 0), task.total is not None
    counts = f"{short(task.done)}/{total}" if whole else f"{short(task.done)} {task.unit}"
    parts = {
        "percent": task.percent.rjust(4) if whole else "",
        "counts": counts.rjust(2 * len(total) + 1) if whole else counts,
        "rate": (task.rate if task.per_second else "").rjust(7),
        "time": time_left.ljust(9) if whole else "",
    }
    for name in ("", "rate", "counts", "percent"):  # dropped in this order
        parts.pop(name, None)
        room = width - sum(len(part) + 1 for part in parts.values()) - 1  # for name and bar
        if room >= min(len(task.name), SHORTEST_NAME) + SHORTEST_BAR:
            break
    name = task.name
    if len(name) > room - SHORTEST_BAR:
        name = f"{name[: max(1, room - SHORTEST_BAR - 1)]}…"
    bar = ProgressBar(
        total=task.total or None,
        completed=task.done,
        width=max(1, min(BAR, room - len(name))),
        pulse=not whole,
    )
    line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    line.add_row(Text(name), bar, *(Text(part, no_wrap=True) for part in parts.values() if part))
    return line
