"""How the library tells whoever called it how far a long piece of work has come.

Stages called in a notebook (or IPython) draw bars without being asked; called in a script they are
silent. `progress=Bars()` draws bars anywhere, `progress=silent` nowhere.
"""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from ijepa.text import printable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that without ipywidgets it draws text
    from tqdm.autonotebook import tqdm  # widgets if a notebook imports this, else text

# Numbers that stages report, in words; what matters most to someone watching comes first.
WORDS = {
    "neighbour_accuracy": "neighbours {:.1%}",
    "loss": "loss {:.3g}",
    "rankme": "RankMe {:.1f}",
    "held_out_accuracy": "held-out images {:.1%}",
    "lr": "learning rate {:.2g}",
    "held_out_loss": "held-out loss {:.3g}",
    "mean_cosine": "cosine between images {:.2f}",
    "feature_std": "spread of features {:.2g}",
    "flops_utilisation": "{:.0%} of the device's peak",
    "tflops": "{:.2g} TFLOP/s",
    "bad": "{:,.0f} images do not decode",
}


class Progress(Protocol):
    """Called now and then by a stage; the command line draws it, a script may ignore it."""

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Report how far a task has come, such as `extract images`, whose last word is the unit.

        `done` of `total` (None while unknown) is finished; less than before where the task begins
        again. `values` are numbers worth showing beside the bar, such as `{"loss": 0.14}`.
        """


def silent(
    task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
) -> None:
    """Show nothing."""


def in_words(values: Mapping[str, float] | None) -> list[str]:
    """Reported numbers as short texts, the most important first: `loss 0.143`, `RankMe 41.2`."""
    values = values or {}
    known = [words.format(values[name]) for name, words in WORDS.items() if name in values]
    others = [name for name in values if name not in WORDS]
    return known + [f"{name.replace('_', ' ')} {values[name]:.4g}" for name in others]


LEFT = "ETA {remaining}"
BAR = "{desc} {percentage:3.0f}% {bar} {n_fmt}/{total_fmt} {rate_noinv_fmt} " + LEFT + "{postfix}"
LINE = "{desc}: {percentage:.0f}%, {n_fmt}/{total_fmt}, {rate_noinv_fmt}, " + LEFT + "{postfix}"
LINE_SECONDS = 10.0  # between two lines of a task
LONGEST_NAME, SHORTEST_BAR, USUAL_BAR = 24, 5, 10  # columns
MANY = 100_000  # units, from which on counts are written short: 36.2k/384M


class _Lines:
    """A stream where each state of a bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


class Bars:
    """Progress as one bar of tqdm a task: widgets in Jupyter, text on stderr elsewhere.

    With `lines`, each task has a line at its start, every ten seconds, and at its end, for logs.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._bars: dict[str, Any] = {}
        self._format, self._how = BAR, dict[str, Any](dynamic_ncols=True)
        if lines:
            every = {"mininterval": LINE_SECONDS, "position": 0}
            self._format, self._how = LINE, {"file": _Lines(sys.stderr), **every}

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Draw it; the bar of a finished task stays as it is."""
        bar, is_done = self._bars.get(task), total is not None and done >= total
        if bar is None and is_done:
            return  # it took no time worth a bar
        if bar is None or done < bar.n:
            unending = [name for name, one in self._bars.items() if one.total is None]
            for other in (task, *unending):
                self._close(other)
            name, _, unit = printable(task).rpartition(" ")
            name, unit = name or unit, f" {unit}"
            if len(name) > LONGEST_NAME:
                name = f"{name[: LONGEST_NAME - 1]}…"
            how = {"desc": name, "initial": done, "total": total, "miniters": 0, **self._how}
            if total is not None:
                unit = "" if self._format == BAR else unit  # for which there is no room
                how |= {"bar_format": self._format, "unit_scale": total >= MANY}
            bar = self._bars[task] = tqdm(unit=unit, **how)
        bar.total = total
        # As many of the numbers as the terminal has room for beside the bar.
        facts, numbers = bar.format_dict, in_words(values)
        room = (facts["ncols"] or 10_000) + USUAL_BAR - SHORTEST_BAR
        facts |= {"n": done, "rate": facts["rate"] or 1000.0, "ncols": None, "postfix": ""}
        room -= len(bar.format_meter(**facts))
        while numbers and len(", ".join(["", *numbers])) > room:
            numbers.pop()
        bar.set_postfix_str(", ".join(numbers), refresh=False)
        bar.update(done - bar.n)
        if is_done:
            bar.bar_format = self._format.replace(LEFT, "in {elapsed}")
            self._close(task)

    def close(self) -> None:
        """End all bars, such as those of a stage that was interrupted."""
        for task in reversed(list(self._bars)):
            self._close(task)

    def _close(self, task: str) -> None:
        if task in self._bars:
            self._bars.pop(task).close()


_bars_of: dict[int, Bars] = {}  # by number of the notebook's cell; the newest alone


def automatic(
    task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
) -> None:
    """Draw bars in a notebook or IPython, show nothing in a script."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return
    cell = shell.execution_count
    if cell not in _bars_of:  # what an interrupted cell left must not be drawn on
        for bars in _bars_of.values():
            bars.close()
        _bars_of.clear()
        _bars_of[cell] = Bars()
    _bars_of[cell](task, done, total, values)
