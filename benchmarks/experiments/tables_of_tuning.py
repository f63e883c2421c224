"""Tables of learning rates, on the validation splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.experiments import plan
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import QUANTITIES
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import NAMES, cells_of, records_of, table
from benchmarks.experiments.trial import OBJECTIVES, SPLITS


def tuning(results: Results) -> dict[str, Any]:
    """Tables of all rates, of the best two, and of longer trainings, and those whose best rate is the highest tried."""
    finalists = [
        [NAMES[objective], f"{rate:g}", *(_cell(results, objective, rate, split) for split in SPLITS)]
        for objective, rates in plan.FINALISTS.items()
        for rate in rates
    ]
    return {
        "rates": table(
            ["objective", *(f"{rate:g}" for rate in plan.LEARNING_RATES)],
            [_by_rate(results, NAMES[name], name, plan.LEARNING_RATES) for name in OBJECTIVES],
        ),
        "finalists": table(["objective", "learning rate", *SPLITS], finalists),
        "longer": table(
            ["longer", *(f"{rate:g}" for rate in plan.RATES_OF_LONGER)],
            [
                _by_rate(results, f"{NAMES['one_to_one']}, {count} epochs", "one_to_one", plan.RATES_OF_LONGER, count)
                for count in plan.longer()
            ],
        ),
        "at_the_edge": _at_the_edge(results),
    }


def _by_rate(
    results: Results, name: str, objective: str, rates: Sequence[float], count: int = plan.EPOCHS
) -> list[str]:
    """A row: at each rate both splits, with the first seed."""
    cells = (", ".join(_cell(results, objective, rate, split, count, seeds=1) for split in SPLITS) for rate in rates)
    return [name, *cells]


def _cell(results: Results, *of: Any, seeds: int = len(plan.TUNING_SEEDS)) -> str:
    (cell,) = cells_of(Row("", plan.tuning(*of)[:seeds]), ("mean recall",), results)
    return cell


def _at_the_edge(results: Results) -> list[str]:
    """Longer trainings for which the highest rate that was tried is the best."""
    found = []
    for count in plan.longer():
        for split in SPLITS:
            recalls = [
                QUANTITIES["mean recall"].of(record)
                for rate in plan.RATES_OF_LONGER
                for record in records_of(Row("", plan.tuning("one_to_one", rate, split, count)), results)
            ]
            if recalls and recalls[-1] == max(recalls):
                found.append(f"{count} epochs on `{split}`")
    return found
