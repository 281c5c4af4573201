"""What both consoles show: text of others, never obeyed."""

import io
import json
import logging
import sys

import pytest
from rich.table import Table

from ijepa.config import Runtime
from ijepa.text import printable
from ijepa_cli import show


@pytest.fixture
def streams(monkeypatch):
    """What the two consoles write, as a terminal that takes UTF-8 would get it."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(show.screen, "_file", out)
    monkeypatch.setattr(show.stderr, "_file", err)
    return out, err


NAMES = ["[red]", "[/]", "\x1b[31mred", "bell\a", "\x9b31m", "\u202etxt", "a\udcff", ":smile:"]


@pytest.mark.parametrize("name", NAMES)
def test_text_of_others_is_shown_and_never_obeyed(streams, capsys, name):
    out, _ = streams
    shown = printable(name)
    rows = Table(name, title=name, caption=name)
    rows.add_row(name)
    show.screen.print(rows)
    show.screen.print(name, highlight=False)
    show.print_text(name)
    show.print_json({"name": name})
    with show.shown_progress() as progress:
        progress(f"{name} images", 1, 2)
    assert out.getvalue().count(shown) == 5
    plain, drawn = capsys.readouterr()
    assert shown in drawn
    assert shown in plain
    assert json.loads(plain.partition("{")[1] + plain.partition("{")[2])["name"] == name
    for text in (out.getvalue(), drawn, plain):
        assert printable(text) == text


@pytest.mark.parametrize("name", NAMES)
def test_a_warning_shows_names_and_never_obeys_them(streams, name):
    show.log_to_stderr()
    logging.getLogger("ijepa.test").warning("%s is left out", name)
    logging.getLogger().handlers.clear()
    assert f"{printable(name)} is left out" in streams[1].getvalue()


def test_colours_that_are_forced_make_no_terminal_of_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr(show, "stderr", show.Screen(stderr=True, force_terminal=True))
    with (tmp_path / "log").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        with show.shown_progress() as progress:
            progress("count images", 0, 2)
            progress("count images", 2, 2)
    first, last = (tmp_path / "log").read_text().splitlines()
    assert first.startswith("count: 0%, 0/2")
    assert last.startswith("count: 100%, 2/2")


def test_a_mac_is_said_to_have_a_gpu_perhaps(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert show.about(Runtime(), "probe").about == "probe, on a GPU if torch can use it"
