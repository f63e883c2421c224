"""What the paper says of 1-to-K against the other objectives, at equal budgets, and whether it was found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.experiments import plan
from benchmarks.experiments.intervals import Difference, holm
from benchmarks.experiments.quantities import said
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import UNDECIDED, against_base, listed, named, table
from benchmarks.experiments.trial import SPLITS

ERROR = 0.05  # of all comparisons together
YES, NO = "**yes**", "**no, the opposite**"
IN_WORDS = {YES: "confirmed", NO: "**the opposite**", UNDECIDED: "undecided"}
OF_THE_PAPER = ("R@1", "MRV")
CLAIMS = {"R@1": "higher", "MRV": "lower", "worst language": "higher", "gap to English": "lower"}
Comparisons = dict[str, tuple[Difference, float]]  # by quantity, with p after Holm


def comparisons(results: Results) -> dict[tuple[str, str], Comparisons]:
    """By split and what 1-to-K is compared with, each quantity; p is adjusted over all of them together."""
    found: dict[tuple[str, str], dict[str, Difference]] = {}
    for rows in zip(*(plan.at_budgets(split) for split in SPLITS), strict=True):
        for split, row in zip(SPLITS, rows, strict=True):
            of_row = {quantity: against_base(row, quantity, results) for quantity in CLAIMS}
            if of_others := {name: of for name, of in of_row.items() if of is not None}:
                found[split, named(row.name)] = {
                    name: of._replace(value=-of.value) for name, of in of_others.items()
                }  # of 1-to-K
    adjusted = iter(holm([of.p for by_quantity in found.values() for of in by_quantity.values()]))
    return {where: {name: (of, next(adjusted)) for name, of in by_name.items()} for where, by_name in found.items()}


def verdict(found: Difference, p: float, claim: str) -> str:
    """Whether a claim is confirmed, by the sign of the difference of 1-to-K and its adjusted p.

    Args:
        found: 1-to-K against another.
        p: Of the difference, adjusted.
        claim: ``higher`` or ``lower``.

    Example:
        >>> verdict(Difference(2.0, 0.5, 0.001), 0.004, "higher")
        '**yes**'
        >>> verdict(Difference(-2.0, 3.0, 0.1), 0.4, "higher")
        'undecided'
    """
    if math.isnan(p) or p >= ERROR:
        return UNDECIDED
    return YES if (found.value > 0) == (claim == "higher") else NO


def in_short(found: dict[tuple[str, str], Comparisons]) -> dict[str, Any]:
    """The verdicts in words and as a table with what they follow from, and how many there are of each."""
    verdicts = {
        where: {quantity: verdict(*of, CLAIMS[quantity]) for quantity, of in by_quantity.items()}
        for where, by_quantity in found.items()
    }
    lines = [
        [
            other,
            split,
            *(
                f"{verdicts[split, other][quantity]}: {said(of, quantity)}, p {p:.2g}"
                for quantity, (of, p) in by_quantity.items()
            ),
        ]
        for (split, other), by_quantity in found.items()
    ]
    words: dict[str, list[str]] = {}
    for (split, other), by_quantity in verdicts.items():
        said_of_split = {name: IN_WORDS[found] for name, found in by_quantity.items()}
        words.setdefault(other, []).append(listed(split, said_of_split, IN_WORDS.values()))
    return {
        "conclusions": [f"**{other}**: {'. '.join(by_split)}." for other, by_split in words.items()],
        "verdicts": table(
            ["1-to-K against", "split", *(f"{name} is {claim}" for name, claim in CLAIMS.items())], lines
        ),
        "counts": _counts(verdicts, CLAIMS),
        "planned": len(CLAIMS) * sum(row.base is not None for split in SPLITS for row in plan.at_budgets(split)),
        "counts_of_paper": _counts(verdicts, OF_THE_PAPER),
    }


def _counts(verdicts: Mapping[Any, Mapping[str, str]], quantities: Iterable[str]) -> dict[str, int]:
    """How many verdicts of some quantities there are, and of each kind."""
    counted = Counter(of[quantity] for of in verdicts.values() for quantity in quantities)
    return {
        "all": counted.total(),
        "yes": counted[YES],
        "no": counted[NO],
        "undecided": counted[UNDECIDED],
    }
