"""Time and memory of exact ranks and of the 1-to-K loss as work grows: JSON, and a figure beside it.

python -m benchmarks.growth [--images 1000 3000] [--batches 256 512] [--plot_only]

Embeddings, ways and floors are those of benchmarks.ranks (trained) and benchmarks.loss. Other ways stop before they
would take tens of minutes or more than 10 GiB. One thread, CPU seconds, medians of turns with the floor, fewer turns
for large sizes; peak memory in a process of its own, without the embeddings. The default sizes take about half an hour
and 5 GiB. Needs pip install -e '.[bench]'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks import loss, ranks
from benchmarks.growth_figure import draw
from benchmarks.measure import Measured, arguments, compare, in_process, one_or_more, peak_mebibytes, show, write

LARGEST = {  # sizes up to which other ways are tried
    "numpy argsort of each row": 30_000,
    "torch argsort": 10_000,
    "dense": 4096,
    "log-softmax with one-hot labels": 4096,
}
LEAST = 8  # a size at which all memory is that of the libraries
TURNS = 5 * 10**8  # cells of similarity in the turns of one way; it has three at least, but others of more cells one


class Work(NamedTuple):
    """Something to be done, of any size."""

    ways: Callable[[int], dict[str, Callable[[], Any]]]  # of a size
    floor: str
    ours: str
    captions: int  # of each image


def ways_to_ranks(images: int) -> dict[str, Callable[[], Any]]:
    """Return those that can be tried."""
    others = [name for name in ranks.OTHERS if images <= LARGEST.get(name, 0)]
    return ranks.ways(images, trained=True, others=others)


def ways_to_the_loss(batch: int) -> dict[str, Callable[[], Any]]:
    """Return those that can be tried."""
    return loss.ways(batch, {name: of for name, of in loss.LOSSES.items() if batch <= LARGEST.get(name, batch)})


WORK = {
    "ranks": Work(ways_to_ranks, ranks.FLOOR, ranks.OURS, 1),
    "loss": Work(ways_to_the_loss, loss.FLOOR, loss.OURS, loss.LANGUAGES),
}


def measured_at(size: int, work: Work, rounds: int) -> dict[str, Measured]:
    """Return what each way costs."""
    ways, cells = work.ways(size), work.captions * size**2
    slow = [name for name in ways if name not in (work.floor, work.ours)] if cells > TURNS else []
    return compare(ways, work.floor, rounds=min(rounds, max(3, TURNS // cells)), slow=slow)


def least_mebibytes(work: Work) -> float:
    """Return what any size takes: code and buffers of the libraries, of the way that uses most of them."""
    return max(peak_mebibytes(way) for way in work.ways(LEAST).values())


def grown(name: str, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Measure one kind of work at all sizes, and print a table of each.

    Returns:
        ``libraries_mebibytes``, and ``ways``: for each way ``sizes`` and, for these, ``seconds``, ``ratio`` to the
        floor and ``mebibytes``; ``power`` of the size with which seconds grow from the last size but one to the last;
        and ``next``, what a way that stopped would take at the next size if both grew with the square of the size.
    """
    work = WORK[name]
    ways: dict[str, Any] = {}
    for size in sizes:
        measured = in_process(partial(measured_at, size, work, rounds))
        show(f"{name}, {size} images", measured, work.floor)
        for way, of in measured.items():
            series = ways.setdefault(way, {"sizes": [], **{field: [] for field in Measured._fields}})
            for field, value in {"sizes": size, **of._asdict()}.items():
                series[field].append(value)
    for way, series in ways.items():
        tried, seconds = series["sizes"], series["seconds"]
        if len(tried) > 1:
            series["power"] = math.log(seconds[-1] / seconds[-2]) / math.log(tried[-1] / tried[-2])
            print(
                f"{name}, {way}: from {tried[-2]} to {tried[-1]} images seconds grow by the power {series['power']:.2f}"
            )
        if len(tried) < len(sizes):
            size = sizes[len(tried)]
            times = (size / tried[-1]) ** 2
            series["next"] = {"size": size} | {of: times * series[of][-1] for of in ("seconds", "mebibytes")}
    return {"libraries_mebibytes": in_process(partial(least_mebibytes, work)), "ways": ways}


def main() -> None:
    """Measure, print tables, write JSON and the figure."""
    parser = arguments(__doc__, "growth", rounds=21)
    parser.add_argument("--images", type=one_or_more, nargs="+", default=[1000, 3000, 10_000, 30_000, 100_000])
    parser.add_argument("--batches", type=one_or_more, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--plot_only", action="store_true", help="draw the figure of the JSON that is there")
    args = parser.parse_args()
    if args.plot_only and not args.output.is_file():
        parser.error(f"{args.output}: there is no such file to draw; leave --plot_only out")
    torch.set_num_threads(1)
    if not args.plot_only:
        sizes = {"ranks": sorted(args.images), "loss": sorted(args.batches)}
        write(args.output, {name: grown(name, of, args.rounds) for name, of in sizes.items()})
    document = json.loads(args.output.read_text(encoding="utf-8"))
    draw(document, args.output.with_suffix(".png"))
    print(f"\nwrote {args.output} and {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
