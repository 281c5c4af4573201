"""Where pages are filled in: text of others is escaped, in HTML and for who reads the file."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from ijepa.text import printable


def templates(folder: str) -> Environment:
    """Templates of a folder of the package, such as `results/templates`."""
    return Environment(
        loader=PackageLoader("ijepa", folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    return type(value)(printable(value)) if isinstance(value, str) else value
