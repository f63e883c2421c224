"""The two reasons that the paper gives, as numbers of trainings that were watched."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.experiments import plan
from benchmarks.experiments.gradients import PARTS
from benchmarks.experiments.intervals import Difference, difference
from benchmarks.experiments.quantities import Record, said
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import HIGHER, NAMES, SAME, in_words, records_of, table
from benchmarks.experiments.trial import OBJECTIVES

_OF_LEAD, _OF_ANGLES = "english_pivot", "one_to_one"  # of which the paper says that it is higher
ANGLES = ("of a step", "of the expectation")


def english_and_others(record: Record) -> list[tuple[int, float, float]]:
    """Step, R@1 of English and the mean R@1 of the other languages, in percent, of each validation."""
    return [
        (
            of["step"],
            100 * of["recall@1"][plan.PIVOT],
            100 * statistics.mean(value for name, value in of["recall@1"].items() if name != plan.PIVOT),
        )
        for of in record["by_language"]
    ]


def mechanisms(results: Results) -> dict[str, str] | None:
    """The tables of the section; None if something has not been run."""
    rows = {row.name: records_of(row, results) for row in plan.mechanisms()}
    if not all(rows.values()):
        return None
    number = len(rows["one_to_k"][0]["by_language"])
    chosen = [number * part // 4 - 1 for part in (1, 2, 3, 4)]
    steps = [rows["one_to_k"][0]["by_language"][of]["step"] for of in chosen]

    def means(records: Sequence[Record], validation: int) -> str:
        of = [english_and_others(record)[validation] for record in records]
        return " / ".join(f"{statistics.mean(one[which] for one in of):.1f}" for which in (1, 2))

    def degrees(time: int, objective: str, part: str) -> str:
        of = [record["angles"][time][objective][part] for record in rows["one_to_k"]]
        return " / ".join(f"{statistics.mean(one[which] for one in of):.0f}" for which in ANGLES)

    times = [of["step"] for of in rows["one_to_k"][0]["angles"]]
    return {
        "languages": table(
            ["objective", *(f"step {step}" for step in steps)],
            [[NAMES[name], *(means(records, of) for of in chosen)] for name, records in rows.items()],
        ),
        "angles": table(
            ["objective", "part", *(f"step {step}" for step in times)],
            [
                [NAMES[name], part, *(degrees(time, name, part) for time in range(len(times)))]
                for part in PARTS
                for name in OBJECTIVES
            ],
        ),
        "in_words": table(["measured", "with", "the paper says", "against 1-to-K", "difference"], _against(rows)),
    }


def _against(rows: Mapping[str, Sequence[Record]]) -> list[list[str]]:
    """The others against 1-to-K: the lead of English at the end, and mean angles of a step and of the expected one."""

    def lead(record: Record) -> float:
        _, english, others = english_and_others(record)[-1]
        return english - others

    def angle(record: Record, objective: str, part: str, which: str) -> float:
        return statistics.mean(of[objective][part][which] for of in record["angles"])

    own, *others = OBJECTIVES
    lines: list[tuple[str, str, bool, Difference]] = []
    for other in others:
        of_seed = ({record["seed"]: lead(record) for record in rows[name]} for name in (other, own))
        lines.append(("lead of English in R@1, points", other, other == _OF_LEAD, difference(*of_seed)))
    for which in ANGLES:
        for part in PARTS:
            for other in others:
                of_seed = (
                    {record["seed"]: angle(record, name, part, which) for record in rows[own]} for name in (other, own)
                )
                lines.append((f"angle {which}, {part}, degrees", other, other == _OF_ANGLES, difference(*of_seed)))
    return [
        [of, NAMES[other], HIGHER if is_said else SAME, in_words(found), said(found, "R@1")]
        for of, other, is_said, found in lines
    ]
