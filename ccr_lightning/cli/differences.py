"""In which settings two configurations differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A setting that two configurations do not share."""

    name: str  # dotted
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} was {_as_written(self.before)} and is {_as_written(self.now)}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[Difference]:
    """Name the settings in which two configurations differ; of a part of another class, that class alone.

    Args:
        before: One configuration.
        now: The other; what one of them lacks is null there.
        place: The dotted name of the setting that both are the values of, with a dot at its end.

    Example:
        >>> before = {"data": {"batch_size": 8, "source": {"class_path": "A", "init_args": {"a": 1}}}}
        >>> now = {"data": {"batch_size": 4, "source": {"class_path": "B", "init_args": {"b": 1}}}}
        >>> print(*differences(before, now), sep=", ")
        data.batch_size was 8 and is 4, data.source was A and is B
    """
    for key in [*before, *(key for key in now if key not in before)]:
        name, one, other = f"{place}{key}", before.get(key), now.get(key)
        if one == other:
            continue
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            yield Difference(name, one, other)
        elif (old := one.get("class_path")) != (new := other.get("class_path")):
            yield Difference(name, old, new)
        else:
            yield from differences(one, other, f"{name}.")


def is_one_of(name: str, settings: Sequence[str]) -> bool:
    """Return whether a dotted name is among settings, or below one of them.

    Example:
        >>> is_one_of("data.source.init_args", ["data.source"]), is_one_of("data.sources", ["data.source"])
        (True, False)
    """
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def _as_written(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("class_path", "a mapping"))
    if isinstance(value, list):
        return f"[{', '.join(map(_as_written, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
