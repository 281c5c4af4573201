"""Progress without a terminal: rates and times left are of the task as it runs now."""

import io
import json
import logging
from types import SimpleNamespace

import pytest
from rich.table import Table

from ijepa.text import printable
from ijepa_cli import show


@pytest.fixture
def said(monkeypatch):
    """Lines of progress, a clock whose `now` is set by the test, and what reports progress."""
    clock, lines = SimpleNamespace(now=100.0), []
    monkeypatch.setattr(show.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(show.stderr, "print", lambda text, **_: lines.append(text))
    monkeypatch.setattr(show.stderr, "_force_terminal", False)
    with show.shown_progress() as progress:
        yield lines, clock, progress


def test_what_a_resumed_task_had_done_is_not_counted_as_speed(said):
    lines, clock, progress = said
    progress("train steps", 500, 1000)
    clock.now += 20
    progress("train steps", 510, 1000)
    clock.now += 5
    progress("train steps", 511, 1000)  # too soon
    assert lines == [
        "train steps: 500 of 1,000", "train steps: 510 of 1,000  0.5/s  980 s left",
    ]  # fmt: skip


def test_a_task_that_begins_again_is_timed_anew(said):
    lines, clock, progress = said
    for done in (0, 100, 0, 50):
        progress("train steps", done, 100, {"loss": 0.25} if done else None)
        clock.now += 10
    assert lines[1:] == [
        "train steps: 100 of 100  10.0/s  loss 0.25", "train steps: 0 of 100",
        "train steps: 50 of 100  5.0/s  10 s left  loss 0.25",
    ]  # fmt: skip
    progress("other steps", 3, 4)
    assert lines[-1] == "other steps: 3 of 4"


def test_bars_begin_again_with_their_task(monkeypatch):
    monkeypatch.setattr(show.stderr, "_force_terminal", True)
    with show.shown_progress() as progress:
        for done in (0, 10, 0, 4):
            progress("train steps", done, 10)
        [task] = progress._bars.tasks
        assert (task.completed, task.total, task.finished) == (4, 10, False)


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
        assert [task.description for task in progress._bars.tasks] == [shown]


@pytest.mark.parametrize("name", NAMES)
def test_a_warning_shows_names_and_never_obeys_them(streams, name):
    show.log_to_stderr()
    logging.getLogger("ijepa.test").warning("%s is left out", name)
    logging.getLogger().handlers.clear()
    assert f"{printable(name)} is left out" in streams[1].getvalue()
