"""`ijepa recipes`."""

from typing import Annotated

import typer

from ijepa.config import dump_yaml, load_recipe, recipe_names
from ijepa_cli.console import print_text

Name = Annotated[str | None, typer.Argument(help="Show this one, complete; without, list all.")]


def recipes(name: Name = None) -> None:
    """List the pretraining recipes, or show one with every default spelled out.

    Example: ijepa recipes cifar10 > mine.yaml
    """
    print_text(dump_yaml(load_recipe(name)) if name else "\n".join(recipe_names()) + "\n")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(recipes)
