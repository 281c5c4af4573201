"""What the shell completes: names of recipes, protocols, splits and encoders."""

from collections.abc import Iterable
from pathlib import Path

import typer

from ijepa.errors import IjepaError
from ijepa.recipes import recipe_names
from ijepa_cli.show import opened


def recipe(incomplete: str) -> list[str]:
    """Recipes of the package, and YAML files."""
    return _begin_with(incomplete, recipe_names()) + _paths(incomplete, ".yaml", ".yml")


def protocol(ctx: typer.Context, incomplete: str) -> list[str]:
    """Protocols of the probe that was typed; of all of them before that."""
    from ijepa.probes.protocols import PROTOCOLS

    name = str(ctx.params.get("name"))
    known = PROTOCOLS.get(name) or {one for every in PROTOCOLS.values() for one in every}
    return _begin_with(incomplete, known)


def split(ctx: typer.Context, incomplete: str) -> list[str]:
    """Splits of the shard set that `--data` names."""
    try:
        names = [*opened(ctx.params.get("data") or "").splits, "evaluation"]
    except (IjepaError, OSError):
        return []
    return _begin_with(incomplete, names)


def encoder(incomplete: str) -> list[str]:
    """Kinds of encoders, folders of runs and files of weights."""
    from ijepa.encoders.spec import KINDS

    kinds = ["pixels", *(f"{kind}:" for kind in ("random", "published", *KINDS))]
    return _begin_with(incomplete, kinds) + _paths(
        incomplete, ".pt", ".pth", ".tar", ".safetensors"
    )


def _begin_with(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _paths(incomplete: str, *suffixes: str) -> list[str]:
    """Folders, and files of some kinds, whose path begins so."""
    folder, _, name = incomplete.rpartition("/")
    found = Path(folder or ("/" if incomplete.startswith("/") else ".")).glob(f"{name}*")
    parent = f"{folder}/" if "/" in incomplete else ""
    paths = [path for path in found if path.is_dir() or path.suffix in suffixes]
    return sorted(f"{parent}{path.name}{'/' if path.is_dir() else ''}" for path in paths)
