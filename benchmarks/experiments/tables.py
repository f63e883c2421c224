"""What the tables of the page have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.experiments.intervals import Difference
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import Record, compared, shown
from benchmarks.experiments.running import Results

SCORES = (
    *("R@1", "MRV"),
    *("i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10"),
    *("i2t MRV", "t2i MRV", "MRSD", "same first", "mean recall", "worst language", "below English", "gap to English"),
)
NAMES = {"one_to_k": "1-to-K", "one_to_one": "one random language", "english_pivot": "English pivot"}
HIGHER, LOWER, UNDECIDED = "higher", "lower", "undecided"
SAME, NOT_RUN = "–", "not run"


def records_of(row: Row, results: Results) -> list[Record]:
    """The records of a row's trials; none unless all are there."""
    found = [results.of(trial) for trial in row.trials]
    return [record for record in found if record is not None] if None not in found else []


def against_base(row: Row, quantity: str, results: Results) -> Difference | None:
    """A row compared with its base; None unless both have been run."""
    own, others = records_of(row, results), records_of(row.base, results) if row.base else []
    return compared(own, others, quantity) if own and others else None


def cells_of(row: Row, quantities: Sequence[str], results: Results) -> list[str]:
    """Means over seeds with their intervals."""
    records = records_of(row, results)
    return [shown(records, of) if records else NOT_RUN for of in quantities]


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


def table_of(rows: Sequence[Row], quantities: Sequence[str], results: Results) -> str:
    """A column for each setting and a line for each quantity: its mean over seeds and its interval."""
    columns = [cells_of(row, quantities, results) for row in rows]
    return table(["measured", *(named(row.name) for row in rows)], zip(quantities, *columns, strict=True))


def named(row: str) -> str:
    """The name of a row as it is shown.

    Example:
        >>> named("one_to_one, 5 epochs")
        'one random language, 5 epochs'
    """
    name, comma, change = row.partition(",")
    return f"{NAMES.get(name, name)}{comma}{change}"


def listed(split: str, words: Mapping[str, str], order: Iterable[str]) -> str:
    """What is said of quantities on a split, word by word.

    Example:
        >>> listed("family", {"R@1": "higher", "R@5": "undecided", "R@10": "higher"}, ["lower", "higher", "undecided"])
        '`family` higher: R@1, R@10; undecided: R@5'
    """
    of_word = {word: [name for name, said in words.items() if said == word] for word in order}
    return f"`{split}` " + "; ".join(f"{word}: {', '.join(names)}" for word, names in of_word.items() if names)


def in_words(found: Difference) -> str:
    """The sign of a difference, where its interval excludes zero."""
    if not found.is_clear:
        return UNDECIDED
    return HIGHER if found.value > 0 else LOWER
