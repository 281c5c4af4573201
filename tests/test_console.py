"""Progress without a terminal: rates and times left are of the task as it runs now."""

import pytest

from ijepa_cli import console


@pytest.fixture
def said(monkeypatch):
    """Lines of progress; the clock goes on by a second a look."""
    clock, lines = iter(range(1000)), []
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(console.stderr, "print", lambda text, **_: lines.append(text))
    return lines


def test_what_a_resumed_task_had_done_is_not_counted_as_speed(said):
    progress = console._Lines(every_seconds=0)
    progress("train steps", 500, 1000)
    progress("train steps", 510, 1000)
    assert said[0] == "train steps: 500 of 1,000"
    assert "s left" in said[1]
    assert float(said[1].split("  ")[1].removesuffix("/s")) < 10


def test_a_task_that_begins_again_is_timed_anew(said):
    progress = console._Lines(every_seconds=0)
    for done in range(0, 101, 10):
        progress("train steps", done, 100)
    del said[:]
    progress("train steps", 0, 100)
    progress("train steps", 50, 100)
    assert said[0] == "train steps: 0 of 100"
    assert said[1].startswith("train steps: 50 of 100  10.0/s")  # 50 in the five seconds since
    progress("other steps", 3, 4)
    assert said[2] == "other steps: 3 of 4"


def test_bars_begin_again_with_their_task():
    with console._Bars() as bars:
        for done in (0, 10, 0, 4):
            bars("train steps", done, 10)
        [task] = bars._rich.tasks
        assert (task.completed, task.total) == (4, 10)
