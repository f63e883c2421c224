"""What is said of several seeds: means with intervals, and differences of runs with the same seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Mean(NamedTuple):
    """A mean over seeds, with the half width of its 95 % interval; NaN for fewer than two seeds."""

    value: float
    half: float


class Difference(NamedTuple):
    """A mean of differences over seeds, its interval, and the p of the paired t-test."""

    value: float
    half: float
    p: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.value) > self.half


def mean(values: Sequence[float]) -> Mean:
    """Compute the mean and the half width of Student's 95 % interval.

    Example:
        >>> value, half = mean([1.0, 2.0, 3.0])
        >>> value, round(half, 6)
        (2.0, 2.484138)
    """
    n = len(values)
    if n < 2:
        return Mean(float(np.mean(values)), math.nan)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return Mean(float(np.mean(values)), float(half))


def difference(own: Mapping[int, float], other: Mapping[int, float]) -> Difference:
    """Compare two settings seed by seed: own minus other.

    Args:
        own: Seed to value.
        other: The same; seeds that only one has do not count.

    Example:
        >>> [round(part, 4) for part in difference({0: 3.0, 1: 5.0, 2: 4.5}, {0: 2.0, 1: 3.0, 2: 3.0})]
        [1.5, 1.2421, 0.0351]
    """
    shared = sorted(own.keys() & other.keys())
    of = mean([own[seed] - other[seed] for seed in shared])
    if not of.half > 0:
        return Difference(*of, math.nan if len(shared) < 2 else float(of.value == 0))
    statistic = of.value / (of.half / stats.t.ppf(0.975, len(shared) - 1))
    return Difference(*of, float(2 * stats.t.sf(abs(statistic), len(shared) - 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p of several tests by Holm's method, so that all of them together err in 5 % of the cases.

    NaN is no test, and stays.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
        >>> holm([float("nan"), 0.01])
        [nan, 0.01]
    """
    adjusted, highest = [math.nan] * len(ps), 0.0
    tests = sorted((number for number, p in enumerate(ps) if not math.isnan(p)), key=lambda number: ps[number])
    for place, number in enumerate(tests):
        highest = max(highest, min(1.0, (len(tests) - place) * ps[number]))
        adjusted[number] = highest
    return adjusted
