"""Numbers on a page that say where they are from: whoever reads its source can look each of them up."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from ccr_lightning.pages import without_controls
from ccr_lightning.report.reading import Scored

Place = str | int

NOTHING = "–"


def percent(value: float) -> str:
    """Write a share, in percent."""
    return f"{100 * value:.1f}"


def plain(value: float) -> str:
    """Write a variance or a loss."""
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def count(value: float) -> str:
    """Write a number of things."""
    return f"{value:,}"


def data(value: Any, text: str, origin: str) -> Markup:
    """Return an element with the number as it is rounded, as it is, and where it is from.

    Example:
        >>> print(data(0.8234, "82.3", "1 results.json#/mean_recall"))
        <data value="0.8234" data-from="1 results.json#/mean_recall">82.3</data>
    """
    exact = value if isinstance(value, str) else json.dumps(value)
    return Markup('<data value="{}" data-from="{}">{}</data>').format(*map(without_controls, (exact, origin, text)))


class Numbers:
    """The values of a results document, as elements of a page.

    Args:
        scored: The document.
    """

    def __init__(self, scored: Scored) -> None:
        self._scored = scored

    def value(self, *place: Place) -> Any:
        """Return the value at a place of the document."""
        value: Any = self._scored.document
        for name in place:
            value = value[name]
        return value

    def percent(self, *place: Place) -> Markup:
        """Return a share in percent."""
        return self._number(percent, place)

    def plain(self, *place: Place) -> Markup:
        """Return a number as it is."""
        return self._number(plain, place)

    def count(self, *place: Place) -> Markup:
        """Return a number of things."""
        return self._number(count, place)

    def text(self, *place: Place, length: int | None = None) -> Markup:
        """Return a text, maybe its beginning only."""
        value = self.value(*place)
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return data(value, shown[:length], self._origin(place))

    def interval(self, form: str, *place: Place) -> Markup:
        """Return the interval at a place in brackets; nothing if there is none.

        Args:
            form: ``percent`` or ``plain``.
            place: Of the interval.
        """
        if self.value(*place) is None:
            return Markup("")
        write = percent if form == "percent" else plain
        low, high = (self._number(write, (*place, end)) for end in (0, 1))
        return Markup('<span class="interval">[{}, {}]</span>').format(low, high)

    def ranked(self, value: float, text: str, what: str) -> Markup:
        """Return a number that follows from the ranks."""
        return data(value, text, f"{self._scored.key} ranks#{what}")

    def _number(self, write: Any, place: tuple[Place, ...]) -> Markup:
        value = self.value(*place)
        return Markup(NOTHING) if value is None else data(value, write(value), self._origin(place))

    def _origin(self, place: tuple[Place, ...]) -> str:
        pointer = "".join("/" + str(name).replace("~", "~0").replace("/", "~1") for name in place)
        return f"{self._scored.key} results#{pointer}"
