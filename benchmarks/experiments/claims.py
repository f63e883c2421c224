"""What the paper says of 1-to-K against the other objectives, at equal budgets, and whether it was found."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from benchmarks.experiments import plan
from benchmarks.experiments.intervals import Difference, holm
from benchmarks.experiments.quantities import compared, said
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import BUDGET_NAMES, NAMES, SAME, UNDECIDED, records_of, table
from benchmarks.experiments.trial import SPLITS

ERROR = 0.05  # of all comparisons together
YES, NO = "yes", "**no, the opposite**"


class Claim(NamedTuple):
    """Something that the paper says of 1-to-K against another objective."""

    other: str
    quantity: str
    is_higher: bool

    @property
    def words(self) -> str:
        """The claim."""
        return f"{self.quantity} is {'higher' if self.is_higher else 'lower'} than with {NAMES[self.other]}"


CLAIMS = [
    Claim(other, quantity, is_higher)
    for other in ("one_to_one", "english_pivot")
    for quantity, is_higher in (("R@1", True), ("MRV", False), ("worst language", True), ("gap to English", False))
]
Comparisons = dict[Claim, tuple[Difference, float]]  # with p after Holm


def comparisons(results: Results) -> dict[tuple[str, str], Comparisons]:
    """By budget and split, for each claim the other objective against 1-to-K; p is adjusted over all of them together.

    Comparisons of the same trainings count once, at equal images.
    """
    found: dict[tuple[str, str], dict[Claim, Difference]] = {}
    for split in SPLITS:
        for budget in plan.BUDGETS:
            rows = {row.name: records_of(row, results) for row in plan.objectives(budget, split)}
            if all(rows.values()):
                found[budget, split] = {
                    claim: compared(rows[claim.other], rows["one_to_k"], claim.quantity)
                    for claim in CLAIMS
                    if budget == "images" or plan.BUDGETS[budget][claim.other] != plan.EPOCHS
                }
    adjusted = iter(holm([of.p for by_claim in found.values() for of in by_claim.values()]))
    return {where: {claim: (of, next(adjusted)) for claim, of in by_claim.items()} for where, by_claim in found.items()}


def verdict(found: Difference, p: float, is_higher: bool) -> str:
    """Whether a claim is confirmed, by the sign of the other's difference from 1-to-K and its adjusted p.

    Example:
        >>> verdict(Difference(-2.0, 0.5, 0.001), 0.004, is_higher=True)
        'yes'
        >>> verdict(Difference(2.0, 3.0, 0.1), 0.4, is_higher=True)
        'undecided'
    """
    if math.isnan(p) or p >= ERROR:
        return UNDECIDED
    return YES if (found.value < 0) == is_higher else NO


def in_short(found: dict[tuple[str, str], Comparisons]) -> dict[str, Any]:
    """The table of verdicts, and how many there are of each."""
    head = ["with 1-to-K, ...", *(f"{BUDGET_NAMES[budget]}, `{split}`" for budget, split in found)]
    lines = [
        [
            claim.words,
            *(verdict(*by_claim[claim], claim.is_higher) if claim in by_claim else SAME for by_claim in found.values()),
        ]
        for claim in CLAIMS
    ]
    counted = Counter(cell for line in lines for cell in line[1:])
    counts = {
        "all": counted.total() - counted[SAME],
        "yes": counted[YES],
        "no": counted[NO],
        "undecided": counted[UNDECIDED],
    }
    return {"verdicts": table(head, lines), "counts": counts}


def differences(found: dict[tuple[str, str], Comparisons]) -> str:
    """The table of what the verdicts follow from."""
    return table(
        ["at", "split", "of", "with", "against 1-to-K", "p (Holm)"],
        [
            [BUDGET_NAMES[budget], split, claim.quantity, NAMES[claim.other], said(of, claim.quantity), f"{p:.2g}"]
            for (budget, split), by_claim in found.items()
            for claim, (of, p) in by_claim.items()
        ],
    )
