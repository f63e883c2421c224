"""Is 1-to-K more consistent? The paper's objectives side by side on the built-in pictures.

python -m benchmarks.objectives [PART ...] [--reduced]

Parts: tuning, objectives, mechanisms, candidates, ablations, page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.experiments import plan
from benchmarks.experiments.running import Results, run
from benchmarks.measure import one_or_more


def trials(part: str):
    """All trainings of a part."""
    if part == "tuning":
        return plan.tuning()
    if part == "objectives":
        return [
            trial
            for seed in plan.SEEDS
            for split in plan.SPLITS
            for budget in plan.BUDGETS
            for row in plan.objectives(budget, split, [seed])
            for trial in row.trials
        ]
    if part == "candidates":
        return [trial for of in plan.candidates().values() for trial in of]
    rows = plan.mechanisms() if part == "mechanisms" else [row for of in plan.ablations().values() for row in of]
    return sorted((trial for row in rows for trial in row.trials), key=lambda trial: trial.seed)


def main() -> None:
    """Train what has not been trained yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["tuning"])
    parser.add_argument("--folder", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    parser.add_argument("--jobs", type=one_or_more, default=2, help="trainings at a time, of one thread each")
    args = parser.parse_args()
    results = Results(args.results / "runs.jsonl")
    for part in args.parts:
        print(f"== {part}", flush=True)
        run(trials(part), results, args.folder, args.jobs)


if __name__ == "__main__":
    main()
