"""What both consoles show: progress at the pace of now, and text of others, never obeyed."""

import io
import json
import logging
from types import SimpleNamespace

import pytest
from rich.table import Table

from ijepa.text import printable
from ijepa_cli import bars, show


@pytest.fixture
def said(monkeypatch):
    """Lines of progress, a clock whose `now` is set by the test, and what reports progress."""
    clock, lines = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(bars.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(show.stderr, "print", lambda text, **_: lines.append(text))
    monkeypatch.setattr(show.stderr, "_force_terminal", False)
    with show.shown_progress() as progress:
        yield lines, clock, progress


def test_the_first_step_is_told_at_once_and_what_a_resumed_task_had_done_is_no_speed(said):
    lines, clock, progress = said
    for seconds, done in ((0, 500), (90, 500), (20, 510), (5, 511), (5, 513)):
        clock.now += seconds  # it takes 90 s to start
        progress("train steps", done, 1000)
    assert lines == [
        "train: 50%  500 of 1,000 steps", "train: 50%  500 of 1,000 steps",
        "train: 51%  510 of 1,000 steps  30.0/min  16 min left",
        "train: 51%  513 of 1,000 steps  18.0/min  27 min left",
    ]  # fmt: skip


def test_a_task_that_begins_again_is_timed_anew(said):
    lines, clock, progress = said
    for done in (0, 100, 0, 50):
        progress("train steps", done, 100, {"loss": 0.25} if done else None)
        clock.now += 10
    assert lines[1:] == [
        "train: 100%  100 of 100 steps  10/s  loss 0.25", "train: 0%  0 of 100 steps",
        "train: 50%  50 of 100 steps  5/s  under 1 min left  loss 0.25",
    ]  # fmt: skip
    progress("other steps", 3, 4)
    assert lines[-1] == "other: 75%  3 of 4 steps"


def test_neither_the_first_step_nor_a_pause_counts_for_the_time_left(said):
    _, clock, progress = said
    steps = [(0, 0), (30, 1), *((2, 1 + n) for n in range(1, 9)), (50, 10), (2, 11)]
    for seconds, done in steps:  # 30 s for the first step, 2 s for others, a check of 48 s
        clock.now += seconds
        progress("train steps", done, 1011)
    assert progress.tasks["train steps"].seconds_left == 2000


def test_bars_begin_again_with_their_task(monkeypatch):
    monkeypatch.setattr(show.stderr, "_force_terminal", True)
    with show.shown_progress() as progress:
        for done in (0, 10, 0, 4):
            progress("train steps", done, 10)
        [task] = progress.tasks.values()
        assert (task.done, task.total, task.is_finished) == (4, 10, False)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (2.345, "2.3"), (10, "10"), (226.4, "226"), (9372, "9,372"), (36_160, "36.2k"),
     (126_400, "126k"), (1_281_167, "1.28M"), (384_350_100, "384M")],
)  # fmt: skip
def test_counts_are_short(number, words):
    assert bars.short(number) == words


@pytest.mark.parametrize(
    ("seconds", "at_a_bar", "in_a_line"),
    [(41, "0:41", "under 1 min"), (754, "12:34", "13 min"), (11_520, "3h12m", "3 h 12 min"),
     (12 * 86_400 + 10_800, "12d03h", "291 h 0 min")],
)  # fmt: skip
def test_times_left_are_short_or_in_minutes(seconds, at_a_bar, in_a_line):
    assert (bars.clock(seconds), bars.in_minutes(seconds)) == (at_a_bar, in_a_line)


@pytest.fixture
def streams(monkeypatch):
    """What the two consoles write, as a terminal that takes UTF-8 would get it."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(show.screen, "_file", out)
    monkeypatch.setattr(show.stderr, "_file", err)
    return out, err


NAMES = ["[red]", "[/]", "\x1b[31mred", "bell\a", "\x9b31m", "\u202etxt", "a\udcff", ":smile:"]


@pytest.mark.parametrize("name", NAMES)
def test_text_of_others_is_shown_and_never_obeyed(streams, monkeypatch, capsys, name):
    out, err = streams
    shown = printable(name)
    rows = Table(name, title=name, caption=name)
    rows.add_row(name)
    show.screen.print(rows)
    show.screen.print(name, highlight=False)
    show.print_text(name)
    show.print_json({"name": name})
    with show.shown_progress() as progress:
        progress(name, 1, 2)
    assert out.getvalue().count(shown) == 5
    assert shown in err.getvalue()
    plain = capsys.readouterr().out
    assert shown in plain
    assert json.loads(plain.partition("{")[1] + plain.partition("{")[2])["name"] == name
    for text in (out.getvalue(), err.getvalue(), plain):
        assert printable(text) == text
    monkeypatch.setattr(show.stderr, "_force_terminal", True)
    with show.shown_progress() as progress:
        progress(name, 1, 2)
        assert [task.name for task in progress.tasks.values()] == [shown]


@pytest.mark.parametrize("name", NAMES)
def test_a_warning_shows_names_and_never_obeys_them(streams, name):
    show.log_to_stderr()
    logging.getLogger("ijepa.test").warning("%s is left out", name)
    logging.getLogger().handlers.clear()
    assert f"{printable(name)} is left out" in streams[1].getvalue()
