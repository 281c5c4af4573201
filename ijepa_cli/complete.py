"""What the shell completes: names of recipes, protocols, splits and encoders.

Typer leaves out names that do not begin as what was typed.
"""

from pathlib import Path

import typer

from ijepa.errors import IjepaError
from ijepa.recipes import recipe_names
from ijepa_cli.show import opened


def recipe(incomplete: str) -> list[str]:
    """Recipes of the package, and YAML files."""
    return recipe_names() + _paths(incomplete, ".yaml", ".yml")


def protocol(ctx: typer.Context) -> list[str]:
    """Protocols of the probe that was typed; of all of them before that."""
    from ijepa.probes.protocols import PROTOCOLS

    known = PROTOCOLS.get(str(ctx.params.get("name")))
    return sorted(known or {one for every in PROTOCOLS.values() for one in every})


def split(ctx: typer.Context) -> list[str]:
    """Splits of the shard set that `--data` names."""
    try:
        return [*opened(ctx.params.get("data") or "").splits, "evaluation"]
    except (IjepaError, OSError):
        return []


def encoder(incomplete: str) -> list[str]:
    """Kinds of encoders, folders of runs and files of weights."""
    from ijepa.encoders.spec import KINDS

    kinds = ["pixels", *(f"{kind}:" for kind in ("random", "published", *KINDS))]
    return sorted(kinds) + _paths(incomplete, ".pt", ".pth", ".tar", ".safetensors")


def _paths(incomplete: str, *suffixes: str) -> list[str]:
    """Folders, and files of some kinds, whose path begins so."""
    folder, _, name = incomplete.rpartition("/")
    found = Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{name}*")
    parent = f"{folder}/" if "/" in incomplete else ""
    paths = [path for path in found if path.is_dir() or path.suffix in suffixes]
    return sorted(f"{parent}{path.name}{'/' if path.is_dir() else ''}" for path in paths)
