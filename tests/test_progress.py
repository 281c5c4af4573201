"""Bars: drawn by the command line, in a notebook unasked, in a script only when asked."""

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
    for words in ("train 100%", "200/200", "in 00:00", "loss 0.125"):
        assert words in last


@pytest.fixture
def clock(monkeypatch):
    """The clock of bars, whose `now` is set by the test."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    return clock


def test_a_log_has_a_line_at_the_start_every_ten_seconds_and_at_the_end(clock, capsys):
    progress = Bars(lines=True)
    for seconds, done in ((0, 500), (90, 500), (20, 540), (5, 550), (5, 560), (1, 1000)):
        clock.now += seconds  # it takes 90 s to start, which is no measure of speed
        progress("train steps", done, 1000, {"loss": 0.25} if done > 500 else None)
    assert capsys.readouterr().err.splitlines() == [
        "train: 50%, 500/1000, ? steps/s, ETA ?", "train: 50%, 500/1000, ? steps/s, ETA ?",
        "train: 54%, 540/1000,  2.00 steps/s, ETA 03:50, loss 0.25",
        "train: 56%, 560/1000,  2.00 steps/s, ETA 03:40, loss 0.25",
        "train: 100%, 1000/1000,  4.13 steps/s, in 02:01, loss 0.25",
    ]  # fmt: skip


def test_a_task_that_begins_again_is_timed_anew_and_large_numbers_are_short(clock, capsys):
    progress = Bars(lines=True)
    for done in (0, 100_000, 0, 50_000):
        progress("train steps", done, 200_000)
        clock.now += 10
    assert [line.partition(",")[2] for line in capsys.readouterr().err.splitlines()] == [
        " 0.00/200k, ? steps/s, ETA ?", " 100k/200k, 10.0k steps/s, ETA 00:10",
        " 100k/200k, 5.00k steps/s, ETA 00:20", " 0.00/200k, ? steps/s, ETA ?",
        " 50.0k/200k, 5.00k steps/s, ETA 00:30",
    ]  # fmt: skip


def test_a_list_of_unknown_length_ends_when_another_task_begins(capsys):
    progress = Bars(lines=True)
    progress("list files", 2000, None)
    progress("shard images", 0, 2000)
    progress.close()
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in shown] == ["list:", "list:", "shard:", "shard:"]


def test_a_notebook_sees_a_bar_a_task_without_being_asked(shell, capsys):
    automatic("probe encoders", 0, 2)
    automatic("fit heads", 1, 3)
    automatic("fit heads", 3, 3)
    automatic("encode images", 6, 6)  # done before there was time for a bar
    automatic("probe encoders", 2, 2)
    shown = capsys.readouterr().err
    assert "probe 100%" in shown
    assert "fit 100%" in shown
    assert "encode" not in shown


def test_a_cell_run_again_after_an_interruption_draws_a_bar_of_its_own(shell, capsys):
    automatic("train images", 10, 20)
    shell.execution_count = 2
    capsys.readouterr()
    automatic("train images", 10, 20)
    assert "10/20" in capsys.readouterr().err
