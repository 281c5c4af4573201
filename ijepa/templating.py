"""Jinja templates whose values are made printable, and escaped in HTML."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from ijepa.text import printable


def templates(folder: str, *, html: bool = True) -> Environment:
    """Templates of a folder of the package, such as `results/templates`."""
    return Environment(
        loader=PackageLoader("ijepa", folder),
        autoescape=html,
        undefined=StrictUndefined,
        finalize=lambda value: type(value)(printable(value)) if isinstance(value, str) else value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
