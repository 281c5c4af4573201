"""Labels from any source on their way to class numbers 0 to C-1, with the names of the classes."""

import re
import unicodedata
from typing import NamedTuple

from ijepa.errors import IjepaError

UNKNOWN = -1  # the class number of an image whose class is not known
MAX_CLASSES = 2**16  # of one label of a list; what has more is a number or a text of its own
INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


class Label(NamedTuple):
    """The classes of one label.

    Attributes:
        num_classes: how many.
        names: of classes 0, 1, ...; None for plain integers, which only older shard sets have.
    """

    num_classes: int
    names: list[str] | None = None


def named(names: list[str]) -> Label:
    """A label whose classes have these names, numbered from 0."""
    return Label(len(names), [class_name(name) for name in names])


def class_name(text: str) -> str:
    """The name in Unicode's composed form (NFC), whichever form a file system wrote."""
    return unicodedata.normalize("NFC", text)


class LabelColumn:
    """The values of one label: collect them all, then number them.

    Integers are numbered in ascending order, texts in that of their characters. None, an empty text
    and -1 mean that the class is not known.
    """

    def __init__(self, name: str, where: str) -> None:
        """Begin with no value; `name` and `where` are for errors."""
        self._name, self._where = name, where
        self._texts: set[str] = set()
        self._numbers: dict[str, int] | None = None
        self._only_integers = True

    def add(self, value: object, place: str) -> None:
        """Collect a value that stands at `place`.

        Raises:
            IjepaError: it is neither an integer nor a text, or there are too many different ones.
        """
        text = _text(value, place)
        if text is None or text in self._texts:
            return
        self._texts.add(text)
        self._only_integers = self._only_integers and INTEGER.fullmatch(text) is not None
        if len(self._texts) > MAX_CLASSES:
            raise IjepaError(
                f"{self._where}: {self._name} has more than {MAX_CLASSES:,} different values, "
                f"which is no label; leave it out."
            )

    def label(self) -> Label:
        """The classes of all values so far."""
        if self._only_integers:
            return named([str(value) for value in sorted(set(map(int, self._texts)))])
        return named(sorted(self._texts))

    def number(self, value: object) -> int:
        """Class number of a value that was added; `UNKNOWN` if there is none."""
        if self._numbers is None:
            names = self.label().names or []
            self._numbers = {name: number for number, name in enumerate(names)}
        text = _text(value, self._where)
        if text is None:
            return UNKNOWN
        return self._numbers[str(int(text)) if self._only_integers else text]


def _text(value: object, place: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | str | None):
        raise IjepaError(f"{place}: {value!r:.60} is not a label; write an integer or a text.")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise IjepaError(f"{place}: an integer of more than 18 digits is not a label.")
    text = class_name(str(value).strip()) if value is not None else ""
    return None if text in ("", str(UNKNOWN)) else text
