"""Names with braces, such as `set-{000..009}.tar`, counted before they are written down."""

import itertools
import math
import re

from braceexpand import braceexpand

from ijepa.errors import IjepaError

RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}", re.ASCII)
LIST = re.compile(r"\{([^{}]*,[^{}]*)\}")


def expanded(text: str, most: int) -> tuple[str, ...]:
    """The names that `text` stands for.

    Raises:
        IjepaError: more than `most`, or braces that do not end.
    """
    counts = [abs(int(end[:20]) - int(start[:20])) + 1 for start, end in RANGE.findall(text)]
    counts += [listed.count(",") + 1 for listed in LIST.findall(text)]
    try:
        too_many = math.prod(counts) > most  # braceexpand would write all of them down
        names = () if too_many else tuple(itertools.islice(braceexpand(text), most + 1))
        if too_many or len(names) > most:
            raise ValueError(f"they stand for more than {most:,} names")
    except (ValueError, RecursionError) as error:  # an UnbalancedBracesError is one
        raise IjepaError(
            f"The braces of {text:.200} cannot be expanded: {error}; write braces as in "
            f"set-{{000000..000146}}.tar."
        ) from error
    return names
