"""The comparisons that README reports, one after the other, each in a process of its own.

python -m benchmarks [NAME ...] [--small]

Each prints its tables and writes JSON; together they take minutes on 2 cores. Sizes and rounds are options of the
single ones: python -m benchmarks.ranks --help. How cost grows with work is measured by python -m benchmarks.growth.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

COMPARISONS = {  # name of the module: what it compares, and arguments with which it takes seconds
    "ranks": ("exact ranks, recalls and MRV, with other ways to recalls", "--images 60 --rounds 1"),
    "loss": ("the 1-to-K loss in tiles, with its other forms", "--batches 20 --rounds 1"),
    "step": (
        "a training step by part, with a plain one",
        "--images 2 --pixels 32 --layers 1 --rounds 1",
    ),
    "search": ("exact search of an index, with faiss", "--pictures 3000 --rounds 1"),
    "negatives": ("hard negatives of all rows at once, with row by row", "--batches 8 --rounds 1"),
}


def main() -> int:
    """Run the comparisons and say what was written; return 1 if one of them failed, else 0."""
    names = "\n".join(f"  {name:10} {what}" for name, (what, _) in COMPARISONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"{__doc__}\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    choices = [*COMPARISONS, "all"]
    parser.add_argument("names", nargs="*", metavar="NAME", choices=choices, default="all", help="which to run; or all")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, to see that everything runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"), help="folder of the JSON files")
    args = parser.parse_args()
    summary, failed = [], 0
    for name in COMPARISONS if "all" in args.names else args.names:
        path = args.output / f"{name}.json"
        print(f"\n== {name}: {COMPARISONS[name][0]}", flush=True)
        start = time.perf_counter()
        sizes = COMPARISONS[name][1].split() if args.small else []
        code = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *sizes, "-o", str(path)], check=False
        ).returncode
        failed += code != 0
        result = f"failed, exit status {code}" if code else f"wrote {path}"
        summary.append(f"{name}: {result}, after {time.perf_counter() - start:.0f} s")
    print("", *summary, sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
