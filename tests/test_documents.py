"""What the documents tell a user to type is there."""

import itertools
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

import ijepa
from ijepa.recipes import recipe_names
from ijepa_cli.main import COMMANDS, app

ROOT = Path(__file__).parent.parent
WRITTEN = ("README.md", "CONTRIBUTING.md", "shards/README.md")
DOCUMENTS = (*WRITTEN, *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md"))))
GROUP = typer.main.get_command(app)


def typed(program: str) -> list[list[str]]:
    """Commands in the shell blocks of the documents, split into words."""
    found = []
    for name in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / name).read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words and words[0] == program]


def examples() -> list[list[str]]:
    """Commands that the help texts show."""
    inner = [getattr(command, "commands", {}).values() for command in GROUP.commands.values()]
    commands = [*GROUP.commands.values(), *itertools.chain(*inner)]
    texts = [f"{one.help or ''}\n{one.epilog or ''}".replace("\\\n", " ") for one in commands]
    lines = [line for text in texts for line in re.findall(r"(?:Example: |  )(ijepa .*)", text)]
    return [shlex.split(line.partition(" > ")[0])[1:] for line in lines]


@pytest.mark.parametrize("words", typed("ijepa") + examples(), ids=" ".join)
def test_commands_in_documents_and_help_are_understood(words):
    name, *arguments = words
    command = GROUP.commands[name]
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)  # raises a usage error


def test_there_are_examples_of_every_command():
    assert {words[0] for words in examples()} == set(COMMANDS)
    for name in ("features", "visualize"):
        shown = {words[1] for words in examples() if words[0] == name}
        assert shown == set(GROUP.commands[name].commands)
    assert {"shard", "pretrain", "extract", "probe", "report"} <= {w[0] for w in typed("ijepa")}


def test_targets_and_variables_of_make_in_documents_are_there():
    makefile = (ROOT / "Makefile").read_text()
    scales = "".join(path.read_text() for path in (ROOT / "reproduce").glob("*.mk"))
    for words in typed("make"):
        for word in (word for word in words if not word.startswith("-") and not word.isdecimal()):
            name, is_variable, _ = word.partition("=")
            known = rf"^{name}\s*:?=|\$\({name}(:%=.*)?\)" if is_variable else rf"^{name}:.*##"
            text = makefile + scales if is_variable else makefile
            assert re.search(known, text, re.MULTILINE), f"make {word}"


def test_the_readme_is_short_and_lists_every_command():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    for name in COMMANDS:
        assert f"ijepa {name}" in readme


def test_the_page_on_pretraining_lists_every_recipe():
    page = (ROOT / "docs" / "pretraining.md").read_text()
    for name in recipe_names():
        assert f"`{name}`" in page or f"`{name.partition('_')[0]}_*`" in page


def test_links_between_documents_lead_somewhere():
    for name in DOCUMENTS:
        page = ROOT / name
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        made = ("commands/", "recipes.md", "settings.md")  # when the site is built
        for link in (link for link in links if not link.startswith(made)):
            assert (page.parent / link).exists(), f"{name}: {link}"


def test_the_table_of_layers_is_the_contract_that_is_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one["type"] == "layers")
    checked = [set(re.split(r" [|:] ", layer)) for layer in layers]
    page = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (?:stages|rooms|method|ground) \| ([^|]*) \|", page, re.MULTILINE)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == checked


def test_both_lists_of_tested_versions_name_the_same_versions():
    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    listed = dict(line.split("==") for line in lines if not line.startswith("#"))
    lock = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {(plain(package["name"]), package.get("version")) for package in lock}
    assert {(plain(name), version) for name, version in listed.items()} <= locked
    names = [name for name, _ in locked]
    assert all(names.count(plain(name)) == 1 for name in listed)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {plain(name) for name in listed}
    for needs in (project["dependencies"], *project["optional-dependencies"].values()):
        assert {plain(re.match(r"[\w.-]+", need)[0]) for need in needs} <= known


def test_functions_named_in_the_contributors_guide_are_there():
    named = re.findall(r"`(ijepa/[\w/]+\.py):(\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(named) > 15
    for file, name in named:
        assert re.search(rf"^(def|class) {name}\b", (ROOT / file).read_text(), re.MULTILINE), name


def test_the_citation_names_the_version():
    assert f"\nversion: {ijepa.__version__}\n" in (ROOT / "CITATION.cff").read_text()
