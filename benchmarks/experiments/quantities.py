"""The numbers of the page, from records alone: each has a name, a unit and how it is made of the scores of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.experiments.ablations import RARE, UNSEEN
from benchmarks.experiments.intervals import Difference, difference, mean
from benchmarks.experiments.plan import PIVOT

Record = Mapping[str, Any]
_SHORT = {"i2t": "image_to_text", "t2i": "text_to_image"}


class Quantity(NamedTuple):
    """Something that is said of a run."""

    of: Callable[[Record], float]
    digits: int
    is_ratio: bool = False  # whether means are geometric, and runs are compared by their quotient


def _recall(direction: str, k: int) -> Callable[[Record], float]:
    return lambda record: 100 * float(record["scores"]["recalls"][_SHORT[direction]][f"recall@{k}"])


def _both(k: int) -> Callable[[Record], float]:
    return lambda record: statistics.mean(_recall(direction, k)(record) for direction in _SHORT)


def _spread(name: str, of: str) -> Callable[[Record], float]:
    return lambda record: float(record["scores"][name][of])


def _worst(record: Record) -> float:
    return 100 * min(record["scores"]["of_language"].values())


def _below_english(record: Record) -> float:
    of = record["scores"]["of_language"]
    return 100 * (of[PIVOT] - statistics.mean(value for name, value in of.items() if name != PIVOT))


def _of_languages(languages: Collection[str]) -> Callable[[Record], float]:
    def of(record: Record) -> float:
        found = record["scores"]["recall@1_of_language"]
        return 100 * statistics.mean(found[name][direction] for name in languages for direction in _SHORT.values())

    return of


RAREST = [language for language, share in RARE.items() if share == min(RARE.values())]
QUANTITIES = {
    **{f"{d} R@{k}": Quantity(_recall(d, k), 1) for d in _SHORT for k in (1, 5, 10)},
    **{f"R@{k}": Quantity(_both(k), 1) for k in (1, 5, 10)},
    "R@1 of the rarest": Quantity(_of_languages(RAREST), 1),
    "R@1 of the unseen": Quantity(_of_languages(UNSEEN), 1),
    "mean recall": Quantity(lambda record: 100 * float(record["scores"]["mean_recall"]), 1),
    "MRV": Quantity(_spread("mrv", "mean"), 1, is_ratio=True),
    **{f"{d} MRV": Quantity(_spread("mrv", direction), 1, is_ratio=True) for d, direction in _SHORT.items()},
    "MRSD": Quantity(_spread("mrsd", "mean"), 2, is_ratio=True),
    "worst language": Quantity(_worst, 1),
    "below English": Quantity(_below_english, 1),
    "same first": Quantity(lambda record: 100 * float(record["scores"]["same_first"]), 1),
    "gap to English": Quantity(lambda record: abs(_below_english(record)), 1),
    "images": Quantity(lambda record: record["cost"]["images"] / 1e3, 0),
    "tokens": Quantity(lambda record: record["cost"]["tokens"] / 1e6, 2),
    "CPU s": Quantity(lambda record: record["cost"]["cpu_seconds"], 0),
    "wall s": Quantity(lambda record: record["cost"]["wall_seconds"], 0),
}


COSTS = ("images", "tokens", "CPU s", "wall s")


class Interval(NamedTuple):
    """A mean over seeds, and the ends of its 95 % interval; NaN for fewer than two seeds."""

    value: float
    low: float
    high: float


def average(records: Sequence[Record], name: str) -> Interval:
    """The mean of a quantity over seeds, with its interval; geometric, from logarithms, for a ratio."""
    quantity = QUANTITIES[name]
    found = mean([_on_scale(quantity, record) for record in records])
    ends = (found.value, found.value - found.half, found.value + found.half)
    return Interval(*(math.exp(end) for end in ends) if quantity.is_ratio else ends)


def compared(own: Sequence[Record], other: Sequence[Record], name: str) -> Difference:
    """The paired comparison of a quantity: a difference, or for a ratio that of natural logarithms."""
    quantity = QUANTITIES[name]
    return difference(
        *({record["seed"]: _on_scale(quantity, record) for record in records} for records in (own, other))
    )


def _on_scale(quantity: Quantity, record: Record) -> float:
    """Where means and differences are taken."""
    return math.log(quantity.of(record)) if quantity.is_ratio else quantity.of(record)


def shown(records: Sequence[Record], name: str) -> str:
    """The mean and its interval, as in a table: ``45.3 ± 1.2``, or ``10.4 [8.1, 13.3]`` for a ratio."""
    value, low, high = average(records, name)
    quantity = QUANTITIES[name]
    one, two, three = (f"{of:,.{quantity.digits}f}" for of in (value, low, high))
    if math.isnan(low) or name in COSTS:
        return one
    return f"{one} [{two}, {three}]" if quantity.is_ratio else f"{one} ± {high - value:,.{quantity.digits}f}"


def said(found: Difference, name: str) -> str:
    """A comparison with its interval: ``+3.1 [+2.0, +4.2]``, or ``x 0.41 [0.30, 0.56]`` for a ratio."""
    low, high = found.value - found.half, found.value + found.half
    if QUANTITIES[name].is_ratio:
        return f"× {math.exp(found.value):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
    digits = QUANTITIES[name].digits
    return f"{found.value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
