"""Text to show: that from outside (names, keys, paths, messages) made safe, durations in words."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# Controls apart from tab and newline, marks that turn the direction of writing, halves of a
# character (bytes of a path that are not UTF-8), and what XML allows in no document.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
LONGEST = 2000  # characters of one message
TAIL = 400  # of these, kept from its end


def printable(text: str) -> str:
    r"""The text with each control character written as an escape, such as `\u001b`.

    JSON text stays JSON of the same value.
    """
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(message: str) -> str:
    """A message on one printable line, its middle left out if it is very long."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST - TAIL]} ... {message[-TAIL:]}"
    return printable(" ".join(message.split()))


def some(things: Sequence[object], most: int = 3) -> str:
    """The first of several things, with `...` for the others: `a, b, c, ...`."""
    return ", ".join(map(str, things[:most])) + (", ..." if len(things) > most else "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'val'?)` with the known name nearest to a mistyped one; else nothing."""
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def duration(seconds: float) -> str:
    """Such as `2 h 5 min`; the two largest units."""
    if seconds < 60:  # a minute
        return f"{seconds:.0f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{hours[0]} h {hours[1]} min" if hours[0] else f"{minutes[0]} min {minutes[1]} s"
