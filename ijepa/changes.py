"""Why a stage runs again: what differs between its plan and the record of its output."""

import re
import reprlib
from collections.abc import Collection, Mapping
from typing import Any

from ijepa.config import flat

DIGEST = re.compile("[0-9a-f]{64}")
MOST_CHANGES = 3  # of settings that are told
OTHER_INPUTS = {"source": "the source", "read": "streaming"}  # those that no option names
SHORT = reprlib.Repr()  # of values that changed
SHORT.maxstring = SHORT.maxother = 40


def changes(
    described: Mapping[str, Any], record: Mapping[str, Any], ignored: Collection[str]
) -> str:
    """How a plan, as `StagePlan.described` gives it, differs from that of a record, in words.

    The first three differences in full; `ignored` settings, by dotted name, do not count.
    """
    ours, theirs = flat(described), flat({name: record.get(name) for name in described})
    found = []
    for name in ours | theirs:
        words = name.removeprefix("config.")
        if words in ignored:
            continue
        one, other = ours.get(name) or "", theirs.get(name) or ""
        if name.startswith("inputs.") or DIGEST.search(f"{one} {other}"):  # never shown
            words = _input(name.removeprefix("inputs.")) if name.startswith("inputs.") else words
            word = "changed" if one and other else "is new" if one else "is left out"
            found += [f"{words} {word}"] if one != other else []
        elif ours.get(name) != theirs.get(name):
            was, now = SHORT.repr(theirs.get(name)), SHORT.repr(ours.get(name))
            found.append(f"{words} was {was}, now {now}")
    more = [f"{len(found) - MOST_CHANGES:,} more"] if len(found) > MOST_CHANGES else []
    return "; ".join([*found[:MOST_CHANGES], *more])


def _input(role: str) -> str:
    """An input in the words of a user: what was given for an option, or a path of a report."""
    name, _, which = role.partition(" ")
    if name in ("result", "run", "file"):
        return which
    number = int(which or 0)
    if name in ("train", "test") and number:
        name, number = f"baseline-{name}", number - 1
    option = OTHER_INPUTS.get(name, f"the content of --{name}")
    return f"{option} number {number + 1}" if number else option
