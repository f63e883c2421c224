"""Tables of terms that were added to the 1-to-K loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any

from benchmarks.experiments import plan
from benchmarks.experiments.claims import ERROR
from benchmarks.experiments.intervals import holm
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import average, said
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import (
    HIGHER,
    LOWER,
    NOT_RUN,
    SAME,
    SCORES,
    UNDECIDED,
    against_base,
    cells_of,
    in_words,
    listed,
    records_of,
    table,
    table_of,
)
from benchmarks.experiments.trial import SPLITS

CHOSEN_BY = ("mean recall", "MRV")
AIM, NOT_TO_BE_LOST = "MRV", ("mean recall", "R@1", "R@5", "R@10")  # and what it may not cost


def candidates(results: Results) -> dict[str, str]:
    """All that were tried, with one seed, and the best of them with more."""
    finalists = [name for name, by_split in plan.candidates().items() if len(by_split[SPLITS[0]]) > 1]
    return {
        "tried": _tried(list(plan.CANDIDATES), 1, results),
        "finalists": _tried(finalists, len(plan.TUNING_SEEDS), results),
    }


def _tried(names: Sequence[str], seeds: int, results: Results) -> str:
    lines = []
    for name in names:
        rows = [Row(name, trials[:seeds]) for trials in plan.candidates()[name].values()]
        found = [records_of(row, results) for row in rows]
        both = statistics.mean(math.log(average(of, "MRV").value) for of in found) if all(found) else None
        lines.append(
            [
                name,
                *chain.from_iterable(cells_of(row, CHOSEN_BY, results) for row in rows),
                NOT_RUN if both is None else f"{math.exp(both):.1f}",
            ]
        )
    return table(["term, weight", *(f"{split}: {of}" for split in SPLITS for of in CHOSEN_BY), "MRV of both"], lines)


def beyond(results: Results) -> dict[str, Any]:
    """1-to-K with and without the term that was chosen: tables of scores, and what new seeds say of the differences."""
    new = {split: plan.beyond(split, plan.NEW_SEEDS[split])[1] for split in SPLITS}
    tests = {split: found for split, row in new.items() if (found := against_base(row, AIM, results))}
    adjusted = dict(zip(tests, holm([of.p for of in tests.values()]), strict=True))
    lines, of_recall = [], []
    for split, row in new.items():
        words = {}
        for quantity in (AIM, *NOT_TO_BE_LOST):
            of_new = against_base(row, quantity, results)
            of_all = against_base(plan.beyond(split)[1], quantity, results)
            if of_new is None or of_all is None:
                lines.append([split, quantity, *[NOT_RUN] * 4])
                continue
            is_aim = quantity == AIM
            word = UNDECIDED if is_aim and adjusted[split] >= ERROR else in_words(of_new)
            if not is_aim:
                words[quantity] = word
            p = f"{adjusted[split]:.2g}" if is_aim else SAME
            lines.append([split, quantity, word, said(of_new, quantity), p, said(of_all, quantity)])
        if words:
            of_recall.append(f"{listed(split, words, (LOWER, HIGHER, UNDECIDED))}.")
    before = against_base(plan.beyond("composition", plan.SECOND_SEEDS)[1], AIM, results)
    return {
        "before": said(before, AIM) if before else NOT_RUN,  # why there are newer seeds of one split
        "of_recall": " ".join(of_recall),
        "differences": table(["split", "of", "with the term", "new seeds", "p (Holm)", "all seeds"], lines),
        "tables": [(split, table_of(plan.beyond(split), ("CPU s", *SCORES), results)) for split in SPLITS],
    }
