"""Comparisons on one thread: CPU seconds in turns, peak memory in a process of its own, and a table of both."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ccr_lightning.functional.similarity import slices

T = TypeVar("T")


class Measured(NamedTuple):
    """What one way of doing something cost."""

    seconds: float  # of CPU, the median of the repetitions
    ratio: float  # to the floor, the median of the ratios of each round
    mebibytes: float | None  # at the peak, beyond what there was before


def arguments(doc: str | None, name: str, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser of what all comparisons have: rounds, and where the JSON goes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=one_or_more, default=rounds, help="repetitions, of which medians are taken")
    parser.add_argument("-o", "--output", type=Path, default=Path(f"runs/benchmarks/{name}.json"), help="the JSON file")
    return parser


def one_or_more(text: str) -> int:
    """Return the number that an option's text is.

    Raises:
        argparse.ArgumentTypeError: It is not 1 or more.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def product_of_tiles(rows: Tensor, columns: Tensor, tile: tuple[int, int]) -> None:
    """What similarities take at least: every cell of ``rows @ columns.T`` once, tile by tile, kept nowhere."""
    space = torch.empty(tile[0] * tile[1])
    for own in slices(len(rows), tile[0]):
        for others in slices(len(columns), tile[1]):
            shape = (own.stop - own.start, others.stop - others.start)
            torch.mm(rows[own], columns[others].T, out=space[: shape[0] * shape[1]].view(shape))


def compare(
    ways: Mapping[str, Callable[[], Any]], floor: str, *, rounds: int = 5, slow: Sequence[str] = (), memory: bool = True
) -> dict[str, Measured]:
    """Run every way in turns with the floor, and return what each cost.

    Peaks are measured first, while the process holds no memory that it could use again: call it ``in_process``, if
    something was run before.

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
    return in_process(partial(_peak, way))


def in_process(function: Callable[[], T]) -> T:
    """Run a function in a forked process, which leaves nothing in the memory of this one, and return its result.

    Raises:
        RuntimeError: If the process ends without a result.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def target() -> None:
        torch.set_num_threads(torch.get_num_threads())  # makes torch's pool anew, or threads of autograd race to do so
        sender.send(function())

    process = context.Process(target=target)
    process.start()
    sender.close()
    try:
        result: T = receiver.recv()
    except EOFError:
        raise RuntimeError("a forked process failed, or was killed: what it printed says more") from None
    finally:
        process.join()
    return result


def _peak(way: Callable[[], Any]) -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _status("VmRSS")
    way()
    return (_status("VmHWM") - before) / 1024


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
