"""`ijepa recipes`."""

from typing import Annotated

import typer

from ijepa.recipes import dump_yaml, load_recipe, recipe_names, recipe_title
from ijepa_cli import complete
from ijepa_cli.options import app
from ijepa_cli.show import print_text

Name = Annotated[
    str | None,
    typer.Argument(
        help="Recipe to print; without it, all are listed.", autocompletion=complete.recipe
    ),
]


@app.command()
def recipes(name: Name = None) -> None:
    """List the pretraining recipes, or print one with all of its settings.

    Example: ijepa recipes cifar10 > mine.yaml
    """
    if name:
        print_text(dump_yaml(load_recipe(name)))
        return
    width = max(len(known) for known in recipe_names())
    for known in recipe_names():
        print_text(f"{known:{width}}  {recipe_title(known)}\n")
