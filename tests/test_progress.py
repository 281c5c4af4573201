"""Bars of the library: drawn in a notebook without being asked, in a script only when asked."""

import sys
from types import SimpleNamespace

import pytest

from ijepa.progress import Bars, automatic, silent


@pytest.fixture
def shell(monkeypatch):
    """An IPython that is in its first cell."""
    shell = SimpleNamespace(execution_count=1)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    return shell


def test_a_script_sees_nothing_unless_it_asks(capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    for progress in (automatic, silent):
        progress("train images", 1, 2)
    assert capsys.readouterr().err == ""
    bars = Bars()
    bars("train images", 50, 200, {"loss": 0.25})
    bars("train images", 200, 200, {"loss": 0.125})
    last = capsys.readouterr().err.split("\r")[-1]
    for words in ("train: 100%", "200/200", "images", "loss 0.125"):
        assert words in last


def test_a_notebook_sees_a_bar_a_task_without_being_asked(shell, capsys):
    automatic("probe encoders", 0, 2)
    automatic("fit heads", 1, 3)
    automatic("fit heads", 3, 3)
    automatic("encode images", 6, 6)  # done before there was time for a bar
    automatic("probe encoders", 2, 2)
    shown = capsys.readouterr().err
    assert "probe: 100%" in shown
    assert "fit: 100%" in shown
    assert "encode:" not in shown


def test_a_cell_run_again_after_an_interruption_draws_a_bar_of_its_own(shell, capsys):
    automatic("train images", 10, 20)
    shell.execution_count = 2
    capsys.readouterr()
    automatic("train images", 10, 20)
    assert "10/20" in capsys.readouterr().err
