"""The documents' site: it builds without complaint, and says what the code has."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest
import typer
from test_python_page import smaller

from ijepa.config import Settings
from ijepa.probes.protocols import PROTOCOLS
from ijepa_cli.main import COMMANDS, app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GROUP = typer.main.get_command(app)
STEP = re.compile(r"<!-- (run|save)(?:: (\S+))? -->\n```\w+\n(.*?)```", re.DOTALL)
SMALLER = {  # what the tutorial takes minutes for, the test does in seconds
    "make_images.py 5000": "make_images.py 240",
    "epochs: 8": "epochs: 1",
    "warmup_epochs: 0.5": "warmup_epochs: 0.2",
    "every_steps: 100": "every_steps: 5",
}


@pytest.fixture(scope="module")
def hooks():
    """The modules that make pages from the code."""
    sys.path.insert(0, str(DOCS / "hooks"))
    names = ("commands", "protocols", "recipes", "settings")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(DOCS / "hooks"))


def commands():
    """Every command that can be typed, with the options that its own `--help` lists."""
    for name in COMMANDS:
        command = GROUP.commands[name]
        for inner in getattr(command, "commands", {"": command}).values():
            yield name, inner


def test_every_command_has_a_page_with_all_its_options(hooks):
    assert hooks["commands"].commands() == list(COMMANDS)
    for name, command in commands():
        page = hooks["commands"].command_page(name)
        for option in command.params:
            if option.name != "help" and not getattr(option, "hidden", False):
                is_argument = option.param_type_name == "argument"
                argument = (option.metavar or option.name).upper()
                (typed, *_) = [argument] if is_argument else (*option.opts, *option.secondary_opts)
                assert f"`{typed}" in page, f"{name} {typed}"
                assert option.help.split("|")[0].strip() in page


def test_every_setting_is_described_on_one_page(hooks):
    page = hooks["settings"].settings_page()

    def check(kind, prefix):
        for name, field in kind.model_fields.items():
            group = field.annotation
            if isclass(group) and issubclass(group, Settings):
                check(group, f"{prefix}{name}.")
            elif f"{prefix}{name}" != "masks":  # has kinds, each with a table of its own
                assert field.description, f"{prefix}{name}"
                assert f"`{prefix}{name}`" in page

    for kind in hooks["settings"].STAGES.values():
        check(kind, "")
    for masks in hooks["settings"].MASKS:
        check(masks, "masks.")


def test_every_protocol_stands_in_the_tables(hooks):
    for probe, protocols in PROTOCOLS.items():
        if probe in hooks["protocols"].BLOCKS and probe != "knn":
            table = hooks["protocols"].BLOCKS[probe]()
            assert all(f"| `{name}` |" in table for name in protocols), probe
    page = (DOCS / "protocols.md").read_text()
    assert all(f"made from the code: {name} -->" in page for name in hooks["protocols"].BLOCKS)


def test_pictures_of_the_documents_are_small():
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size <= 150_000, picture.name


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="there is no mkdocs")
def test_the_site_builds_without_complaint_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for page in tmp_path.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:link|script|img)[^>]* (?:href|src)=\"([^\"]+)\"", text)
        assert not [place for place in loaded if re.match(r"(https?:)?//", place)], page.name
        assert "made from the code" not in text
    words = html.unescape((tmp_path / "commands" / "probe.html").read_text())
    assert "--baseline-train" in words


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path):
    page = smaller((DOCS / "tutorial.md").read_text(), SMALLER)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, module in (("ijepa", "-m ijepa_cli "), ("python", "")):
        script = f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    steps = STEP.findall(page)
    assert len(steps) == page.count("<!-- run -->") + page.count("<!-- save:")
    for kind, name, body in steps:
        if kind == "save":
            (tmp_path / name).write_text(body)
        else:
            done = subprocess.run(
                ["sh", "-ec", body], cwd=tmp_path, env=env, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{body}\n{done.stderr}"
    assert (tmp_path / "report.html").stat().st_size > 20_000
