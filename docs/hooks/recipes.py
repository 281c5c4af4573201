"""The page of recipes: what each is, and what it sets."""

from importlib import resources

from ijepa.recipes import recipe_names, recipe_title


def recipes_page() -> str:
    """Every recipe of the package, as its file has it."""
    parts = [
        "# Recipes\n\nEach names what differs from the published settings, or from the recipe that "
        "it calls its `base`. `ijepa recipes NAME` prints one in full; `--set a.b=c` changes a "
        "setting."
    ]
    for name in recipe_names():
        text = resources.files("ijepa.recipes").joinpath(f"{name}.yaml").read_text()
        parts.append(f"## {name}\n\n{recipe_title(name)}\n\n```yaml\n{text.strip()}\n```")
    return "\n\n".join(parts) + "\n"
