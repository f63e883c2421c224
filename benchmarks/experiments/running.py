"""Trains trials side by side, each as a command of its own, and keeps their results in a file of lines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.experiments.commands import Commands, Stopped
from benchmarks.experiments.trial import Trial, scores
from benchmarks.measure import machine
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.libraries import reason
from ccr_lightning.locks import one_process

# Of every record.
FIELDS = {"key", "objective", "split", "seed", "scored", "scores", "cost", "versions", "commit", "processor"}
MEASURED = ("cost", "by_language", "angles")  # JSON that callbacks leave in a run's folder


class Results:
    """What was found of trials, in a file of JSON lines, one for each, sorted; a line is never half written.

    Args:
        path: The file.
        more: Configurations that were laid over those of every trial.
    """

    def __init__(self, path: Path, more: Sequence[Path] = ()) -> None:
        self.path, self.more = path, more
        self.found: dict[str, dict[str, Any]] = {}
        self.read()

    def read(self) -> None:
        """Take in what the file has by now.

        Raises:
            SystemExit: If it cannot be read, or a line is no result.
        """
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{self.path} cannot be read ({error}): mend it, or name another folder") from error
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if missing := FIELDS - record.keys():
                    raise ValueError(f"it lacks {', '.join(sorted(missing))}")
                self.found[record["key"]] = record
            except (ValueError, TypeError, AttributeError) as error:
                raise SystemExit(
                    f"{self.path}, line {number} is no result ({error}): mend it, or remove the line"
                ) from error

    def of(self, trial: Trial) -> dict[str, Any] | None:
        """What was found of a trial; None if it has not been run with these settings."""
        return self.found.get(trial.key(self.more))

    def add(self, record: dict[str, Any]) -> None:
        """Keep what was found of a trial."""
        self.found[record["key"]] = record
        self.write()

    def write(self) -> None:
        """Write the file anew.

        Raises:
            CCRError: If that fails.
        """
        lines = sorted(json.dumps(record, sort_keys=True) for record in self.found.values())
        with atomic_write(self.path, "the results", "name another folder") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())


def run(trials: Iterable[Trial], results: Results, folder: Path, jobs: int) -> list[dict[str, Any]]:
    """Run what has no results yet, ``jobs`` at a time; those that were interrupted go on.

    Returns:
        The records of those that were run now.

    Raises:
        SystemExit: If one fails, when all others have ended, and after SIGINT or SIGTERM, which end them.
        CCRError: If another process is at work in the folder or on the results, or they cannot be written; and if
            there is no commit that a record could name.
    """
    commit()
    every = {trial.key(results.more): trial for trial in trials}
    commands = Commands()
    with (
        _one_process(folder / ".lock"),
        _one_process(results.path.with_suffix(".lock")),
        commands.ended_by_signals(),
        ThreadPoolExecutor(jobs) as pool,
    ):
        results.read()  # of a process that had the lock before
        left = [trial for trial in every.values() if results.of(trial) is None]
        print(f"{len(left)} trainings, {len(every) - len(left)} done before, {jobs} at a time, in {folder}", flush=True)
        running = {pool.submit(_run, trial, results.more, folder, commands): trial for trial in left}
        try:
            new, failed = _collect(running, results, folder)
        except BaseException:  # what is trained from now on would be lost
            commands.end(signal.SIGTERM)
            raise
    if commands.signal is not None:
        print("interrupted: the same command goes on", file=sys.stderr, flush=True)
        raise SystemExit(128 + commands.signal)
    if failed:
        raise SystemExit("\n".join(["some trainings failed:", *failed]))
    return new


def _collect(
    running: Mapping[Future[dict[str, Any]], Trial], results: Results, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Keep the record of each training as soon as it has ended; return them, and what is said of those that failed."""
    new, failed = [], []
    for number, future in enumerate(as_completed(running), 1):
        trial = running[future]
        try:
            record = future.result()
        except Stopped:
            continue
        except subprocess.CalledProcessError as error:
            failed.append(f"{trial.title}: see {error.cmd}")
            print(f"failed: {failed[-1]}", flush=True)
            continue
        results.add(record)
        _remove(folder, record["key"])
        new.append(record)
        found = record["scores"]
        print(
            f"{number} of {len(running)}: {trial.title}: mean recall {100 * found['mean_recall']:.1f}, "
            f"MRV {found['mrv']['mean']:.1f}, {record['cost']['cpu_seconds']:.0f} CPU s",
            flush=True,
        )
    return new, failed


def _one_process(lock: Path) -> AbstractContextManager[None]:
    busy = f"{lock.parent}: another process is at work in it; wait for it, or name another folder."
    return one_process(lock, busy, "name another one")


def _run(trial: Trial, more: Sequence[Path], folder: Path, commands: Commands) -> dict[str, Any]:
    """Train one, test it, and return its record."""
    if commands.signal is not None:
        raise Stopped
    key, at_start = trial.key(more), commit()
    run_folder, config, log = folder / key, folder / f"{key}.yaml", folder / f"{key}.log"
    settings = trial.settings(more)
    if trial.selects:
        settings["trainer"]["limit_test_batches"] = 0
    config.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")

    def ccr(*arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CCR_TRUST": "benchmarks"}
        commands.run([sys.executable, "-m", "ccr_lightning.cli.main", *arguments], log, environment)

    ccr("fit", "--config", str(config), "--runs_dir", str(folder), "--name", key, "--resume", "auto")
    if trial.selects:
        ccr("validate", "--ckpt_path", str(run_folder))
    elif trial.tested_on:
        ccr("test", "--ckpt_path", str(run_folder), "--data.languages", json.dumps(list(trial.tested_on)))
    results = run_folder / ("results-val.json" if trial.selects else "results.json")
    document = json.loads(results.read_text(encoding="utf-8"))
    record = {
        "key": key,
        **trial.described,
        "scored": document["split"],
        "scores": scores(document),
        "versions": document["versions"],
        "commit": at_start,
        "processor": processor(settings["trainer"]["accelerator"]),
    }
    for name in MEASURED:
        file = run_folder / f"{name}.json"
        if file.exists():
            record[name] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _remove(folder: Path, key: str) -> None:
    """What a training leaves whose record is kept."""
    shutil.rmtree(folder / key)
    for ending in (".yaml", ".log"):
        (folder / f"{key}{ending}").unlink()


def processor(accelerator: str) -> str:
    """The name of what a training runs on: of this machine's CPU, or of its GPU."""
    return str(machine()["processor"]) if accelerator == "cpu" else torch.cuda.get_device_name()


def commit() -> str:
    """The commit of the working tree, with a + if there are changes of anything but results, which trainings write.

    Raises:
        CCRError: If it cannot be told.
    """
    named = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results", ":!docs/results.md")
    return f"{named}+" if changed else named


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        says = getattr(error, "stderr", None) or str(error)
        raise CCRError(
            f"git does not tell the commit, which results name ({reason(ValueError(says))}); run it in a clone of the "
            "repository."
        ) from error
