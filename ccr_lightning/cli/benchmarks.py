"""``ccr test --benchmarks``: a run on several benchmarks, one after the other, and a table of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from ccr_lightning.cli.arguments import given_configs, is_given, last_value, without
from ccr_lightning.cli.messages import load_config
from ccr_lightning.cli.model_config import model_name, names_model
from ccr_lightning.cli.run_config import find_checkpoint, given_checkpoint
from ccr_lightning.errors import CCRError

OPTION = "--benchmarks"
_INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses


def run(args: Sequence[str]) -> int:
    """Scores each benchmark in a process of its own, which gets all other arguments, then prints a table.

    A benchmark that fails does not keep the others from being scored.

    Raises:
        CCRError: For whatever the user can put right; if a benchmark failed, its own message is above.
    """
    files, others = _split(args)
    _check(files, others)
    given = given_checkpoint(args)
    if names_model(given):
        checkpoint, run_folder = given, Path("runs") / model_name(given)
    else:
        found, run_folder = find_checkpoint("--ckpt_path", given)
        checkpoint = str(found)
    runs_dir = Path(last_value(others, "--runs_dir") or run_folder.parent)
    for option in ("--ckpt_path", "--runs_dir"):
        others = without(others, option)
    failed: list[str] = []
    written: list[Path] = []
    for number, file in enumerate(files, 1):
        print(f"[{number} of {len(files)}] {file}", flush=True)
        folder = runs_dir / f"{run_folder.name}-{Path(file).stem}"
        before = _results(folder)
        place = ["--ckpt_path", checkpoint, "--name", folder.name, "--runs_dir", str(runs_dir)]
        ccr = [sys.executable, "-m", "ccr_lightning.cli.main", "test"]
        status = _status([*ccr, "--config", file, *others[1:], *place])
        if status in _INTERRUPTED:
            return status
        if status:
            failed.append(file)
        written += [path for path, state in _results(folder).items() if before.get(path) != state]
    if written:
        from ccr_lightning.evaluation.comparison import comparison, read_results, rows_of

        print(comparison(rows_of(read_results(written)), "table"), flush=True)
    if failed:
        raise CCRError(f"{len(failed)} of {len(files)} have no results, for reasons shown above: {', '.join(failed)}.")
    return 0


def _split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The benchmarks, and the command with its other arguments."""
    files: list[str] = []
    others = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(f"{OPTION}=") else [arg])]
    while OPTION in others:
        place = others.index(OPTION)
        named = list(takewhile(lambda arg: not arg.startswith("-"), others[place + 1 :]))
        files += named
        del others[place : place + 1 + len(named)]
    return files, others


def _check(files: Sequence[str], others: Sequence[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CCRError(f"{OPTION} starts its own processes: leave torchrun out, or test one benchmark at a time.")
    if is_given(others, "--name"):
        raise CCRError(f"--name is one folder: leave it out with {OPTION}, whose results go to RUN-BENCHMARK each.")
    if not files:
        raise CCRError(f"{OPTION} names no configuration: give some, such as configs/test/*.yaml.")
    for file in files:
        if not _has_source(file):
            raise CCRError(f"{file}: this names no data.source, so it is no benchmark; pass it with --config.")
    for file in given_configs(others):
        if _has_source(file):
            raise CCRError(f"{file}: this names a data.source, and so do the benchmarks; pass it with {OPTION} too.")
    stem, times = Counter(Path(file).stem for file in files).most_common(1)[0]
    if times > 1:
        raise CCRError(f"{OPTION}: {times} files are called {stem}, whose results would go to one folder: rename one.")


def _has_source(file: str) -> bool:
    data = load_config(file).get("data")
    return isinstance(data, dict) and "source" in data


def _results(folder: Path) -> dict[Path, tuple[int, int]]:
    """The results files of a folder, and what changes when one is written anew."""
    found = sorted(folder.glob("results*.json"), key=lambda path: path.stem)
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def _status(command: Sequence[str]) -> int:
    """Runs a command and returns its status; who interrupts or ends this process does that to the command."""
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            process.wait()
        except KeyboardInterrupt:  # the command got it too, and says so
            process.wait()
            return 128 + signal.SIGINT
        finally:
            signal.signal(signal.SIGTERM, before)
    return 128 - process.returncode if process.returncode < 0 else process.returncode
