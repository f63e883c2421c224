"""What the tables of the page have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.experiments.intervals import Difference
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import Record, shown
from benchmarks.experiments.running import Results

NAMES = {"one_to_k": "1-to-K", "one_to_one": "one random language", "english_pivot": "English pivot"}
HIGHER, LOWER, UNDECIDED = "higher", "lower", "undecided"
SAME, NOT_RUN = "–", "not run"


def records_of(row: Row, results: Results) -> list[Record]:
    """The records of a row's trials; none unless all are there."""
    found = [results.of(trial) for trial in row.trials]
    return [record for record in found if record is not None] if None not in found else []


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


def table_of(rows: Sequence[Row], quantities: Sequence[str], results: Results) -> str:
    """A column for each setting and a line for each quantity: its mean over seeds and its interval."""
    found = {named(row.name): records_of(row, results) for row in rows}
    return table(
        ["measured", *found],
        [[of, *(shown(records, of) if records else NOT_RUN for records in found.values())] for of in quantities],
    )


def named(row: str) -> str:
    """The name of a row as it is shown.

    Example:
        >>> named("one_to_one, 5 epochs")
        'one random language, 5 epochs'
    """
    name, comma, change = row.partition(",")
    return f"{NAMES.get(name, name)}{comma}{change}"


def in_words(found: Difference) -> str:
    """The sign of a difference, where its interval leaves out that there is none."""
    if not abs(found.value) > found.half:
        return UNDECIDED
    return HIGHER if found.value > 0 else LOWER
