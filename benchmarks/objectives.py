"""Is 1-to-K more consistent? The paper's objectives side by side on the built-in pictures.

python -m benchmarks.objectives [PART ...] [--reduced]

Trains the objectives of configs/experiments at equal images, equal text tokens and equal CPU time, over seeds and both
splits, and all that is varied, and writes docs/results.md and its figures from what was found. What has a result in
runs.jsonl is not trained again, and what was interrupted goes on. Each training is a process of one thread. All of it
takes hours on 2 cores; --reduced trains the three objectives with two seeds at equal images, and prints their tables.
Needs pip install -e '.[bench,demo]'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.experiments import ablations, plan
from benchmarks.experiments.figures import draw
from benchmarks.experiments.page import REDUCED, page
from benchmarks.experiments.running import Results, commit, run
from benchmarks.experiments.tables import SCORES, table_of
from benchmarks.experiments.trial import CONFIGS, SPLITS, Trial
from benchmarks.measure import machine, one_or_more
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, could_not_be_written
from ccr_lightning.libraries import reason

PARTS = ("tuning", "objectives", "mechanisms", "candidates", "beyond", "ablations")
REDUCED_SEEDS = plan.SEEDS[:2]
SHIPPED = Path("docs/results")


def trials(part: str) -> list[Trial]:
    """All trainings of a part, those of the first seed first."""
    if part == "tuning":
        tuned = [trial for of in plan.tuned() for trial in plan.tuning(*of)]
        return sorted(tuned, key=lambda trial: trial.seed)
    if part == "candidates":
        return [trial for by_split in plan.candidates().values() for of in by_split.values() for trial in of]
    if part == "beyond":
        rows = [row for split in SPLITS for row in plan.beyond(split)]
    elif part == "objectives":
        rows = [row for split in SPLITS for row in plan.at_budgets(split)]
    elif part == "mechanisms":
        rows = plan.mechanisms()
    else:
        rows = [row for of in ablations.ablations().values() for row in of]
    return sorted((trial for row in rows for trial in row.trials), key=lambda trial: trial.seed)


def reduced(results: Results, folder: Path, jobs: int) -> None:
    """Train the objectives with two seeds at equal images, say how long it took, and print a table for each split."""
    rows = {split: plan.objectives(split, REDUCED_SEEDS) for split in SPLITS}
    start = time.monotonic()
    trials = [trial for of in rows.values() for row in of for trial in row.trials]
    new = run(trials, results, folder, jobs)
    records = [record for trial in trials if (record := results.of(trial)) is not None]
    same = []
    if not results.more:
        shipped = Results(SHIPPED / "runs.jsonl").found
        same = [record for record in records if record["scores"] == shipped.get(record["key"], {}).get("scores")]
        print(f"{len(same)} of {len(records)} trainings have exactly the scores in {SHIPPED}")
    if len(new) == len(trials):
        took = {
            "trainings": len(records),
            "seconds": round(time.monotonic() - start),
            "cpu_seconds": round(sum(record["cost"]["cpu_seconds"] for record in records)),
            "jobs": jobs,
            "commit": commit(),
            "cores": len(os.sched_getaffinity(0)),
            "processor": machine()["processor"],
        }
        if not results.more:
            took["same_scores"] = len(same)
        results.path.with_name(REDUCED).write_text(json.dumps(took, indent=2) + "\n", encoding="utf-8")
        print(f"{took['trainings']} trainings in {took['seconds'] / 60:.0f} minutes, {jobs} at a time")
    for split, of in rows.items():
        print(f"\n{split} split, equal images, {len(REDUCED_SEEDS)} seeds\n")
        print(table_of(of, ("CPU s", *SCORES), results))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what has no results yet, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}, page; by default all")
    parser.add_argument("--reduced", action="store_true", help="two seeds at equal images, and no page")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/objectives"), help="of trainings at work (%(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="folder of runs.jsonl and figures; the page is written beside it (docs/results, and with --reduced or "
        "--config a folder in runs/benchmarks)",
    )
    parser.add_argument("--jobs", type=one_or_more, default=2, help="trainings at a time (%(default)s)")
    parser.add_argument(
        "--config", type=Path, nargs="+", default=[], metavar="PATH", help="laid over every training, for a GPU, say"
    )
    args = parser.parse_args(arguments)
    refuse_what_cannot_be_done(args, parser)
    own = Path("runs/benchmarks", "-".join(["objectives", *(path.stem for path in args.config)]))
    folder = args.results or (own if args.reduced or args.config else SHIPPED)
    results = Results(folder / "runs.jsonl", args.config)
    if args.reduced:
        reduced(results, args.folder, args.jobs)
        return
    for part in args.parts or PARTS:
        if part in PARTS:
            print(f"== {part}", flush=True)
            run(trials(part), results, args.folder, args.jobs)
    if "page" in args.parts or not args.parts:
        if not results.found:
            parser.error(f"there are no results in {results.path} to make a page of")
        write_page(results, folder)


def refuse_what_cannot_be_done(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End with a sentence if arguments do not fit together, or name what is not there."""
    for part in args.parts:
        if part not in (*PARTS, "page"):
            parser.error(f"there is no part {part!r}: choose of {', '.join(PARTS)}, page")
    if args.reduced and args.parts:
        parser.error("--reduced is a part of its own: leave the others out")
    if not CONFIGS.exists():
        parser.error(f"there is no {CONFIGS} here: run it in the root of the repository")
    if args.results and args.results.name in ("", ".."):
        parser.error(f"--results {args.results}: name a folder; the page is named after it, and written beside it")
    for path in args.config:
        if not path.is_file():
            parser.error(f"--config {path}: there is no such file; parts stand before --config")
    try:
        plan.trained("one_to_k", SPLITS[0], 0).settings(args.config)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        parser.error(f"--config: settings that cannot be laid over those of the experiments ({reason(error)})")


def write_page(results: Results, folder: Path) -> None:
    """Draw the figures into the folder, and write the page beside it.

    Raises:
        CCRError: If they cannot be written.
    """
    try:
        draw(results, folder)
    except OSError as error:
        raise could_not_be_written(folder, "the figures", error, "name another folder") from error
    path = folder.with_name(f"{folder.name}.md")
    with atomic_write(path, "the page", "name another folder") as file:
        file.write(page(results).encode())
    print(f"wrote {path}, and figures into {folder}")


if __name__ == "__main__":
    try:
        main()
    except CCRError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
