"""One page a command: what `--help` says, from the same objects."""

import re

import typer

from ijepa_cli.main import app

ROOT = typer.main.get_command(app)
BAR = "&#124;"  # a cell of a table must not hold the character
EXAMPLE = re.compile(r"^\s*(?:Examples?:\s*)?(ijepa .*?)$", re.MULTILINE)


def commands() -> list[str]:
    """Names in the order of the pipeline."""
    return ROOT.list_commands(typer.Context(ROOT))


def command_page(name: str) -> str:
    """The page of a command, with a section for each command that it has of its own."""
    command = ROOT.commands[name]
    parts = [f"# ijepa {name}", _words(command)]
    inner = getattr(command, "commands", None)
    if inner is None:
        parts.append(_usage(command, f"ijepa {name}", "##"))
    else:
        for own, part in inner.items():
            parts += [f"## {own}", _words(part), _usage(part, f"ijepa {name} {own}", "###")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _words(command: typer.core.TyperCommand) -> str:
    """Help and epilog without the examples."""
    texts = [_joined(command.help), _joined(command.epilog)]
    return "\n\n".join(_paragraph(EXAMPLE.sub("", text)) for text in texts if text).strip()


def _usage(command: typer.core.TyperCommand, typed: str, level: str) -> str:
    context = command.make_context(typed, [], resilient_parsing=True)
    seen = [one for one in command.params if not getattr(one, "hidden", False)]
    rows = [_row(one, context) for one in seen if one.name != "help"]
    table = "\n".join(["| | default | |", "|---|---|---|", *rows])
    return f"{table}\n\n{_examples(command, level)}".strip()


def _row(option: typer.core.TyperOption, context: typer.Context) -> str:
    """Name over form, default or range, and what it is."""
    typed, words = option.get_help_record(context)
    name, _, form = typed.removeprefix(" / ").partition(" <")  # which begins what only switches off
    if form := option.metavar or form.rstrip(">"):
        name = name.removesuffix(f" {form}")
    name = name if name.startswith("-") else name.upper()  # an argument, as the words call it
    words, _, bracket = words.partition("  [")
    default = bracket.rstrip("]").removeprefix("default: ").replace("required", "*required*")
    lines = [f"`{name}`", *([_form(form, option)] if form else [])]
    return f"| {'<br>'.join(lines)} | {default} | {words.replace('|', BAR)} |"


def _form(form: str, option: typer.core.TyperOption) -> str:
    """What is to be typed behind the name: a kind of value, or one of some words."""
    inner = form.removeprefix("list[").rstrip("]").replace("|", ", ")
    inner = {"str": "text", "Path": "path"}.get(inner, inner.lower() if inner.isupper() else inner)
    return f"<small>{inner}{', repeatable' if getattr(option, 'multiple', False) else ''}</small>"


def _examples(command: typer.core.TyperCommand, level: str) -> str:
    text = f"{_joined(command.help)}\n{_joined(command.epilog)}"
    lines = EXAMPLE.findall(text)
    return f"{level} Examples\n\n```sh\n" + "\n".join(lines) + "\n```" if lines else ""


def _joined(text: str | None) -> str:
    return (text or "").replace("\\\n", " ")


def _paragraph(text: str) -> str:
    text = re.sub(r"Examples?:\s*$", "", text.strip())
    return re.sub(r"\n\s*\n\s*", "\n\n", text).strip().replace("\f", "")
