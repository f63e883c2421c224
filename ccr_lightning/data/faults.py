"""What is wrong with single records: raised, or reported and passed over, as whoever reads them decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

from ccr_lightning.errors import CCRError

FaultKind = Literal[
    "unreadable record", "unsafe image path", "missing image", "unreadable image", "repeated image", "blank caption"
]

_T = TypeVar("_T")
_R = TypeVar("_R")


class RecordFault(CCRError):
    """A record, or its image, that cannot be used although the others can.

    Args:
        message: One sentence that starts with the place (``file:line``) and says what to do.
        kind: What kind of fault it is, for counting.

    Example:
        >>> RecordFault("a.jsonl:3: the key 'image' is missing; add it.").kind
        'unreadable record'
    """

    def __init__(self, message: str, kind: FaultKind = "unreadable record") -> None:
        super().__init__(printable(message))
        self.kind: FaultKind = kind


def printable(text: str) -> str:
    r"""Return a text whose control characters and undecodable bytes are written out, so that it is one line anywhere.

    Example:
        >>> printable("a\x1b[31m\nb.jpg")
        'a\\x1b[31m\\nb.jpg'
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


Report = Callable[[RecordFault], None]


def stop(fault: RecordFault) -> None:
    """Raise the fault: the first bad record ends the reading."""
    raise fault


def usable(parse: Callable[[_T], _R], items: Iterable[_T], report: Report) -> Iterator[_R]:
    """Yield what ``parse`` makes of each item; an item for which it raises a :class:`RecordFault` is reported instead.

    Example:
        >>> def parse(text):
        ...     if not text.isdigit():
        ...         raise RecordFault(f"{text!r} is no number; mend it.")
        ...     return int(text)
        >>> faults = []
        >>> list(usable(parse, ["1", "x", "3"], faults.append)), len(faults)
        ([1, 3], 1)
    """
    for item in items:
        try:
            result = parse(item)
        except RecordFault as fault:
            report(fault)
        else:
            yield result
