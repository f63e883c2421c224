"""Comparisons on one thread: CPU seconds in turns, peak memory in a process of its own, and a table of both."""

from __future__ import annotations

import json
import os
import pickle
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Measured(NamedTuple):
    """What one way of doing something cost."""

    seconds: float  # of CPU, the median of the repetitions
    ratio: float  # to the floor, the median of the ratios of each round
    mebibytes: float | None  # at the peak, beyond what there was before


def compare(
    ways: Mapping[str, Callable[[], Any]], floor: str, *, rounds: int = 5, slow: Sequence[str] = (), memory: bool = True
) -> dict[str, Measured]:
    """Run every way in turns with the floor, and return what each cost.

    Peaks are measured first, while the process holds no memory that it could use again.

    Args:
        ways: Name to function.
        floor: The way that the others are compared with.
        rounds: Repetitions, after one that does not count.
        slow: Ways that are run once only.
        memory: Whether to measure peaks too.
    """
    peaks = {name: peak_mebibytes(way) if memory else None for name, way in ways.items()}
    measured = {}
    for name, way in ways.items():
        seconds: dict[str, list[float]] = {floor: [], name: []}
        ways[floor]()
        if name not in slow:
            way()
        for _ in range(1 if name in slow else rounds):
            for turn in seconds:
                start = time.process_time()
                ways[turn]()
                seconds[turn].append(time.process_time() - start)
        ratio = statistics.median(own / least for own, least in zip(seconds[name], seconds[floor], strict=True))
        measured[name] = Measured(statistics.median(seconds[name]), ratio, peaks[name])
    return measured


def peak_mebibytes(way: Callable[[], Any]) -> float:
    """Resident memory at its peak while a forked process runs ``way``, beyond what that process began with."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
            before = _status("VmRSS")
            way()
            os.write(writer, pickle.dumps((_status("VmHWM") - before) / 1024))
        finally:
            os._exit(0)
    os.wait()
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        result: float = pickle.load(file)
    return result


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def show(title: str, measured: Mapping[str, Measured], floor: str) -> None:
    """Print a table of what each way cost."""
    from tabulate import tabulate

    rows = [
        [name, f"{of.seconds:.3f}", f"{of.ratio:.2f}", "-" if of.mebibytes is None else f"{of.mebibytes:.0f}"]
        for name, of in measured.items()
    ]
    print(f"\n{title}\n{tabulate(rows, ['way', 'CPU s', f'x {floor}', 'peak MiB'], tablefmt='pipe')}", flush=True)


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__.split("+")[0]}


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results and machine as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")
