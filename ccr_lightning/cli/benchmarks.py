"""``ccr test --benchmarks``: a run on several benchmarks, one after the other, and a table of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ccr_lightning.cli.messages import load_config
from ccr_lightning.cli.run_config import find_checkpoint, place_of_checkpoint, with_values_apart
from ccr_lightning.errors import CCRError

OPTION = "--benchmarks"


def is_asked_for(args: Sequence[str]) -> bool:
    """Whether the arguments of ``ccr test`` name several benchmarks."""
    return any(arg == OPTION or arg.startswith(f"{OPTION}=") for arg in args)


def run(args: Sequence[str]) -> int:
    """Scores each benchmark in a process of its own, which gets all other arguments, then prints a table.

    A benchmark that fails does not keep the others from being scored.

    Raises:
        CCRError: For whatever the user can put right; if a benchmark failed, its own message is above.
    """
    for option in (OPTION, "--ckpt_path", "--runs_dir"):
        args = with_values_apart(args, option)
    place = args.index(OPTION)
    files = list(takewhile(lambda arg: not arg.startswith("-"), args[place + 1 :]))
    others = [*args[1:place], *args[place + 1 + len(files) :]]
    _check(files, others)
    place = place_of_checkpoint(["test", *others]) - 1
    checkpoint, run_folder = find_checkpoint("--ckpt_path", others[place])
    others[place] = str(checkpoint)
    runs_dir = Path(others[others.index("--runs_dir") + 1]) if "--runs_dir" in others else run_folder.parent
    began, failed, written = time.time(), [], []
    for number, file in enumerate(files, 1):
        _say(f"[{number} of {len(files)}] {file}")
        folder = runs_dir / f"{run_folder.name}-{Path(file).stem}"
        given = ["--config", file, *others, "--name", folder.name, "--runs_dir", str(runs_dir)]
        if subprocess.run([sys.executable, "-m", "ccr_lightning.cli.main", "test", *given], check=False).returncode:
            failed.append(file)
        else:
            found = sorted(folder.glob("results*.json"), key=lambda path: path.stem)
            written += [path for path in found if path.stat().st_mtime >= began]
    if written and _is_first_process():
        from ccr_lightning.evaluation.comparison import comparison, read_results, rows_of

        _say(comparison(rows_of(read_results(written)), "table"))
    if failed:
        raise CCRError(f"{len(failed)} of {len(files)} have no results, for reasons shown above: {', '.join(failed)}.")
    return 0


def _check(files: Sequence[str], others: Sequence[str]) -> None:
    if any(arg.split("=", 1)[0] == "--name" for arg in others):
        raise CCRError(f"--name is one folder: leave it out with {OPTION}, whose results go to RUN-BENCHMARK each.")
    if not files:
        raise CCRError(f"{OPTION} names no configuration: give some, such as configs/test/*.yaml.")
    for file in files:
        load_config(file)
    stem, times = Counter(Path(file).stem for file in files).most_common(1)[0]
    if times > 1:
        raise CCRError(f"{OPTION}: {times} files are called {stem}, whose results would go to one folder: rename one.")


def _is_first_process() -> bool:
    return all(os.environ.get(rank, "0") == "0" for rank in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def _say(line: str) -> None:
    if _is_first_process():
        print(line, flush=True)
