"""How the library tells whoever called it how far a long piece of work has come.

Stages called in a notebook (or IPython) draw bars without being asked; called in a script they are
silent. `progress=Bars()` draws bars anywhere, `progress=silent` nowhere.
"""

import sys
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

# Numbers that stages report, in words; what matters most to someone watching comes first.
WORDS = {
    "neighbour_accuracy": "neighbours {:.1%} right",
    "loss": "loss {:.3g}",
    "rankme": "RankMe {:.1f}",
    "held_out_accuracy": "held-out images {:.1%} right",
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


class Bars:
    """Progress as one bar of tqdm a task: widgets in Jupyter, text on stderr elsewhere."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(
        self, task: str, done: int, total: int | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Draw it; the bar of a finished task stays as it is."""
        bar = self._bars.get(task)
        if bar is None and total is not None and done >= total:
            return  # it took no time worth a bar
        if bar is None or done < bar.n:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that without ipywidgets it draws text
                from tqdm.auto import tqdm  # asks in which kind of notebook it is imported
            self._close(task)
            name, _, unit = task.rpartition(" ")
            bar = tqdm(desc=name or task, unit=f" {unit}", initial=done, total=total)
            self._bars[task] = bar
        bar.total = total
        if values:
            bar.set_postfix_str("  ".join(in_words(values)), refresh=False)
        bar.update(done - bar.n)
        if total is not None and done >= total:
            self._close(task)

    def close(self) -> None:
        """End all bars, such as those of a stage that was interrupted."""
        for task in list(self._bars):
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
