"""Check what users write, and say in one line all that is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ijepa.config.masks import MASK_KINDS
from ijepa.errors import IjepaError

C = TypeVar("C", bound=BaseModel)
SHOWN_FAULTS = 20


def validated(kind: type[C], body: Mapping[str, Any], source: str) -> C:
    """Check a mapping against a configuration; all faults at once, in one line.

    Raises:
        IjepaError: naming `source` and every key that is wrong.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        faults = [_fault(fault) for fault in error.errors()[:SHOWN_FAULTS]]
        if more := error.error_count() - len(faults):
            faults.append(f"and {more:,} more")
        raise IjepaError(f"{source}: {'; '.join(faults)}.") from error


def _fault(fault: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part not in MASK_KINDS)
    if fault["type"] == "extra_forbidden":
        return f"{where} is not a known setting"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{where} = {fault['input']!r:.200}: {message}" if where else message
