"""Tables of what was varied, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.experiments.ablations import EQUAL_TIME, ablations
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import QUANTITIES, said
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import NOT_RUN, SAME, against_base, cells_of, in_words, named, table
from benchmarks.experiments.trial import OBJECTIVES

OF_ALL = ("R@1", "R@10", "MRV", "MRSD", "worst language", "below English", "tokens", "CPU s")
ALSO_OF = {"rare languages": ("R@1 of the rarest",), "unseen languages": ("R@1 of the unseen",)}
COMPARED = ("R@1", "MRV")


def by_setting(results: Results) -> list[tuple[str, str]]:
    """Titles and tables; in the last columns each row against that it is compared with."""
    return [(title, _ablation(title, rows, results)) for title, rows in ablations().items()]


def _ablation(title: str, rows: Sequence[Row], results: Results) -> str:
    also = ALSO_OF.get(title, ())
    columns, differing = (*also, *OF_ALL), (*also, *COMPARED)
    kinds = ("quotient" if QUANTITIES[of].is_ratio else "difference" for of in differing)
    return table(
        ["setting", *columns, *(f"{of}, {kind}" for of, kind in zip(differing, kinds, strict=True))],
        [
            [
                named(row.name),
                *cells_of(row, columns, results),
                *(_against_base(row, of, results) if row.base else SAME for of in differing),
            ]
            for row in rows
        ],
    )


def _against_base(row: Row, quantity: str, results: Results) -> str:
    """In bold where the interval excludes that there is no difference."""
    found = against_base(row, quantity, results)
    if found is None:
        return NOT_RUN
    return f"**{said(found, quantity)}**" if found.is_clear else said(found, quantity)


def in_short(results: Results) -> str:
    """Each change of 1-to-K in words, each length at equal time, and else the others at the last change of all."""
    lines = []
    for title, rows in ablations().items():
        recall, *_ = (*ALSO_OF.get(title, ()), "R@1")
        is_of_all = len({row.trials[0].objective for row in rows}) > 1
        for row in rows[1 - len(OBJECTIVES) :] if is_of_all and title != EQUAL_TIME else rows:
            if row.base is not None:
                cells = [_in_words(row, quantity, results) for quantity in (recall, "MRV")]
                lines.append([title, named(row.name), named(row.base.name), f"{recall} {cells[0]}", cells[1]])
    return table(["varied", "with", "against", "recall", "MRV"], lines)


def _in_words(row: Row, quantity: str, results: Results) -> str:
    found = against_base(row, quantity, results)
    return NOT_RUN if found is None else f"{in_words(found)}: {said(found, quantity)}"
